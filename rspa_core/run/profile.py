"""Sparsity profiles: how sparse each block of one model may be, measured once and kept in a file.

A file is safetensors, format version 1, at most 1 MiB:

    double.sparsity  [L]  fp32   sparsity of each main block, 0 = dense
    single.sparsity  [L2] fp32   of each single block; not there where the model has none
    metadata         strings     format, format_version, pack_version, name, the fields of
                                 `ModelFingerprint`, and how the profile was measured

Reading one executes nothing, and takes nothing on trust: a file that differs from this is refused.
"""

from __future__ import annotations

import json
import os
import re
import struct
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import (
    BLOCK_SIZES,
    MAX_SPARSITY,
    ORDERS,
    RECTIFICATIONS,
    TAIL_KEYS,
    ConfigError,
    check_choice,
    check_integer,
    check_number,
)

MAX_BLOCKS = 1000
MAX_SIZE = 1_000_000
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9 ._-]{0,39}")
FORMAT = "rectified_spaattn.sparsity_profile"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 1 << 20
MAX_NAME = 100
DECIMALS = 6
"""Of a sparsity: fp32 holds them exactly, so that a profile is the same after saving."""
MAX_MESSAGE = 400
TENSORS = ("double.sparsity", "single.sparsity")


@dataclass(frozen=True)
class ModelFingerprint:
    """Family and sizes of a model; those of two models are equal if a profile fits both.

    Attributes:
        family: name of the family as people know it, such as "Wan" or "HunyuanVideo".
        double_blocks: main blocks, all of Wan's.
        single_blocks: HunyuanVideo's single blocks, else 0.
        hidden_dim: width of a token.
        num_heads: attention heads.

    Raises:
        ConfigError: a field is out of range.
    """

    family: str
    double_blocks: int
    single_blocks: int
    hidden_dim: int
    num_heads: int

    def __post_init__(self) -> None:
        if not isinstance(self.family, str) or not _NAME.fullmatch(self.family):
            raise ConfigError("family", self.family, "a name of at most 40 letters and digits")
        check_integer("double_blocks", self.double_blocks, 1, MAX_BLOCKS)
        check_integer("single_blocks", self.single_blocks, 0, MAX_BLOCKS)
        check_integer("hidden_dim", self.hidden_dim, 1, MAX_SIZE)
        check_integer("num_heads", self.num_heads, 1, MAX_SIZE)

    def describe(self) -> str:
        """In words: "Wan, 40 blocks, dimension 5120, 40 heads"."""
        blocks = f"{self.double_blocks} blocks"
        if self.single_blocks:
            blocks = f"{self.double_blocks} double and {self.single_blocks} single blocks"
        size = f"dimension {self.hidden_dim}, {self.num_heads} heads"
        return f"{self.family}, {blocks}, {size}"


