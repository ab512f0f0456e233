# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Saved pipelines, from a folder or the Hub, and to the Hub."""

import glob
import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from posixpath import normpath

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import filter_repo_objects

from pipeline_dreampose import DreamPosePipeline
from training.engine.devices import check_device


logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
SAMPLE_STEM = "sample"  # the name of a card's own picture, less its suffix
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp")  # of pictures on a card
BEFORE_AFTER_NAME = "before_after.png"
# What this project itself puts beside cards: off the card, it is to be off the Hub.
OWN_PICTURES = {BEFORE_AFTER_NAME, *(SAMPLE_STEM + suffix for suffix in PICTURE_SUFFIXES)}
# What stands in a card's snippet, quoted, while it is not known where the card will be.
PLACEHOLDERS = ("path/to/this/folder", "you/dreampose-tiny")
INDEX_NAME = "model_index.json"
CODE_NAME = "pipeline_dreampose.py"
COPY_NAME = "pipeline.py"  # where `custom_pipeline="you/name"` looks for the code
# What the Hub's answers mean to who pushes; its own words follow.
MEANINGS = {
    401: "the token is missing or not valid (`hf auth login` stores one)",
    402: "the account's plan does not allow it",
    403: "the token may not write there, or the storage is full",
    404: "there is no such repository, or the token may not see it",
    413: "that is more than the repository may hold",
    429: "these were too many requests for now",
    507: "the storage is full",
}


class PushError(ValueError):
    """A push to the Hub that failed, in one line; what should have been pushed is on the disk as before."""


def find_commit(name: str, revision: str | None = None) -> str | None:
    """The commit of a pipeline that was loaded from the Hub, whatever branch or tag led to it; else `revision`."""
    if Path(name).exists():
        return revision
    index = try_to_load_from_cache(name, INDEX_NAME, revision=revision)
    return Path(index).parent.name if isinstance(index, str) else revision


def load_pipeline(
    model: str,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    lora: str | None = None,
    revision: str | None = None,
) -> DreamPosePipeline:
    """Load a DreamPose pipeline.

    Args:
        model (`str`): A pipeline's folder or a Hub id.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where its components go.
        dtype (`str`, *optional*): `"float32"`, `"float16"` or `"bfloat16"`; float16 on CUDA and float32 elsewhere if
            `None`.
        lora (`str`, *optional*): File, folder or Hub id of a subject, which is fused into the weights.
        revision (`str`, *optional*): Branch, tag or commit of `model` on the Hub.
    Returns:
        `DreamPosePipeline`: With all components on `device`.
    Raises:
        ValueError: If there is no such `device`, or `model` is a folder that holds no DreamPose pipeline, or neither a
            folder nor to be had as a Hub id; the same for `lora` and a subject of this model.
    """
    device = check_device(device)
    dtype = getattr(torch, dtype or ("float16" if device.type == "cuda" else "float32"))
    with _explain_model(model):
        pipeline = DreamPosePipeline.from_pretrained(model, revision=revision, dtype=dtype).to(device)
    if lora is not None:
        try:
            pipeline.load_lora_weights(lora)
        except OSError as error:
            raise ValueError(f"`lora` must be a subject's file, folder or Hub id, got {lora!r}: {error}") from error
        pipeline.fuse_lora()  # no slower than without it
        pipeline.unload_lora_weights()
    return pipeline


def default_size(model: str, revision: str | None = None) -> tuple[int, int]:
    """Width and height of the frames that a saved pipeline makes by itself; its weights are not read.

    Args:
        model (`str`): Its folder or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
    Raises:
        ValueError: As [`load_pipeline`] refuses `model`.
    """
    with _explain_model(model):
        index = DreamPosePipeline.load_config(model, revision=revision)
    if not {"default_width", "default_height"} <= index.keys():
        raise ValueError(
            f"`model` must be a DreamPosePipeline, whose index has `default_width` and `default_height`, got"
            f" {str(model)!r}, a {index.get('_class_name')}."
        )
    return index["default_width"], index["default_height"]


@contextmanager
def _explain_model(model: str) -> Iterator[None]:
    """Refuse a folder of something else at once, and turn what loading raises for a missing one into the error."""
    if Path(model).exists():
        found = class_name(Path(model) / INDEX_NAME)
        if found != "DreamPosePipeline":
            raise ValueError(f"`model` must be the folder of a DreamPosePipeline, got {str(model)!r}, {found}.")
    try:
        yield
    except OSError as error:
        raise ValueError(f"`model` must be a pipeline's folder or a Hub id, got {str(model)!r}: {error}") from error


def class_name(index: Path) -> str:
    """The pipeline class that a `model_index.json` names, or what is wrong with the file.

    Args:
        index (`Path`): The file.
    """
    if not index.is_file():
        return "which has no model_index.json"
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError):
        return "whose model_index.json names no pipeline class"
    return name[-1] if isinstance(name, list) else name


