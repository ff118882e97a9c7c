"""What an artist can pick instead of this pack: dense attention and ComfyUI's own sparse one.

How each output is checked before it is timed:

    cuDNN                against explicit fp32 attention on some query rows and heads, below 1e-2
    torch's others       against cuDNN, relative L2 below 1e-2
    SageAttention, INT8  against cuDNN, relative L2 below 5e-2
    Sol-Attn             against cuDNN, finite and relative L2 below 0.9: how much it loses depends
                         on the heads, a broken kernel loses everything
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from ...rspa_core.pooling import pool_blocks
from .comparison import BASELINE, Candidate, Prepared, Unavailable
from .problem import Problem, difference_reason, exact_rows, sdpa

FLASH = "dense flash"
LIMIT_16_BIT = 1e-2
LIMIT_INT8 = 5e-2
LIMIT_SOL = 0.9
SOL_BLOCK = 64
SOL_TOP_K = (0.25, 0.15, 0.10)
SOL_TAU = (1.0, 1.3)


def torch_candidates(problem: Problem, exact: Tensor, checked_heads: int) -> list[Candidate]:
    """Dense attention of torch: cuDNN and flash."""
    checked = partial(exact_reason, problem=problem, checked_heads=checked_heads)
    flash = against(exact, LIMIT_16_BIT)
    return [
        sdpa_candidate(BASELINE, problem, checked, SDPBackend.CUDNN_ATTENTION),
        sdpa_candidate(FLASH, problem, flash, SDPBackend.FLASH_ATTENTION),
    ]


def sdpa_candidate(
    label: str, problem: Problem, wrong: Callable[[Tensor], str], *backends: SDPBackend
) -> Candidate:
    """Dense attention by the first of torch's back ends that takes the call."""
    call = partial(sdpa(*backends), *problem.qkv)
    return Candidate(label, lambda: Prepared(call, wrong))


def dense_int8_candidates(problem: Problem, exact: Tensor) -> list[Candidate]:
    """Dense attention in INT8: SageAttention's Triton kernel and ComfyUI's own."""
    return [
        Candidate("dense SageAttention", partial(_prepare_sage, problem, exact)),
        Candidate("dense comfy-kitchen INT8", partial(_prepare_kitchen, problem, exact)),
    ]


def sol_candidates(
    problem: Problem,
    exact: Tensor,
    shares: Sequence[float] = SOL_TOP_K,
    thresholds: Sequence[float] = SOL_TAU,
) -> list[Candidate]:
    """ComfyUI's "Model Sparse Attention" by share of kept blocks and by threshold."""
    options: dict[str, dict[str, float]] = {
        f"Sol-Attn top-k {ratio:g}": {"topk_ratio": ratio} for ratio in shares
    }
    options |= {f"Sol-Attn tau {tau:g}": {"tau": tau} for tau in thresholds}
    return [
        Candidate(label, partial(_prepare_sol, problem, exact, option))
        for label, option in options.items()
    ]


def against(exact: Tensor, limit: float) -> Callable[[Tensor], str]:
    """The check that an output is within `limit` of dense attention, in the heads of `exact`."""
    heads = slice(0, exact.shape[1])
    return lambda out: difference_reason(out[:, heads], exact, limit, "dense attention")


