"""Queries, keys and values that somebody has captured, for `benchmarks.fidelity --captured`.

    python -m rectified_spaattn.benchmarks.convert FILE... --grid T H W --out captured.safetensors

A FILE is one attention call: safetensors, torch's `.pt` (tensors and numbers only, no code is run)
or NumPy's `.npz`, with tensors "q", "k", "v" or "query", "key", "value", rotary embedding applied,
`[H, N, D]`, `[B, H, N, D]` or `[B, N, H, D]`, of which the first of a batch is taken. The grid is
that of the tokens: for Wan frames / 4 rounded up, height / 16, width / 16; 21 30 52 for 832x480x81.
Entries "step" and "block" or "layer" say where the call comes from, 0 where they are missing.

Files in VSA's order, tiles of 4 x 4 x 4 tokens padded to 64, have the tiles' sizes in "vbs"; these
must be those of the grid, and the tokens are put back into raster order.
"""

from __future__ import annotations

import argparse
import math
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .capture import CapturedCall, Recorder, save_calls
from .output import command_line

NAMES = (("q", "query"), ("k", "key"), ("v", "value"))
SIZES, TILE, PADDED = "vbs", 4, 64
MAX_NUMBERS = 1 << 30
"""Of a tensor: more than any video model has in a call."""
Grid = tuple[int, int, int]


def read_entries(path: Path) -> dict[str, Any]:
    """Tensors, on the CPU, and what the file says of its step and layer.

    Raises:
        ValueError: no such file, or a tensor of more than `MAX_NUMBERS`.
        OSError: it cannot be read.
    """
    read = {".safetensors": _safetensors, ".pt": _torch, ".pth": _torch, ".npz": _numpy}
    if path.suffix not in read:
        raise ValueError(f"{path}: allowed are {', '.join(read)}")
    found = read[path.suffix](path)
    for name, value in found.items():
        if isinstance(value, Tensor) and value.numel() > MAX_NUMBERS:
            raise ValueError(f"{path}: {name} has {value.numel():,} numbers, up to {MAX_NUMBERS:,}")
    return found


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            wanted = {name for names in NAMES for name in names} | {SIZES}
            tensors = {name: file.get_tensor(name) for name in wanted & set(file.keys())}
            return dict(file.metadata() or {}) | tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error


def _torch(path: Path) -> dict[str, Any]:
    try:
        # Mapped, not read: a file may be larger than the memory.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{path} cannot be loaded as tensors alone: {error}") from error
    except Exception as error:  # of pickle, which has no common class for what it meets
        raise ValueError(f"{path} is no file of torch.save: {type(error).__name__}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, allowed is a dictionary")
    return {str(name): value for name, value in found.items()}


def _numpy(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            largest = max((member.file_size for member in archive.infolist()), default=0)
        if largest > 8 * MAX_NUMBERS:
            raise ValueError(f"{path} unpacks to {largest:,} bytes, up to {8 * MAX_NUMBERS:,}")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.atleast_1d(arrays[name])) for name in arrays.files}
    except (zipfile.BadZipFile, TypeError) as error:
        raise ValueError(f"{path} is no .npz file of numbers: {error}") from error


def convert(
    path: Path, grid: Grid, heads: int | None, scene: int
) -> tuple[CapturedCall, tuple[Tensor, Tensor, Tensor]]:
    """The call in a file, and its q, k, v `[H, N, D]` in raster order.

    Args:
        path: the file.
        grid: (T, H, W) of the tokens.
        heads: to keep, evenly spread; None for all.
        scene: the number under which the call is filed.

    Raises:
        ValueError: tensors are missing, or do not fit one another or the grid.
        OSError: the file cannot be read.
    """
    entries = read_entries(path)
    places = None if entries.get(SIZES) is None else _places(path, entries[SIZES], grid)
    tokens = math.prod(grid) if places is None else PADDED * torch.as_tensor(entries[SIZES]).numel()
    parts = []
    for names in NAMES:
        tensor = next((entries[name] for name in names if name in entries), None)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ValueError(f"{path} has no tensor {' or '.join(names)} of floating point numbers")
        part = _heads_first(path, names[0], tensor, tokens)
        count = len(part) if heads is None else min(heads, len(part))
        part = part[[index * len(part) // count for index in range(count)]]
        part = part if places is None else part[:, places]
        parts.append(part.float() if part.dtype == torch.float64 else part.clone())
    q, k, v = parts
    if not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(f"{path}: q, k, v are {shapes} as [H, N, D], allowed is one shape")
    if not all(part.isfinite().all() for part in parts):
        raise ValueError(f"{path} has numbers that are not finite")
    step, layer = _number(entries, "step"), _number(entries, "block", "layer")
    return CapturedCall(scene, 0, step, "cond", layer, 0.0, grid), (q, k, v)


def _heads_first(path: Path, name: str, tensor: Tensor, tokens: int) -> Tensor:
    """`[H, N, D]` of the first of a batch."""
    shape = tuple(tensor.shape)
    if tensor.ndim == 4 and len(tensor):
        tensor = tensor[0]
        if tensor.shape[0] == tokens != tensor.shape[1]:
            tensor = tensor.transpose(0, 1)
    if tensor.ndim != 3 or 0 in shape or tensor.shape[1] != tokens:
        allowed = f"[H, {tokens}, D], [B, H, {tokens}, D] or [B, {tokens}, H, D]"
        raise ValueError(f"{path}: {name} has shape {shape}, allowed with this grid: {allowed}")
    return tensor


def _places(path: Path, sizes: Any, grid: Grid) -> Tensor:
    """For every token in raster order its place in a sequence of padded tiles."""
    t, h, w = torch.meshgrid(*(torch.arange(size) // TILE for size in grid), indexing="ij")
    _, rows, columns = (-(-size // TILE) for size in grid)
    tile = ((t * rows + h) * columns + w).flatten()
    counts = tile.bincount()
    if torch.as_tensor(sizes).flatten().tolist() != counts.tolist():
        raise ValueError(f"{path}: {SIZES} are not the sizes of 4 x 4 x 4 tiles of {grid} tokens")
    order = tile.argsort(stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(tile)) - first[tile[order]]
    places = torch.empty_like(tile)
    places[order] = tile[order] * PADDED + rank
    return places


def _number(entries: dict[str, Any], *names: str) -> int:
    for name in names:
        try:
            return int(entries[name])
        except (KeyError, ValueError, TypeError, RuntimeError):
            continue
    return 0


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE")
    add("--grid", type=int, nargs=3, required=True, metavar=("T", "H", "W"))
    add("--heads", type=int, default=8, help="of each call, evenly spread; 0: all (%(default)s)")
    add("--out", type=Path, default=Path("captured.safetensors"))
    options = parser.parse_args(words)
    if min(*options.grid, options.heads + 1) < 1:
        parser.error("--grid has numbers from 1, --heads is 0 or more")
    return options


def main(words: list[str] | None = None) -> None:
    """Command line: read, check, write."""
    options = parse(words)
    recorder = Recorder((), tuple(options.grid))
    try:
        for scene, path in enumerate(options.files):
            call, qkv = convert(path, recorder.grid, options.heads or None, scene)
            recorder.calls.append(call)
            recorder.tensors.append(qkv)
            heads, tokens, width = qkv[0].shape
            where = f"step {call.step}, layer {call.layer}"
            print(f"{path.name}: {where}, {heads} heads of {tokens:,} tokens x {width}", flush=True)
        save_calls(recorder, options.out)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"{options.out}, {options.out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
