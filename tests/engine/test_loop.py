"""The training loop: schedules, resuming, checkpoints, log, validation, failures and two processes."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from tests.launch import ON_CPU, ROOT, free_port
from training.engine import muon
from training.engine.checkpoints import list_checkpoints
from training.engine.interruption import STOP_SIGNALS, StopSignals, TrainingInterrupted, ignore_stop_signals
from training.engine.loop import _Run, train
from training.engine.run_log import LogWindow, append_log, start_log
from training.engine.schedule import get_lr_curve, position_batches, seed_step


pytestmark = pytest.mark.slow  # nearly all of them train
SETTINGS = {"train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 2, "ema_decay": 0.8}


class Samples(Dataset):
    """Samples drawn from their position alone. The data set remembers the requested positions."""

    def __init__(self):
        self.positions = []

    def __getitem__(self, position):
        self.positions.append(position)
        generator = torch.Generator().manual_seed(position)
        pixel_values = torch.randn(3, 6, 6, generator=generator)
        return {"pixel_values": pixel_values, "target": pixel_values.mean((1, 2)), "position": position}


class Network(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.frozen = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.conv_in = nn.Conv2d(3, 6, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Linear(6, 3)

    def forward(self, pixel_values):
        return self.conv_out(self.dropout(self.conv_in(self.frozen(pixel_values)).relu().mean((2, 3))))


def network(dropout=0.0):
    torch.manual_seed(0)
    return Network(dropout)


def loss_fn(module, batch):
    loss = (module(batch["pixel_values"]) - batch["target"]).square().mean()
    return loss, {"mse": loss, "double": 2 * loss.item()}


def run(output_dir, module=None, loss=loss_fn, accelerator=None, data=None, **settings):
    module = network() if module is None else module
    accelerator = accelerator or Accelerator(cpu=True)
    data = Samples() if data is None else data
    return train(accelerator, module, loss, data, output_dir=output_dir, **{**SETTINGS, **settings})


def records(output_dir, key="loss"):
    lines = [json.loads(line) for line in (Path(output_dir) / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def curve(output_dir):
    measured = ("samples_per_second", "peak_memory_gib")
    return [{key: value for key, value in line.items() if key not in measured} for line in records(output_dir)]


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


# Functions of the step number


@pytest.mark.parametrize("processes, accumulation", [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_positions_of_a_step_do_not_depend_on_how_it_is_shared(processes, accumulation):
    size = 8 // (processes * accumulation)
    shares = [list(position_batches(24, 3, size, accumulation, processes, rank)) for rank in range(processes)]
    assert all(len(share) == 3 * accumulation for share in shares)
    assert all(len(batch) == size for share in shares for batch in share)
    for step in range(3):
        batches = [batch for share in shares for batch in share[step * accumulation : (step + 1) * accumulation]]
        assert sorted(sum(batches, [])) == list(range(24 + 8 * step, 32 + 8 * step))


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant"])
def test_lr_curve_is_that_of_the_stepped_scheduler(name):
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=3e-4)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=12)
    lr_curve = get_lr_curve(name, 3e-4, 3, 12)
    for step in range(12):
        assert lr_curve(step) == scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()


def test_restarts_and_powers_of_the_lr_curve():
    """Two falls from 1 to 0 in 12 steps, and (1 - x)^2 down to diffusers' final rate of 1e-7."""
    twice = get_lr_curve("cosine_with_restarts", 1.0, 0, 12, lr_num_cycles=2)
    assert [twice(step) for step in (0, 3, 6, 9)] == pytest.approx([1, 0.5, 1, 0.5])
    assert get_lr_curve("polynomial", 1.0, 0, 12, lr_power=2.0)(6) == pytest.approx(0.25, abs=1e-6)


def test_step_seeds_differ_by_seed_step_and_process():
    def draw(*numbers):
        seed_step(*numbers)
        return torch.rand(4)

    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    draws = [draw(*numbers) for numbers in ((1, 2, 3), (3, 2, 1), (1, 3, 2), (2, 2, 3), (1, 2, 0))]
    assert len({tuple(values.tolist()) for values in draws}) == len(draws)


# Relations between runs


