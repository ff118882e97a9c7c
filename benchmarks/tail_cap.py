"""How much the variance term of `precise` may add: error against dense attention over the cap.

    python -m rectified_spaattn.benchmarks.tail_cap --grid 21 45 80

Relative L2 error of the reference on synthetic heads, per kind of head; the row that chose
`rspa_core.rectification.TAIL_VARIANCE_CAP` is the one with the smallest geometric mean that no
kind pays for.
"""

from __future__ import annotations

import argparse
import math
from unittest import mock

import torch

from ..rspa_core import (
    SparseConfig,
    TokenLayout,
    dense_attention,
    metrics,
    rectification,
    rectified_attention,
)
from .synthetic import HEAD_KINDS, synthetic_qkv

CAPS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, math.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, nargs=3, default=[9, 24, 40])
    parser.add_argument("--heads", type=int, default=2, help="heads of every kind")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.75, 0.9])
    parser.add_argument("--blocks", nargs="+", default=["128x128", "64x64"])
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = TokenLayout(tuple(arguments.grid), math.prod(arguments.grid))
    inputs = {
        kind: synthetic_qkv(kind, layout.grid, arguments.heads, 128, device=device)
        for kind in HEAD_KINDS
    }
    exact = {kind: dense_attention(*qkv) for kind, qkv in inputs.items()}
    print(f"{'blocks':>8} {'sparsity':>8} {'cap':>5}", *(f"{kind:>8}" for kind in inputs), "  mean")
    for blocks in arguments.blocks:
        q_block, kv_block = map(int, blocks.split("x"))
        for sparsity in arguments.sparsity:
            config = SparseConfig(sparsity, q_block, kv_block, rectification="precise")
            for cap in CAPS:
                with mock.patch.object(rectification, "TAIL_VARIANCE_CAP", cap):
                    errors = [
                        metrics.relative_l2(
                            rectified_attention(*qkv, layout, config, backend="reference"),
                            exact[kind],
                        )
                        for kind, qkv in inputs.items()
                    ]
                mean = math.exp(sum(map(math.log, errors)) / len(errors))
                row = " ".join(f"{error:8.4f}" for error in errors)
                print(f"{blocks:>8} {sparsity:8g} {cap:5g} {row} {mean:7.4f}", flush=True)


if __name__ == "__main__":
    main()
