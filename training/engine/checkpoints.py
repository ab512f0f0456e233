# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Checkpoints of a training run: named, written whole or not at all, rotated, found again and loaded.

A checkpoint is a folder `checkpoint-000123` of safetensors files and `state.json`; nothing is pickled. `state.json`
lists the other files with their sizes and is written last, so a folder that was cut short is told from a whole one.
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


logger = logging.getLogger(__name__)

CHECKPOINT_PREFIX = "checkpoint-"
STATE_NAME = "state.json"
# Folders of this prefix are being written or deleted; nothing ever reads them.
_TEMPORARY_PREFIX = ".tmp-checkpoint-"


def checkpoint_name(global_step: int) -> str:
    """Folder name of the checkpoint of one step: `checkpoint-000123`; names sort by step up to a million steps.

    Raises:
        ValueError: If `global_step` is negative.
    """
    if global_step < 0:
        raise ValueError(f"`global_step` must be at least 0, got {global_step}.")
    return f"{CHECKPOINT_PREFIX}{global_step:06d}"


def checkpoint_step(path: str | os.PathLike) -> int | None:
    """The step that a folder's name stands for, `None` if it is not the name of a checkpoint."""
    digits = Path(path).name.removeprefix(CHECKPOINT_PREFIX)
    return int(digits) if Path(path).name.startswith(CHECKPOINT_PREFIX) and digits.isdecimal() else None


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Every folder named like a checkpoint in `output_dir`, whole or not, the oldest step first."""
    if not Path(output_dir).is_dir():
        return []
    folders = [path for path in Path(output_dir).iterdir() if checkpoint_step(path) is not None and path.is_dir()]
    return sorted(folders, key=checkpoint_step)


def find_checkpoint_fault(path: str | os.PathLike) -> str | None:
    """Say why a checkpoint is not whole.

    Returns:
        `str` or `None`: The reason (a file missing, of another size, unreadable), `None` for a whole checkpoint.
    """
    path = Path(path)
    try:
        files = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))["files"]
        for name, size in files.items():
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {size}"
            with safe_open(path / name, framework="pt"):
                pass
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def find_latest_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The newest whole checkpoint in `output_dir`; newer ones that are broken are skipped with a warning.

    Returns:
        `Path` or `None`: The folder, `None` where there is no checkpoint at all.
    Raises:
        ValueError: If there are only broken ones.
    """
    faults = {}
    for path in reversed(list_checkpoints(output_dir)):
        faults[path] = find_checkpoint_fault(path)
        if faults[path] is None:
            return path
        logger.warning(f"Skipping the broken checkpoint {path} ({faults[path]}).")
    if faults:
        # A killed run leaves none of this name, so the disk or a copy is at fault: to start anew would empty the log.
        path, fault = next(iter(faults.items()))
        raise ValueError(
            "`output_dir` must hold a whole checkpoint or none at all to go on from the latest, got broken ones only,"
            f" the newest {path} ({fault}): move them away to start anew, or give another `output_dir`."
        )
    return None


def resolve_checkpoint(output_dir: str | os.PathLike, resume_from_checkpoint: str | os.PathLike | None) -> Path | None:
    """Find the checkpoint that a run starts from, and refuse starts that would mix two runs in one folder.

    Args:
        output_dir (`str` or `os.PathLike`): Where the run writes its checkpoints.
        resume_from_checkpoint (`str` or `os.PathLike`, *optional*):
            `"latest"` (the newest whole one in `output_dir`; none at all there: start anew), a checkpoint's folder,
            `None`.
    Returns:
        `Path` or `None`: The checkpoint's folder, `None` to start at step 0.
    Raises:
        ValueError: If the folder is no whole checkpoint, or `output_dir` holds whole ones beyond the starting step, or
            only broken ones for `"latest"`.
    """
    if resume_from_checkpoint == "latest":
        return find_latest_checkpoint(output_dir)
    start = -1
    path = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
    if path is not None:
        fault = find_checkpoint_fault(path)
        if fault is not None:
            raise ValueError(f"`resume_from_checkpoint` must be 'latest' or a whole checkpoint, got {path} ({fault}).")
        start = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))["global_step"]
    newer = [other for other in list_checkpoints(output_dir) if checkpoint_step(other) > start]
    newer = [other for other in newer if find_checkpoint_fault(other) is None]
    if newer:
        raise ValueError(
            f"`output_dir` must hold no checkpoint beyond the starting step of the run, got {newer[-1]}: go on from it"
            " with `--resume_from_checkpoint latest`, or choose another folder."
        )
    return path