def signalling(num_calls, signum=signal.SIGTERM):
    """Return the loss function; one of its calls sends a signal to this process."""
    calls = []

    def loss(module, batch):
        calls.append(batch)
        if len(calls) == num_calls:
            signal.raise_signal(signum)
        return loss_fn(module, batch)

    return loss


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_equals_an_undisturbed_run_exactly(tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr("training.engine.muon.MIN_MATRIX_SIZE", 4)  # so that the convolution here counts as a matrix
    settings = {"max_train_steps": 8, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "latest"}
    settings["optimizer"] = optimizer
    whole = run(tmp_path / "whole", network(0.3), **settings)
    for _ in range(2):
        with pytest.raises(TrainingInterrupted):
            run(tmp_path / "parts", network(0.3), signalling(6), **settings)  # between two records of the log
    data = Samples()
    parts = run(tmp_path / "parts", network(0.3), data=data, **settings)
    assert data.positions == list(range(48, 64))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts") and len(curve(tmp_path / "whole")) == 4
    assert torch.equal(weights(whole), weights(parts))
    for name in ("model", "optimizer", "ema"):
        file = Path("checkpoint-000008", f"{name}.safetensors")
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


def test_muon_trains_and_keeps_one_moment_of_a_matrix(tmp_path, monkeypatch):
    monkeypatch.setattr("training.engine.muon.MIN_MATRIX_SIZE", 4)
    run(tmp_path, max_train_steps=100, optimizer="muon")
    losses = [line["loss"] for line in records(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]
    with safe_open(tmp_path / "checkpoint-000100" / "optimizer.safetensors", "pt") as file:
        kept = {name for name in file.keys() if name.endswith("conv_in.weight")}
    assert kept == {"step/conv_in.weight", "momentum/conv_in.weight"}


def test_resuming_a_finished_run_gives_its_weights_and_a_longer_one_goes_on(tmp_path):
    finished = run(tmp_path, max_train_steps=4)
    data = Samples()
    again = run(tmp_path, max_train_steps=4, resume_from_checkpoint="latest", data=data)
    assert torch.equal(weights(finished), weights(again)) and data.positions == []
    run(tmp_path, max_train_steps=8, resume_from_checkpoint="latest")
    lr_curve = get_lr_curve("cosine", 1e-2, 0, 8)
    assert [line["step"] for line in records(tmp_path)] == [2, 4, 6, 8]
    assert records(tmp_path)[-1]["lr"] == pytest.approx((lr_curve(6) + lr_curve(7)) / 2)


def test_workers_change_nothing(tmp_path):
    none = run(tmp_path / "none", max_train_steps=3)
    some = run(tmp_path / "some", max_train_steps=3, dataloader_num_workers=2)
    assert torch.equal(weights(none), weights(some))


def test_memory_layout_changes_nothing_but_rounding(tmp_path):
    plain = run(tmp_path / "plain", max_train_steps=6)
    other = run(tmp_path / "other", network().to(memory_format=torch.channels_last), max_train_steps=6)
    assert other.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(weights(plain), weights(other), atol=1e-5, rtol=0)


def test_accumulated_half_batches_equal_one_batch(tmp_path):
    accelerator = Accelerator(cpu=True)
    whole = run(tmp_path / "whole", accelerator=accelerator, max_train_steps=5)
    # The same accelerator serves both runs.
    halves = run(
        tmp_path / "halves", accelerator=accelerator, max_train_steps=5, train_batch_size=2,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    torch.testing.assert_close(weights(whole), weights(halves), atol=1e-6, rtol=0)
    for one, other in zip(curve(tmp_path / "whole"), curve(tmp_path / "halves"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_step_is_clipped_adamw_and_the_average_follows(tmp_path):
    module, expected = network(), network()
    result = run(tmp_path, module, max_train_steps=3, max_grad_norm=0.05, adam_weight_decay=0.1, ema_decay=None)
    optimizer = torch.optim.AdamW([*expected.conv_in.parameters(), *expected.conv_out.parameters()], weight_decay=0.1)
    data, norms = Samples(), []
    for step in range(3):
        batch = torch.utils.data.default_collate([data[position] for position in range(4 * step, 4 * step + 4)])
        optimizer.zero_grad()
        loss_fn(expected, batch)[0].backward()
        norms.append(torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.05).item())
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / 3)) / 2
        optimizer.step()
    torch.testing.assert_close(weights(result), weights(expected), atol=1e-7, rtol=0)
    assert records(tmp_path)[0]["grad_norm"] == pytest.approx(sum(norms[:2]) / 2) and min(norms) > 0.05
    assert result is module and torch.equal(module.frozen.weight, network().frozen.weight)


def test_without_clipping_the_norm_is_logged_only(tmp_path):
    one = run(tmp_path / "one", max_train_steps=2, max_grad_norm=None)
    other = run(tmp_path / "other", max_train_steps=2, max_grad_norm=1e9)
    assert torch.equal(weights(one), weights(other)) and records(tmp_path / "one")[0]["grad_norm"] > 0


def test_the_average_of_the_weights_is_returned_and_kept_apart(tmp_path):
    averaged = run(tmp_path / "ema", max_train_steps=6)
    last = run(tmp_path / "last", max_train_steps=6, ema_decay=None)
    files = {
        name: load_file(tmp_path / "ema" / "checkpoint-000006" / f"{name}.safetensors") for name in ("model", "ema")
    }
    assert torch.equal(files["ema"]["conv_in.weight"], averaged.conv_in.weight)
    assert torch.equal(files["model"]["conv_in.weight"], last.conv_in.weight)
    assert not torch.equal(averaged.conv_in.weight, last.conv_in.weight)
    assert not (tmp_path / "last" / "checkpoint-000006" / "ema.safetensors").exists()
    assert "frozen.weight" not in files["model"]


def test_an_average_that_starts_late_starts_from_the_checkpoint(tmp_path, caplog):
    run(tmp_path, max_train_steps=2, ema_decay=None)
    last = load_file(tmp_path / "checkpoint-000002" / "model.safetensors")
    module = run(tmp_path, max_train_steps=2, resume_from_checkpoint="latest")
    assert "has no averaged weights" in caplog.text
    assert torch.equal(module.conv_in.weight, last["conv_in.weight"])


def test_another_global_batch_goes_on_behind_the_last_sample(tmp_path, caplog):
    run(tmp_path, max_train_steps=3)
    data = Samples()
    run(tmp_path, max_train_steps=5, train_batch_size=6, resume_from_checkpoint="latest", data=data)
    assert data.positions == list(range(12, 24))
    assert "global batch size changes from 4 to 6" in caplog.text


def test_mixed_precision_is_gone_from_the_returned_module(tmp_path):
    module = run(tmp_path, accelerator=Accelerator(cpu=True, mixed_precision="bf16"), max_train_steps=2)
    assert module(torch.zeros(1, 3, 6, 6)).dtype == torch.float32 and math.isfinite(records(tmp_path)[0]["loss"])
    assert torch.zeros(1).dtype == module.conv_in.weight.dtype


# Checkpoints, log, validation


def test_checkpoints_are_written_rotated_and_the_last_step_gets_one(tmp_path):
    run(tmp_path, max_train_steps=7, checkpointing_steps=2, checkpoints_total_limit=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step:06d}" for step in (4, 6, 7)]
    state = json.loads((tmp_path / "checkpoint-000007" / "state.json").read_text())
    assert state["num_samples"] == 28 and state["world"]["global_batch_size"] == 4


def test_the_log_holds_means_over_its_window(tmp_path):
    losses = []

    def loss(module, batch):
        value, logs = loss_fn(module, batch)
        losses.append(value.item())
        return value, logs

    run(tmp_path, loss=loss, max_train_steps=4, gradient_accumulation_steps=2)
    for index, line in enumerate(records(tmp_path)):
        mean = sum(losses[4 * index : 4 * index + 4]) / 4
        assert (line["loss"], line["mse"], line["double"]) == pytest.approx((mean, mean, 2 * mean))
        assert line["samples_per_second"] > 0 and line["num_skipped_steps"] == 0


def test_the_log_is_cut_back_on_resuming(tmp_path, caplog):
    (tmp_path / "log.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st')
    start_log(tmp_path, 4)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 2}\n{"step": 4}\n' and "cut short" in caplog.text


def test_a_window_leaves_out_what_is_not_finite(tmp_path):
    Accelerator(cpu=True)
    window = LogWindow()
    window.add({"loss": torch.tensor(1.0, requires_grad=True), "other": math.nan})
    window.add({"loss": math.nan})
    window.add({"loss": 3.0})
    assert window.reduce() == {"loss": 2.0, "samples_per_second": 0.0}


def test_validation_sees_the_average_in_eval_mode_and_leaves_no_trace(tmp_path):
    seen = []

    def validate(module, global_step):
        torch.manual_seed(0)
        seen.append((global_step, module.training, torch.is_grad_enabled(), weights(module)))
        return {"l1": 0.5 * global_step}

    module = network(0.3)
    module.frozen.eval()
    validated = run(tmp_path / "with", module, max_train_steps=5, validation_steps=2, validate=validate)
    assert [entry[:3] for entry in seen] == [(2, False, False), (4, False, False), (5, False, False)]
    assert torch.equal(seen[-1][-1], weights(validated))
    assert module.training and module.dropout.training and not module.frozen.training
    assert [(line["step"], line["validation/l1"]) for line in records(tmp_path / "with", "validation/l1")] == [
        (2, 1.0), (4, 2.0), (5, 2.5),
    ]  # fmt: skip
    assert torch.equal(weights(run(tmp_path / "without", network(0.3), max_train_steps=5)), weights(validated))


@pytest.mark.parametrize("step", [2, 5])
def test_a_validation_that_was_cut_off_is_made_up_for(tmp_path, step):
    """A run killed during a validation, also that of the last step, repeats it once when resumed."""
    seen = []

    def validate(module, global_step):
        seen.append(global_step)
        if global_step == step and seen.count(step) == 1:
            raise KeyboardInterrupt
        return {"l1": 0.5 * global_step}

    settings = {"max_train_steps": 5, "validation_steps": 2, "checkpointing_steps": 1, "validate": validate}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **settings)
    for _ in range(2):
        run(tmp_path, resume_from_checkpoint="latest", **settings)
    assert seen == sorted([2, 4, 5, step])
    assert [line["step"] for line in records(tmp_path, "validation/l1")] == [2, 4, 5]


# Failures and signals


def spoiled(*bad_steps, spoil=lambda loss: loss * math.nan):
    calls = []

    def loss(module, batch):
        value, logs = loss_fn(module, batch)
        calls.append(batch)
        return (spoil(value) if len(calls) in bad_steps else value), logs

    return loss


def infinite_gradient(loss):
    # At 0, sqrt has a finite value and an infinite slope.
    return loss + (loss - loss).sqrt()


@pytest.mark.parametrize("spoil", [lambda loss: loss * math.nan, infinite_gradient])
def test_a_step_without_finite_loss_and_gradient_is_skipped(tmp_path, caplog, spoil):
    before = run(tmp_path / "before", max_train_steps=1, lr_scheduler="constant")
    module = run(
        tmp_path / "after", loss=spoiled(2, spoil=spoil), max_train_steps=2, lr_scheduler="constant", logging_steps=1
    )
    assert torch.equal(weights(before), weights(module))
    assert "Step 2 was skipped" in caplog.text
    assert [line["num_skipped_steps"] for line in records(tmp_path / "after", "num_skipped_steps")] == [0, 1]
    assert json.loads((tmp_path / "after" / "checkpoint-000002" / "state.json").read_text())["num_skipped_steps"] == 1


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path):
    run(tmp_path / "fine", loss=spoiled(2, 3, 5, 6), max_train_steps=7, max_nonfinite_steps=3)
    with pytest.raises(RuntimeError, match="stopped at step 6: no finite loss and gradient in the last 3 steps"):
        run(tmp_path / "bad", loss=spoiled(2, 4, 5, 6), max_train_steps=7, max_nonfinite_steps=3)


