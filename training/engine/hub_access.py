# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Quick answer for a model that is neither on this machine nor, without a connection, on the Hub.

The libraries retry for 23 seconds, and then say that a file is missing.
"""

from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import get_session, validate_repo_id

from training.engine.messages import shorten


TIMEOUT = 10  # seconds


def check_reachable(argument: str, name: str | Path, rule: str, repo_type: str = "model") -> None:
    """Check that a name is a file or folder, a repository in the Hub's cache, or an id while the Hub answers.

    Raises:
        ValueError: If it is none of them. The message says that `argument` must follow the `rule`.
    """
    start = f"`{argument}` must {rule}, got {shorten(str(name))}: there is no such folder"
    try:
        if Path(name).exists():
            return
        validate_repo_id(str(name))
        if (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=str(name), repo_type=repo_type)).is_dir():
            return
    except (OSError, ValueError) as error:  # a name that is too long, or no id
        raise ValueError(f"{start}, and it is no id on the Hub.") from error
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # the errors of the Hub's clients share no class
        raise ValueError(f"{start}, and the Hub cannot be reached.") from error
