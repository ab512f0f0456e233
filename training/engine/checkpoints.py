# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Checkpoints of a training run on disk: write, find, load and delete them.

A checkpoint is a folder `checkpoint-000123` with safetensors files and `state.json`; nothing is pickled. `state.json`
lists the other files with their sizes and is written last, so an incomplete folder can be told from a whole one. Its
key `sha256` holds a hash of each file and of its own other values; checkpoints of older versions have none.
"""

import errno
import json
import logging
import os
import platform
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from training.engine.errors import RunStopped
from training.engine.messages import shorten
from training.engine.state_file import (
    HASHES,
    STATE_NAME,
    StateFault,
    hash_file,
    hash_state,
    read_state,
    require_keys,
)


logger = logging.getLogger(__name__)

CHECKPOINT_PREFIX = "checkpoint-"
# Folders with this prefix are being written or deleted; nothing ever reads them.
_TEMPORARY_PREFIX = ".tmp-checkpoint-"
_OTHER_OPTIONS = "Give the options of the run before, which are in its `options.yaml`, or another `--output_dir`."


def checkpoint_name(global_step: int) -> str:
    """Return the folder name of a step's checkpoint: `checkpoint-000123`. Names sort by step up to a million steps."""
    if global_step < 0:
        raise ValueError(f"`global_step` must be at least 0, got {global_step}.")
    return f"{CHECKPOINT_PREFIX}{global_step:06d}"