def test_a_log_that_finds_no_room_ends_the_run_which_goes_on(tmp_path, monkeypatch):
    settings = {"max_train_steps": 6, "checkpointing_steps": 2}
    undisturbed = weights(run(tmp_path / "undisturbed", **settings))

    def append_half(output_dir, global_step, record):
        if global_step < 4:
            return append_log(output_dir, global_step, record)
        with open(output_dir / "log.jsonl", "a") as file:
            file.write('{"step": 4, "lo')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        patch.setattr("training.engine.loop.append_log", append_half)
        run(stopped, **settings)
    assert torch.equal(weights(run(stopped, resume_from_checkpoint="latest", **settings)), undisturbed)
    assert curve(stopped) == curve(tmp_path / "undisturbed")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path, capsys, signum):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(TrainingInterrupted) as caught:
        run(tmp_path, loss=signalling(3, signum), max_train_steps=6, dataloader_num_workers=1)
    assert caught.value.code == 128 + signum
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000003"]
    message = capsys.readouterr().err
    assert f"Stopped by {signum.name} after step 3 of 6" in message and "--resume_from_checkpoint latest" in message
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_further_signals_change_nothing(tmp_path):
    # A launcher that is stopped with its group passes the signal on to processes that already have it.
    def loss(module, batch):
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(signum)
        return loss_fn(module, batch)

    with pytest.raises(TrainingInterrupted) as caught:
        run(tmp_path, loss=loss, max_train_steps=3)
    assert caught.value.code == 128 + signal.SIGTERM
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000001"]


