# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Parsing of option dataclasses from a command line and YAML files: defaults < preset < file < flags.

The values of YAML files become arguments in front of the command line, so that types, ranges and misspelt names are
checked in one way for all of them.
"""

import argparse
import dataclasses
import difflib
import logging
import os
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers.hf_argparser import HfArgumentParser

from training.engine.messages import one_line, shorten
from training.options.command import CommandParser, hide_broken_torchvision, with_underscores
from training.options.needs import find_idle_option


logger = logging.getLogger(__name__)

PRESETS_DIR = Path(__file__).parents[1] / "presets"  # with a folder for each entry point
OPTIONS_NAME = "options.yaml"
FILE_OPTIONS = ("preset", "config")
MAX_CONFIG_SIZE, MAX_CONFIG_DEPTH = 100_000, 2  # characters; a mapping and its lists


class OptionParser(CommandParser, HfArgumentParser):
    """A parser of option dataclasses.

    Its help begins with the options named in `first`. The first line of each dataclass's docstring, `Name: content.`,
    titles its section.
    """

    def __init__(self, dataclass_types: Sequence[type], first: Sequence[str] = (), **arguments: Any):
        usage = "%(prog)s [--preset NAME] [--config FILE] [--OPTION VALUE ...]"
        super().__init__(dataclass_types, usage=usage, allow_abbrev=False, **arguments)
        self.source = None  # the file whose options are being parsed
        self.sections = {"most used": ["help", *FILE_OPTIONS, *first]}
        for kind in dataclass_types:
            names = [item.name for item in dataclasses.fields(kind) if item.name not in first]
            title, _, content = kind.__doc__.split("\n")[0].rstrip(".").partition(": ")
            self.sections[f"{title.lower() if title.istitle() else title} ({content})"] = names
        for action in self._actions:
            # `HfArgumentParser` adds a spelling with hyphens, which `CommandParser` understands for all options.
            action.option_strings = [word for word in action.option_strings if word == with_underscores(word)]
            if action.nargs == 0 and action.dest != "help":
                action.help = f"turn --{action.dest} off"
            elif action.dest.endswith("_dir"):
                action.metavar = "FOLDER"

    def error(self, message: str) -> None:
        """End the program as argparse does. The message names the file if its options are being parsed."""
        super().error(message if self.source is None else f"in {self.source}: {message}")

    def given(self, words: Sequence[str], source: str | None = None) -> dict[str, Any]:
        """Parse words, of the file `source` or of the command line, and return the options that they name."""
        self.source = source
        values = vars(self.parse_args(words, argparse.Namespace(**{action.dest: self for action in self._actions})))
        self.source = None
        return {name: value for name, value in values.items() if value is not self}

    def format_help(self) -> str:
        """Return the help text: usage, description, the first options, then a section for each dataclass."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        for title, names in self.sections.items():
            formatter.start_section(title)
            formatter.add_arguments([action for name in names for action in self._actions if action.dest == name])
            formatter.end_section()
        return formatter.format_help()


