"""What the fidelity benchmark compares: ours, ComfyUI's Sol-Attn, and formulas without a kernel."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from ..rspa_core import SparseConfig, TokenLayout, rectified_attention
from .comparison import first_line
from .fidelity_formulas import FORMULAS, SOL_FORMULA, RowResult, Tail, formula_rows
from .fidelity_inputs import Inputs
from .fidelity_oracle import Oracle
from .rivals import SOL_BLOCK, SOL_TAU, sol_call, sol_kept

SOL = "Sol-Attn"
SOL_AS_FORMULA = "Sol-Attn in fp32"


@dataclass(frozen=True)
class Variant:
    """A way to compute attention, without the kept share.

    Attributes:
        name: what it is, without blocks and order.
        q_block, kv_block, order, precision: see `SparseConfig`.
        source: "ours" (kernels or, on a CPU, the reference), "formula" (chosen rows, in fp32) or
            "rival".
        tail_keys: keys that stand for a block.
        tau: threshold of Sol-Attn in place of a kept share.
        neighbours: see `SparseConfig`.
    """

    name: str
    q_block: int = 64
    kv_block: int = 64
    order: str = "gilbert"
    precision: str = "16-bit"
    source: str = "ours"
    tail_keys: int = 1
    tau: float | None = None
    neighbours: bool = True

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
        return f"{self.name.split(' tau')[0]} {self.blocks} {self.precision}"

    def config(self, share: float) -> SparseConfig:
        """Configuration that keeps this share of the blocks."""
        ours = self.source == "ours"
        rectification = self.name.split()[0] if ours else "precise"
        return SparseConfig(
            round(1.0 - share, 6), self.q_block, self.kv_block, rectification=rectification,
            order=self.order, neighbours=self.neighbours,
            precision=self.precision if ours else "16-bit", tail_keys=self.tail_keys,
        )  # fmt: skip


@dataclass(frozen=True)
class Outcome(RowResult):
    """Beside the rows: the call to time where there is a kernel, and seconds on a CPU."""

    call: Callable[[], Tensor] | None = field(default=None, repr=False)
    seconds: float | None = None


class Runner(Protocol):
    def __call__(
        self, variant: Variant, inputs: Inputs, oracle: Oracle, share: float
    ) -> Outcome: ...


def our_variants(
    rectifications: Sequence[str],
    blocks: Sequence[str],
    orders: Sequence[str],
    precisions: Sequence[str],
    tail_keys: Sequence[int],
    neighbours: bool = True,
) -> list[Variant]:
    """Ours, the ones that matter most first: `orders[0]` in `precisions[0]`, the other precisions,
    the other orders.

    Rounding to int8 does not see the order and several keys for a block exist for `precise` only:
    these are not combined with everything else.
    """
    found = []
    wanted = [(orders[0], precision) for precision in precisions]
    wanted += [(order, precisions[0]) for order in orders[1:]]
    for (order, precision), rectification, block in product(wanted, rectifications, blocks):
        if rectification == "none" and precision != precisions[0]:
            continue
        q_block, kv_block = map(int, block.split("x"))
        several = rectification == "precise" and order == orders[0]
        for keys in tail_keys if several else tail_keys[:1]:
            keys = keys if rectification == "precise" else 1
            name = rectification if keys == 1 else f"{rectification} {keys} keys"
            variant = Variant(name, q_block, kv_block, order, precision, tail_keys=keys)
            found.append(replace(variant, neighbours=neighbours))
    return found


def formula_variants(blocks: Sequence[str], order: str, neighbours: bool = True) -> list[Variant]:
    """Variants that only have a formula, on square blocks."""
    sizes = [size for size in (64, 128) if f"{size}x{size}" in blocks]
    found = [
        Variant(name, size, size, order, "fp32", "formula", neighbours=neighbours)
        for name, size in product(FORMULAS, sizes)
    ]
    return [Variant(SOL_AS_FORMULA, order="raster", precision="fp32", source="formula"), *found]


def rival_variants() -> list[Variant]:
    """ComfyUI's own sparse attention: by kept share and by threshold."""
    variants = [Variant(SOL, order="raster", precision="int8", source="rival")]
    return variants + [
        Variant(f"{SOL} tau {tau:g}", order="raster", precision="int8", source="rival", tau=tau)
        for tau in SOL_TAU
    ]


