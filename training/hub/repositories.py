# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Loading of saved pipelines from a folder or the Hub, and pushing of pipelines and subjects to the Hub."""

import glob
import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

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
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from pipeline_dreampose import DreamPosePipeline
from training.engine.devices import check_device
from training.engine.hub_access import check_reachable
from training.engine.messages import one_line, shorten
from training.hub.blocks import BLOCKS_FILES, BLOCKS_INDEX, index_for_hub
from training.hub.loras import OWN_FAST, check_lora, fuse_loras


logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
SAMPLE_STEM = "sample"  # name of a card's own picture without its suffix
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp")  # of pictures on a card
BEFORE_AFTER_NAME = "before_after.png"
# Pictures that this project writes; a push deletes them from the Hub if the card no longer shows them.
OWN_PICTURES = {BEFORE_AFTER_NAME, *(SAMPLE_STEM + suffix for suffix in PICTURE_SUFFIXES)}
# In a card's code, a push replaces these quoted names by the repository's id.
PLACEHOLDERS = ("path/to/this/folder", "you/dreampose-tiny")
INDEX_NAME = "model_index.json"
CODE_NAME = "pipeline_dreampose.py"
# Names of the files besides weights that `save_pretrained` writes into the folder of a component.
SAVED_FILES = r"((scheduler|preprocessor|processor|quantization)_)?config\.json|dreampose_adapter\.py"
VARIANT = r"(\.(fp16|bf16|fp32|ema|non_ema))?"  # the usual ones of `save_pretrained(variant=...)`
# Of files in `evaluation/` and `training/` that a card may link to.
RECORD_SUFFIXES = (*PICTURE_SUFFIXES, ".json", ".jsonl", ".md", ".yaml", ".yml", ".html", ".log")
COPY_NAME = "pipeline.py"  # where `custom_pipeline="you/name"` looks for the code
# Meaning of the Hub's answers to a push; a message adds the Hub's own words.
MEANINGS = {
    401: "the token is missing or not valid (`hf auth login` stores one)",
    402: "the account's plan does not allow it",
    403: "the token may not write there, or the storage is full",
    404: "there is no such repository, or the token may not see it",
    413: "that is more than the repository may hold",
    429: "there were too many requests, try again later",
    507: "the storage is full",
}


class PushError(ValueError):
    """A failed push, described in one line; the files to push are still on the disk."""


def find_commit(name: str, revision: str | None = None) -> str | None:
    """Return the commit that a branch or tag of a cached pipeline points to; return `revision` if it is unknown."""
    if Path(name).exists():
        return revision
    index = try_to_load_from_cache(name, INDEX_NAME, revision=revision)
    return Path(index).parent.name if isinstance(index, str) else revision


def load_pipeline(
    model: str,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    lora: str | Sequence[str] | None = None,
    revision: str | None = None,
) -> DreamPosePipeline:
    """Load a DreamPose pipeline.

    Args:
        model (`str`): Folder or Hub id of the pipeline.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Device of all components.
        dtype (`str`, *optional*): `"float32"`, `"float16"` or `"bfloat16"`; the default is float16 on CUDA and float32
            elsewhere.
        lora (`str` or `Sequence[str]`, *optional*): File, folder or Hub id of a LoRA to fuse into the weights, or
            several: subjects, and a few-step LoRA, whose scheduler, steps and scales become the pipeline's.
        revision (`str`, *optional*): Branch, tag or commit of `model` on the Hub.
    Raises:
        ValueError: If `device` does not exist, `model` is neither a DreamPose pipeline's folder nor can be loaded from
            the Hub, or a `lora` cannot be loaded as a LoRA of this model.
    """
    device = check_device(device)
    loras = [lora] if isinstance(lora, str) else lora or []
    for name in loras:
        check_lora(name)
    dtype = getattr(torch, dtype or ("float16" if device.type == "cuda" else "float32"))
    with _explain_model(model):
        pipeline = DreamPosePipeline.from_pretrained(model, revision=revision, dtype=dtype).to(device)
    fuse_loras(pipeline, loras)
    return pipeline


