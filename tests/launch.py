"""Running an entry point with `accelerate launch` on two CPU processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent
# ACCELERATE_USE_CPU makes both processes one group. CUDA_VISIBLE_DEVICES hides GPUs, since torch would require one per
# process.
ON_CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def free_port():
    """Return a free port, so that tests can run at the same time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_two_processes(script, words):
    """Start `script` (relative to the project) with arguments, in its own process group."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--num_cpu_threads_per_process", "1", "--main_process_port", str(free_port()),
    ]  # fmt: skip
    environment = os.environ | ON_CPU | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command += [str(ROOT / script), *map(str, words)]
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def launch_two_processes(script, words):
    """Run `script` with arguments and return its output; show the error if it fails."""
    process = start_two_processes(script, words)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr[-20000:]  # the launcher prints some thousand characters of its own
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
