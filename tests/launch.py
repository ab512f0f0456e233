"""`accelerate launch` of an entry point with two real CPU processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent
# Without the first, two processes start that do not know of each other. The second hides GPUs, since torch would want
# one for each process.
ON_CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def free_port():
    """A port of loopback that nobody listens on, so that tests run side by side."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_two_processes(script, words):
    """Start `script` (relative to the project) with arguments, in a process group of its own."""
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
    """Run `script` with arguments to its end; its output comes back, a failure is shown."""
    process = start_two_processes(script, words)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr[-3000:]
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
