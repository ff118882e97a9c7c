"""What the tail of `precise` needs: error against dense attention over its parts.

    python -m rectified_spaattn.benchmarks.tail --what cap --grid 21 45 80 --heads 1
    python -m rectified_spaattn.benchmarks.tail --what variance

`cap` varies the most that the variance term may add (`rectification.TAIL_VARIANCE_CAP`).
`variance` replaces that term, ½ c² Σ_d q_rd² var_k,jd, by cheaper estimates of it; the selection of
blocks keeps the full one. Relative L2 error of the reference on synthetic heads, by kind of head,
and the geometric mean over the kinds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
from ..rspa_core.pooling import PooledBlocks
from .synthetic import HEAD_KINDS, synthetic_qkv

CAPS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, math.inf)


def none(q: Tensor, pooled_k: PooledBlocks) -> Tensor:
    """First order only."""
    return q.new_zeros(*q.shape[:-1], pooled_k.variance.shape[-2])


def isotropic(q: Tensor, pooled_k: PooledBlocks) -> Tensor:
    """|q_r|² times the mean variance of the block: no product."""
    return q.square().sum(-1, keepdim=True) * pooled_k.variance.mean(-1)


def eight_groups(q: Tensor, pooled_k: PooledBlocks) -> Tensor:
    """Variance averaged over 8 groups of neighbouring channels: a product 16 times smaller."""
    return q.square().unflatten(-1, (8, -1)).sum(-1) @ (
        pooled_k.variance.unflatten(-1, (8, -1)).mean(-1).mT
    )


def per_block_pair(q: Tensor, pooled_k: PooledBlocks) -> Tensor:
    """q² averaged over the rows of the q-block: one value per block pair."""
    return (q.square().mean(-2, keepdim=True) @ pooled_k.variance.mT).expand(*q.shape[:-1], -1)


def separable(q: Tensor, pooled_k: PooledBlocks) -> Tensor:
    """That value times |q_r|² over its mean in the q-block: one factor per row more."""
    length = q.square().sum(-1, keepdim=True)
    return per_block_pair(q, pooled_k) * (length / length.mean(-2, keepdim=True))


VARIANCES: dict[str, Callable[[Tensor, PooledBlocks], Tensor]] = {
    "none": none,
    "isotropic": isotropic,
    "8 groups": eight_groups,
    "block pair": per_block_pair,
    "separable": separable,
}


def variants(what: str) -> Iterator[tuple[str, AbstractContextManager[object]]]:
    """Name of each variant and the context in which the reference computes it."""
    if what == "cap":
        for cap in CAPS:
            yield f"{cap:g}", mock.patch.object(rectification, "TAIL_VARIANCE_CAP", cap)
        return
    yield "full", mock.patch.object(reference, "second_order_bias", rectification.second_order_bias)
    for name, estimate in VARIANCES.items():

        def bias(
            q: Tensor,
            pooled_k: PooledBlocks,
            estimate: Callable[[Tensor, PooledBlocks], Tensor] = estimate,
        ) -> Tensor:
            variance = 0.5 / q.shape[-1] * estimate(q, pooled_k)
            return pooled_k.lengths.log() + variance.clamp(max=rectification.TAIL_VARIANCE_CAP)

        yield name, mock.patch.object(reference, "second_order_bias", bias)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("cap", "variance"), required=True)
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
            for name, context in variants(arguments.what):
                with context:
                    errors = [
                        metrics.relative_l2(
                            rectified_attention(*qkv, layout, config, backend="reference"),
                            exact[kind],
                        )
                        for kind, qkv in inputs.items()
                    ]
                mean = math.exp(sum(map(math.log, errors)) / len(errors))
                row = " ".join(f"{error:8.4f}" for error in errors)
                print(f"{blocks:>8} {sparsity:8g} {name:>10} {row} {mean:7.4f}", flush=True)


if __name__ == "__main__":
    main()