def default_size(model: str, revision: str | None = None) -> tuple[int, int]:
    """Return the default width and height of a saved pipeline's frames, without reading its weights.

    It raises the same errors about `model` as [`load_pipeline`].
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
    """Refuse a folder without a DreamPose pipeline, and turn an `OSError` of loading into a `ValueError`."""
    check_reachable("model", model, "be a pipeline's folder or a Hub id")
    if Path(model).exists():
        _check_pipeline_folder("model", Path(model))
    try:
        yield
    except OSError as error:
        reason = one_line(error)
        raise ValueError(f"`model` must be a pipeline's folder or a Hub id, got {str(model)!r}: {reason}") from error


def _check_pipeline_folder(argument: str, folder: Path) -> None:
    found = class_name(folder / INDEX_NAME)
    if found != "DreamPosePipeline":
        raise ValueError(f"`{argument}` must be the folder of a DreamPosePipeline, got {str(folder)!r}, {found}.")


def class_name(index: Path) -> str:
    """Return the pipeline class that a `model_index.json` names, or what is wrong with the file."""
    if not index.parent.is_dir():
        return "which is a file" if index.parent.exists() else "which does not exist"
    if not index.is_file():
        return "which has no model_index.json"
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "whose model_index.json names no pipeline class"
    name = name[-1] if isinstance(name, list) and name else name
    return name if isinstance(name, str) else "whose model_index.json names no pipeline class"


def is_repo_id(name: str) -> bool:
    """Tell whether this is a valid name of a repository on the Hub: `OWNER/NAME`, or `NAME` for the token's owner."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def make_repo(repo_id: str, *, private: bool = True) -> str:
    """Create a model's repository on the Hub if there is none, and check that the token may write to it.

    A training that ends in a push calls this first, so that a wrong token shows at the start and not after days.

    Args:
        repo_id (`str`): `OWNER/NAME`, or `NAME` for the token's owner.
        private (`bool`, *optional*, defaults to `True`): Whether a new repository is private. An existing one stays as
            it is, with a warning if it is public.
    Returns:
        `str`: Its full id, `OWNER/NAME`.
    Raises:
        PushError: If the repository cannot be created or written to.
    """
    with explain_push("hub_model_id", repo_id, "Nothing is lost; a later push tries again."):
        return _make_repo(repo_id, private)


def try_make_repo(repo_id: str, private: bool = True) -> str | None:
    """Call [`make_repo`] at the start of a run; an error becomes a warning and the result `None`."""
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
    """Push a saved pipeline or subject to the Hub, in one commit with the changed files.

    Files that the Hub already has, from an earlier push or an interrupted one, are not sent again. The commit deletes
    a picture of an earlier card that the new card does not show; the repository's history keeps it. On the Hub, the
    card's code and the blocks' index name the repository, for `PLACEHOLDERS` and the folder; `folder` stays as it is.

    Args:
        folder (`Path`): Folder written by `save_pretrained` or `save_lora_weights`, with a card. A pipeline's folder
            gets a copy of its code as `pipeline.py`, for `custom_pipeline=repo_id`.
        repo_id, private: See [`make_repo`], which creates the repository if there is none.
        commit_message (`str`, *optional*): First line of the commit's message; the default says what is uploaded.
        allow_patterns (`Sequence[str]`, *optional*): Files to push. The default is [`pipeline_patterns`], or
            [`subject_patterns`] if the folder holds a subject only, so that checkpoints, logs, options and other files
            are not sent.
    Returns:
        `str`: Address of the repository.
    Raises:
        PushError: If the push fails; the message names a command that pushes the files later.
        ValueError: If `repo_id` is no valid id, or `folder` holds neither pipeline nor subject and `allow_patterns` is
            `None`.
    """
    if not is_repo_id(repo_id):
        rule = "be OWNER/NAME or NAME, of letters, digits, `-`, `_` and `.`"
        raise ValueError(f"`hub_model_id` must {rule}, got {shorten(repo_id)}.")
    folder, kind = Path(folder), "pipeline"
    if allow_patterns is None and (folder / LORA_WEIGHT_NAME_SAFE).is_file() and not (folder / INDEX_NAME).exists():
        allow_patterns, kind = subject_patterns(folder), "subject"
    patterns = pipeline_patterns(folder) if allow_patterns is None else list(allow_patterns)
    has_code = allow_patterns is None and (folder / CODE_NAME).is_file()
    patterns += [COPY_NAME] if has_code and COPY_NAME not in patterns else []
    check_links("folder", folder, [CODE_NAME, COPY_NAME, *_matching(folder, patterns)])
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


