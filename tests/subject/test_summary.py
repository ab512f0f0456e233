"""Lines that stage 2 prints before it starts and at its end."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

import animate
from tests.launch import ROOT
from tests.tiny_components import get_dummy_pipeline
from training.models.run_costs import BLOCKS
from training.subject.summary import COUNTED, next_command, summarize_run


PHASES = {"denoiser": {"max_train_steps": 25}, "decoder": {"max_train_steps": 30}}
OPTIONS = {"train_batch_size": 1, "gradient_checkpointing": True, "mixed_precision": "no"}
OPTIONS |= {"prior_dataset": None, "prior_prob": 0.5, "num_textured_clips": 0}
PHOTOS = [Path(f"photos/{name}.jpg") for name in "abcd"]


def full_size(height=640, width=512):
    config = SimpleNamespace(default_height=height, default_width=width)
    return SimpleNamespace(config=config, unet=SimpleNamespace(config=SimpleNamespace(block_out_channels=BLOCKS)))


def test_the_five_lines_say_photos_people_steps_memory_and_time():
    lines = summarize_run(full_size(), PHOTOS, PHASES, 16, OPTIONS | {"prior_dataset": "ubc/frames"})
    assert lines[:4] == [
        "photos:       4 (a.jpg, b.jpg, c.jpg, ...), shown to the model at 512x640",
        "other people: 50% of the samples, from 'ubc/frames'",
        "steps:        25 of the UNet and adapter, then 30 of the VAE decoder; 16 samples each",
        "memory:       about 5.8 GB on a GPU, without what CUDA itself takes",
    ]
    assert len(lines) == 5 and "bars" in lines[4]


def test_a_run_without_other_people_is_warned_and_unknown_memory_not_guessed():
    lines = summarize_run(get_dummy_pipeline(), PHOTOS[:1], {"denoiser": {"max_train_steps": 3}}, 1, OPTIONS)
    assert "none (no --prior_dataset): poses that no photo shows may get worse" in lines[1]
    assert lines[3] == "memory:       not known for these settings"
    for pipeline, how in ((full_size(1280, 1024), {}), (full_size(), {"train_batch_size": 4})):
        assert "not known" in summarize_run(pipeline, PHOTOS, PHASES, 16, OPTIONS | how)[3]


def test_the_memory_is_that_which_was_counted():
    counted = json.loads((ROOT / "benchmarks" / "subjects" / "memory.json").read_text())["settings"]
    for (precision, trains_decoder), expected in COUNTED.items():
        phases = counted["default" if precision == "no" else precision]["bytes"]
        totals = [values["total"] for phase, values in phases.items() if phase != "decoder" or trains_decoder]
        assert max(totals) / 1e9 == pytest.approx(expected, abs=0.05)


def test_the_next_command_is_one_that_animate_takes():
    words = shlex.split(next_command("out of me", "model", PHOTOS[0], is_lora=True))
    assert words[:2] == ["python", "animate.py"]
    options = animate.parse_args(words[2:])
    assert (options.lora, str(options.model), str(options.image)) == (["out of me"], "model", "photos/a.jpg")
    whole = animate.parse_args(shlex.split(next_command("out", "model", PHOTOS[0], is_lora=False))[2:])
    assert whole.lora == [] and str(whole.model) == "out"
