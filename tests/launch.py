"""`accelerate launch` of an entry point with two real CPU processes."""

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent


def launch_two_processes(script, words):
    """Run `script` (relative to the project) with arguments; its output comes back, a failure is shown."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--num_cpu_threads_per_process", "1",
    ]  # fmt: skip
    # Without the variable two processes start that do not know of each other.
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command += [str(ROOT / script), *map(str, words)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result
