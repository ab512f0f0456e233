# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Push a saved pipeline or subject to the Hub as it stands, with its card and the pictures in that.

python training/push_model.py --folder model_card/tiny --hub_model_id you/dreampose-tiny
"""

import argparse
from pathlib import Path

from training.hub.repositories import push_folder


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Push a saved pipeline or subject to the Hub.")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the pipeline, or of the subject's LoRA")
    parser.add_argument("--hub_model_id", required=True, help="its repository there: you/name, or name for your own")
    parser.add_argument(
        "--no_hub_private_repo", action="store_true", help="make a new repository public (default: private)"
    )
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> str:
    """Push; returns the address of the repository."""
    address = push_folder(options.folder, options.hub_model_id, private=not options.no_hub_private_repo)
    print(f"Pushed {options.folder} to {address}.")
    return address


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"push_model.py: error: {error}") from None
