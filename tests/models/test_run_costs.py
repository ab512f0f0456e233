"""What stage 1 says about its cost before it starts, against the measurements and against real caches."""

import json

import datasets
import pytest

from tests.data.test_parquet_files import write
from tests.launch import ROOT
from training import train
from training.data import procedural_fashion, samples
from training.models import run_costs
from training.models.run_costs import BLOCKS, PEAKS, RATES, SMALLEST_PEAK, cache_bytes, describe_run


def measured(name):
    return json.loads((ROOT / "benchmarks" / "speed" / name).read_text())


def test_the_figures_are_those_that_were_measured():
    for checkpointing, name in ((False, "training_step_full_cuda"), (True, "training_step_full_cuda_checkpointing")):
        figures = measured(f"{name}.json")
        rates = figures["median_samples_a_second"]
        assert RATES["a latent cache"][checkpointing] == pytest.approx(rates["latent_cache"], abs=0.05)
        assert RATES["pictures"][checkpointing] == pytest.approx(rates["pictures"], abs=0.05)
        peak = figures["peak_bytes"]["latent_cache"] / 1e9
        assert PEAKS[checkpointing][figures["settings"]["batch_size"]] == pytest.approx(peak, abs=0.05)
        assert figures["trained_parameters"] == run_costs.NUM_TRAINED
    settings = measured("training_memory_full_cuda.json")["settings"]
    assert SMALLEST_PEAK == pytest.approx(min(entry["peak_allocated_bytes"] for entry in settings) / 1e9, abs=0.05)


def plan(monkeypatch, num_frames=120_000, model="someone/sd", size=(640, 512), **how):
    rows = datasets.Dataset.from_dict({"video_id": [f"clip {index % 339}" for index in range(num_frames)]})
    monkeypatch.setattr(samples, "load_prepared", lambda name, split, hint: rows)
    common = {"train_batch_size": 8, "gradient_accumulation_steps": 2, "ema_decay": None, "checkpoints_total_limit": 2}
    return describe_run(model, "data", lambda n: common | {"max_train_steps": 5 * n // 16}, size, **how)


def test_the_paper_s_five_epochs_take_about_four_hours_of_an_h200(monkeypatch):
    data, samples, time, memory, disk = plan(monkeypatch, cached=True)
    assert data == "data:       339 clips, 120,000 frames ('data')"
    assert samples == "samples:    600,000 in 37,500 steps of 16, 5.0 epochs"
    assert time.startswith("time:       3.9 hours on one H200 with --mixed_precision bf16, 43 samples per second")
    assert time.endswith("from a latent cache (measured)")
    assert memory.startswith("GPU memory: 25.2 GB (measured); the least is 9.3 GB, by --train_batch_size 1")
    assert disk == "disk:       10.3 GB per checkpoint (2 kept), 20.3 GB for the latent cache"


def test_other_sizes_are_scaled_and_other_models_not_guessed(monkeypatch):
    assert [plan(monkeypatch, num)[2].split(" on ")[0] for num in (100, 250, 6000)] == [
        "time:       less than a minute",
        "time:       about a minute",
        "time:       23 minutes",
    ]
    *_, time, memory, disk = plan(monkeypatch, size=(320, 256), gradient_checkpointing=True)
    assert "2.1 hours" in time and "78 samples per second from pictures (scaled by the number of pixels" in time
    assert "at most 15.8 GB" in memory and "latent cache" not in disk
    *_, memory, _ = plan(monkeypatch, size=(1280, 1024))
    assert "GPU memory: more than was measured" in memory
    *_, last = plan(monkeypatch, model=ROOT / "model_card" / "tiny")
    assert last.startswith("time, memory: not measured for a UNet of this size")
    assert list(run_costs.read_channels("someone/sd")) == BLOCKS


def test_the_cache_s_size_is_that_of_a_frame():
    """16-bit mean and deviation of 4 channels, 50 tokens of 768 numbers in 16 bit, and U and V in 8 bit."""
    assert cache_bytes(1, (640, 512)) == 2 * 4 * 80 * 64 * 2 + 50 * 768 * 2 + 2 * 80 * 64


def test_a_dry_run_prints_the_cost_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--train_data", "procedural/smoke", "--pretrained_model_name_or_path", str(ROOT / "model_card" / "tiny")]
    train.main(train.parse_args([*words, "--max_train_steps", "8", "--train_batch_size", "4", "--dry_run"]))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("data:       6 clips, 36 frames") and "32 in 8 steps of 4, 0.9 epochs" in printed[1]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_drawn_figures_without_drawing_them(monkeypatch, capsys):
    def draw(*arguments):
        pytest.fail("a frame was drawn")

    monkeypatch.setattr(procedural_fashion, "render_clip", draw)
    monkeypatch.setattr(procedural_fashion.ProceduralFashion, "download_and_prepare", draw)
    config = procedural_fashion.ProceduralFashionConfig()
    num_frames = config.num_train * config.num_frames
    words = ["--max_train_steps", "1", "--validation_steps", "1", "--dry_run"]
    for name in ("procedural", "procedural/tiny"):
        train.main(train.parse_args(["--train_data", name, *words]))
        assert f" {config.num_train:,} clips, {num_frames:,} frames " in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dry_run_fails_as_the_run_does_without_its_validation_split(tmp_path, monkeypatch, capsys, streaming):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "own" / "train" / "a.parquet")
    words = ["--train_data", str(tmp_path / "own"), "--output_dir", str(tmp_path / "output"), "--validation_steps"]
    tiny = ["--pretrained_model_name_or_path", str(ROOT / "model_card" / "tiny"), "--height", "160", "--width", "128"]
    tiny += ["--max_train_steps", "1"] + ["--streaming"] * streaming
    lines = []
    for more in ([], ["--dry_run"]):
        with pytest.raises(ValueError, match="^`train_data` must have the split 'validation', got ") as refused:
            train.main(train.parse_args([*words, "1", *tiny, *more]))
        lines.append(str(refused.value))
    assert lines[0] == lines[1]
    capsys.readouterr()
    train.main(train.parse_args([*words, "none", *tiny, "--dry_run"]))
    assert capsys.readouterr().out.startswith("data:       1 clip, 3 frames")


def test_a_dry_run_of_a_stream_without_a_number_of_steps_fails_as_the_run_does():
    with pytest.raises(ValueError, match="`max_train_steps`"):
        train.main(train.parse_args(["--train_data", "procedural/smoke", "--streaming", "--dry_run"]))