def starting_step(
    output_dir: str | os.PathLike,
    resume_from_checkpoint: str | os.PathLike | None,
    max_train_steps: int | None = None,
) -> int:
    """The step that a run starts from, 0 anew; arguments and errors are those of [`resolve_checkpoint`] and, for
    `max_train_steps`, of [`check_last_step`]."""
    global_step = starting_state(output_dir, resume_from_checkpoint)["global_step"]
    if max_train_steps is not None:
        check_last_step(global_step, max_train_steps)
    return global_step


def check_last_step(global_step: int, max_train_steps: int) -> None:
    """Refuse a run that would end before the checkpoint that it goes on from.

    Raises:
        ValueError: If `max_train_steps` is below `global_step`.
    """
    if global_step > max_train_steps:
        raise ValueError(
            f"`max_train_steps` must be at least the checkpoint's step, {global_step}, got {max_train_steps}."
        )


def starting_state(
    output_dir: str | os.PathLike, resume_from_checkpoint: str | os.PathLike | None
) -> Mapping[str, Any]:
    """The `state.json` that a run starts from, its counts at 0 anew; arguments and errors are those of
    [`resolve_checkpoint`]."""
    path = resolve_checkpoint(output_dir, resume_from_checkpoint)
    if path is None:
        return {"global_step": 0, "num_samples": 0}
    return json.loads((path / STATE_NAME).read_text(encoding="utf-8"))