def checkpoint_step(path: str | os.PathLike) -> int | None:
    """Return the step in a folder's name, or `None` if it is not the name of a checkpoint."""
    digits = Path(path).name.removeprefix(CHECKPOINT_PREFIX)
    return int(digits) if Path(path).name.startswith(CHECKPOINT_PREFIX) and digits.isdecimal() else None


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Return every folder in `output_dir` that is named like a checkpoint, whole or not, oldest step first."""
    paths = Path(output_dir).glob(f"{CHECKPOINT_PREFIX}*")
    return sorted((path for path in paths if checkpoint_step(path) is not None and path.is_dir()), key=checkpoint_step)


def find_checkpoint_fault(path: str | os.PathLike, check_hashes: bool = True) -> str | None:
    """Return why a checkpoint is not whole, or `None` if it is: all files are there, readable and of the right size.

    A folder that is named like a checkpoint must be of the step in its name. With `check_hashes`, the content of the
    files must be what was written, unless an older version wrote them.
    """
    path = Path(path)
    try:
        state = read_state(path)
        if checkpoint_step(path) not in (None, state["global_step"]):
            found = shorten(state["global_step"])
            return f"its name has the step {checkpoint_step(path)}, and `global_step` in {STATE_NAME} is {found}"
        for name, size in state["files"].items():
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {size}"
            with safe_open(path / name, framework="pt"):
                pass
        for name in (*state["files"], STATE_NAME) if check_hashes and HASHES in state else ():
            found = hash_state(state) if name == STATE_NAME else hash_file(path / name)
            if state[HASHES].get(name) != found:
                return f"{name} has changed since it was written, by its sha256"
    except StateFault as error:
        return str(error)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def find_latest_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """Return the newest whole checkpoint in `output_dir`, or `None` if there is no checkpoint at all.

    Newer ones that are broken are skipped with a warning. If all are broken, raise a `ValueError`.
    """
    faults = {}
    for path in reversed(list_checkpoints(output_dir)):
        faults[path] = find_checkpoint_fault(path)
        if faults[path] is None:
            return path
        logger.warning(f"Skipping the broken checkpoint {path} ({faults[path]}).")
    if faults:
        # A kill leaves no broken folder of this name, so a disk or a copy failed. Starting anew would empty the log.
        path, fault = next(iter(faults.items()))
        raise ValueError(
            "`output_dir` must hold a whole checkpoint or none at all to resume from the latest, got only broken ones,"
            f" the newest {path} ({fault}): move them away to start anew, or choose another `output_dir`."
        )
    return None


def resolve_checkpoint(output_dir: str | os.PathLike, resume_from_checkpoint: str | os.PathLike | None) -> Path | None:
    """Find the checkpoint that a run starts from, and refuse a start that would mix two runs in one folder.

    Args:
        output_dir (`str` or `os.PathLike`): Folder where the run writes its checkpoints.
        resume_from_checkpoint (`str` or `os.PathLike`, *optional*):
            Folder of a checkpoint, or `"latest"` for the newest whole one in `output_dir`, if there is any.
    Returns:
        `Path` or `None`: Folder of the checkpoint, `None` to start at step 0.
    Raises:
        ValueError: If the folder is no whole checkpoint, `output_dir` holds a whole one beyond the starting step, or
            all are broken for `"latest"`.
    """
    if resume_from_checkpoint == "latest":
        return find_latest_checkpoint(output_dir)
    start = -1
    path = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
    if path is not None:
        text = os.fspath(resume_from_checkpoint)
        fault = find_checkpoint_fault(path) if text else "it is empty"  # `Path("")` is the current folder
        if fault is not None:
            raise ValueError(
                f"`resume_from_checkpoint` must be 'latest' or a whole checkpoint, got {shorten(text)} ({fault})."
                + _offer_older(path)
            )
        start = read_state(path)["global_step"]
    newer = [other for other in list_checkpoints(output_dir) if checkpoint_step(other) > start]
    newer = [other for other in newer if find_checkpoint_fault(other) is None]
    if newer:
        raise ValueError(
            f"`output_dir` must not hold a checkpoint that the run would overwrite, got {newer[-1]}. To continue from"
            " it, give `--resume_from_checkpoint latest`; to start a new run, choose another `--output_dir`."
        )
    return path


def _offer_older(path: Path) -> str:
    """Return a sentence that names the next older whole checkpoint, or nothing if there is none."""
    step = checkpoint_step(path)
    for other in reversed(list_checkpoints(path.parent)):
        if step is not None and checkpoint_step(other) < step and find_checkpoint_fault(other) is None:
            return f" The next older whole checkpoint is {other}."
    return ""


def starting_state(
    output_dir: str | os.PathLike, resume_from_checkpoint: str | os.PathLike | None, max_train_steps: int | None = None
) -> Mapping[str, Any]:
    """Return the `state.json` that a run starts from, or counts of 0 for a new run.

    Arguments and errors are those of [`resolve_checkpoint`] and [`check_last_step`].
    """
    path = resolve_checkpoint(output_dir, resume_from_checkpoint)
    state = {"global_step": 0, "num_samples": 0} if path is None else read_state(path)
    require_keys(path, state, "num_samples")
    if max_train_steps is not None:
        check_last_step(state["global_step"], max_train_steps)
    return state


def check_last_step(global_step: int, max_train_steps: int) -> None:
    """Raise a `ValueError` if a run would end before the checkpoint from which it resumes."""
    if global_step > max_train_steps:
        raise ValueError(
            f"`max_train_steps` must be at least the checkpoint's step, {global_step}, got {max_train_steps}: it"
            " counts from the start of the run."
        )


def save_checkpoint(
    output_dir: str | os.PathLike, global_step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping
) -> Path:
    """Write one checkpoint, whole or not at all: fill a temporary folder, sync it to the disk, then rename it.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run, made if missing.
        global_step (`int`): Optimizer steps done.
        tensors (`Mapping`): File stem (`"model"`) -> names and tensors of that file, on any device, in any layout.
        state (`Mapping`): Further values that describe the run, as JSON.
    Returns:
        `Path`: Folder of the checkpoint. It replaces an older folder of the same step.
    Raises:
        RunStopped: If it cannot be written, for example on a full disk. Earlier checkpoints are untouched.
    """
    output_dir = Path(output_dir)
    path = output_dir / checkpoint_name(global_step)
    # A unique name, since a folder that a killed run left may be impossible to delete.
    temporary = output_dir / f"{_TEMPORARY_PREFIX}{global_step:06d}-{uuid.uuid4().hex}"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for leftover in output_dir.glob(f"{_TEMPORARY_PREFIX}*"):
            _try_delete(leftover)
        temporary.mkdir()
        sizes, hashes = {}, {}
        for stem, named in tensors.items():
            file = temporary / f"{stem}.safetensors"
            # safetensors saves only contiguous tensors, which channels_last ones are not.
            save_file({name: value.detach().cpu().contiguous() for name, value in named.items()}, file)
            _sync_to_disk(file)
            sizes[file.name], hashes[file.name] = file.stat().st_size, hash_file(file)
        versions = {library.__name__: str(library.__version__) for library in (accelerate, diffusers, torch)}
        versions = {"python": platform.python_version()} | versions
        content = {"global_step": global_step, **state, "versions": versions, "files": sizes}
        content[HASHES] = hashes | {STATE_NAME: hash_state(content)}
        (temporary / STATE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _sync_to_disk(temporary / STATE_NAME)
        _sync_to_disk(temporary)
        if path.exists():
            _discard(path)
        os.replace(temporary, path)
        _sync_to_disk(output_dir)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunStopped(
            f"The checkpoint {path} could not be written ({error}); earlier checkpoints in {output_dir} are untouched."
        ) from error
    return path


def load_checkpoint(path: str | os.PathLike) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Read a checkpoint of [`save_checkpoint`], or raise a `ValueError` if it is not whole.

    Returns:
        `tuple`: File stem -> names and tensors (on the CPU, contiguous), and the content of `state.json`.
    """
    path = Path(path)
    fault = find_checkpoint_fault(path)
    if fault is not None:
        raise ValueError(f"`path` must be a whole checkpoint, got {path} ({fault}).")
    state = read_state(path)
    return {Path(name).stem: load_file(path / name) for name in state["files"]}, state