class ProfileError(ValueError):
    """A file that is no usable profile, or cannot be written. Names the file and what is wrong."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        self.path = Path(path)
        if len(problem) > MAX_MESSAGE:  # texts of a damaged file may be long
            problem = problem[:MAX_MESSAGE] + "..."
        self.problem = problem
        super().__init__(f"sparsity profile {self.path}: {problem}")


@dataclass(frozen=True)
class SparsityProfile:
    """Sparsity of every block of one model, and how it was measured.

    Attributes:
        model: the model it was measured on.
        double: sparsity of each main block, 0 (dense) to 0.98, kept to six decimals.
        single: the same of each single block.
        grid: video tokens (T, H, W) of the measurement.
        wanted_error: relative error of the attention output that each block stays within, 0 to 1.
        block_size, rectification, order, tail_keys: as in `SparseConfig`.
        name: what a person calls it; at most 100 characters.

    Raises:
        ConfigError: a field is out of range, or the blocks are not as many as the model's.
    """

    model: ModelFingerprint
    double: tuple[float, ...]
    single: tuple[float, ...]
    grid: tuple[int, int, int]
    wanted_error: float
    block_size: int
    rectification: str
    order: str
    tail_keys: int
    name: str = ""

    def __post_init__(self) -> None:
        double = _checked("double", self.double, self.model.double_blocks)
        single = _checked("single", self.single, self.model.single_blocks)
        object.__setattr__(self, "double", double)
        object.__setattr__(self, "single", single)
        object.__setattr__(self, "grid", tuple(self.grid))
        if len(self.grid) != 3:
            raise ConfigError("grid", self.grid, "three numbers of tokens: T, H, W")
        for size in self.grid:
            check_integer("grid", size, 1, MAX_SIZE)
        check_number("wanted_error", self.wanted_error, 0.0, 1.0)
        check_choice("block_size", self.block_size, BLOCK_SIZES)
        check_choice("rectification", self.rectification, RECTIFICATIONS)
        check_choice("order", self.order, ORDERS)
        check_choice("tail_keys", self.tail_keys, TAIL_KEYS)
        if self.tail_keys > 1 and self.rectification != "precise":
            raise ConfigError("tail_keys", self.tail_keys, '1 unless rectification = "precise"')
        check_profile_name(self.name)

    def sparsity_of(self, block_type: str | None, index: int | None) -> float | None:
        """Sparsity of one block as ComfyUI names it, or None if the profile has no such block.

        "single" is a single block; anything else is a main block.
        """
        values = self.single if block_type == "single" else self.double
        return values[index] if index is not None and 0 <= index < len(values) else None

    def check_model(self, fingerprint: ModelFingerprint | None) -> None:
        """Refuse a model that the profile was not measured on; None is a model of no known kind.

        Raises:
            ConfigError: names both models in words.
        """
        if fingerprint == self.model:
            return
        ours = self.model.describe()
        if self.name:
            ours = f"{self.name} ({ours})"
        theirs = "of no known family" if fingerprint is None else fingerprint.describe()
        raise ConfigError("profile", ours, f"it belongs to another model; this one is {theirs}")

    def describe(self) -> str:
        """A few lines for people: the model, how sparse, how it was measured."""
        values = self.double + self.single
        dense = sum(value == 0 for value in values)
        mean = sum(values) / len(values)
        frames, height, width = self.grid
        tail = "" if self.rectification != "precise" else f", tail_keys {self.tail_keys}"
        lines = [
            self.model.describe(),
            f"sparsity {min(values):.2f} to {max(values):.2f}, {mean:.2f} on average, "
            f"{dense} of {len(values)} blocks dense",
            f"measured on {frames} x {height} x {width} tokens with block_size {self.block_size}, "
            f"{self.rectification}{tail}, {self.order}; wanted_error {self.wanted_error:g}",
        ]
        return "\n".join([self.name, *lines] if self.name else lines)


def check_profile_name(name: object) -> None:
    """Raise `ConfigError` unless `name` is what a profile may be called."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not _is_line(name):
        raise ConfigError("name", name, f"one line of at most {MAX_NAME} characters")


def save_profile(profile: SparsityProfile, path: str | os.PathLike[str]) -> None:
    """Write `profile` to `path`, in one step: a reader never meets half a file.

    A file that is there is replaced; missing folders are made.

    Raises:
        ProfileError: the file cannot be written.
    """
    path = Path(path)
    data = _serialised(profile, path)
    # Beside the target, because a rename is one step only within a file system.
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise ProfileError(path, f"cannot be written ({_reason(error)})") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def load_profile(path: str | os.PathLike[str]) -> SparsityProfile:
    """Read and check a profile.

    Raises:
        ProfileError: the file is missing, damaged, of another kind or of a newer version.
    """
    path = Path(path)
    data = _bounded_bytes(path)
    tensors = _tensors(data, path)
    try:
        return _parsed(data, tensors)
    except ValueError as error:
        raise ProfileError(path, str(error)) from error


def _serialised(profile: SparsityProfile, path: Path) -> bytes:
    _safetensors(path)
    from safetensors.torch import save

    # Files without single blocks have no such tensor: some readers take no empty ones.
    pairs = zip(TENSORS, (profile.double, profile.single), strict=True)
    tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in pairs if values}
    model = profile.model
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "pack_version": pack_version(),
        "name": profile.name,
        "family": model.family,
        "double_blocks": str(model.double_blocks),
        "single_blocks": str(model.single_blocks),
        "hidden_dim": str(model.hidden_dim),
        "num_heads": str(model.num_heads),
        "grid": ",".join(map(str, profile.grid)),
        "wanted_error": repr(float(profile.wanted_error)),
        "block_size": str(profile.block_size),
        "rectification": profile.rectification,
        "order": profile.order,
        "tail_keys": str(profile.tail_keys),
    }
    return save(tensors, metadata)


