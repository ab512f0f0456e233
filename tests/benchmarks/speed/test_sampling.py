"""The sampling benchmark: work of each procedure, and the report. Times are not tested."""

import json

import pytest
import torch

from benchmarks.speed.sampling import main, parse_args
from benchmarks.speed.sampling_procedures import build_pipeline, build_pndm, run_floor, run_pipeline, run_release


@pytest.fixture(scope="module")
def pipe():
    return build_pipeline("tiny", "cpu", torch.float32)


def count_samples(pipe, run):
    """Count the samples of the UNet, and the pictures that the VAE decodes and encodes."""
    counts = {"unet": 0, "decoder": 0, "encoder": 0}
    hooks = []
    for name, module in (("unet", pipe.unet), ("decoder", pipe.vae.decoder), ("encoder", pipe.vae.encoder)):

        def count(module, inputs, name=name):
            counts[name] += len(inputs[0])

        hooks.append(module.register_forward_pre_hook(count))
    run()
    for hook in hooks:
        hook.remove()
    return counts


def test_each_procedure_does_its_work(pipe):
    steps = 2
    evaluations = 3  # PNDM evaluates its first step twice
    release = count_samples(pipe, lambda: run_release(pipe, 2, steps))
    assert release == {"unet": 2 * 3 * evaluations, "decoder": 2, "encoder": 2 * 3}
    ours = count_samples(pipe, lambda: run_pipeline(pipe, build_pndm(), 2, steps))
    assert ours == {"unet": 2 * 3 * evaluations, "decoder": 2, "encoder": 2}
    floor = count_samples(pipe, lambda: run_floor(pipe, 2, steps))
    assert floor == {"unet": 2 * 3 * evaluations, "decoder": 2, "encoder": 0}


@pytest.mark.slow
def test_the_report(tmp_path):
    words = ["--size", "tiny", "--device", "cpu", "--steps", "1", "--release_steps", "2", "--num_frames", "2"]
    report = main(parse_args([*words, "--repeats", "1", "--lengths", "2", "--output", str(tmp_path / "report.json")]))
    assert set(report["ratios"]) == {"a/b", "a/c", "b/d", "b/instruct_pix2pix"}
    assert all(ratio > 0 for ratio in report["ratios"].values()) and report["lengths"][2]["peak_bytes"] > 0
    assert json.loads((tmp_path / "report.json").read_text())["machine"]["threads"] >= 1
