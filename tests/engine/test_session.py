"""Start and end of a training run."""

import errno
import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from safetensors import SafetensorError

from training.engine.session import open_session


def test_tf32_is_allowed_for_the_session_only(tmp_path):
    before = torch.get_float32_matmul_precision()
    with open_session(tmp_path, {}, allow_tf32=True):
        assert torch.get_float32_matmul_precision() == "high" != before
    assert torch.get_float32_matmul_precision() == before


def test_the_seed_is_set(tmp_path):
    draws = []
    for seed in (1, 1, 2):
        with open_session(tmp_path, {}, seed=seed):
            draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1] != draws[2]


def test_a_run_ends_its_trackers_however_it_ends(tmp_path):
    finished = []
    with pytest.raises(RuntimeError, match="out of memory"):
        with open_session(tmp_path, {}, report_to="tensorboard") as accelerator:
            tracker = accelerator.trackers[0]
            tracker.finish, finish = lambda: finished.append(finish()), tracker.finish
            raise RuntimeError("out of memory")
    assert len(finished) == 1


FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    "error, is_explained",
    [
        (OSError(errno.ENOSPC, FULL), True),
        (SafetensorError(f"Error while serializing: I/O error: {FULL} (os error {errno.ENOSPC})"), True),
        (OSError(errno.EACCES, FULL), False),
        (SafetensorError("Error while serializing: invalid shape"), False),
    ],
)
def test_a_full_disk_is_explained_whatever_finds_it(tmp_path, error, is_explained):
    with pytest.raises(RuntimeError if is_explained else type(error)) as caught:
        with open_session(tmp_path, {}):
            raise error
    message = f"because the disk is full ({error}); the checkpoints in {tmp_path} are untouched"
    assert (message in str(caught.value)) is is_explained


@pytest.mark.parametrize("error", [None, RuntimeError("out of memory")])
def test_a_tracker_that_cannot_end_is_a_warning(tmp_path, caplog, error):
    """The run's own error is still raised, and the next tracker still ends."""
    finished = []

    def fail():
        raise OSError("no space left")

    with nullcontext() if error is None else pytest.raises(RuntimeError, match="out of memory"):
        with open_session(tmp_path, {}) as accelerator:
            accelerator.trackers = [
                SimpleNamespace(name="first", finish=fail),
                SimpleNamespace(name="second", finish=lambda: finished.append("second")),
            ]
            if error is not None:
                raise error
    assert finished == ["second"] and "The tracker first could not be ended: no space left" in caplog.text


def test_pieces_of_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="accelerate must run one process or DDP, got DistributedType.FSDP"):
        with open_session(tmp_path, {}):
            pass


def test_fp16_is_refused_on_a_cpu(tmp_path, monkeypatch):
    """accelerate would train in float32, next to frozen weights in float16."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match="`mixed_precision` must be no or bf16 on a CPU, .*, got fp16"):
        with open_session(tmp_path / "run", {}, mixed_precision="fp16"):
            pass
    assert not (tmp_path / "run").exists()
