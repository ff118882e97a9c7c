"""What the user asks for: one frozen, validated record of every knob of the method."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

RECTIFICATIONS = ("precise", "paper", "none")
ORDERS = ("gilbert", "tile", "raster")
BLOCK_SIZES = (64, 128)
PRECISIONS = ("auto", "16-bit", "int8")
TAIL_KEYS = (1, 2, 4, 8)
MAX_SPARSITY = 0.98
MAX_SHOWN = 200
"""Characters of a wrong value in a message."""


class ConfigError(ValueError):
    """A value that is not allowed. Names the field, the value and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field} = {shown(value)} is not allowed: {allowed}")


def shown(value: object, most: int = MAX_SHOWN) -> str:
    """`repr(value)`, cut after `most` characters."""
    try:
        text = repr(value)
    except Exception:  # a number of thousands of digits, an object that is half made
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else text[:most] + "..."


def check_number(field: str, value: object, low: float, high: float) -> None:
    """Raise `ConfigError` unless `value` is a real number in [low, high], both finite."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if low <= value <= high:  # NaN is not
            return
    raise ConfigError(field, value, f"a number from {low:g} to {high:g}")


def check_integer(field: str, value: object, low: int, high: int | None = None) -> None:
    """Raise `ConfigError` unless `value` is an int in [low, high]; no upper bound if None."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value >= low and (high is None or value <= high):
            return
    upper = "or more" if high is None else f"to {high}"
    raise ConfigError(field, value, f"a whole number, {low} {upper}")


def check_choice(field: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise `ConfigError` unless `value` is one of `choices`."""
    # True == 1 in Python: compare types too, so that `q_block=True` is caught.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ConfigError(field, value, "one of " + ", ".join(map(str, choices)))


@dataclass(frozen=True)
class SparseConfig:
    """How one attention call is made sparse and how the loss is rectified.

    Attributes:
        sparsity: share of the video kv-blocks that a q-block does not attend exactly, 0 to 0.98.
        q_block: tokens per q-block, 64 or 128.
        kv_block: tokens per kv-block, 64 or 128, not above `q_block`.
        top_p: keep blocks until their pooled mass exceeds this share, if that is more than
            `sparsity` keeps; 0 turns the rule off, 1 keeps every block.
        rectification: "paper" (IPAR + GAPR, arXiv 2511.19835), "precise" (non-critical blocks
            enter the softmax as weighted pooled keys) or "none" (plain block-sparse attention).
        order: token order along which blocks are cut, "gilbert", "tile" or "raster".
        neighbours: always keep the blocks that touch a q-block in space and time.
        min_blocks: kv-blocks kept at least.
        precision: of the products of queries with the keys attended exactly: "16-bit" (the dtype
            of the inputs), "int8" (see quantisation.py) or "auto" (what the kernels choose for the
            GPU; the reference takes "16-bit").
        tail_keys: with "precise", keys that stand for a block that is left out, 1, 2, 4 or 8: the
            means of that many groups of its keys (see key_groups.py). In pictures of a trained
            model 4 are far closer than 1 (docs/notes/fidelity.md). The other rectifications have
            no groups: whatever is given there, the field is 1, so that equal calls are equal.

    Raises:
        ConfigError: a field is out of range.
    """

    sparsity: float = 0.75
    q_block: int = 128
    kv_block: int = 128
    top_p: float = 0.0
    rectification: str = "precise"
    order: str = "gilbert"
    neighbours: bool = True
    min_blocks: int = 1
    precision: str = "auto"
    tail_keys: int = 4

    def __post_init__(self) -> None:
        check_number("sparsity", self.sparsity, 0.0, MAX_SPARSITY)
        check_choice("q_block", self.q_block, BLOCK_SIZES)
        check_choice("kv_block", self.kv_block, BLOCK_SIZES)
        if self.kv_block > self.q_block:
            raise ConfigError("kv_block", self.kv_block, f"not above q_block = {self.q_block}")
        check_number("top_p", self.top_p, 0.0, 1.0)
        check_choice("rectification", self.rectification, RECTIFICATIONS)
        check_choice("order", self.order, ORDERS)
        check_choice("neighbours", self.neighbours, (True, False))
        check_integer("min_blocks", self.min_blocks, 1)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("tail_keys", self.tail_keys, TAIL_KEYS)
        if self.rectification != "precise":
            object.__setattr__(self, "tail_keys", 1)

    def to_text(self) -> str:
        """All fields in one line, for `from_text`."""
        return " ".join([f"{name}={getattr(self, name)}" for name in FIELDS])

    @staticmethod
    def from_text(text: str) -> SparseConfig:
        """The configuration whose `to_text` this is.

        Raises:
            ConfigError: a field is out of range.
        """
        return _parsed(text)

    def top_k(self, num_kv_blocks: int) -> int:
        """Kv-blocks kept per q-block whatever their mass, of `num_kv_blocks` video blocks."""
        if self.top_p >= 1.0:  # no mass exceeds it, but a rounded sum may
            return num_kv_blocks
        # (1 - 0.9) * 10 is 0.9999... in binary: nudge so that it counts as one block.
        share = math.floor((1.0 - self.sparsity) * num_kv_blocks + 1e-9)
        return min(num_kv_blocks, max(self.min_blocks, share))


FIELDS: dict[str, type] = {each.name: type(each.default) for each in fields(SparseConfig)}


# A process makes a handful of configurations.
@lru_cache(maxsize=64)
def _parsed(text: str) -> SparseConfig:
    words = dict(word.split("=") for word in text.split(" "))
    values: dict[str, Any] = {
        name: words[name] == "True" if kind is bool else kind(words[name])
        for name, kind in FIELDS.items()
    }
    return SparseConfig(**values)
