"""What the fidelity benchmark compares: ours, and ComfyUI's Sol-Attn as kernel and as formula."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ...rspa_core import SparseConfig, rectified_attention
from ..calls.rivals import SOL_BLOCK, SOL_TAU, sol_call, sol_masks, sol_rows
from ..methods import POOLED, Method, methods
from ..timing import timed
from .inputs import Inputs, Oracle, heads_of, row_chunks


@dataclass(frozen=True)
class Variant:
    """A way to compute attention, without the kept share.

    Attributes:
        kind: what it is: a method's kind, "sol" or "sol formula"; see `RUNNERS`.
        name: of the method, without blocks and order.
        q_block, kv_block, order, precision: see `SparseConfig`.
        tail_keys: of the method.
        tau: threshold of Sol-Attn in place of a kept share.
    """

    kind: str
    name: str
    q_block: int = SOL_BLOCK
    kv_block: int = SOL_BLOCK
    order: str = "raster"
    precision: str = "16-bit"
    tail_keys: int = 1
    tau: float | None = None

    @property
    def method(self) -> Method:
        """Of ours."""
        return Method(self.kind, self.tail_keys)

    @property
    def blocks(self) -> str:
        return f"{self.q_block}x{self.kv_block}"

    @property
    def label(self) -> str:
        """Name of its curve in tables and pictures."""
        return f"{self.name} {self.blocks} {self.order} {self.precision}"

    @property
    def timing_key(self) -> str:
        """Variants with the same key take the same time at the same density."""
        return f"{self.kind} {self.tail_keys} {self.blocks} {self.precision}"

    def config(self, share: float) -> SparseConfig:
        """Configuration of ours that keeps this share of the blocks."""
        own = {"order": self.order, "precision": self.precision}
        return self.method.config(share, self.q_block, self.kv_block, **own)


@dataclass(frozen=True)
class Outcome:
    """What a variant computed.

    Attributes:
        out: of the oracle's rows, `[H, R, D]`.
        density: by head, the kept share of block pairs.
        call: what can be timed, where there is a kernel.
        seconds: on a CPU.
    """

    out: Tensor
    density: list[float]
    call: Callable[[], Tensor] | None = field(default=None, repr=False)
    seconds: float | None = None


Runner = Callable[[Variant, Inputs, Oracle, float], Outcome]
"""Of a variant on heads with their oracle, at a kept share."""


def our_variants(arguments: Namespace) -> list[Variant]:
    """Ours, the ones that matter most first: the first order in the first precision, the other
    precisions, the other orders.

    Rounding to int8 does not see the order: the two are not combined. "none" and "pooled" are there
    to compare with, in the first precision alone.
    """
    (first, *orders), precisions = arguments.orders, arguments.precision
    wanted = [(first, precision) for precision in precisions]
    wanted += [(order, precisions[0]) for order in orders]
    chosen = methods(arguments.rectification, arguments.tail_keys)
    found = []
    for (order, precision), method, block in product(wanted, chosen, arguments.blocks):
        if method.kind in ("none", POOLED) and precision != precisions[0]:
            continue
        q_block, kv_block = map(int, block.split("x"))
        about = order, precision, method.tail_keys
        found.append(Variant(method.kind, method.name, q_block, kv_block, *about))
    return found


def rival_variants() -> list[Variant]:
    """ComfyUI's own sparse attention, by kept share and by threshold, and its formula in fp32."""
    kernel = Variant("sol", "Sol-Attn", precision="int8")
    taus = [replace(kernel, name=f"Sol-Attn tau {tau:g}", tau=tau) for tau in SOL_TAU]
    return [kernel, *taus, Variant("sol formula", "Sol-Attn in fp32", precision="fp32")]


def run_ours(variant: Variant, inputs: Inputs, oracle: Oracle, share: float) -> Outcome:
    """Kernels on a GPU, the reference on a CPU.

    Raises:
        BackendUnavailable: no kernel for it here.
    """
    config = variant.config(share)
    gpu = inputs.q.device.type == "cuda"

    def call(**options: Any) -> Any:
        with variant.method.arithmetic():
            return rectified_attention(
                *inputs.qkv, inputs.layout, config, backend="triton" if gpu else "reference",
                **options,
            )  # fmt: skip

    seconds, (out, stats) = timed(lambda: call(return_stats=True), inputs.q.device)
    density = (stats.kv_counts[0].float().mean(-1) / stats.num_kv_blocks).tolist()
    own = {"call": call} if gpu else {"seconds": seconds}
    return Outcome(out[0][:, oracle.rows], density, **own)


def run_sol(variant: Variant, inputs: Inputs, oracle: Oracle, share: float) -> Outcome:
    """Sol-Attn; what it keeps is not reported by its kernel and comes from its published rule.

    Raises:
        Unavailable: it cannot run here; the message says why.
    """
    option = {"topk_ratio": share} if variant.tau is None else {"tau": variant.tau}
    call = sol_call(inputs.qkv, option)
    out = call()
    masks = sol_masks(inputs.q, inputs.k, **option)
    return Outcome(out[0][:, oracle.rows], density_of(masks), call)


def run_sol_formula(variant: Variant, inputs: Inputs, oracle: Oracle, share: float) -> Outcome:
    """The same in fp32, on the oracle's rows."""
    outputs, masks = [], []
    for q, k, v in heads_of(inputs):
        parts = [sol_rows(q, k, v, rows, share) for rows in row_chunks(oracle.rows, len(k))]
        outputs.append(torch.cat([out for out, _ in parts]))
        masks.append(parts[0][1])
    return Outcome(torch.stack(outputs), density_of(torch.stack(masks)))


def density_of(masks: Tensor) -> list[float]:
    """Kept share by head of `masks [H, NB, NB]` bool."""
    return masks.float().mean((-1, -2)).tolist()


RUNNERS: dict[str, Runner] = {"sol": run_sol, "sol formula": run_sol_formula}
"""By kind; all other kinds are ours."""
