# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Push a saved pipeline or subject to the Hub, with its card and the card's pictures.

python training/push_model.py --folder model_card/tiny --hub_model_id you/dreampose-tiny
"""

import argparse
from pathlib import Path

from training.options.command import CommandParser, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = CommandParser(
        usage="%(prog)s --folder FOLDER --hub_model_id ID [--no_hub_private_repo]", description=__doc__
    )
    add = parser.add_argument_group("push").add_argument
    add("--folder", type=Path, required=True, help="folder of the pipeline, or of the subject's LoRA")
    add("--hub_model_id", metavar="ID", required=True, help="repository on the Hub: OWNER/NAME, or NAME for your own")
    add("--no_hub_private_repo", action="store_true", help="make a new repository public")
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> str:
    """Push the folder; return the address of the repository."""
    from training.hub.repositories import push_folder

    address = push_folder(options.folder, options.hub_model_id, private=not options.no_hub_private_repo)
    print(f"Pushed {options.folder} to {address}.")
    return address


if __name__ == "__main__":
    run_command(parse_args, main, "The folder is unchanged. The same command pushes it again.", extra=None)
