# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Names and contents of the files that Modular Diffusers and the visual editor Mellon read in a pipeline's folder."""

import json
from pathlib import Path


BLOCKS_INDEX = "modular_model_index.json"
BLOCKS_FILES = ("modular_dreampose.py", "modular_config.json", BLOCKS_INDEX, "mellon_pipeline_config.json")


def index_for_hub(folder: Path, repo_id: str) -> bytes:
    """Return the blocks' index for the Hub: components that `folder` holds are those of the repository `repo_id`.

    diffusers writes the folder's own path there, which says nothing elsewhere, and reveals the machine.
    """
    index = json.loads((folder / BLOCKS_INDEX).read_text(encoding="utf-8"))
    specs = [value[2] for value in index.values() if isinstance(value, list) and isinstance(value[-1], dict)]
    for spec in specs:
        if spec["pretrained_model_name_or_path"] and (folder / (spec["subfolder"] or "")).is_dir():
            spec |= {"pretrained_model_name_or_path": repo_id, "revision": None}
    return f"{json.dumps(index, indent=2, sort_keys=True)}\n".encode()
