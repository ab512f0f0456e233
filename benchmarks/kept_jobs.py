# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Run long jobs in parallel and keep each result as a file, so that a stopped run resumes when it is started again."""

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from training.media.settings_file import write_json


def _start_process() -> None:
    torch.set_num_threads(1)  # one process per core is faster than one process of two threads
    sys.stderr = open(os.devnull, "w")  # hides progress bars; exceptions still reach the parent


def _run_and_keep(function: Callable[..., Any], arguments: tuple, path: Path) -> None:
    write_json(path, function(*arguments))


def kept_path(work_dir: Path, name: str, facts: Any) -> Path:
    """Return the path that keeps a result. It depends on `facts`, any value that JSON can hold."""
    text = json.dumps(facts, sort_keys=True)
    return work_dir / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def run_missing(
    function: Callable[..., Any], jobs: Mapping[Path, tuple], num_processes: int, unit: str = "trial"
) -> list[Any]:
    """Run the jobs that have no result file yet and return all results, as read from JSON, in the order of `jobs`.

    Args:
        function (`Callable`): A top-level function whose result JSON can hold.
        jobs (`Mapping[Path, tuple]`): Result file of each job -> arguments of `function`.
        num_processes (`int`): Number of jobs that run at the same time, each in one thread.
        unit (`str`, *optional*, defaults to `"trial"`): Name of a job in the progress bar.
    """
    missing = {path: arguments for path, arguments in jobs.items() if not path.exists()}
    if missing:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_start_process) as pool:
            started = [pool.submit(_run_and_keep, function, arguments, path) for path, arguments in missing.items()]
            try:
                for job in tqdm(as_completed(started), total=len(jobs), initial=len(jobs) - len(started), unit=unit):
                    job.result()
            except BaseException as error:  # running jobs finish and keep their results; waiting jobs are cancelled
                tqdm.write(f"{error!r}: no other {unit} is started.")
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [json.loads(path.read_text()) for path in jobs]
