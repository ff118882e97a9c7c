"""What the fields of a file from a stranger may hold, and the check of a file against it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rspa_core.config import ConfigError

MAX_LIST = 64


@dataclass(frozen=True)
class Rule:
    """What one value may be, and in words."""

    allows: Callable[[Any], bool]
    allowed: str

    @property
    def or_null(self) -> Rule:
        """The same for a value that may be missing."""
        return Rule(lambda value: value is None or self.allows(value), f"{self.allowed}, or null")


@dataclass(frozen=True)
class OrNull:
    """A specification of an object or a list, or null."""

    spec: Any


def number(low: float, high: float) -> Rule:
    """A number in a range."""

    def allows(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return Rule(allows, f"a number from {low:g} to {high:g}")


def text(pattern: str, allowed: str) -> Rule:
    """A text that a regular expression of ASCII matches as a whole."""
    matches = re.compile(pattern, re.ASCII).fullmatch
    return Rule(lambda value: isinstance(value, str) and bool(matches(value)), allowed)


def line(longest: int) -> Rule:
    """A text that prints in one line."""

    def allows(value: Any) -> bool:
        return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()

    return Rule(allows, f"a text of one line, up to {longest} characters")


def only(*values: Any) -> Rule:
    """One of these values."""
    return Rule(
        lambda value: type(value) is type(values[0]) and value in values,
        "one of " + ", ".join(map(str, values)),
    )


# What reaches a table is a number, or a text of these characters: nothing that Markdown reads.
NAME = text(r"[A-Za-z0-9][A-Za-z0-9 ()+/-]{0,59}", "up to 60 letters, digits, spaces, ()+/-")
LABEL = text(r"[A-Za-z][A-Za-z0-9 -]{0,30}(\.\d+)?", "letters, digits, spaces, -, such as wan-720p")
RELEASE = text(r"\d[A-Za-z0-9.+-]{0,39}", "a version, up to 40 letters, digits, .+-")


def plain_name(name: str) -> str:
    """A device's name as `NAME` allows it."""
    return re.sub(r"[^A-Za-z0-9 ()+/-]", " ", name)[:60].strip()


def check(value: Any, spec: Any, field: str = "record") -> None:
    """Compare a value with its specification: a rule, a list of one kind, or an object of fields.

    Raises:
        ConfigError: a field is missing, unknown or not allowed; the message names it.
    """
    if isinstance(spec, OrNull):
        if value is not None:
            check(value, spec.spec, field)
    elif isinstance(spec, Rule):
        if not spec.allows(value):
            raise ConfigError(field, value, spec.allowed)
    elif isinstance(spec, list):
        if not isinstance(value, list) or len(value) > MAX_LIST:
            raise ConfigError(field, value, f"a list of up to {MAX_LIST}")
        for index, each in enumerate(value):
            check(each, spec[0], f"{field}[{index}]")
    else:
        if not isinstance(value, dict) or value.keys() != spec.keys():
            raise ConfigError(field, value, "an object with the fields " + ", ".join(spec))
        for name, inner in spec.items():
            check(value[name], inner, name if field == "record" else f"{field}.{name}")


def read_json(path: Path, max_bytes: int) -> Any:
    """What a JSON file from anybody holds.

    Raises:
        ConfigError: it is too large, or no JSON.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ConfigError("file", path.name, f"up to {max_bytes >> 10} KiB")
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError("file", path.name, f"JSON in UTF-8 ({type(error).__name__})") from error


def with_row(document: str, header: str, row: str, keys: int = 1) -> tuple[str, list[str]]:
    """A Markdown document with this row in a table of it, in place of one with the same key.

    Args:
        document: the text.
        header: the line that begins the table.
        row: the row.
        keys: how many of its first cells tell rows apart.

    Returns:
        The document, and the rows that the table now has.

    Raises:
        ValueError: the table is not in the document.
    """
    lines = document.split("\n")
    if header not in lines:
        raise ValueError(f"the document has no table with the header {header}")
    start = lines.index(header) + 2
    end = start
    while end < len(lines) and lines[end].startswith("|"):
        end += 1

    def key(each: str) -> list[str]:
        return each.split("|")[1 : 1 + keys]

    rows = sorted([*(each for each in lines[start:end] if key(each) != key(row)), row])
    lines[start:end] = rows
    return "\n".join(lines), rows