def parse(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    presets: str = "train",
    first: Sequence[str] = (),
) -> tuple:
    """Parse a command line into one instance of each dataclass: defaults < `--preset` < `--config` < flags.

    A revision belongs to the model beside it: a file or command line that names another model drops it.

    Args:
        dataclass_types (`Sequence[type]`): Option dataclasses without a field in common.
        argv (`Sequence[str]`, *optional*): Arguments without the program's name; `sys.argv[1:]` if `None`.
        description (`str`, *optional*): First lines of `--help`.
        presets (`str`, *optional*, defaults to `"train"`): Folder in `training/presets` with the presets.
        first (`Sequence[str]`, *optional*): Names of the options that `--help` shows first.
    Returns:
        `tuple`: The instances, in the order of `dataclass_types`.
    Raises:
        ValueError: If a value is out of range, a preset or file cannot be read, or it holds an unknown key.
        SystemExit: By the parser, for an unknown flag, a value of the wrong type, or a flag that has no effect.
    """
    files = CommandParser(add_help=False, allow_abbrev=False)
    parser = OptionParser(dataclass_types, first, description=description)
    files_by_preset = {path.stem: path for path in sorted((PRESETS_DIR / presets).glob("*.yaml"))}
    for target in (files, parser):
        target.add_argument("--preset", choices=list(files_by_preset), help="settings that ship with the project")
        target.add_argument(
            "--config", metavar="FILE", help="YAML file with lines `name: value`; it overrides the preset"
        )
    hints = {name: hint for kind in dataclass_types for name, hint in typing.get_type_hints(kind).items()}
    _accept_none(parser, hints)
    named, flags = files.parse_known_args(argv)
    sources = {} if named.preset is None else {f"the preset {named.preset}": files_by_preset[named.preset]}
    sources |= {} if named.config is None else {f"the file {named.config}": named.config}
    values, origins = {}, {}
    for source, path in sources.items():
        given = parser.given(read_config(path, hints), source)
        values = _override(values, given)
        origins |= dict.fromkeys(given, source)
    parser.set_defaults(**values)  # for `--help`
    given = parser.given(flags)  # refuses unknown options before any value is checked
    values = _override(values, given)
    hide_broken_torchvision()  # checks of values import torch and diffusers
    groups = _build(dataclass_types, values, {name: where for name, where in origins.items() if name not in given})
    idle = find_idle_option(given, option_values(*groups), option_values(*(kind() for kind in dataclass_types)))
    if idle is not None:
        parser.error(idle)
    return groups