def rotate_checkpoints(output_dir: str | os.PathLike, checkpoints_total_limit: int | None) -> None:
    """Delete the oldest whole checkpoints until `checkpoints_total_limit` are left; `None` deletes none.

    Broken ones do not count and stay. If one cannot be deleted, a warning says so; the run tries again after its next
    checkpoint.
    """
    if checkpoints_total_limit is None:
        return
    if checkpoints_total_limit < 1:
        raise ValueError(f"`checkpoints_total_limit` must be at least 1, got {checkpoints_total_limit}.")
    # Hashes are checked only before resuming, since they need time.
    whole = [path for path in list_checkpoints(output_dir) if find_checkpoint_fault(path, False) is None]
    for path in whole[:-checkpoints_total_limit]:
        try:
            _discard(path)
        except OSError as error:
            logger.warning(f"The old checkpoint {path} could not be deleted: {error}")


def collect_module_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained parameters and persistent buffers of a module, which a checkpoint keeps."""
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    buffers = {name: value for name, value in module.state_dict(keep_vars=True).items() if name not in parameters}
    return trained | buffers


def restore_tensors(current: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor], what: str) -> None:
    """Copy saved tensors into the current ones of the same names, in place, so that their memory layout stays.

    Raises:
        ValueError: If names or shapes differ. `what` names this part of the checkpoint in the message.
    """
    if current.keys() != saved.keys():
        differing = {"missing": current.keys() - saved.keys(), "unexpected": saved.keys() - current.keys()}
        counts = " and ".join(f"{len(names)} {kind}" for kind, names in differing.items())
        some = ", ".join(sorted(set().union(*differing.values()))[:3])
        raise ValueError(
            f"The checkpoint's {what} must come from the same kind of training (parts, LoRA), got {counts} tensors:"
            f" {some} and so on. {_OTHER_OPTIONS}"
        )
    for name, value in current.items():
        if value.shape != saved[name].shape:
            shapes = f"{tuple(saved[name].shape)} for {tuple(value.shape)}"
            raise ValueError(
                f"The checkpoint's {what} must fit the model, got `{name}` of shape {shapes}. {_OTHER_OPTIONS}"
            )
    with torch.no_grad():
        for name, value in current.items():
            value.copy_(saved[name])


def _sync_to_disk(path: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot sync folders, nor files opened for reading
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network mounts cannot sync a folder. A file must be synced, or the checkpoint may not be whole.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    """Rename a checkpoint folder, then delete it, so that no half-deleted folder has a checkpoint's name.

    Raises:
        OSError: If it cannot be renamed. A deletion that fails after that is only a warning.
    """
    doomed = path.with_name(f"{_TEMPORARY_PREFIX}doomed-{path.name}-{uuid.uuid4().hex}")
    os.replace(path, doomed)
    _try_delete(doomed)


def _try_delete(folder: Path) -> None:
    """Delete a temporary folder or warn. A leftover does no harm, and the next checkpoint tries again."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning(f"The temporary folder {folder} could not be deleted: {error}")