def test_a_signal_after_the_last_step_acts_on_leaving():
    with pytest.raises(KeyboardInterrupt):
        with StopSignals():
            signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def body():
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before]


def test_data_workers_ignore_stop_signals():
    handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    try:
        ignore_stop_signals()
        for signum in STOP_SIGNALS:
            signal.raise_signal(signum)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


@pytest.mark.parametrize(
    "name",
    ["max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps",
     "checkpoints_total_limit", "logging_steps", "validation_steps", "max_nonfinite_steps"],
)  # fmt: skip
def test_counts_below_one_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        run(tmp_path, **{"max_train_steps": 2, name: 0})


def test_what_cannot_be_trained_or_resumed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`module` must have parameters that require gradients"):
        run(tmp_path, network().requires_grad_(False), max_train_steps=2)
    run(tmp_path, max_train_steps=2)
    with pytest.raises(ValueError, match="`output_dir` must not hold a checkpoint that the run would overwrite"):
        run(tmp_path, max_train_steps=2)
    with pytest.raises(
        ValueError, match="must come from the same kind .* 2 missing and 0 unexpected tensors: .*frozen.weight"
    ):
        run(tmp_path, network().requires_grad_(True), max_train_steps=2, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="`max_train_steps` must be at least the checkpoint's step, 2, got 1"):
        run(tmp_path, max_train_steps=1, resume_from_checkpoint="latest")


