"""Measure one attention call on this machine with everything that is installed here."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from ...rspa_core import SparseConfig, rectified_attention
from ...rspa_core.dispatch import compile_progress, release_tables
from ...rspa_core.run.presets import PRESETS
from ..calls.comparison import Candidate, Row, examine_one, time_rows
from ..calls.ours import chosen_tile, prepare_ours, tile_text
from ..calls.problem import HEAD_DIM, SHAPES, Problem, Shape, exact_rows, make_problem, sdpa
from ..calls.rivals import (
    LIMIT_16_BIT,
    against,
    dense_int8_candidates,
    sdpa_candidate,
    sol_candidates,
    torch_candidates,
)
from ..synthetic import HEAD_KINDS
from ..timing import measure_interleaved
from .record import BREAK_EVEN_PRESET, DEFAULT, OURS, SMALL, Record, machine, plain

DEFAULT_BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
AUTO = "auto"
AUTO_CALLS = ("wan-720p", "wan-480p")
CALLS = (AUTO, *AUTO_CALLS, "hunyuan-720p")
CPU_SHAPE = Shape((4, 12, 16), len(HEAD_KINDS))
MIN_HEADS = len(HEAD_KINDS)
"""One of each kind: these are compared with full attention in fp32."""
ENOUGH_HEADS = 8
"""With fewer the next smaller call is taken."""
MAX_DENSE_S = 1.0
"""Of one dense call: about fifty calls are timed."""
USED_SHARE = 0.9
"""Of the memory that is free: allocators and other programs take their part."""
SPARE_BYTES = 1 << 30
"""For what a call needs beside its tensors."""
ROUNDS, SETTLE_S, EVEN_ROUNDS = 3, 0.25, 5
EVEN_GRIDS = ((5, 16, 26), (9, 16, 28), (13, 18, 26), (13, 22, 28), (15, 24, 34), (17, 26, 36))


class Refused(Exception):
    """Nothing can be measured here. The message is the reason, written for the user."""


def needed_bytes(shape: Shape, heads: int) -> int:
    """Most GPU memory that the measurement takes with this many heads: q, k, v, outputs, copies of
    other back ends; in fp32 what is compared."""
    tokens = shape.layout.length
    return SPARE_BYTES + tokens * HEAD_DIM * (16 * heads + 16 * MIN_HEADS)


LEAST_BYTES = int(needed_bytes(SHAPES["wan-480p"], MIN_HEADS) / USED_SHARE) + 2
"""Free memory that the smallest of the calls needs."""


def choose(free: int, pair_s: float, names: Sequence[str]) -> tuple[str, Shape]:
    """The first of these calls that fits with enough heads, else the last one with fewer.

    Args:
        free: bytes of GPU memory.
        pair_s: seconds of dense attention for a query and a key of one head.
        names: of `SHAPES`, in the order of preference.

    Raises:
        Refused: not even the last one fits.
    """
    for name in names:
        shape = SHAPES[name]
        per_head = needed_bytes(shape, 1) - needed_bytes(shape, 0)
        by_memory = (USED_SHARE * free - needed_bytes(shape, 0)) // per_head
        dense_s = max(pair_s * shape.layout.length**2, 1e-9)
        by_time = max(MIN_HEADS, int(MAX_DENSE_S / dense_s))
        heads = int(min(shape.heads, by_memory, by_time))
        if heads >= ENOUGH_HEADS or (name == names[-1] and heads >= MIN_HEADS):
            return name, Shape(shape.grid, heads, shape.context)
    least = needed_bytes(shape, MIN_HEADS) / USED_SHARE / 2**30
    raise Refused(
        f"{free / 2**30:.1f} GiB of GPU memory are free, {least:.1f} are needed: close other "
        "programs that use the GPU"
    )


def measure(
    device: torch.device,
    say: Callable[[str], None],
    advance: Callable[[float], None],
    call: str = AUTO,
    free: int | None = None,
) -> Record:
    """Everything that is installed on one attention call; what it took is free again afterwards.

    Args:
        device: a GPU, or a CPU for a small run.
        say: hears what is being done.
        advance: hears the share that is done, 0 to 1; it may raise to end the measurement.
        call: one of `CALLS`.
        free: bytes of GPU memory to stay within; None for what torch finds free.

    Returns:
        A record as `record.check` describes it.

    Raises:
        Refused: the memory is too small, or dense attention fails.
    """
    if device.type not in ("cpu", "cuda"):
        raise Refused(f"there are no kernels for devices of type {device.type!r}")
    try:
        return _measure(device, say, advance, call, free)
    finally:
        gc.collect()
        release_tables()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(
    device: torch.device,
    say: Callable[[str], None],
    advance: Callable[[float], None],
    call: str,
    free: int | None,
) -> Record:
    begun = time.perf_counter()
    advance(0.0)
    dtype, name, shape, of_model = torch.float32, SMALL, CPU_SHAPE, CPU_SHAPE
    on_gpu, room = device.type == "cuda", 0
    if on_gpu:
        dtype = torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.half
        room = torch.cuda.mem_get_info(device)[0] if free is None else free
        names = AUTO_CALLS if call == AUTO else (call,)
        choose(room, 0.0, names)  # says so before anything runs, if nothing fits
        name, shape = choose(room, _dense_pair_s(device, dtype), names)
        of_model = SHAPES[name]
    record = machine(device) | {
        "call": {
            "name": name, "grid": list(shape.grid), "tokens": shape.layout.length,
            "heads": shape.heads, "model_heads": of_model.heads, "head_dim": HEAD_DIM,
            "dtype": str(dtype).removeprefix("torch."),
        }
    }  # fmt: skip
    say(f"{shape.layout.length:,} tokens, {shape.heads} heads: full attention in fp32")
    record["rows"] = compare(make_problem(shape, dtype, device), say, advance)
    timed = {row["name"] for row in record["rows"] if row["ms"] is not None}
    record["break_even"] = None
    if on_gpu and {DEFAULT, OURS + BREAK_EVEN_PRESET} <= timed:
        shapes = [Shape(grid, of_model.heads) for grid in EVEN_GRIDS]
        shapes = [each for each in shapes if needed_bytes(each, each.heads) <= USED_SHARE * room]
        record["break_even"] = break_even(shapes, dtype, device, say, advance)
    advance(1.0)
    record["seconds"] = round(time.perf_counter() - begun, 1)
    return record


def compare(
    problem: Problem,
    say: Callable[[str], None],
    advance: Callable[[float], None],
    rivals: bool | None = None,
) -> list[dict[str, Any]]:
    """The rows of a record; `rivals`: also the other back ends, None for on a GPU."""
    on_gpu = problem.q.device.type == "cuda"
    exact = exact_heads(problem, MIN_HEADS)
    candidates = _candidates(problem, exact, on_gpu if rivals is None else rivals)
    rows: list[Row] = []
    for index, candidate in enumerate(candidates):
        advance(0.1 + 0.5 * index / len(candidates))
        say(f"{candidate.label}: first call")
        with compile_progress(partial(_say_compiled, say, candidate.label)):
            rows.append(examine_one(candidate, exact))
    starts = itertools.count()

    def before(label: str) -> None:
        advance(0.6 + 0.25 * next(starts) / ((ROUNDS + 1) * len(rows)))
        say(f"{label}: timing")

    settle = SETTLE_S if on_gpu else 0.0
    time_rows(rows, problem.q.device, ROUNDS, settle=settle, before=before)
    configs = _configs()
    return [
        {
            "name": row.label,
            "density": _short(row.density),
            "ms": _short(row.ms),
            "relative_l2": _short(row.error),
            "extra_mib": _short(row.mib),
            "first_s": _short(row.first_s),
            "tile": tile_text(chosen_tile(problem, configs[row.label]))
            if on_gpu and row.ms is not None and row.label in configs
            else None,
            "reason": plain(row.refused) or None,
        }
        for row in rows
    ]


def _say_compiled(say: Callable[[str], None], label: str, done: int, total: int) -> None:
    say(f"{label}: {done} of {total} kernels compiled")


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _dense_pair_s(device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of dense attention for a query and a key of one head."""
    shape = SHAPES["wan-480p"]
    q = torch.randn(1, 2, shape.layout.length, HEAD_DIM, device=device).to(dtype)
    call = partial(sdpa(*DEFAULT_BACKENDS), q, q, q)
    try:
        seconds = measure_interleaved({DEFAULT: call}, device, rounds=2)[DEFAULT]
    except RuntimeError as error:  # of which running out of memory is one
        raise Refused(
            f"dense attention of {q.shape[-2]:,} tokens fails: {type(error).__name__}"
        ) from error
    return seconds / (2 * q.shape[-2] ** 2)


