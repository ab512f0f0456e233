# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Values in messages, tables and cards: shortened, on one line, and escaped."""

import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlevel = 3  # few levels of few items bound the size, whatever the aliases of a YAML file repeat


def shorten(value: Any) -> str:
    """Return `repr(value)` for a message, with `...` in place of most of a long, large or deeply nested value."""
    try:
        return _REPR.repr(value)
    except Exception:  # for example an integer of thousands of digits
        return f"a value of {type(value).__name__}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 clip`, `2,000 clips` and `2 processes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def one_line(text: Any, limit: int = 2000) -> str:
    """Return a text as one line, with ` ... ` in place of its middle if it is longer than `limit` characters.

    Characters that control a terminal are escaped, such as `\\x1b` for the one that starts a colour.
    """
    words = _printable_words(text)
    return words if len(words) <= limit else f"{words[: limit // 2]} ... {words[-limit // 2 :]}"


def markdown_text(text: Any) -> str:
    """Escape a text for a line or a table cell of Markdown, so that it neither breaks the table nor adds markup."""
    words = _printable_words(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore between letters or digits, as in the name of a file, is no markup.
    return re.sub(r"([\\`*~\[\]|]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", words)


def _printable_words(text: Any) -> str:
    """Return a text on one line, with escapes in place of characters that cannot be printed."""
    try:
        words = " ".join(str(text).split())
    except Exception:  # for example an integer of thousands of digits
        words = shorten(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


@contextmanager
def naming_arguments(**names: str) -> Iterator[None]:
    """Name arguments in a `ValueError` as the user typed them: `poses="input"` writes `input` for `poses`."""
    try:
        yield
    except ValueError as error:
        text = re.sub(r"`(\w+)`", lambda match: f"`{names.get(match[1], match[1])}`", str(error))
        raise ValueError(text) from error