# Two processes


def run_as_one_of_two(output_dir):
    """Train as one of the two processes of the test below."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    data = Samples()
    settings = {"max_train_steps": 4, "train_batch_size": 2, "gradient_accumulation_steps": 2}
    module = run(f"{output_dir}/train", accelerator=accelerator, data=data, **settings)
    torch.save(weights(module), f"{output_dir}/weights-{accelerator.process_index}.pt")
    muon.MIN_MATRIX_SIZE = 4  # so that the convolution here is a matrix
    module = run(f"{output_dir}/muon", accelerator=accelerator, optimizer="muon", **settings)
    torch.save(weights(module), f"{output_dir}/muon-{accelerator.process_index}.pt")
    Path(f"{output_dir}/positions-{accelerator.process_index}.json").write_text(json.dumps(data.positions))
    # Only the second process gets a signal or sees a non-finite loss.
    is_second = accelerator.process_index == 1
    bad = spoiled(1) if is_second else loss_fn
    run(f"{output_dir}/bad", loss=bad, accelerator=accelerator, max_train_steps=2)
    try:
        run(f"{output_dir}/stop", loss=signalling(2) if is_second else loss_fn, accelerator=accelerator,
            max_train_steps=4)  # fmt: skip
    except TrainingInterrupted as interruption:
        Path(f"{output_dir}/stopped-{accelerator.process_index}").write_text(str(interruption.code))
    # Each process has its own folder, but only the first one's gets a checkpoint.
    own = f"{output_dir}/own-{accelerator.process_index}"
    run(own, accelerator=accelerator, max_train_steps=2)
    try:
        run(own, accelerator=accelerator, max_train_steps=4, resume_from_checkpoint="latest")
    except ValueError as error:
        Path(f"{output_dir}/refused-{accelerator.process_index}").write_text(str(error))


def test_two_processes_equal_one_with_twice_the_batch(tmp_path, monkeypatch):
    shared = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
        **ON_CPU,
    }  # fmt: skip
    code = f"from tests.engine.test_loop import run_as_one_of_two; run_as_one_of_two({str(tmp_path)!r})"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors

    data = Samples()
    one = run(tmp_path / "one", data=data, max_train_steps=4, gradient_accumulation_steps=2)
    both = [torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(both[0], both[1])
    torch.testing.assert_close(both[0], weights(one), atol=1e-6, rtol=0)
    monkeypatch.setattr(muon, "MIN_MATRIX_SIZE", 4)
    one_by_muon = run(tmp_path / "one-muon", optimizer="muon", max_train_steps=4, gradient_accumulation_steps=2)
    for rank in range(2):
        by_muon = torch.load(tmp_path / f"muon-{rank}.pt", weights_only=True)
        torch.testing.assert_close(by_muon, weights(one_by_muon), atol=1e-5, rtol=0)
    assert not torch.allclose(by_muon, both[0], atol=1e-3)
    shares = [json.loads((tmp_path / f"positions-{rank}.json").read_text()) for rank in range(2)]
    for step in range(4):
        assert (
            sorted(sum((share[4 * step : 4 * step + 4] for share in shares), []))
            == data.positions[8 * step : 8 * step + 8]
        )
    for line, other in zip(curve(tmp_path / "one"), curve(tmp_path / "train"), strict=True):
        assert line == pytest.approx(other, abs=1e-5)
    assert [line["num_skipped_steps"] for line in records(tmp_path / "bad")] == [1]
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)] == ["143", "143"]
    assert [path.name for path in list_checkpoints(tmp_path / "stop")] == ["checkpoint-000002"]
    for rank in range(2):
        message = (tmp_path / f"refused-{rank}").read_text()
        assert "`output_dir` must be one folder for all processes, got checkpoints of steps [2, 0]" in message


def test_weights_have_their_own_names_whatever_accelerate_compiles(tmp_path):
    torch._dynamo.reset()
    compiled = run(tmp_path / "compiled", accelerator=Accelerator(cpu=True, dynamo_backend="eager"), max_train_steps=2)
    assert type(compiled) is Network
    AcceleratorState._reset_state(reset_partial_state=True)
    run(tmp_path / "compiled", max_train_steps=4, resume_from_checkpoint="latest")
    assert [line["step"] for line in records(tmp_path / "compiled")] == [2, 4]


@pytest.mark.parametrize("scale, stops", [(1024.0, False), (0.5, True)])
def test_gradients_that_no_scale_mends_end_the_run(tmp_path, scale, stops):
    accelerator = Accelerator(cpu=True)
    settings = SimpleNamespace(max_nonfinite_steps=3, output_dir=tmp_path)
    one = SimpleNamespace(
        accelerator=SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: scale), device=accelerator.device),
        state=SimpleNamespace(num_skipped_steps=0, global_step=1), settings=settings, num_nonfinite_in_row=0,
    )  # fmt: skip
    for _ in range(2):
        _Run.count_nonfinite(one, 1.0, math.nan)
    if stops:
        with pytest.raises(RuntimeError, match="no finite loss and gradient in the last 3 steps"):
            _Run.count_nonfinite(one, 1.0, math.nan)
    else:
        _Run.count_nonfinite(one, 1.0, math.nan)
    assert one.state.num_skipped_steps == 3


@pytest.mark.parametrize("norm, averages", [(1.0, 1), (math.inf, 0), (math.nan, 0)])
def test_an_overflow_that_a_fused_optimizer_passes_over_is_not_averaged(norm, averages):
    """The scaler calls a fused optimizer in every step, so accelerate counts no step as skipped."""
    calls = []
    accelerator = SimpleNamespace(scaler=object(), clip_grad_norm_=lambda parameters, limit: torch.tensor(norm))
    state = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[{}]), trained={},
        ema=SimpleNamespace(step=lambda parameters: calls.append("average")),
    )  # fmt: skip
    optimizer = SimpleNamespace(step=lambda: calls.append("step"), step_was_skipped=False)
    settings = SimpleNamespace(max_grad_norm=1.0)
    one = SimpleNamespace(accelerator=accelerator, state=state, optimizer=optimizer, settings=settings)
    assert _Run.update(one, 0.1) == pytest.approx(norm, nan_ok=True)
    assert calls == ["step"] + averages * ["average"]


def test_another_optimizer_s_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("training.engine.muon.MIN_MATRIX_SIZE", 4)
    run(tmp_path, max_train_steps=2)
    with pytest.raises(ValueError, match="`optimizer` must be that of the checkpoint, AdamW, got Muon: give that one"):
        run(tmp_path, max_train_steps=4, resume_from_checkpoint="latest", optimizer="muon")
