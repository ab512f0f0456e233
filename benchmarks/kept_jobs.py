# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Long jobs side by side, each of whose results is kept as a file, so that a stopped run is simply started again."""

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
    torch.set_num_threads(1)  # a process a core is faster than one of two threads
    sys.stderr = open(os.devnull, "w")  # whose bars would write over each other; a failure comes back as such


def _run_and_keep(function: Callable[..., Any], arguments: tuple, path: Path) -> None:
    write_json(path, function(*arguments))


def kept_path(work_dir: Path, name: str, facts: Any) -> Path:
    """Where a result is kept: of other `facts`, which JSON can hold, under another name."""
    text = json.dumps(facts, sort_keys=True)
    return work_dir / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def run_missing(
    function: Callable[..., Any], jobs: Mapping[Path, tuple], num_processes: int, unit: str = "trial"
) -> list[Any]:
    """The results of all jobs, of which those without a file are run.

    Args:
        function (`Callable`): A module's own function, which returns what JSON can hold.
        jobs (`Mapping[Path, tuple]`): The file of each job's result, and the function's arguments for it.
        num_processes (`int`): Jobs at a time, one thread each.
        unit (`str`, *optional*, defaults to `"trial"`): What a job is, for the progress bar.
    Returns:
        `list`: The results, as JSON holds them, in the order of `jobs`.
    """
    missing = {path: arguments for path, arguments in jobs.items() if not path.exists()}
    if missing:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_start_process) as pool:
            begun = [pool.submit(_run_and_keep, function, arguments, path) for path, arguments in missing.items()]
            try:
                for job in tqdm(as_completed(begun), total=len(jobs), initial=len(jobs) - len(begun), unit=unit):
                    job.result()
            except BaseException as error:  # what was not begun need not be; what was, ends first
                tqdm.write(f"{error!r}: no other {unit} is begun.")
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [json.loads(path.read_text()) for path in jobs]