def save_checkpoint(
    output_dir: str | os.PathLike,
    global_step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping,
) -> Path:
    """Write one checkpoint, whole or not at all: into a temporary folder, to the disk, then renamed.

    Args:
        output_dir (`str` or `os.PathLike`): The run's folder, made if missing.
        global_step (`int`): Optimizer steps done.
        tensors (`Mapping`): File stem (`"model"`) -> names and tensors of that file, on any device, in any layout.
        state (`Mapping`): What else describes the run, as JSON can hold it.
    Returns:
        `Path`: The checkpoint's folder. A folder of the same step that was there before is replaced.
    Raises:
        RuntimeError: If it cannot be written (a full disk); earlier checkpoints are untouched then.
    """
    output_dir = Path(output_dir)
    path = output_dir / checkpoint_name(global_step)
    # Of a name of its own: one that a killed run left may refuse to go.
    temporary = output_dir / f"{_TEMPORARY_PREFIX}{global_step:06d}-{uuid.uuid4().hex}"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for leftover in output_dir.glob(f"{_TEMPORARY_PREFIX}*"):
            _try_delete(leftover)
        temporary.mkdir()
        sizes = {}
        for stem, named in tensors.items():
            file = temporary / f"{stem}.safetensors"
            # Only contiguous tensors can be saved; channels_last ones are laid out anew.
            save_file({name: value.detach().cpu().contiguous() for name, value in named.items()}, file)
            _sync_to_disk(file)
            sizes[file.name] = file.stat().st_size
        content = {"global_step": global_step, **state, "versions": _library_versions(), "files": sizes}
        (temporary / STATE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _sync_to_disk(temporary / STATE_NAME)
        _sync_to_disk(temporary)
        if path.exists():
            _discard(path)
        os.replace(temporary, path)
        _sync_to_disk(output_dir)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RuntimeError(
            f"The checkpoint {path} could not be written ({error}); earlier checkpoints in {output_dir} are untouched."
        ) from error
    return path


def load_checkpoint(path: str | os.PathLike) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Read what [`save_checkpoint`] wrote.

    Returns:
        `tuple`: File stem -> names and tensors (on the CPU, contiguous), and the content of `state.json`.
    Raises:
        ValueError: If `path` is not a whole checkpoint.
    """
    path = Path(path)
    fault = find_checkpoint_fault(path)
    if fault is not None:
        raise ValueError(f"`path` must be a whole checkpoint, got {path} ({fault}).")
    state = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
    return {Path(name).stem: load_file(path / name) for name in state["files"]}, state


def rotate_checkpoints(output_dir: str | os.PathLike, checkpoints_total_limit: int | None) -> list[Path]:
    """Delete the oldest whole checkpoints until `checkpoints_total_limit` are left; broken ones neither count nor go.

    One that cannot be deleted is a warning: the run itself is well, and tries again after its next checkpoint.

    Returns:
        `list[Path]`: What was deleted.
    Raises:
        ValueError: If `checkpoints_total_limit` is below 1.
    """
    if checkpoints_total_limit is None:
        return []
    if checkpoints_total_limit < 1:
        raise ValueError(f"`checkpoints_total_limit` must be at least 1, got {checkpoints_total_limit}.")
    whole = [path for path in list_checkpoints(output_dir) if find_checkpoint_fault(path) is None]
    deleted = []
    for path in whole[:-checkpoints_total_limit]:
        try:
            _discard(path)
            deleted.append(path)
        except OSError as error:
            logger.warning(f"The old checkpoint {path} could not be deleted: {error}")
    return deleted


def collect_module_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint keeps of a module: parameters that train, and persistent buffers; frozen weights stay out."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in module.named_parameters() if name not in frozen} | _named_buffers(module)


def restore_tensors(current: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor], what: str) -> None:
    """Copy saved tensors into the current ones of the same names, in place, so that their memory layout stays.

    Raises:
        ValueError: If names or shapes differ; `what` says in the message which part of the checkpoint it is.
    """
    if current.keys() != saved.keys():
        differing = {"missing": current.keys() - saved.keys(), "unexpected": saved.keys() - current.keys()}
        counts = " and ".join(f"{len(names)} {kind}" for kind, names in differing.items())
        some = ", ".join(sorted(set().union(*differing.values()))[:3])
        raise ValueError(
            f"The checkpoint's {what} must be of the same training, such as of the same parts and LoRA, got tensors"
            f" {counts}: {some} and so on."
        )
    for name, value in current.items():
        if value.shape != saved[name].shape:
            shapes = f"{tuple(saved[name].shape)} for {tuple(value.shape)}"
            raise ValueError(f"The checkpoint's {what} must fit the model, got `{name}` of shape {shapes}.")
    with torch.no_grad():
        for name, value in current.items():
            value.copy_(saved[name])


def _named_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if name not in parameters}


def _library_versions() -> dict[str, str]:
    libraries = {library.__name__: str(library.__version__) for library in (accelerate, diffusers, torch)}
    return {"python": platform.python_version()} | libraries


def _sync_to_disk(path: Path) -> None:
    if os.name == "nt":
        return  # where neither folders nor files opened for reading can be synced
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network mounts refuse it of a folder; of a file it is what makes a checkpoint whole.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    """Delete a checkpoint folder; renamed first, so that no half-deleted one bears a checkpoint's name.

    Raises:
        OSError: If it cannot be renamed; what cannot be deleted after that is a warning.
    """
    doomed = path.with_name(f"{_TEMPORARY_PREFIX}doomed-{path.name}-{uuid.uuid4().hex}")
    os.replace(path, doomed)
    _try_delete(doomed)


def _try_delete(folder: Path) -> None:
    """Delete a temporary folder; what stays of it is in nobody's way, and the next checkpoint tries once more."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning(f"The temporary folder {folder} could not be deleted: {error}")
