# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Command line of all entry points: parser, help, start and end.

An entry point imports torch and diffusers inside `main`, so that `--help` and a mistyped option answer at once.
"""

import argparse
import importlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.engine.errors import RunStopped
from training.engine.messages import one_line, shorten


# Packages that `setup.cfg` installs, by the names of their modules.
PACKAGES = {"accelerate", "av", "datasets", "diffusers", "huggingface_hub", "jinja2", "numpy", "peft", "PIL"}
PACKAGES |= {"safetensors", "torch", "torchmetrics", "tqdm", "transformers", "yaml"}
# A trainer's text after Ctrl-C.
CHECKPOINTS_KEPT = "The checkpoints are kept. The same command with `--resume_from_checkpoint latest` resumes."


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Show each option once, with its default if it has one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=min(110, shutil.get_terminal_size().columns))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        takes_no_value = action.nargs == 0 or (action.nargs == "?" and action.const is True)
        if takes_no_value or not action.option_strings:
            return ", ".join(action.option_strings) or super()._format_action_invocation(action)
        kind = getattr(action.type, "__name__", "str")
        value = {"int": "INT", "count": "INT", "float": "FLOAT", "Path": "PATH"}.get(kind, "TEXT")
        value = self._format_args(action, value)
        if action.nargs == "+":
            value = f"{value.partition(' ')[0]} ..."  # argparse would repeat it: INT [INT ...]
        return f"{action.option_strings[-1]} {value}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.nargs == 0 or action.default is None or action.default is False or "default" in text:
            return text
        if isinstance(action.default, list):
            return f"{text} (default: {' '.join(map(str, action.default))})"  # as it is typed
        return f"{text} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose options may be spelt with underscores or hyphens. It takes argparse's arguments."""

    def __init__(self, *args: Any, **arguments: Any):
        super().__init__(*args, **{"formatter_class": HelpFormatter} | arguments)
        self.register("type", Path, _read_path)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse arguments after writing `--a-b` as `--a_b`."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(with_underscores, words[:end]), *words[end:]], namespace)

    def refuse(self, argv: Sequence[str] | None, names: Sequence[str], rule: str) -> None:
        """End in an error that states the `rule` if a command line gives one of the named options."""
        unset = object()
        given = self.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset)))
        for name in names:
            value = getattr(given, name)
            if value is not unset:
                got = "" if value is True else f", got {shorten(str(value) if isinstance(value, Path) else value)}"
                self.error(f"`--{name}` must be given {rule}{got}.")

    def error(self, message: str) -> None:
        """End the program as argparse does, with a long message shortened."""
        super().error(one_line(message))


def _read_path(text: str) -> Path:
    if not text:  # `Path("")` is the current folder
        raise argparse.ArgumentTypeError("must be a path, got ''")
    return Path(text)


def with_underscores(word: str) -> str:
    """Replace the hyphens in an option's name: `--a-b=c-d` becomes `--a_b=c-d`. Other words do not change."""
    return re.sub(r"^--\w[\w-]*", lambda match: "--" + match[0][2:].replace("-", "_"), word)


def run_command(
    parse_args: Callable[[], Any], main: Callable[[Any], Any], kept: str, extra: str | None = "training"
) -> None:
    """Run an entry point: `main` does the work with the options that `parse_args` returns.

    `kept` and `extra` are those of [`ending_in_one_line`].
    """
    spare_busy_cores()
    with ending_in_one_line(kept, extra):
        options = parse_args()
        hide_broken_torchvision()
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
        SystemExit: With code 1 after bad input, for a missing package, a full disk or a closed pipe, and 130 after
            Ctrl-C.
    """
    name = Path(sys.argv[0]).name
    try:
        yield
        print(end="", flush=True)  # a closed pipe shows here
    except BrokenPipeError as error:
        _discard_output()
        raise SystemExit(f"{name}: error: a pipe was closed, such as that of the output: {error}") from None
    except (*errors, OSError, RunStopped) as error:
        raise SystemExit(f"{name}: error: {one_line(error)}") from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PACKAGES:
            raise
        raise SystemExit(f"{name}: error: {how_to_install(package, extra)}") from None
    except KeyboardInterrupt:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"\n{name}: stopped. {kept}", file=sys.stderr)
        raise SystemExit(130) from None


def _discard_output() -> None:
    """Discard the remaining output to a closed pipe. Otherwise Python prints a complaint when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def how_to_install(package: str, extra: str | None) -> str:
    """Return the line for a package that is not installed."""
    target = f'".[{extra}]"' if extra else "."
    return f"the package {package!r} is not installed. Install what this command needs: pip install -e {target}"


def hide_broken_torchvision() -> None:
    """Hide a torchvision that does not fit torch from all libraries, before they are imported. All work without it.

    `pipeline_dreampose` hides the module. torchmetrics reads the metadata of the distribution instead.
    """
    importlib.import_module("pipeline_dreampose")
    if sys.modules.get("torchvision", sys) is None and not isinstance(sys.meta_path[0], _WithoutTorchvision):
        sys.meta_path.insert(0, _WithoutTorchvision())


class _WithoutTorchvision(importlib.metadata.DistributionFinder):
    def find_spec(self, name, path=None, target=None) -> None:
        return None

    def find_distributions(self, context):
        if context.name == "torchvision":
            raise importlib.metadata.PackageNotFoundError("torchvision")
        return ()


def spare_busy_cores() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the user has configured OpenMP.

    On two cores that other programs use as well, spinning threads made the sample video take three times as long.
    OpenMP reads its environment once, when torch is imported.
    """
    if not {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
