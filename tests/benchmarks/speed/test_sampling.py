"""The sampling benchmark: work of each procedure, and the report. Times are not tested."""

import json

import pytest
import torch

from benchmarks.speed.sampling import PROCEDURES, RATIOS, main, parse_args
from benchmarks.speed.sampling_counts import count_samples
from benchmarks.speed.sampling_procedures import (
    build_pipeline,
    build_pndm,
    build_runs,
    run_floor,
    run_pipeline,
    run_release,
)


@pytest.fixture(scope="module")
def pipe():
    return build_pipeline("tiny", "cpu", torch.float32)


def work(counts):
    return {name: counts[name] for name in ("unet", "decoder", "encoder")}


def test_each_procedure_does_its_work(pipe):
    steps = 2
    evaluations = 3  # PNDM evaluates its first step twice
    release = count_samples(pipe, lambda: run_release(pipe, 2, steps))
    assert work(release) == {"unet": 2 * 3 * evaluations, "decoder": 2, "encoder": 2 * 3}
    ours = count_samples(pipe, lambda: run_pipeline(pipe, build_pndm(), 2, steps))
    shared = 2  # rows of the first evaluation: without pose, both frames are the same
    assert work(ours) == {"unet": 2 * 3 * evaluations - shared, "decoder": 2, "encoder": 2}
    floor = count_samples(pipe, lambda: run_floor(pipe, 2, steps))
    assert work(floor) == {"unet": 2 * 3 * evaluations - shared, "decoder": 2, "encoder": 0}


def test_a_distilled_model_runs_one_branch_per_step(pipe):
    runs = build_runs(pipe, "tiny", num_frames=2, steps=1, release_steps=1, is_compiled=False)
    assert set(runs) == set(PROCEDURES)
    for name, steps in (("distilled_4", 4), ("distilled_1", 1)):
        num_frames, num_steps, call = runs[name]
        counts = count_samples(pipe, lambda: call(num_steps))
        assert (num_frames, work(counts)) == (2, {"unet": 2 * steps, "decoder": 2, "encoder": 1})


@pytest.mark.slow
def test_the_report(tmp_path):
    words = ["--size", "tiny", "--device", "cpu", "--steps", "1", "--release_steps", "2", "--num_frames", "2"]
    words += ["--repeats", "1", "--lengths", "2", "--batch_sizes", "1", "2"]
    report = main(parse_args([*words, "--output", str(tmp_path / "report.json")]))
    assert set(report["ratios"]) == set(RATIOS) and set(report["median_seconds_a_frame"]) == set(PROCEDURES)
    assert all(ratio > 0 for ratio in report["ratios"].values()) and report["lengths"][2]["peak_bytes"] > 0
    assert list(report["batches"]["rows"]) == [f"plain, {steps} steps, {size}" for steps in (4, 1) for size in (1, 2)]
    assert all(row["share_of_ceiling"] > 0 for row in report["batches"]["rows"].values())
    assert json.loads((tmp_path / "report.json").read_text())["machine"]["threads"] >= 1


@pytest.mark.slow
def test_chosen_procedures_alone_are_measured(tmp_path):
    words = ["--size", "tiny", "--device", "cpu", "--release_steps", "2", "--num_frames", "1", "--repeats", "1"]
    words += ["--lengths", "--procedures", "release_defaults", "distilled_1"]
    report = main(parse_args([*words, "--output", str(tmp_path / "report.json")]))
    assert set(report["median_seconds_a_frame"]) == {"release_defaults", "distilled_1"}
    assert set(report["ratios"]) == {"a/distilled_1"} and report["batches"] == {}