def _configs() -> dict[str, SparseConfig]:
    """Configuration of every preset that differs from those before it, by the label of its row."""
    found: dict[str, SparseConfig] = {}
    for name, each in PRESETS.items():
        config = SparseConfig(
            each.sparsity, each.block_size, each.block_size,
            rectification=each.rectification, tail_keys=each.tail_keys,
        )  # fmt: skip
        if config not in found.values():
            found[OURS + name] = config
    return found


def exact_heads(problem: Problem, heads: int, rows: int = 128) -> torch.Tensor:
    """`exact_rows` of all rows of the first heads, some at a time: `[B, heads, N, D]` fp32."""
    q = problem.q[:, :heads]
    exact = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    for head in range(heads):
        k, v = problem.k[:, head].float(), problem.v[:, head].float()
        for start in range(0, q.shape[-2], rows):
            part = slice(start, start + rows)
            exact[:, head, part] = exact_rows(q[:, head, part], k, v)
    return exact


def _candidates(problem: Problem, exact: torch.Tensor, rivals: bool) -> list[Candidate]:
    """What there is to compare, ours last."""
    configs = _configs()
    checked = against(exact, LIMIT_16_BIT)
    every = [sdpa_candidate(DEFAULT, problem, checked, *DEFAULT_BACKENDS)]
    if rivals:
        shares = sorted({round(1 - config.sparsity, 6) for config in configs.values()})
        every += torch_candidates(problem, exact, MIN_HEADS)[:1]
        every += dense_int8_candidates(problem, exact)
        every += sol_candidates(problem, exact, shares[::-1], ())
    return every + [
        Candidate(label, partial(prepare_ours, problem, config), is_ours=True)
        for label, config in configs.items()
    ]


