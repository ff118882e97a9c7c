"""Token orders are permutations that keep neighbours together; block neighbours are complete."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch

from rectified_spaattn.rspa_core import ConfigError, block_neighbours, inverse_order, token_order

ORDERS = ("gilbert", "tile", "raster")
VIDEO_GRIDS = ((21, 45, 80), (21, 30, 52), (33, 45, 80), (31, 45, 80), (31, 30, 40))
LINES = ((1, 1, 1), (1, 1, 2), (1, 1, 97), (50, 1, 1), (1, 31, 1), (2, 1, 1))
PLANES = ((1, 45, 80), (1, 7, 3), (1, 2, 5), (9, 1, 8), (13, 6, 1), (1, 64, 64))


def random_grids(count: int, largest: int) -> list[tuple[int, int, int]]:
    draw = random.Random(0)
    size = partial(draw.randint, 1, largest)
    return [(size(), size(), size()) for _ in range(count)]


def coordinates(grid: tuple[int, int, int], order: str) -> np.ndarray:
    """[T*H*W, 3] grid coordinates along the order."""
    return np.stack(np.unravel_index(token_order(grid, order).numpy(), grid), axis=1)


def step_lengths(grid: tuple[int, int, int], order: str) -> np.ndarray:
    """Manhattan distance between consecutive tokens."""
    return np.abs(np.diff(coordinates(grid, order), axis=0)).sum(axis=1)


@pytest.mark.parametrize("order", ORDERS)
def test_is_a_permutation_with_its_inverse(order: str) -> None:
    for grid in [*VIDEO_GRIDS, *LINES, *PLANES, *random_grids(300, 14)]:
        n = grid[0] * grid[1] * grid[2]
        forward, backward = token_order(grid, order), inverse_order(grid, order)
        assert forward.dtype == backward.dtype == torch.int64
        assert forward.shape == backward.shape == (n,)
        assert torch.equal(forward.sort().values, torch.arange(n)), grid
        assert torch.equal(backward[forward], torch.arange(n)), grid


def test_raster_is_the_identity() -> None:
    assert token_order((3, 4, 5), "raster").tolist() == list(range(60))


def test_gilbert_is_the_hilbert_curve_on_powers_of_two() -> None:
    for grid in ((1, 2, 2), (1, 16, 16), (2, 2, 2), (8, 8, 8), (16, 16, 16)):
        assert step_lengths(grid, "gilbert").max() == 1
    # Hilbert: every aligned half, quarter, .. of the curve of a cube fills a cube.
    for size in (2, 4):
        chunks = coordinates((8, 8, 8), "gilbert").reshape(-1, size**3, 3)
        assert (np.ptp(chunks, axis=1) == size - 1).all()


def test_gilbert_follows_the_published_recursion() -> None:
    for grid in [*LINES, *PLANES, (3, 4, 5), (7, 6, 4), (5, 9, 13), *random_grids(40, 12)]:
        expected = list(recursive_gilbert(grid))
        assert coordinates(grid, "gilbert").tolist() == expected, grid


@pytest.mark.parametrize("grid", VIDEO_GRIDS)
def test_gilbert_goes_to_face_neighbours(grid: tuple[int, int, int]) -> None:
    assert (step_lengths(grid, "gilbert") == 1).mean() > 0.99


def test_gilbert_never_jumps() -> None:
    """The worst step reaches an edge neighbour; with even sizes there is none of those."""
    for grid in [*VIDEO_GRIDS, *PLANES, *random_grids(300, 14)]:
        steps = step_lengths(grid, "gilbert")
        assert steps.max(initial=0) <= 2, grid
        if all(n % 2 == 0 for n in grid):
            assert steps.max() == 1, grid


def test_gilbert_starts_at_the_first_token() -> None:
    for grid in [*VIDEO_GRIDS, *random_grids(50, 14)]:
        assert int(token_order(grid, "gilbert")[0]) == 0


@pytest.mark.parametrize("grid", [(4, 4, 8), (8, 12, 16), (20, 44, 80)])
def test_tile_blocks_are_boxes(grid: tuple[int, int, int]) -> None:
    """Sizes that divide by 4: blocks of 64 are cubes, blocks of 128 two that touch."""
    coords = coordinates(grid, "tile")
    assert (np.ptp(coords.reshape(-1, 64, 3), axis=1) == 3).all()
    pairs = np.sort(np.ptp(coords.reshape(-1, 128, 3), axis=1), axis=1)
    assert (pairs == [3, 3, 7]).all()


def test_tile_of_single_frames_is_square() -> None:
    blocks = coordinates((1, 64, 64), "tile").reshape(-1, 64, 3)
    assert (np.ptp(blocks, axis=1) == [0, 7, 7]).all()


@pytest.mark.parametrize("grid", [(21, 45, 80), (13, 30, 45), (7, 45, 80), (21, 30, 52)])
def test_tile_blocks_stay_boxes_on_ragged_grids(grid: tuple[int, int, int]) -> None:
    coords = coordinates(grid, "tile")
    whole = len(coords) // 64
    extents = np.ptp(coords[: whole * 64].reshape(whole, 64, 3), axis=1) + 1
    assert (extents.prod(axis=1) == 64).mean() > 0.95


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("q_block,kv_block", [(64, 64), (128, 64), (128, 128)])
def test_block_neighbours_are_exact(order: str, q_block: int, kv_block: int) -> None:
    for grid in [(1, 1, 1), (1, 1, 200), (3, 7, 11), (5, 9, 8), (1, 20, 13), (130, 1, 2)]:
        coords = torch.from_numpy(coordinates(grid, order))
        near = (coords[:, None] - coords[None]).abs().amax(-1) <= 1  # [tokens, tokens]
        rows = torch.stack([r.any(0) for r in near.split(q_block)])
        expected = torch.stack([c.any(1) for c in rows.split(kv_block, dim=1)], dim=1)
        touching = block_neighbours(grid, order, q_block, kv_block)
        assert touching.dtype == torch.bool
        assert torch.equal(touching, expected), grid


@pytest.mark.parametrize("order", ORDERS)
def test_block_neighbours_hold_the_own_blocks(order: str) -> None:
    touching = block_neighbours((5, 9, 13), order, 128, 64)
    for i in range(touching.shape[0]):
        assert bool(touching[i, 2 * i : 2 * i + 2].all())
    square = block_neighbours((5, 9, 13), order, 64, 64)
    assert torch.equal(square, square.T)


def test_neighbours_are_a_small_share_of_a_video() -> None:
    for order in ("gilbert", "tile"):
        for q_block, kv_block in ((128, 128), (128, 64), (64, 64)):
            share = float(block_neighbours((21, 45, 80), order, q_block, kv_block).float().mean())
            assert 0.005 < share < 0.05


def test_is_cached() -> None:
    assert token_order((3, 4, 5), "gilbert") is token_order((3, 4, 5), "gilbert")
    assert inverse_order((3, 4, 5), "gilbert") is inverse_order((3, 4, 5), "gilbert")
    assert block_neighbours((3, 4, 5), "tile", 64, 64) is block_neighbours(
        (3, 4, 5), "tile", 64, 64
    )


@pytest.mark.parametrize("order", ORDERS)
def test_is_fast(order: str) -> None:
    """A generous limit, an order of magnitude above what it takes, on sizes no other test uses."""
    started = time.process_time()
    token_order((33, 45, 81), order)
    block_neighbours((33, 45, 81), order, 64, 64)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize("grid", [(0, 4, 4), (4, 4), [4, 4, 4], (4, 4, -1), (4, 4.0, 4), None])
def test_bad_grids_are_refused(grid: object) -> None:
    for call in (
        lambda: token_order(grid, "gilbert"),
        lambda: inverse_order(grid, "gilbert"),
        lambda: block_neighbours(grid, "gilbert", 64, 64),
    ):
        with pytest.raises(ConfigError, match="grid") as caught:
            call()
        assert caught.value.field == "grid"


def test_bad_orders_and_blocks_are_refused() -> None:
    for call in (token_order, inverse_order):
        with pytest.raises(ConfigError, match="order = 'hilbert' is not allowed: one of gilbert"):
            call((4, 4, 4), "hilbert")
    with pytest.raises(ConfigError, match="order"):
        block_neighbours((4, 4, 4), "hilbert", 64, 64)
    with pytest.raises(ConfigError, match="q_block"):
        block_neighbours((4, 4, 4), "gilbert", 0, 64)
    with pytest.raises(ConfigError, match="kv_block"):
        block_neighbours((4, 4, 4), "gilbert", 64, 64.0)


def recursive_gilbert(grid: tuple[int, int, int]) -> Iterator[list[int]]:
    """The generalized Hilbert curve of J. Cerveny as a plain recursion over one box at a time."""
    major = max(range(3), key=lambda axis: (grid[axis], axis))
    axes = [major] + [axis for axis in (2, 1, 0) if axis != major]
    sides = np.zeros((3, 3), dtype=int)
    for row, axis in enumerate(axes):
        sides[row, axis] = grid[axis]
    yield from _walk(np.zeros(3, dtype=int), *sides)


def _walk(p: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Iterator[list[int]]:
    w, h, d = (int(np.abs(side).sum()) for side in (a, b, c))
    if 0 in (w, h, d):
        return
    for side, length in ((a, w), (b, h), (c, d)):
        if length == w * h * d:  # a line of tokens
            yield from ((p + i * np.sign(side)).tolist() for i in range(length))
            return
    (a1, a2), (b1, b2), (c1, c2) = _halves(a), _halves(b), _halves(c)
    last_a, last_b, last_c = a - np.sign(a), b1 - np.sign(b), c - np.sign(c)
    last_c1 = c1 - np.sign(c)
    if 2 * w > 3 * h and 2 * w > 3 * d:
        yield from _walk(p, a1, b, c)
        yield from _walk(p + a1, a2, b, c)
    elif 3 * h > 4 * d:
        yield from _walk(p, b1, c, a1)
        yield from _walk(p + b1, a, b2, c)
        yield from _walk(p + last_a + last_b, -b1, c, -a2)
    elif 3 * d > 4 * h:
        yield from _walk(p, c1, a1, b)
        yield from _walk(p + c1, a, b, c2)
        yield from _walk(p + last_a + last_c1, -c1, -a2, b)
    else:
        yield from _walk(p, b1, c1, a1)
        yield from _walk(p + b1, c, a1, b2)
        yield from _walk(p + last_b + last_c, a, -b1, -c2)
        yield from _walk(p + last_a + b1 + last_c, -c, -a2, b2)
        yield from _walk(p + last_a + last_b, -b1, c1, -a2)


def _halves(side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A side cut in two, the first part even where the side is longer than 2."""
    length = int(np.abs(side).sum())
    first = length // 2
    if first % 2 and length > 2:
        first += 1
    return first * np.sign(side), (length - first) * np.sign(side)
