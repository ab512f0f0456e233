# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What all entry points share: the parser's habits, and how a command starts and ends.

An entry point imports torch and diffusers inside `main`, so that `--help` and a mistyped option answer at once.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


# Of a trainer, for `run_command`.
CHECKPOINTS_KEPT = "The checkpoints are kept. The same command with `--resume_from_checkpoint latest` resumes."


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Show each option once, by its first spelling, with its default if it has one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        takes_no_value = action.nargs == 0 or (action.nargs == "?" and action.const is True)
        if takes_no_value or not action.option_strings:
            return ", ".join(action.option_strings) or super()._format_action_invocation(action)
        kind = getattr(action.type, "__name__", "str")
        value = {"int": "INT", "float": "FLOAT", "Path": "PATH"}.get(kind, "TEXT")
        return f"{action.option_strings[-1]} {self._format_args(action, value)}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.nargs == 0 or action.default is None or action.default is False or "default" in text:
            return text
        return f"{text} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose options may be spelt with underscores or hyphens. It takes argparse's arguments."""

    def __init__(self, *args: Any, **arguments: Any):
        super().__init__(*args, **{"formatter_class": HelpFormatter} | arguments)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse arguments after writing `--a-b` as `--a_b`."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([with_underscores(word) for word in words], namespace)


def with_underscores(word: str) -> str:
    """Return an option's word with underscores in its name; its value, and other words, stay as they are."""
    return re.sub(r"^--\w[\w-]*", lambda match: "--" + match[0][2:].replace("-", "_"), word)


def run_command(
    parse_args: Callable[[], Any], main: Callable[[Any], Any], kept: str, extra: str | None = "training"
) -> None:
    """Run an entry point: `main` does the work with the options that `parse_args` returns.

    `kept` and `extra` are those of [`ending_in_one_line`].
    """
    with ending_in_one_line(kept, extra):
        options = parse_args()
        spare_busy_cores()
        importlib.import_module("pipeline_dreampose")  # hides a broken torchvision before other modules meet it
        main(options)


@contextmanager
def ending_in_one_line(
    kept: str, extra: str | None = "training", errors: tuple[type[Exception], ...] = (ValueError,)
) -> Iterator[None]:
    """End the program in one line, instead of a traceback, after bad input, for a missing package, or after Ctrl-C.

    Args:
        kept (`str`): What is kept after Ctrl-C and how to resume, for the user.
        extra (`str`, *optional*, defaults to `"training"`): Extra in `setup.cfg` that installs the packages.
        errors (`tuple[type[Exception], ...]`, *optional*): Exceptions that mean bad input.
    Raises:
        SystemExit: With code 1 after bad input or for a missing package, and 130 after Ctrl-C.
    """
    name = Path(sys.argv[0]).name
    try:
        yield
    except errors as error:
        raise SystemExit(f"{name}: error: {error}") from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "animate", "benchmarks", "pipeline_dreampose", "training"):
            raise
        raise SystemExit(f"{name}: error: {how_to_install(package, extra)}") from None
    except KeyboardInterrupt:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"\n{name}: stopped. {kept}", file=sys.stderr)
        raise SystemExit(130) from None


def how_to_install(package: str, extra: str | None) -> str:
    """Return the line for a package that is not installed."""
    target = f'".[{extra}]"' if extra else "."
    return f"the package {package!r} is not installed. Install what this command needs: pip install -e {target}"


def spare_busy_cores() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the user has configured OpenMP.

    On two cores that other programs use as well, spinning threads made the sample video take three times as long.
    OpenMP reads its environment once, when torch is imported.
    """
    if not {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