def try_push(folder: Path, repo_id: str, **options: Any) -> None:
    """Call [`push_folder`] at the end of a run; an error becomes a warning."""
    try:
        print(f"Pushed {folder} to {push_folder(folder, repo_id, **options)}.")
    except (OSError, ValueError) as error:
        logger.warning("%s", error)


def pipeline_patterns(folder: Path) -> list[str]:
    """Return patterns of a pipeline's files: index, parts, code, blocks, LoRA `fast`, [`card_patterns`].

    Other files in a component's folder, such as `.env` or weights of another name, are not among them. A folder
    without a pipeline raises a `ValueError`.
    """
    _check_pipeline_folder("folder", folder)
    names = (INDEX_NAME, CODE_NAME, COPY_NAME, *BLOCKS_FILES, OWN_FAST)
    names = [glob.escape(name) for name in names if (folder / name).is_file()]
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    parts = [name for name, value in index.items() if isinstance(value, list) and re.fullmatch(r"[a-z]\w*", name)]
    check_links("folder", folder, parts)
    saved = sorted(f"{part}/{name}" for part in parts for name in _saved_files(folder / part))
    return names + card_patterns(folder) + [glob.escape(name) for name in saved]


def _saved_files(part: Path) -> list[str]:
    """Return the names of the files in a component's folder that `save_pretrained` writes there."""
    rule, config = SAVED_FILES, part / "config.json"
    if config.is_file():  # a scheduler has neither it nor weights
        is_of_diffusers = '"_class_name"' in config.read_text(encoding="utf-8", errors="replace")
        stem = "diffusion_pytorch_model" if is_of_diffusers else "model"  # as transformers names weights
        rule += rf"|{stem}({VARIANT}(-\d{{5}}-of-\d{{5}})?\.safetensors|\.safetensors\.index{VARIANT}\.json)"
    return [path.name for path in part.glob("*") if path.is_file() and re.fullmatch(rule, path.name)]


def check_links(argument: str, folder: Path, names: Iterable[str]) -> None:
    """Raise a `ValueError` if one of the names is a link that leaves the folder, so that no other file is pushed."""
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"`{argument}` must hold the files themselves, got a link that leaves it, {shorten(name)}."
            )


def subject_patterns(folder: Path) -> list[str]:
    """Return patterns of a saved subject's files: its weights and [`card_patterns`]."""
    return [*card_patterns(folder), LORA_WEIGHT_NAME_SAFE]


def card_patterns(folder: Path) -> list[str]:
    """Return patterns of a folder's card, the pictures on it and the records in `evaluation/` and `training/` that it
    links to; none without a card. A push sends no other file, even if the card links to it.
    """
    if not (folder / CARD_NAME).is_file():
        return []
    text = (folder / CARD_NAME).read_text(encoding="utf-8", errors="replace")
    named = re.findall(r"\]\(\s*<?([^()<>\s]+)>?(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)", text)
    names = [normpath(name) for name in [*named, *_widget_addresses(text)]]
    return [CARD_NAME, *dict.fromkeys(glob.escape(name) for name in names if _may_be_shown(folder, name))]


def _may_be_shown(folder: Path, name: str) -> bool:
    path = PurePosixPath(name)
    # `Path.is_file` fails for a name that is too long, such as the data of an embedded picture.
    if path.is_absolute() or any(part.startswith(".") for part in path.parts) or not os.path.isfile(folder / name):
        return False
    suffixes = RECORD_SUFFIXES if path.parts[0] in ("evaluation", "training") else PICTURE_SUFFIXES
    return path.suffix.lower() in suffixes