def _override(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the values overridden by the given ones, and without the revision of a replaced model."""
    model = "pretrained_model_name_or_path"
    kept = values if given.get(model, values.get(model)) == values.get(model) else values | {"revision": None}
    return kept | given


def _build(dataclass_types: Sequence[type], values: dict[str, Any], origins: dict[str, str]) -> tuple:
    """Build the dataclasses. An error about a value that comes from a preset or file names it by `origins`."""
    names = {kind: [item.name for item in dataclasses.fields(kind) if item.name in values] for kind in dataclass_types}
    try:
        return tuple(kind(**{name: values[name] for name in names[kind]}) for kind in dataclass_types)
    except ValueError as error:
        named = [name for name in dict.fromkeys(re.findall(r"`(\w+)`", str(error))) if name in origins]
        if not named:
            raise
        found = " and ".join(f"`{name}` comes from {origins[name]}" for name in named)
        raise ValueError(f"{error} {found}.") from error


def read_config(path: str | os.PathLike, hints: dict[str, Any]) -> list[str]:
    """Read a YAML file, which maps option names to numbers, text, booleans, lists or null, as command-line arguments.

    `hints` maps the known names to their types.

    Raises:
        ValueError: If the file cannot be read, or has an unknown key or a kind of value that its option does not take.
    """
    arguments = []
    for name, value in read_mapping(path).items():
        if name not in hints:
            text = one_line(name, 100)
            close = difflib.get_close_matches(text, hints, n=1)
            advice = f" Did you mean `{close[0]}`?" if close else ""
            raise ValueError(f"`{text}` in {path} is no option of this command.{advice}")
        if not _is_possible(value, hints[name]):
            # YAML reads a bare `no` as False, where `mixed_precision: "no"` was meant.
            advice = " Put text such as no, yes, on and off in quotes." if isinstance(value, bool) else ""
            rule = _describe(hints[name])
            raise ValueError(f"`{name}` in {path} must be {rule}, got {shorten(value)}.{advice}")
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        else:
            # One word, so that a value may begin with a hyphen.
            arguments.append(f"--{name}={'none' if value is None else value}")
    return arguments


def read_mapping(path: str | os.PathLike, argument: str = "config") -> dict:
    """Read a YAML file with one mapping of scalars and lists of scalars.

    Raises:
        ValueError: If the file cannot be read, is too large, has a key twice, or holds anything else: deeper nesting,
            aliases, tags.
    """
    try:
        if not Path(path).is_file():
            raise OSError("it is no file" if Path(path).exists() else "it does not exist")
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_CONFIG_SIZE + 1)
        if len(text) > MAX_CONFIG_SIZE:
            raise ValueError(f"it has more than {MAX_CONFIG_SIZE} characters")
        _check_events(text)
        content = yaml.load(text, Loader=_OptionLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:  # `ValueError`: also text that is not UTF-8
        raise ValueError(f"`{argument}` must be a readable YAML file, got {path}: {one_line(error, 500)}.") from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ValueError(f"`{argument}` must hold one mapping of options, got {found} in {shorten(str(path))}.")
    return content


class _OptionLoader(yaml.SafeLoader):
    """A safe loader that names the key of an impossible value, and refuses a key that would replace another value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Build one mapping."""
        names = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):  # refused by the library
                continue
            place = f"`{one_line(key.value, 100)}` in line {key.start_mark.line + 1}"
            if key.value in names or key.tag == "tag:yaml.org,2002:merge":
                raise ValueError(f"{place} would replace another value: give each key once")
            names.add(key.value)
            try:
                self.construct_object(key)
                if not isinstance(value, yaml.MappingNode):
                    self.construct_object(value, deep=True)
            except ValueError as error:
                raise ValueError(f"{place} has an impossible number or date") from error
        return super().construct_mapping(node, deep)


def _check_events(text: str) -> None:
    """Refuse aliases, tags and deep nesting, which need much memory or a deep stack, before values are built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > MAX_CONFIG_DEPTH:
            raise ValueError(f"line {line} is nested more deeply than lists in one mapping")
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            raise ValueError(f"line {line} has an anchor, an alias or a tag, which options do not need")


def option_values(*options: Any) -> dict[str, Any]:
    """Return all options by name, in the order of their declaration."""
    return {item.name: getattr(group, item.name) for group in options for item in dataclasses.fields(group)}


def format_options(*options: Any) -> str:
    """Return all options as YAML text that `--config` reads."""
    return yaml.safe_dump(option_values(*options), sort_keys=False, allow_unicode=True)


def save_options(output_dir: str | os.PathLike, *options: Any) -> Path:
    """Write all options to `options.yaml` in `output_dir`, which is created if missing, and return the file.

    A warning names the options of a resumed run that differ from the run before.
    """
    path = Path(output_dir) / OPTIONS_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    values = option_values(*options)
    if values.get("resume_from_checkpoint") is not None and path.exists():
        before = read_mapping(path, "resume_from_checkpoint")
        changed = {name: value for name, value in values.items() if before.get(name, value) != value}
        changed.pop("resume_from_checkpoint", None)
        if changed:
            changes = ", ".join(
                f"`{name}` {value} (was {one_line(before[name], 200)})" for name, value in changed.items()
            )
            logger.warning(f"Unlike the run before in {output_dir}: {changes}.")
    path.write_text(format_options(*options), encoding="utf-8")
    return path


def _takes_none(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _is_possible(value: Any, hint: Any) -> bool:
    """Tell whether the option can take this kind of YAML value. The parser checks numbers, names and ranges."""
    if value is None:
        return _takes_none(hint)
    if isinstance(value, bool):
        return hint is bool
    is_list = isinstance(value, list)
    if not all(map(_is_text_or_number, value if is_list else [value])):
        return False
    return is_list == (typing.get_origin(hint) is list)


def _is_text_or_number(value: Any) -> bool:
    """Tell this from a date or a mapping, and from an integer beyond all floats, which cannot become an argument."""
    return isinstance(value, str | float) or (isinstance(value, int) and value.bit_length() <= 1024)


def _describe(hint: Any) -> str:
    """Return a type in words."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(arguments)}"
    if typing.get_origin(hint) is list:
        return f"a list, each item {_describe(arguments[0])}"
    if arguments:
        return " or ".join(_describe(kind) for kind in arguments)
    return {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}.get(hint, "text")


def _accept_none(parser: argparse.ArgumentParser, hints: dict[str, Any]) -> None:
    """Accept `none` on the command line for options that may be None, which `HfArgumentParser` does not."""

    def wrap(convert: typing.Callable[[str], Any]) -> typing.Callable[[str], Any]:
        def convert_or_none(text: str) -> Any:
            return None if text.lower() == "none" else convert(text)

        convert_or_none.__name__ = convert.__name__  # argparse names the type in its messages
        return convert_or_none

    for action in parser._actions:
        if action.dest in hints and _takes_none(hints[action.dest]):
            action.type = wrap(action.type)
