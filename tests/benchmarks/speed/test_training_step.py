"""The training-step benchmark: work of each procedure, the clock, and the report. Times are not tested."""

import contextlib
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from benchmarks.speed import training_memory, training_procedures
from benchmarks.speed.training_procedures import (
    Measured,
    StepClock,
    build_trained,
    count_flops,
    draw_samples,
    measure_matmul,
    measure_rates,
    measure_steps,
    run_floor,
    run_release,
    run_training,
)
from benchmarks.speed.training_step import main, parse_args


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipe():
    return build_trained("tiny", "cpu", gradient_checkpointing=False, channels_last=False)


@pytest.fixture(scope="module")
def samples(pipe, tmp_path_factory):
    return draw_samples(pipe, tmp_path_factory.mktemp("samples"), num_frames=6)


def count_samples(pipe, procedure, num_steps):
    """Count the samples of the UNet and of the VAE's encoder while a procedure runs, and check that it trains."""
    counts = {"unet": 0, "encoder": 0}
    hooks = []
    for name, module in (("unet", pipe.unet), ("encoder", pipe.vae.encoder)):

        def count(module, inputs, name=name):
            counts[name] += len(inputs[0])

        hooks.append(module.register_forward_pre_hook(count))
    before = pipe.unet.conv_in.weight.detach().clone()
    assert measure_steps(procedure, num_steps, CPU) > 0
    for hook in hooks:
        hook.remove()
    assert not torch.equal(before, pipe.unet.conv_in.weight), "it trains"
    return counts


def test_the_clock_leaves_the_first_step_out(monkeypatch):
    times = iter([7.0, 12.0])  # the clock is read only twice
    monkeypatch.setattr(training_procedures, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    clock = StepClock(num_steps=2, device=CPU)
    calls = []
    with contextlib.suppress(Measured):
        while True:
            clock.tick()
            calls.append(clock.seconds)
    assert clock.seconds == 5 and calls == [None] * 3, "one step to warm up and two timed ones"


def test_rounds_are_interleaved():
    turns = []

    def procedure(clock, name):
        turns.append(name)
        while True:
            clock.tick()

    procedures = {name: partial(procedure, name=name) for name in "ab"}
    rates, median, peaks = measure_rates(procedures, repeats=3, num_steps=2, batch_size=4, device=CPU)
    assert turns == list("ab") * 3 and peaks == dict.fromkeys("ab")
    assert all(sorted(values)[1] == median[name] for name, values in rates.items())


@pytest.mark.slow
@pytest.mark.parametrize("name, num_encoded", [("release", 2), ("pictures", 2), ("latent_cache", 0), ("floor", 0)])
def test_each_procedure_does_its_work(pipe, samples, tmp_path, name, num_encoded):
    accelerator, batch_size, num_steps = Accelerator(cpu=True), 2, 2
    num_samples = batch_size * (num_steps + 1)

    def procedure(clock):
        if name == "floor":
            run_floor(accelerator, pipe, batch_size, clock)
        elif name == "release":
            run_release(accelerator, pipe, samples[name], batch_size, 0, clock)
        else:
            run_training(accelerator, pipe, samples[name], batch_size, 0, tmp_path, clock)

    counts = count_samples(pipe, procedure, num_steps)
    num_null_images = 1 if name in ("pictures", "latent_cache") else 0  # the null image, before the first step
    assert counts == {"unet": num_samples, "encoder": num_encoded * num_samples + num_null_images}
    if num_null_images:
        assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"], "no checkpoint is written"
        assert len((tmp_path / "log.jsonl").read_text().splitlines()) == num_steps + 1


def test_flops_include_forward_and_backward(pipe):
    accelerator = Accelerator(cpu=True)
    flops = count_flops(accelerator, pipe)
    assert all(value.grad is None for value in pipe.unet.parameters())
    # Each weight of a convolution or matrix needs a multiplication and an addition, once forward and twice backward.
    assert flops > 6 * sum(value.numel() for value in pipe.unet.parameters() if value.ndim > 1)
    assert measure_matmul(CPU, torch.float32, side=64, repeats=2) > 0


@pytest.mark.parametrize("procedure", ["run_release", "run_training", "run_floor"])
def test_each_procedure_takes_8_bit_moments(pipe, samples, tmp_path, procedure):
    accelerator, given = Accelerator(cpu=True), {"use_8bit_adam": True, "clock": StepClock(1, CPU)}
    call = {
        "run_release": lambda: run_release(accelerator, pipe, samples["release"], 2, 0, **given),
        "run_training": lambda: run_training(accelerator, pipe, samples["pictures"], 2, 0, tmp_path, **given),
        "run_floor": lambda: run_floor(accelerator, pipe, 2, **given),
    }
    with pytest.raises(ValueError, match="`use_8bit_adam` must go with CUDA and bitsandbytes"):
        call[procedure]()


@pytest.mark.slow
def test_the_report(tmp_path):
    words = ["--size", "tiny", "--device", "cpu", "--steps", "1", "--repeats", "1", "--batch_size", "2"]
    words += ["--num_frames", "6", "--gradient_checkpointing", "--channels_last", "--mixed_precision", "bf16"]
    report = main(parse_args([*words, "--output", str(tmp_path / "report.json")]))
    names = {"release", "pictures", "latent_cache", "floor"}
    assert set(report["ratios"]) == {"c/d", "c/a", "b/a"} and all(value > 0 for value in report["ratios"].values())
    assert set(report["samples_a_second"]) == set(report["median_samples_a_second"]) == names
    assert all(len(values) == 1 and values[0] > 0 for values in report["samples_a_second"].values())
    assert report["peak_bytes"] == dict.fromkeys(names) and report["matmul"] is None, "measured on CUDA only"
    assert json.loads((tmp_path / "report.json").read_text())["machine"]["threads"] >= 1


def test_the_least_memory_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="`benchmarks.speed.training_memory` must go with CUDA and bitsandbytes"):
        training_memory.main(training_memory.parse_args([]))