def break_even(
    shapes: Sequence[Shape],
    dtype: torch.dtype,
    device: torch.device,
    say: Callable[[str], None],
    advance: Callable[[float], None],
) -> dict[str, Any]:
    """Milliseconds of dense attention and of ours by tokens, launches included, and from how many
    tokens on ours is faster."""
    config = _configs()[OURS + BREAK_EVEN_PRESET]
    sizes: list[list[float]] = []
    for index, shape in enumerate(shapes):
        advance(0.85 + 0.15 * index / len(shapes))
        say(f"break-even: {shape.layout.length:,} tokens")
        problem = make_problem(shape, dtype, device)
        calls = {
            DEFAULT: partial(sdpa(*DEFAULT_BACKENDS), *problem.qkv),
            OURS: partial(rectified_attention, *problem.qkv, problem.layout, config),
        }
        try:
            taken = measure_interleaved(calls, device, rounds=EVEN_ROUNDS, host_time=True)
        except RuntimeError:  # out of memory: the sizes so far tell enough
            break
        sizes.append([shape.layout.length, *(float(f"{1e3 * s:.4g}") for s in taken.values())])
    first = len(sizes)
    while first and sizes[first - 1][2] < sizes[first - 1][1]:
        first -= 1
    tokens = int(sizes[first][0]) if first < len(sizes) else None
    return {"preset": BREAK_EVEN_PRESET, "tokens": tokens, "sizes": sizes}
