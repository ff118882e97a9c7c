"""Token orders: how the video grid is laid out along one line before it is cut into blocks.

`gilbert` follows the generalized Hilbert curve of Jakub Cerveny (the recursion behind
`gilbert3d`, github.com/jakubcerveny/gilbert, BSD-2-Clause); `tile` walks 3-D tiles of 64 tokens;
`raster` is the order in which the model holds the tokens.

Everything here is array operations on the CPU: 33 x 45 x 80 tokens take about 0.1 s, once per
grid. The tensors returned are cached and shared between callers: **callers must not write to
them**.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from .config import ORDERS, check_choice, check_integer
from .layout import TokenLayout, check_grid

Grid = tuple[int, int, int]

# One tile is a block of 64, and two consecutive ones are a block of 128.
TILE_TOKENS = 64


def token_order(grid: Grid, order: str) -> Tensor:
    """Raster index of the token at every position of the token order.

    Args:
        grid: latent grid (T, H, W) in tokens, any sizes of 1 or more.
        order: "gilbert", "tile" or "raster".

    Returns:
        int64 [T*H*W] on the CPU, a permutation: `order[p]` is the raster index
        (t*H + y)*W + x of the token at position p. Cached: do not write to it.

    Raises:
        ConfigError: `grid` or `order` is not allowed.
    """
    check_grid(grid)
    check_choice("order", order, ORDERS)
    return _token_order(grid, order)


def inverse_order(grid: Grid, order: str) -> Tensor:
    """Position in the token order of every raster index: the inverse of `token_order`.

    Returns:
        int64 [T*H*W] on the CPU, `inverse[order[p]] == p`. Cached: do not write to it.

    Raises:
        ConfigError: `grid` or `order` is not allowed.
    """
    check_grid(grid)
    check_choice("order", order, ORDERS)
    return _inverse_order(grid, order)


def block_neighbours(grid: Grid, order: str, q_block: int, kv_block: int) -> Tensor:
    """Which kv-blocks touch which q-blocks in space and time.

    Block j is a neighbour of q-block i if it holds a token whose grid coordinates differ by at
    most 1 on every axis from those of a token of block i. A token is its own neighbour, so the
    kv-blocks that share tokens with q-block i are always included.

    Args:
        grid: latent grid (T, H, W) in tokens.
        order: token order along which blocks are cut.
        q_block: tokens per q-block.
        kv_block: tokens per kv-block.

    Returns:
        bool [NQ, NK] on the CPU with N = ceil(T*H*W / block). Cached: do not write to it.

    Raises:
        ConfigError: an argument is not allowed.
    """
    check_grid(grid)
    check_choice("order", order, ORDERS)
    check_integer("q_block", q_block, 1)
    check_integer("kv_block", kv_block, 1)
    return _block_neighbours(grid, order, q_block, kv_block)


def split_sequence(x: Tensor, layout: TokenLayout, order: str) -> tuple[Tensor, Tensor]:
    """Split `x [..., N, D]` into its video tokens in token order and its context tokens.

    Returns:
        `[..., T*H*W, D]` and `[..., context_length, D]`, copies.
    """
    index = token_order(layout.grid, order).to(x.device) + layout.video_start
    context = torch.cat([x[..., : layout.video_start, :], x[..., layout.video_end :, :]], dim=-2)
    return x[..., index, :], context


def join_sequence(video: Tensor, context: Tensor, layout: TokenLayout, order: str) -> Tensor:
    """Undo `split_sequence`: `[..., T*H*W, D]` and `[..., context_length, D]` to `[..., N, D]`."""
    index = inverse_order(layout.grid, order).to(video.device)
    before, after = context[..., : layout.video_start, :], context[..., layout.video_start :, :]
    return torch.cat([before, video[..., index, :], after], dim=-2)


@lru_cache(maxsize=16)
def _token_order(grid: Grid, order: str) -> Tensor:
    if order == "gilbert":
        indices = _gilbert_order(grid)
    elif order == "tile":
        indices = _tile_order(grid)
    else:
        indices = np.arange(math.prod(grid), dtype=np.int64)
    return torch.from_numpy(indices)


@lru_cache(maxsize=16)
def _inverse_order(grid: Grid, order: str) -> Tensor:
    indices = _token_order(grid, order).numpy()
    inverse = np.empty_like(indices)
    inverse[indices] = np.arange(len(indices))
    return torch.from_numpy(inverse)


@lru_cache(maxsize=16)
def _block_neighbours(grid: Grid, order: str, q_block: int, kv_block: int) -> Tensor:
    position = _inverse_order(grid, order).numpy().reshape(grid)
    q_index, kv_index = position // q_block, position // kv_block  # [T, H, W] block of each token
    touching = np.zeros((q_index.max() + 1, kv_index.max() + 1), dtype=bool)
    for shift in product((-1, 0, 1), repeat=3):
        # Two equally large windows of the grid, the second one shifted against the first.
        here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(shift, grid, strict=True))
        there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(shift, grid, strict=True))
        touching[q_index[here], kv_index[there]] = True
    return torch.from_numpy(touching)


def _gilbert_order(grid: Grid) -> np.ndarray:
    """Raster indices int64 [T*H*W] along the generalized Hilbert curve.

    The published recursion, run breadth first: all boxes of a level are split together. A box is
    a corner token `origin` and three axis-aligned vectors a, b, c that span it; the curve enters
    at the corner and leaves at the far end of a. Each box knows the position `start` at which the
    curve enters it, so finished boxes are written out at once and the others need no order.

    Sizes are halved towards zero, also along axes that run backwards (the published Python
    rounds those down). Every step that does not reach a face neighbour then reaches an edge
    neighbour; with all sizes even there is no such step.
    """
    # a is the longest axis; ties go to the axis that is faster in raster order.
    major = max(range(3), key=lambda axis: (grid[axis], axis))
    axes = [major] + [axis for axis in (2, 1, 0) if axis != major]
    vectors = np.zeros((1, 3, 3), dtype=np.int32)  # [boxes, (a, b, c), (t, y, x)]
    vectors[0, [0, 1, 2], axes] = [grid[axis] for axis in axes]
    origin = np.zeros((1, 3), dtype=np.int32)
    start = np.zeros(1, dtype=np.int64)

    order = np.empty(math.prod(grid), dtype=np.int64)
    while len(start):
        sizes = np.abs(vectors).sum(axis=2)  # [boxes, 3]
        line = np.count_nonzero(sizes == 1, axis=1) >= 2
        longest = vectors[line, sizes[line].argmax(axis=1)]
        _write_lines(order, grid, origin[line], longest, start[line])
        origin, vectors, start = _split_boxes(
            origin[~line], vectors[~line], sizes[~line], start[~line]
        )
    return order


def _write_lines(
    order: np.ndarray, grid: Grid, origin: np.ndarray, line: np.ndarray, start: np.ndarray
) -> None:
    """Write boxes that are single lines of tokens into `order`, in place.

    Shapes: origin and line [boxes, 3], start [boxes]; `line` is the vector along the box.
    """
    length = np.abs(line).sum(axis=1)
    box = np.repeat(np.arange(len(length)), length)
    step = np.arange(len(box)) - np.repeat(np.cumsum(length) - length, length)
    t, y, x = (origin[box] + np.sign(line)[box] * step[:, None]).T
    order[start[box] + step] = (t.astype(np.int64) * grid[1] + y) * grid[2] + x


def _split_boxes(
    origin: np.ndarray, vectors: np.ndarray, sizes: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split every box into 2, 3 or 5 smaller ones; returns their origin, vectors and start.

    Which sides are cut depends on the proportions, so that the pieces stay near cubes.
    """
    a_size, b_size, c_size = sizes.T
    wide = (2 * a_size > 3 * b_size) & (2 * a_size > 3 * c_size)
    flat_c = ~wide & (3 * b_size > 4 * c_size)
    flat_b = ~wide & ~flat_c & (3 * c_size > 4 * b_size)
    cubic = ~(wide | flat_c | flat_b)

    unit = np.sign(vectors)
    half_size = sizes // 2
    half_size += (half_size % 2 == 1) & (sizes > 2)  # even pieces let the curve close on itself
    half = unit * half_size[:, :, None]

    origins, spans, starts = [], [], []
    for shape, rule in ((wide, _cut_a), (flat_c, _cut_ab), (flat_b, _cut_ac), (cubic, _cut_abc)):
        position = start[shape]
        corner = origin[shape]
        for offset, *piece in rule(*_by_axis(vectors[shape], half[shape], unit[shape])):
            span = np.stack(piece, axis=1)
            volume = np.abs(span).sum(axis=2, dtype=np.int64).prod(axis=1)
            filled = volume > 0  # halving a side of 1 leaves one piece empty
            origins.append((corner + offset)[filled])
            spans.append(span[filled])
            starts.append(position[filled])
            position = position + volume
    return np.concatenate(origins), np.concatenate(spans), np.concatenate(starts)


