# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Quick answer for a model or data set that is neither on this machine nor, without a connection, on the Hub.

The libraries retry for 23 seconds or more, and then say that a file is missing.
"""

from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import get_session, validate_repo_id

from training.engine.messages import shorten


TIMEOUT = 10  # seconds


def check_reachable(argument: str, name: str | Path, rule: str) -> None:
    """Check that a model is there, as [`why_unreachable`] does.

    Raises:
        ValueError: If it is not. The message says that `argument` must follow the `rule`.
    """
    reason = why_unreachable(name)
    if reason is not None:
        raise ValueError(f"`{argument}` must {rule}, got {shorten(str(name))}: {reason}.")


def why_unreachable(name: str | Path, repo_type: str = "model") -> str | None:
    """Return `None` for a file, a folder, a repository in the Hub's cache, or an id while the Hub answers.

    For any other name, return the reason why it cannot be read.
    """
    try:
        if str(name) and Path(name).exists():  # `Path("")` is the current folder
            return None
        validate_repo_id(str(name))
        if (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=str(name), repo_type=repo_type)).is_dir():
            return None
    except (OSError, ValueError):  # a name that is too long, or no id
        return "there is no such folder, and it is no id on the Hub"
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # the errors of the Hub's clients share no class
        return "there is no such folder, and the Hub cannot be reached"
    return None