def make_repo(repo_id: str, *, private: bool = True) -> str:
    """Make a model's repository on the Hub if there is none, and see that it may be written.

    A training that ends in a push calls this first: it is no use to hear of a wrong token after days.

    Args:
        repo_id (`str`): `OWNER/NAME`, or `NAME` for the token's own.
        private (`bool`, *optional*, defaults to `True`): Make a new one private; one that exists stays as it is, which
            is said where it is public.
    Returns:
        `str`: Its full id, `OWNER/NAME`.
    Raises:
        PushError: If it cannot be made or written.
    """
    with explain_push("hub_model_id", repo_id, "Nothing is lost; a later push tries once more."):
        return _make_repo(repo_id, private)


def try_make_repo(repo_id: str, private: bool = True) -> str | None:
    """[`make_repo`] at the start of a run that must not fail for it: what goes wrong is a warning.

    Args:
        repo_id, private: As `make_repo` takes them.
    Returns:
        `str` or `None`: The repository's full id, if it can be written.
    """
    try:
        return make_repo(repo_id, private=private)
    except PushError as error:
        logger.warning("%s", error)
        return None


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    commit_message: str | None = None,
    allow_patterns: Sequence[str] | None = None,
) -> str:
    """Push a saved pipeline or subject to the Hub, in one commit of what has changed there.

    Files that the Hub has already, from an earlier push or from one that was cut off, are not sent again. A picture of
    an earlier card that is not on this one is deleted by the same commit; the repository's history keeps it. The
    card's snippet gets the repository's id where it has one of `PLACEHOLDERS`; the file in `folder` stays as it is.

    Args:
        folder (`Path`): Written by `save_pretrained` or `save_lora_weights`, with a card. A pipeline's gets a copy of
            its code as `pipeline.py`, for `custom_pipeline=repo_id`.
        repo_id (`str`): `OWNER/NAME`, or `NAME` for the token's own; made if there is none.
        private (`bool`, *optional*, defaults to `True`): As `make_repo` takes it.
        commit_message (`str`, *optional*): First line of the commit's message; by default, what is uploaded.
        allow_patterns (`Sequence[str]`, *optional*): What is sent; by default, [`pipeline_patterns`], or
            [`subject_patterns`] of a folder that holds a subject alone, so that checkpoints, logs, options and
            whatever else lies in the folder stay there.
    Returns:
        `str`: Address of the repository.
    Raises:
        PushError: If it failed; names the command that pushes it later.
        ValueError: If `folder` holds neither pipeline nor subject and `allow_patterns` is `None`.
    """
    folder, kind = Path(folder), "pipeline"
    if allow_patterns is None and (folder / LORA_WEIGHT_NAME_SAFE).is_file() and not (folder / INDEX_NAME).exists():
        allow_patterns, kind = subject_patterns(folder), "subject"
    patterns = pipeline_patterns(folder) if allow_patterns is None else list(allow_patterns)
    has_code = allow_patterns is None and (folder / CODE_NAME).is_file()
    patterns += [COPY_NAME] if has_code and COPY_NAME not in patterns else []
    command = ["hf", "upload", repo_id, str(folder), *(["--private"] if private else [])]
    command += [word for pattern in patterns for word in ("--include", pattern)]
    advice = f"Everything is in {str(folder)!r}; this pushes it later: {shlex.join(command)}"
    with explain_push("hub_model_id", repo_id, advice):
        if has_code:
            shutil.copyfile(folder / CODE_NAME, folder / COPY_NAME)
        api, full_id = HfApi(), _make_repo(repo_id, private)
        operations = _changes(folder, patterns, full_id, set(api.list_repo_files(full_id)))
        message = commit_message or f"Upload a DreamPose {kind}"
        api.create_commit(full_id, operations, commit_message=message)
        return f"{api.endpoint}/{full_id}"


def try_push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    commit_message: str | None = None,
    allow_patterns: Sequence[str] | None = None,
) -> bool:
    """[`push_folder`] at the end of a run that must not fail for it: what goes wrong is a warning.

    Args:
        folder, repo_id, private, commit_message, allow_patterns: As `push_folder` takes them.
    Returns:
        `bool`: Whether it was pushed.
    """
    how = {"private": private, "commit_message": commit_message, "allow_patterns": allow_patterns}
    try:
        address = push_folder(folder, repo_id, **how)
    except (OSError, ValueError) as error:
        logger.warning("%s", error)
        return False
    print(f"Pushed {folder} to {address}.")
    return True


def pipeline_patterns(folder: Path) -> list[str]:
    """The files of a saved pipeline, as patterns: its index, parts and code, its card and what that shows or
    refers to.

    Args:
        folder (`Path`): The pipeline's.
    Raises:
        ValueError: If there is none.
    """
    found = class_name(folder / INDEX_NAME)
    if found != "DreamPosePipeline":
        raise ValueError(f"`folder` must be the folder of a DreamPosePipeline, got {str(folder)!r}, {found}.")
    names = [glob.escape(name) for name in (INDEX_NAME, CODE_NAME, COPY_NAME) if (folder / name).is_file()]
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    parts = [name for name, value in index.items() if isinstance(value, list) and not name.startswith("_")]
    return names + card_patterns(folder) + [f"{name}/*" for name in parts if (folder / name).is_dir()]