def _widget_addresses(text: str) -> list[str]:
    """Return the addresses of the pictures in a card's front matter; none if that is not valid for the Hub."""
    try:
        widget = ModelCard(text, ignore_metadata_errors=True).data.get("widget") or []
        addresses = [example["output"]["url"] for example in widget]
    except Exception:  # whatever the library finds in a file of unknown origin
        return []
    return [address for address in addresses if isinstance(address, str)]


def _matching(folder: Path, patterns: Sequence[str]) -> list[str]:
    """Return the files of a folder that match one of the patterns, sorted."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return list(filter_repo_objects(paths, allow_patterns=list(patterns)))


def _changes(
    folder: Path, patterns: Sequence[str], repo_id: str, remote: set[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return the operations of a commit: add the files of the patterns, delete pictures that left the card."""
    contents: dict[str, Path | bytes] = {name: folder / name for name in _matching(folder, patterns)}
    if CARD_NAME in contents:
        card = (folder / CARD_NAME).read_bytes()
        for placeholder in PLACEHOLDERS:
            card = card.replace(f'"{placeholder}"'.encode(), f'"{repo_id}"'.encode())
        contents[CARD_NAME] = card
    if BLOCKS_INDEX in contents:
        contents[BLOCKS_INDEX] = index_for_hub(folder, repo_id)
    gone = sorted(remote & OWN_PICTURES - contents.keys()) if CARD_NAME in contents else []
    deletions = [CommitOperationDelete(name, is_folder=False) for name in gone]
    return deletions + [CommitOperationAdd(name, content) for name, content in contents.items()]


@contextmanager
def explain_push(argument: str, repo_id: str, advice: str) -> Iterator[None]:
    """Turn any error in a push into a `PushError` of one line, without the token.

    The message names the repository and the option `argument` that named it, says whether the cause is the repository,
    the connection or something on this machine, and ends with `advice` on what to do now.
    """
    try:
        yield
    except Exception as error:  # errors of the Hub, its client, the connection and files share no class
        cause, place = error, ""
        if type(error) is RuntimeError and error.__cause__ is not None:  # the client names the file
            cause, place = error.__cause__, f"{str(error).rstrip('.')}: "
        if getattr(cause, "response", None) is not None or isinstance(cause, HFValidationError):
            start = f"`{argument}` must name a repository that can be written, got {shorten(repo_id)}"
        elif _is_broken_connection(cause):
            start = f"Nothing was pushed to {repo_id!r} (`{argument}`), the connection to the Hub broke"
        else:
            start = f"Nothing was pushed to {repo_id!r} (`{argument}`)"
        raise PushError(f"{start}: {_reason(cause, place)}. {advice}") from error


def _is_broken_connection(error: BaseException) -> bool:
    """Tell whether the Hub did not answer: a client error, or a client closed by another thread's failure."""
    is_clients = any(base.__module__.startswith("httpx") for base in type(error).__mro__)  # httpx or its successor
    is_closed = isinstance(error, RuntimeError) and "client has been closed" in str(error)
    return is_clients or is_closed or isinstance(error, ConnectionError | TimeoutError)


def _make_repo(repo_id: str, private: bool) -> str:
    api = HfApi()
    full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.auth_check(full_id, write=True)
    if private and not api.model_info(full_id).private:
        logger.warning("%s is public and stays public: everybody can see what is pushed there.", full_id)
    return full_id


def _reason(error: BaseException, place: str) -> str:
    """Describe an error and its place in one line, without the token."""
    response = getattr(error, "response", None)
    if response is None:
        text = f"{type(error).__name__}: {error}"
    else:
        status = response.status_code
        text = MEANINGS.get(status, "the Hub failed" if status >= 500 else "the Hub refuses it")
        text += f" ({status}: {getattr(error, 'server_message', None) or error})"
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", place + text)  # a query may hold a signature
    text = text.replace(get_token() or "\0", "***")
    return one_line(text, 500).rstrip(".")
