"""Impossible options of runs over held-out clips are refused before anything is loaded or drawn."""

import argparse

import pytest

from benchmarks.claims import clip_sampling, guidance, schedulers
from training import evaluation
from training.hub import repositories
from training.metrics import clips
from training.options.clips import RULES, check_clip_options


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (script, words, message)
        for script in (evaluation, guidance, schedulers)
        for words, message in (
            ("--device nonsense", "`device` must be one of this machine, got 'nonsense'"),
            ("--device meta", "`device` must be one of this machine, got 'meta'"),
            ("--num_clips 0", "`num_clips` must be at least 1, got 0"),
            ("--frames_per_clip 0", "`frames_per_clip` must be at least 1, got 0"),
        )
    ]
    + [
        (evaluation, words, message)
        for words, message in (
            ("--chunk_size 0", "`chunk_size` must be at least 1, got 0"),
            ("--scale 0", "`scale` must be at least 1, got 0"),
            ("--num_inference_steps 0", "`num_inference_steps` must be at least 1, got 0"),
            ("--image_guidance_scale -1", "`image_guidance_scale` must be a finite number, at least 0, got -1.0"),
            ("--pose_guidance_scale nan", "`pose_guidance_scale` must be a finite number, at least 0, got nan"),
            ("--num_consecutive 2", "`num_consecutive` must be 0 or at least 3, got 2"),
            ("--num_consecutive -3", "`num_consecutive` must be 0 or at least 3, got -3"),
            ("--seed -1", r"`seed` must be within \[0, 2\^63\), got -1"),
            ("--num_pictures -1", "`num_pictures` must be at least 0, got -1"),
            ("--i3d missing.pt", "`i3d` must come with `num_consecutive` 16, got 6"),
            (
                "--inception missing.pt",
                "`inception` must be a TorchScript file, got 'missing.pt', which does not exist",
            ),
        )
    ]
    + [
        (guidance, "--num_inference_steps 0", "`num_inference_steps` must be at least 1, got 0"),
        (guidance, "--image_scales 1 inf", "`image_scales` must be a finite number, at least 0, got inf"),
        (guidance, "--pose_scales 0 -0.5", "`pose_scales` must be a finite number, at least 0, got -0.5"),
        (schedulers, "--steps 4 0", "`steps` must be at least 1, got 0"),
        (schedulers, "--reference_steps 0", "`reference_steps` must be at least 1, got 0"),
    ],
)
def test_refusals_come_first(script, words, message, monkeypatch, tmp_path):
    used = [(clip_sampling, name) for name in ("default_size", "load_clips", "load_pipeline")]
    used += [(repositories, "default_size"), (repositories, "load_pipeline"), (clips, "load_clips")]
    for module, name in used:
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something was loaded"))
    options = script.parse_args(["--model", "none", "--output", str(tmp_path / "output"), *words.split()])
    with pytest.raises(ValueError, match=message):
        script.main(options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [evaluation, guidance, schedulers])
def test_defaults_pass_and_every_number_has_a_rule(script):
    options = script.parse_args(["--model", "none"])
    check_clip_options(options)
    numbers = {name: value for name, value in vars(options).items() if isinstance(value, int | float | list)}
    assert {name for name in numbers if name not in ("resume", "overwrite", "schedulers")} <= set(RULES)


def test_the_least_values_pass():
    least = {"num_clips": 1, "frames_per_clip": 1, "num_consecutive": 0, "chunk_size": 1, "seed": 0, "num_pictures": 0}
    least |= {"image_guidance_scale": 0.0, "pose_scales": [0.0, 1.0], "steps": [1], "device": "cpu", "scale": 1}
    check_clip_options(argparse.Namespace(**least))
    check_clip_options(argparse.Namespace(**least | {"num_consecutive": 3, "device": None}))