def exact_reason(out: Tensor, problem: Problem, checked_heads: int, rows: int = 128) -> str:
    """What is wrong with a dense output, judged by its first, middle and last rows in fp32."""
    heads, length = slice(0, checked_heads), out.shape[-2]
    for start in sorted({0, length // 2, max(0, length - rows)}):
        part = slice(start, start + rows)
        expected = exact_rows(problem.q[:, heads, part], problem.k[:, heads], problem.v[:, heads])
        what = f"fp32 attention in the rows from {start}"
        if reason := difference_reason(out[:, heads, part], expected, LIMIT_16_BIT, what):
            return reason
    return ""


def _prepare_sage(problem: Problem, exact: Tensor) -> Prepared:
    sage = require("sageattention", "sageattention")

    def call() -> Tensor:
        # As ComfyUI calls it. With smoothing, version 1 would change the caller's k in place.
        return sage.sageattn(
            *problem.qkv, tensor_layout="HND", is_causal=False, sm_scale=None, smooth_k=False
        )

    return Prepared(call, against(exact, LIMIT_INT8))


def _prepare_kitchen(problem: Problem, exact: Tensor) -> Prepared:
    kitchen = require("comfy_kitchen", "comfy-kitchen")
    if not offers(kitchen, "int8_attention", problem.q.device):
        raise Unavailable("this comfy-kitchen has no INT8 attention for this GPU")
    return Prepared(lambda: kitchen.int8_attention(*problem.qkv), against(exact, LIMIT_INT8))


def _prepare_sol(problem: Problem, exact: Tensor, option: dict[str, float]) -> Prepared:
    call = sol_call(problem.qkv, option)
    density = float(sol_masks(problem.q, problem.k, **option).float().mean())
    return Prepared(call, against(exact, LIMIT_SOL), density)


def require(module: str, package: str) -> ModuleType:
    """Import an optional library.

    Raises:
        Unavailable: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Unavailable(f"not installed: pip install {package} ({error})") from error


def offers(kitchen: Any, function: str, device: torch.device) -> bool:
    """Whether this comfy-kitchen has the function for this device."""
    available = getattr(kitchen, f"{function}_is_available", None)
    return hasattr(kitchen, function) and (available is None or bool(available(device)))


def sol_call(qkv: tuple[Tensor, Tensor, Tensor], option: dict[str, float]) -> Callable[[], Tensor]:
    """ComfyUI's Sol-Attn on q, k, v `[B, H, N, D]`, with `tau` or `topk_ratio`; same shape out.

    Raises:
        Unavailable: comfy-kitchen is missing, too old, or has no kernel for this device.
    """
    kitchen = require("comfy_kitchen", "comfy-kitchen")
    if not hasattr(kitchen, "sol_attn"):
        raise Unavailable("needs a newer one: pip install --upgrade comfy-kitchen")
    if not offers(kitchen, "sol_attn", qkv[0].device):
        raise Unavailable("this comfy-kitchen has no Sol-Attn for this GPU")
    q, k, v = (x.transpose(1, 2) for x in qkv)  # [B, N, H, D], any strides

    def call() -> Tensor:
        return kitchen.sol_attn(q, k, v, **option).transpose(1, 2)

    return call


def sol_masks(q: Tensor, k: Tensor, tau: float = 1.0, topk_ratio: float = 0.0) -> Tensor:
    """`sol_kept` of every head of `q, k [B, H, N, D]`: bool `[B * H, NB, NB]`.

    The kernel does not report what it keeps and ranks int8 scores: this is close, not exact.
    """
    heads = zip(q.flatten(0, 1), k.flatten(0, 1), strict=True)
    return torch.stack([sol_kept(*head, tau, topk_ratio) for head in heads])


def sol_kept(q: Tensor, k: Tensor, tau: float = 1.0, topk_ratio: float = 0.0) -> Tensor:
    """Block pairs of one head that Sol-Attn attends exactly, from its published rule.

    With c_i the mean query of a block and k̄_j the mean key, centred: kept are the `topk_ratio` N
    largest c_i·k̄_j of a row, or those above tau sqrt(Σ_d c_id² var_j k̄_jd); and always
    |i - j| <= 1.

    Args:
        q, k: `[N, D]`, in the order of the model.
        tau: threshold, used if `topk_ratio` is 0.
        topk_ratio: share of blocks to keep.

    Returns:
        bool `[NB, NB]`, blocks of `SOL_BLOCK` tokens.
    """
    centre, means = (pool_blocks(x.float(), SOL_BLOCK).mean for x in (q, k))
    means = means - means.mean(0)
    scores = centre @ means.T
    count = len(means)
    if topk_ratio > 0:
        kept = max(0, min(count - 1, max(1, round(topk_ratio * count))))
        least = scores.topk(kept).values[:, -1:] if kept else scores.new_full((1,), 1e30)
        chosen = scores >= least
    else:
        spread = (centre.square() @ means.square().mean(0)).sqrt()
        chosen = scores > tau * spread[:, None]
    index = torch.arange(count, device=q.device)
    return chosen | ((index[:, None] - index).abs() <= 1)


def sol_rows(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, topk_ratio: float
) -> tuple[Tensor, Tensor]:
    """What Sol-Attn computes, without its int8 rounding, for some rows of one head.

    Kept blocks are attended exactly; every other block takes part in the same softmax as its mean
    key, with ln of its length added to the score, and its mean value.

    Args:
        q, k, v: `[N, D]` fp32, in the order of the model.
        rows: of q, int64 `[R]`.
        topk_ratio: share of blocks to keep.

    Returns:
        Output `[R, D]`, and the kept block pairs, bool `[NB, NB]`.
    """
    kept = sol_kept(q, k, topk_ratio=topk_ratio)
    block = torch.arange(len(k), device=k.device) // SOL_BLOCK
    own = kept[rows // SOL_BLOCK]
    scale = q.shape[-1] ** -0.5
    exact = (scale * (q[rows] @ k.mT)).masked_fill(~own[:, block], float("-inf"))
    keys, values = (pool_blocks(x, SOL_BLOCK) for x in (k, v))
    pooled = scale * (q[rows] @ keys.mean.mT) + keys.lengths.log()
    weights = torch.cat([exact, pooled.masked_fill(own, float("-inf"))], -1).softmax(-1)
    return weights @ torch.cat([v, values.mean]), kept
