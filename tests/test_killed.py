"""A run that is killed at random moments and resumed equals an undisturbed one."""

import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
import torch

from tests.engine.test_loop import curve, network, run
from training.engine.checkpoints import find_checkpoint_fault, list_checkpoints


STEPS = 24
PARTIAL = ".tmp-checkpoint-*"


def train_to_the_end(output_dir):
    """Train in this process, resuming if possible, with one thread and a checkpoint after every step."""
    torch.set_num_threads(1)
    settings = {"max_train_steps": STEPS, "checkpointing_steps": 1, "logging_steps": 1, "checkpoints_total_limit": 2}
    run(output_dir, network(0.3), resume_from_checkpoint="latest", **settings)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_equals_an_undisturbed_one(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    moments, num_kills, num_partial = random.Random(0), 0, 0
    while True:
        assert num_kills < 60, "every process must get further"
        process = context.Process(target=train_to_the_end, args=(tmp_path / "killed",))
        process.start()
        if num_kills < 12:
            before = len(curve(tmp_path / "killed")) if (tmp_path / "killed" / "log.jsonl").exists() else 0
            while process.is_alive() and not _has_progressed(tmp_path / "killed", before):
                process.join(0.001)
            process.join(moments.uniform(0, 0.05))
            if num_kills % 2 == 0:  # every other time, kill it while it writes a checkpoint
                while process.is_alive() and not any((tmp_path / "killed").glob(PARTIAL)):
                    pass
        else:
            process.join(120)
        if not process.is_alive():
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        num_kills += 1
        num_partial += any((tmp_path / "killed").glob(PARTIAL))
        whole = [path for path in list_checkpoints(tmp_path / "killed") if find_checkpoint_fault(path) is None]
        assert whole, "a whole checkpoint is always there"
    assert num_kills >= 3 and num_partial >= 1
    process = context.Process(target=train_to_the_end, args=(tmp_path / "undisturbed",))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert curve(tmp_path / "killed") == curve(tmp_path / "undisturbed")
    for name in ("model", "optimizer", "ema"):
        file = Path(f"checkpoint-{STEPS:06d}", f"{name}.safetensors")
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "undisturbed" / file).read_bytes()


def _has_progressed(folder, num_records):
    """Return whether the process has logged a step and a checkpoint exists."""
    log = folder / "log.jsonl"
    return log.exists() and len(log.read_text().splitlines()) > num_records and bool(list_checkpoints(folder))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_process_ends_with_the_stated_exit_code(tmp_path, signum):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=train_to_the_end, args=(tmp_path,))
    process.start()
    while process.is_alive() and not _has_progressed(tmp_path, 0):
        process.join(0.001)
    os.kill(process.pid, signum)
    process.join(120)
    assert process.exitcode == 128 + signum
    assert find_checkpoint_fault(list_checkpoints(tmp_path)[-1]) is None