# One side of a set of boxes: the whole vector, its first half and its unit vector, [boxes, 3].
Side = tuple[np.ndarray, np.ndarray, np.ndarray]
# The pieces of a box in curve order: offset from the corner, then the vectors a, b, c.
Pieces = list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


def _by_axis(vectors: np.ndarray, half: np.ndarray, unit: np.ndarray) -> list[Side]:
    return [(vectors[:, axis], half[:, axis], unit[:, axis]) for axis in range(3)]


def _cut_a(side_a: Side, side_b: Side, side_c: Side) -> Pieces:
    """A long box: two boxes one after the other."""
    (a, a2, _), (b, _, _), (c, _, _) = side_a, side_b, side_c
    return [(0 * a, a2, b, c), (a2, a - a2, b, c)]


def _cut_ab(side_a: Side, side_b: Side, side_c: Side) -> Pieces:
    """A box flat along c: out along b, across along a, back along b."""
    (a, a2, da), (b, b2, db), (c, _, _) = side_a, side_b, side_c
    return [
        (0 * a, b2, c, a2),
        (b2, a, b - b2, c),
        (a - da + b2 - db, -b2, c, a2 - a),
    ]


def _cut_ac(side_a: Side, side_b: Side, side_c: Side) -> Pieces:
    """A box flat along b: out along c, across along a, back along c."""
    (a, a2, da), (b, _, _), (c, c2, dc) = side_a, side_b, side_c
    return [
        (0 * a, c2, a2, b),
        (c2, a, b, c - c2),
        (a - da + c2 - dc, -c2, a2 - a, b),
    ]


