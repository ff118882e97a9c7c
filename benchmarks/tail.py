"""What cheaper and dearer arithmetic costs: the parts of the tail of `precise`, and int8.

    python -m rectified_spaattn.benchmarks.tail --what cap --grid 21 45 80 --heads 1
    python -m rectified_spaattn.benchmarks.tail --what variance
    python -m rectified_spaattn.benchmarks.tail --what int8
    python -m rectified_spaattn.benchmarks.tail --what groups

`cap` varies the most that the variance term may add (`rectification.TAIL_VARIANCE_CAP`).
`variance` replaces the estimate of that term, w_r S_ij ("separable"), by dearer and cheaper ones;
the selection of blocks stays the same. Relative L2 error of the reference on synthetic heads, by
kind of head, and the geometric mean over the kinds. `groups` varies the keys that stand for a
block (`SparseConfig.tail_keys`), beside plain sparse attention and `paper`. `int8` is what rounding
queries and keys changes in the output, with everything else the same.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from ..rspa_core import (
    SparseConfig,
    TokenLayout,
    dense_attention,
    metrics,
    rectification,
    rectified_attention,
    reference,
)
from ..rspa_core.config import TAIL_KEYS
from ..rspa_core.pooling import PooledBlocks
from .synthetic import HEAD_KINDS, synthetic_qkv

CAPS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, math.inf)


def none(rows: Tensor, pooled_q: PooledBlocks, pooled_k: PooledBlocks) -> Tensor:
    """First order only."""
    return rows.new_zeros(*rows.shape[:-1], len(pooled_k.mean))


def full(rows: Tensor, pooled_q: PooledBlocks, pooled_k: PooledBlocks) -> Tensor:
    """The product of all channels."""
    return 0.5 / rows.shape[-1] * rows.square() @ pooled_k.variance.mT


def isotropic(rows: Tensor, pooled_q: PooledBlocks, pooled_k: PooledBlocks) -> Tensor:
    """|q_r|² times the mean variance of the block: no product."""
    length = rows.square().sum(-1, keepdim=True)
    return 0.5 / rows.shape[-1] * length * pooled_k.variance.mean(-1)


def eight_groups(rows: Tensor, pooled_q: PooledBlocks, pooled_k: PooledBlocks) -> Tensor:
    """Variance averaged over 8 groups of neighbouring channels: a product 16 times smaller."""
    groups = pooled_k.variance.unflatten(-1, (8, -1)).mean(-1)
    return 0.5 / rows.shape[-1] * rows.square().unflatten(-1, (8, -1)).sum(-1) @ groups.mT


def block_pair(rows: Tensor, pooled_q: PooledBlocks, pooled_k: PooledBlocks) -> Tensor:
    """q² averaged over the rows of the q-block: one value per block pair."""
    term = rectification.variance_term(pooled_q, pooled_k)
    return term[:, None, :].expand(*rows.shape[:-1], -1)


VARIANCES: dict[str, Callable[[Tensor, PooledBlocks, PooledBlocks], Tensor]] = {
    "none": none,
    "full": full,
    "8 groups": eight_groups,
    "separable": rectification.tail_variance_term,
    "isotropic": isotropic,
    "block pair": block_pair,
}


def variants(
    what: str, config: SparseConfig
) -> Iterator[tuple[str, AbstractContextManager[object], SparseConfig]]:
    """Name of each variant, the context in which the reference computes it, its configuration."""
    if what == "cap":
        for cap in CAPS:
            yield f"{cap:g}", mock.patch.object(rectification, "TAIL_VARIANCE_CAP", cap), config
    elif what == "int8":
        yield "int8", nullcontext(), replace(config, precision="int8")
    elif what == "groups":
        for mode in ("none", "paper"):
            yield mode, nullcontext(), replace(config, rectification=mode)
        for keys in TAIL_KEYS:
            yield f"{keys} keys", nullcontext(), replace(config, tail_keys=keys)
    else:
        for name, estimate in VARIANCES.items():
            yield name, mock.patch.object(reference, "tail_variance_term", estimate), config


def all_outputs(
    inputs: dict[str, tuple[Tensor, Tensor, Tensor]], layout: TokenLayout, config: SparseConfig
) -> dict[str, Tensor]:
    """Output of the reference for every kind of head."""
    return {
        kind: rectified_attention(*qkv, layout, config, backend="reference")
        for kind, qkv in inputs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("cap", "variance", "int8", "groups"), required=True)
    parser.add_argument("--grid", type=int, nargs=3, default=[9, 24, 40])
    parser.add_argument("--heads", type=int, default=2, help="heads of every kind")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.75, 0.9])
    parser.add_argument("--blocks", nargs="+", default=["128x128", "64x64"])
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frames, height, width = arguments.grid
    layout = TokenLayout((frames, height, width), frames * height * width)
    inputs = {
        kind: synthetic_qkv(kind, layout.grid, arguments.heads, 128, device=device)
        for kind in HEAD_KINDS
    }
    exact = {kind: dense_attention(*qkv) for kind, qkv in inputs.items()}
    kinds = " ".join(f"{kind:>8}" for kind in inputs)
    print(f"{'blocks':>8} {'sparsity':>8} {arguments.what:>10} {kinds}    mean")
    for blocks in arguments.blocks:
        q_block, kv_block = map(int, blocks.split("x"))
        for sparsity in arguments.sparsity:
            config = SparseConfig(sparsity, q_block, kv_block, rectification="precise")
            outputs = partial(all_outputs, inputs, layout)
            expected = exact
            if arguments.what == "int8":
                expected = outputs(config)
            for name, context, changed in variants(arguments.what, config):
                with context:
                    found = outputs(changed)
                errors = [metrics.relative_l2(found[kind], expected[kind]) for kind in inputs]
                mean = math.exp(sum(map(math.log, errors)) / len(errors))
                row = " ".join(f"{error:8.4f}" for error in errors)
                print(f"{blocks:>8} {sparsity:8g} {name:>10} {row} {mean:7.4f}", flush=True)


if __name__ == "__main__":
    main()
