"""Ours in the comparison: every combination that is asked for, checked against the reference."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ...rspa_core import SparseConfig, rectified_attention
from ..methods import methods
from .comparison import Candidate, Prepared
from .problem import Problem, difference_reason

CHECKED_HEADS = 2
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Largest relative L2 difference of the kernels to the fp32 reference."""
INT8_TOLERANCE = 5e-3
"""A value half way between two steps of int8 may go either way."""
TILE_FLAGS = ("tma", "int8", "specialised", "half_sums")


def our_configs(arguments: Namespace) -> dict[str, tuple[SparseConfig, Any]]:
    """Every combination of methods, block sizes, precisions (or tiles) and densities, by name;
    beside each configuration its tile, None for that of the kernels' own table."""
    tiles = [tile_of(text) for text in arguments.tiles]
    launches = [("int8" if tile.int8 else "16-bit", tile) for tile in tiles]
    launches = launches or [(precision, None) for precision in arguments.precision]
    found = {}
    for method, blocks, (precision, tile), density in product(
        methods(arguments.rectification, arguments.tail_keys),
        arguments.blocks, launches, arguments.density,
    ):  # fmt: skip
        q_block, kv_block = map(int, blocks.split("x"))
        label = f"ours {method.name} {blocks} {precision} {density:g}"
        if tile is not None:
            label += f" {','.join(map(str, tile))}"
        found[label] = method.config(density, q_block, kv_block, precision=precision), tile
    return found


def our_candidates(problem: Problem, arguments: Namespace) -> list[Candidate]:
    """All of `our_configs`."""
    return [
        Candidate(label, partial(prepare_ours, problem, config, tile), is_ours=True)
        for label, (config, tile) in our_configs(arguments).items()
    ]


def tile_of(text: str) -> Any:
    """A launch configuration from "128,4,2,specialised": keys per step, warps, stages and, in any
    order, `tma` (tensor descriptors), `int8`, `specialised`, `half_sums`, most registers."""
    from ...kernels.devices import Tile

    keys, warps, stages, *rest = text.split(",")
    registers = sum(int(part) for part in rest if part.isdigit())
    flags = {name: name in rest for name in TILE_FLAGS}
    return Tile(int(keys), int(warps), int(stages), max_registers=registers, **flags)


def tile_text(tile: Any) -> str:
    """A launch configuration as `tile_of` reads it."""
    flags = [name for name in TILE_FLAGS if getattr(tile, name)]
    registers = [str(tile.max_registers)] if tile.max_registers else []
    return ",".join([*map(str, tile[:3]), *flags, *registers])


def chosen_tile(problem: Problem, config: SparseConfig) -> Any:
    """The launch configuration that passed its check for such calls on a GPU; None on a CPU."""
    if problem.q.device.type == "cpu":
        return None
    from ...kernels.selfcheck import checked_config, trusted_tile

    q, has_context = problem.q, problem.layout.context_length > 0
    return trusted_tile(q.device, q.dtype, q.shape[-1], checked_config(config), has_context, False)


def prepare_ours(problem: Problem, config: SparseConfig, tile: Any = None) -> Prepared:
    """Ours, checked on some heads against the fp32 reference."""
    _, stats = rectified_attention(*problem.qkv, problem.layout, config, return_stats=True)
    call: Callable[[], Tensor] = partial(rectified_attention, *problem.qkv, problem.layout, config)
    if tile is not None:
        from ...kernels.launch import launch

        def call() -> Tensor:
            return launch(*problem.qkv, problem.layout, config, tile, keep_mask=False)[0]

    def wrong(out: Tensor) -> str:
        heads = slice(0, CHECKED_HEADS)
        q, k, v = (x[:, heads] for x in problem.qkv)
        held_to = config
        if config.precision == "auto":
            used = chosen_tile(problem, config)
            precision = "int8" if used is not None and used.int8 else "16-bit"
            held_to = replace(config, precision=precision)
        expected = rectified_attention(q, k, v, problem.layout, held_to, backend="reference")
        limit = TOLERANCE[problem.q.dtype]
        if held_to.precision != "16-bit":
            limit = max(limit, INT8_TOLERANCE)
        return difference_reason(out[:, heads], expected, limit, "the fp32 reference")

    return Prepared(call, wrong, problem.pair_density(float(stats.density)))