def run_ours(variant: Variant, inputs: Inputs, oracle: Oracle, share: float) -> Outcome:
    """Kernels on a GPU, the reference on a CPU.

    Raises:
        BackendUnavailable: no kernel for it here.
    """
    config = variant.config(share)
    gpu = inputs.q.device.type == "cuda"
    call = partial(
        rectified_attention, *inputs.qkv, inputs.layout, config,
        backend="triton" if gpu else "reference",
    )  # fmt: skip
    start = time.perf_counter()
    out, stats = call(return_stats=True)
    seconds = None if gpu else time.perf_counter() - start
    mask = stats.block_mask()[0]
    density = (stats.kv_counts[0].float().mean(-1) / stats.num_kv_blocks).tolist()
    recall = oracle.recall(mask, config.order, config.q_block, config.kv_block)
    return Outcome(out[0][:, oracle.rows], density, recall, call if gpu else None, seconds)


def run_rival(variant: Variant, inputs: Inputs, oracle: Oracle, share: float) -> Outcome:
    """Sol-Attn; what it keeps is not reported by its kernel and comes from its published rule.

    Raises:
        Unavailable: it cannot run here; the message says why.
    """
    option = {"topk_ratio": share} if variant.tau is None else {"tau": variant.tau}
    call = sol_call(inputs.qkv, option)
    out = call()
    q, k, _ = inputs.qkv
    masks = (sol_kept(q[0, head], k[0, head], **option) for head in range(q.shape[1]))
    mask = torch.stack(list(masks))
    recall = oracle.recall(mask, "raster", SOL_BLOCK, SOL_BLOCK)
    return Outcome(out[0][:, oracle.rows], mask.float().mean((-1, -2)).tolist(), recall, call)


def run_formula(variant: Variant, inputs: Inputs, oracle: Oracle, share: float) -> Outcome:
    """A formula, on the chosen rows."""
    tail: Tail = SOL_FORMULA if variant.name == SOL_AS_FORMULA else FORMULAS[variant.name]
    found = formula_rows(inputs, oracle, variant.config(share), tail)
    return Outcome(found.out, found.density, found.recall)


RUNNERS: dict[str, Runner] = {"ours": run_ours, "rival": run_rival, "formula": run_formula}


class ParallelCompilation:
    """Compiles the kernels of many variants in processes of their own, into Triton's cache.

    One process would take some ten seconds for each kind of call.
    """

    def __init__(self, variants: Sequence[Variant], dtype: torch.dtype, workers: int) -> None:
        """Start; `dtype` is that of q, k and v."""
        kinds = {variant.timing_key: variant for variant in variants if variant.source == "ours"}
        self._pool = multiprocessing.get_context("spawn").Pool(max(1, min(workers, len(kinds))))
        self._results = {
            key: self._pool.apply_async(compile_variant, (variant, dtype))
            for key, variant in kinds.items()
        }

    def wait(self, seconds: float) -> list[str]:
        """Stop after this many seconds at most; what is not compiled by then, and why."""
        end = time.monotonic() + seconds
        failed = []
        for key, result in self._results.items():
            try:
                result.get(max(0.0, end - time.monotonic()))
            except Exception as error:  # a worker may fail in any way
                failed.append(f"{key}: {first_line(error)}")
        self._pool.terminate()
        return failed


def compile_variant(variant: Variant, dtype: torch.dtype) -> float:
    """Run a small problem on the GPU once; returns the seconds."""
    start = time.perf_counter()
    layout = TokenLayout((5, 16, 16), 5 * 16 * 16)
    q, k, v = torch.randn(3, 1, 2, layout.length, 128, device="cuda").to(dtype).unbind(0)
    _, stats = rectified_attention(
        q, k, v, layout, variant.config(0.3), backend="triton", return_stats=True
    )
    stats.block_mask()
    rectified_attention(q, k, v, layout, variant.config(0.3), backend="triton")
    torch.cuda.synchronize()
    return time.perf_counter() - start