def _cut_abc(side_a: Side, side_b: Side, side_c: Side) -> Pieces:
    """A box near a cube: the five-piece form of the eight octants of the 3-D Hilbert curve."""
    (a, a2, da), (b, b2, db), (c, c2, dc) = side_a, side_b, side_c
    return [
        (0 * a, b2, c2, a2),
        (b2, c, a2, b - b2),
        (b2 - db + c - dc, a, -b2, c2 - c),
        (a - da + b2 + c - dc, -c, a2 - a, b - b2),
        (a - da + b2 - db, -b2, c2, a2 - a),
    ]


def _tile_order(grid: Grid) -> np.ndarray:
    """Raster indices int64 [T*H*W] along 3-D tiles of 64 tokens, 4 x 4 x 4 where they fit.

    Tiles are visited boustrophedon, so two consecutive ones touch and blocks of 128 are boxes
    too. What whole tiles leave at the far ends of the axes is cut into slabs, each tiled anew
    with flatter tiles (a single frame by 1 x 8 x 8). Slabs whose tiles hold 64 tokens come first:
    only the few smaller ones at the end make blocks that straddle tiles.
    """
    regions: list[tuple[Grid, Grid, Grid]] = []  # corner, size, tile
    pending: list[tuple[Grid, Grid]] = [((0, 0, 0), grid)]  # corner, size
    while pending:
        corner, size = pending.pop(0)
        tile = _tile_shape(size)
        t, y, x = (n // side * side for n, side in zip(size, tile, strict=True))
        regions.append((corner, (t, y, x), tile))
        slabs = (
            ((t, 0, 0), (size[0] - t, size[1], size[2])),
            ((0, y, 0), (t, size[1] - y, size[2])),
            ((0, 0, x), (t, y, size[2] - x)),
        )
        for at, slab in slabs:
            if min(slab):
                pending.append(((corner[0] + at[0], corner[1] + at[1], corner[2] + at[2]), slab))
    # Odd numbers of tiles last too, so that blocks of 128 stay aligned as long as possible.
    regions.sort(key=lambda region: (-math.prod(region[2]), math.prod(region[1]) // 64 % 2))
    return np.concatenate([_tiled_region(grid, *region) for region in regions])


def _tile_shape(size: Grid) -> Grid:
    """The tile nearest to a cube, powers of two that fit into `size`, at most 64 tokens."""
    tile = [1, 1, 1]
    while math.prod(tile) < TILE_TOKENS:
        roomy = [axis for axis in (2, 1, 0) if 2 * tile[axis] <= size[axis]]
        if not roomy:
            break
        tile[min(roomy, key=lambda axis: tile[axis])] *= 2
    return tile[0], tile[1], tile[2]


def _tiled_region(grid: Grid, corner: Grid, size: Grid, tile: Grid) -> np.ndarray:
    """Raster indices int64 of a region that whole tiles fill, tile after tile."""
    raster = np.arange(math.prod(grid), dtype=np.int64).reshape(grid)
    region = raster[tuple(slice(o, o + n) for o, n in zip(corner, size, strict=True))]
    nt, ny, nx = (n // t for n, t in zip(size, tile, strict=True))
    tiles = region.reshape(nt, tile[0], ny, tile[1], nx, tile[2])
    tiles = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(nt, ny, nx, -1)  # [.., tokens of a tile]
    # Every second layer runs backwards along y, then every second row backwards along x.
    rows = np.where(np.arange(nt)[:, None, None, None] % 2, tiles[:, ::-1], tiles)
    rows = rows.reshape(nt * ny, nx, -1)
    rows = np.where(np.arange(nt * ny)[:, None, None] % 2, rows[:, ::-1], rows)
    return rows.reshape(-1)