def _bounded_bytes(path: Path) -> bytes:
    """The whole file, unless it is larger than any profile."""
    try:
        if not path.exists():
            raise ProfileError(path, "there is no such file")
        if not path.is_file():
            raise ProfileError(path, "is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ProfileError(path, f"cannot be read ({_reason(error)})") from error
    if not data:
        raise ProfileError(path, "the file is empty")
    if len(data) > MAX_FILE_BYTES:
        raise ProfileError(path, "more than 1 MiB, so it is a file of another kind")
    return data


def _tensors(data: bytes, path: Path) -> dict[str, dict[str, Any]]:
    """dtype, shape and bytes of each tensor, from a file that is safetensors from end to end."""
    safetensors = _safetensors(path)
    try:
        return dict(safetensors.deserialize(data))
    except Exception as error:  # the package's own error type, and others from its older versions
        problem = f"not a safetensors file, or cut off or damaged ({error})"
        raise ProfileError(path, problem) from error


def _parsed(data: bytes, tensors: Mapping[str, Mapping[str, Any]]) -> SparsityProfile:
    """Raises ValueError, of which ConfigError is one, with what is wrong."""
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    if metadata.get("format") != FORMAT:
        raise ValueError("a safetensors file of another kind, not a sparsity profile")
    version = _integer(metadata, "format_version")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format version {version} is newer than this pack reads ({FORMAT_VERSION}); "
            "update Rectified SpaAttn"
        )
    if version < 1:
        raise ValueError(f"there is no format version {version}")
    model = ModelFingerprint(
        _text(metadata, "family"),
        _integer(metadata, "double_blocks"),
        _integer(metadata, "single_blocks"),
        _integer(metadata, "hidden_dim"),
        _integer(metadata, "num_heads"),
    )
    if extra := sorted(set(tensors) - set(TENSORS)):
        raise ValueError(f"holds a tensor that a profile does not have: {_shown(extra[0])}")
    double, single = (
        _values(tensors, name, count)
        for name, count in zip(TENSORS, (model.double_blocks, model.single_blocks), strict=True)
    )
    return SparsityProfile(
        model,
        double,
        single,
        _grid(metadata),
        _number(metadata, "wanted_error"),
        _integer(metadata, "block_size"),
        _text(metadata, "rectification"),
        _text(metadata, "order"),
        _integer(metadata, "tail_keys"),
        _text(metadata, "name"),
    )


def _values(tensors: Mapping[str, Mapping[str, Any]], name: str, count: int) -> tuple[float, ...]:
    """Values of an fp32 tensor [count]; () if count is 0 and there is none."""
    if name not in tensors:
        if count:
            raise ValueError(f"tensor {name} is missing")
        return ()
    tensor = tensors[name]
    dtype, shape = tensor["dtype"], list(tensor["shape"])
    if dtype != "F32":
        raise ValueError(f"tensor {name} has dtype {dtype}, not F32")
    if shape != [count]:
        raise ValueError(
            f"tensor {name} has shape {_shown(shape)}, but the metadata say {count} blocks"
        )
    return struct.unpack(f"<{count}f", tensor["data"])


def _text(metadata: Mapping[str, Any], key: str) -> str:
    if not isinstance(metadata.get(key), str):
        raise ValueError(f"the metadata have no {key}")
    return metadata[key]


def _integer(metadata: Mapping[str, Any], key: str) -> int:
    text = _text(metadata, key)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"{key} = {_shown(text)} in the metadata is not a whole number")
    return int(text)


def _number(metadata: Mapping[str, Any], key: str) -> float:
    text = _text(metadata, key)
    try:
        return float(text)
    except ValueError:
        problem = f"{key} = {_shown(text)} in the metadata is not a number"
        raise ValueError(problem) from None


def _grid(metadata: Mapping[str, Any]) -> tuple[int, int, int]:
    text = _text(metadata, "grid")
    found = re.fullmatch("([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9})", text)
    if found is None:
        raise ValueError(f"grid = {_shown(text)} in the metadata is not T,H,W")
    frames, height, width = map(int, found.groups())
    return frames, height, width


def _checked(field: str, values: Sequence[float], count: int) -> tuple[float, ...]:
    if len(values) != count:
        raise ConfigError(field, f"{len(values)} values", f"one for each of {count} blocks")
    rounded = []
    for index, value in enumerate(values):
        # The fp32 number next to 0.98 is a little above it.
        nearest = round(value, DECIMALS) if isinstance(value, float) else value
        check_number(f"{field}, block {index}", nearest, 0.0, MAX_SPARSITY)
        rounded.append(float(nearest))
    return tuple(rounded)


def _is_line(text: str) -> bool:
    """No control characters, and no halves of characters, which cannot be written."""
    return not any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF for char in text)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _safetensors(path: Path) -> Any:
    """The package, which ComfyUI installs; outside it may be missing."""
    try:
        import safetensors
    except ImportError as error:
        raise ProfileError(path, "the Python package safetensors is needed") from error
    return safetensors


def pack_version() -> str:
    """For people who read the file; nothing depends on it."""
    from importlib.metadata import PackageNotFoundError, version

    settings = Path(__file__).resolve().parents[2] / "pyproject.toml"
    with suppress(OSError):
        found = re.search(r'^version = "([^"]+)"', settings.read_text(encoding="utf-8"), re.M)
        if found:
            return found.group(1)
    with suppress(PackageNotFoundError):
        return version("rectified-spaattn")
    return "unknown"