def subject_patterns(folder: Path) -> list[str]:
    """The files of a saved subject, as patterns: its weights, its card and what that shows or refers to.

    Args:
        folder (`Path`): The subject's.
    """
    return [*card_patterns(folder), LORA_WEIGHT_NAME_SAFE]


def card_patterns(folder: Path) -> list[str]:
    """The card with the pictures that it shows and the files under `evaluation/` and `training/` that it refers to, as
    patterns; none if there is no card. Whatever else the folder holds is not sent, even if the card refers to it.

    Args:
        folder (`Path`): Where they lie.
    """
    if not (folder / CARD_NAME).is_file():
        return []
    text = (folder / CARD_NAME).read_text(encoding="utf-8", errors="replace")
    named = re.findall(r"\]\(\s*<?([^()<>\s]+)>?(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)", text)
    names = [normpath(name) for name in [*named, *_widget_addresses(text)]]
    return [CARD_NAME, *dict.fromkeys(glob.escape(name) for name in names if _may_be_shown(folder, name))]


def _may_be_shown(folder: Path, name: str) -> bool:
    path = PurePosixPath(name)
    # `Path.is_file` fails for what is too long a name, such as a picture that the card itself holds.
    if path.is_absolute() or ".." in path.parts or not os.path.isfile(folder / name):
        return False
    return path.suffix.lower() in PICTURE_SUFFIXES or path.parts[0] in ("evaluation", "training")


def _widget_addresses(text: str) -> list[str]:
    """Of the pictures that a card's front matter names; none where it is not as the Hub would have it."""
    try:
        widget = ModelCard(text, ignore_metadata_errors=True).data.get("widget") or []
        addresses = [example["output"]["url"] for example in widget]
    except Exception:  # whatever the library meets in a file of unknown origin
        return []
    return [address for address in addresses if isinstance(address, str)]


def _changes(
    folder: Path, patterns: Sequence[str], repo_id: str, remote: set[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What a commit is made of: the files of these patterns, less those pictures that the card no longer shows."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = list(filter_repo_objects(paths, allow_patterns=list(patterns)))
    contents: dict[str, Path | bytes] = {name: folder / name for name in names}
    if CARD_NAME in contents:
        card = (folder / CARD_NAME).read_bytes()
        for placeholder in PLACEHOLDERS:
            card = card.replace(f'"{placeholder}"'.encode(), f'"{repo_id}"'.encode())
        contents[CARD_NAME] = card
    gone = sorted(remote & OWN_PICTURES - contents.keys()) if CARD_NAME in contents else []
    deletions = [CommitOperationDelete(name, is_folder=False) for name in gone]
    return deletions + [CommitOperationAdd(name, content) for name, content in contents.items()]


@contextmanager
def explain_push(argument: str, repo_id: str, advice: str) -> Iterator[None]:
    """Turn whatever goes wrong in a push into one `PushError`.

    Args:
        argument (`str`): The option that named the repository.
        repo_id (`str`): The repository.
        advice (`str`): What to do now; ends the message.
    Raises:
        PushError: Of one line, without the token. It says whether the repository, the connection or something on
            this machine is at fault.
    """
    try:
        yield
    except Exception as error:  # of the Hub, of its client, of the connection and of files, which share no class
        is_of_file = type(error) is RuntimeError and error.__cause__ is not None
        cause = error.__cause__ if is_of_file else error
        if getattr(cause, "response", None) is not None or isinstance(cause, HFValidationError):
            start = f"`{argument}` must name a repository that can be written, got {repo_id!r}"
        elif _is_broken_connection(cause):
            start = f"Nothing was pushed to {repo_id!r} (`{argument}`), the connection to the Hub broke"
        else:
            start = f"Nothing was pushed to {repo_id!r} (`{argument}`)"
        raise PushError(f"{start}: {_reason(error)}. {advice}") from error


def _is_broken_connection(error: BaseException) -> bool:
    """Whether no answer came: the client's own errors, and what it says where one thread's failure closed it."""
    is_clients = any(base.__module__.startswith("httpx") for base in type(error).__mro__)  # httpx, and its follower
    is_closed = isinstance(error, RuntimeError) and "client has been closed" in str(error)
    return is_clients or is_closed or isinstance(error, ConnectionError | TimeoutError)


def _make_repo(repo_id: str, private: bool) -> str:
    api = HfApi()
    full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.auth_check(full_id, write=True)
    if private and not api.model_info(full_id).private:
        logger.warning("%s is public and stays so: whatever is pushed there can be seen by all.", full_id)
    return full_id


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    place = ""
    if type(error) is RuntimeError and error.__cause__ is not None:  # of one file: the client's words, then the cause
        place, error = f"{str(error).rstrip('.')}: ", error.__cause__
    response = getattr(error, "response", None)
    if response is None:
        text = f"{type(error).__name__}: {error}"
    else:
        status = response.status_code
        text = MEANINGS.get(status, "the Hub failed" if status >= 500 else "the Hub refuses it")
        text += f" ({status}: {getattr(error, 'server_message', None) or error})"
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", place + text)  # queries may be signed
    text = text.replace(get_token() or "\0", "***")
    return " ".join(text.split()).rstrip(".")
