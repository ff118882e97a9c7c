"""What an artist can pick instead of this pack: dense attention and ComfyUI's own sparse one.

How each output is checked before it is timed:

    cuDNN                against explicit fp32 attention on some query rows and heads, below 1e-2
    torch's flash        against cuDNN, relative L2 below 1e-2
    SageAttention, INT8  against cuDNN, relative L2 below 5e-2
    Sol-Attn             against cuDNN, finite and relative L2 below 0.9: how much it loses depends
                         on the heads, a broken kernel loses everything
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from .attention_call import exact_rows, sdpa
from .comparison import BASELINE, Candidate, Prepared, Problem, Unavailable, difference_reason

FLASH = "dense flash"
LIMIT_16_BIT = 1e-2
LIMIT_INT8 = 5e-2
LIMIT_SOL = 0.9
SOL_BLOCK = 64
SOL_TOP_K = (0.25, 0.15, 0.10)
SOL_TAU = (1.0, 1.3)


def torch_candidates(problem: Problem, exact: Tensor, checked_heads: int) -> list[Candidate]:
    """Dense attention of torch: cuDNN and flash."""

    def prepare_cudnn() -> Prepared:
        call = sdpa(SDPBackend.CUDNN_ATTENTION)
        return Prepared(
            lambda: call(*problem.qkv), lambda out: exact_reason(out, problem, checked_heads)
        )

    def prepare_flash() -> Prepared:
        call = sdpa(SDPBackend.FLASH_ATTENTION)
        return Prepared(lambda: call(*problem.qkv), against(exact, LIMIT_16_BIT))

    return [Candidate(BASELINE, prepare_cudnn), Candidate(FLASH, prepare_flash)]


def dense_int8_candidates(problem: Problem, exact: Tensor) -> list[Candidate]:
    """Dense attention in INT8: SageAttention's Triton kernel and ComfyUI's own."""
    return [
        Candidate("dense SageAttention", partial(_prepare_sage, problem, exact)),
        Candidate("dense comfy-kitchen INT8", partial(_prepare_kitchen, problem, exact)),
    ]


def sol_candidates(problem: Problem, exact: Tensor) -> list[Candidate]:
    """ComfyUI's "Model Sparse Attention" by share of kept blocks and by threshold."""
    options: dict[str, dict[str, float]] = {
        f"Sol-Attn top-k {ratio:g}": {"topk_ratio": ratio} for ratio in SOL_TOP_K
    }
    options |= {f"Sol-Attn tau {tau:g}": {"tau": tau} for tau in SOL_TAU}
    return [
        Candidate(label, partial(_prepare_sol, problem, exact, option))
        for label, option in options.items()
    ]


def against(exact: Tensor, limit: float) -> Callable[[Tensor], str]:
    """The check that an output is within `limit` of dense attention."""
    return lambda out: difference_reason(out, exact, limit, "dense attention")


def exact_reason(out: Tensor, problem: Problem, checked_heads: int, rows: int = 128) -> str:
    """What is wrong with a dense output, judged by its first, middle and last rows in fp32."""
    heads, length = slice(0, checked_heads), out.shape[-2]
    for start in sorted({0, length // 2, max(0, length - rows)}):
        part = slice(start, start + rows)
        expected = exact_rows(problem.q[:, heads, part], problem.k[:, heads], problem.v[:, heads])
        what = f"fp32 attention in the rows from {start}"
        reason = difference_reason(out[:, heads, part], expected, LIMIT_16_BIT, what)
        if reason:
            return reason
    return ""


def require(module: str, package: str) -> ModuleType:
    """Import an optional library.

    Raises:
        Unavailable: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Unavailable(f"not installed: pip install {package} ({error})") from error


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
    if not _offers(kitchen, "int8_attention", problem.q.device):
        raise Unavailable("this comfy-kitchen has no INT8 attention for this GPU")
    return Prepared(lambda: kitchen.int8_attention(*problem.qkv), against(exact, LIMIT_INT8))


def _prepare_sol(problem: Problem, exact: Tensor, option: dict[str, float]) -> Prepared:
    call = sol_call(problem.qkv, option)
    density = sol_density(problem.q, problem.k, **option)
    return Prepared(call, against(exact, LIMIT_SOL), density)


def sol_call(qkv: tuple[Tensor, Tensor, Tensor], option: dict[str, float]) -> Callable[[], Tensor]:
    """ComfyUI's Sol-Attn on q, k, v `[B, H, N, D]`, with `tau` or `topk_ratio`; same shape out.

    Raises:
        Unavailable: comfy-kitchen is missing, too old, or has no kernel for this device.
    """
    kitchen = require("comfy_kitchen", "comfy-kitchen")
    if not hasattr(kitchen, "sol_attn"):
        raise Unavailable("needs a newer one: pip install --upgrade comfy-kitchen")
    if not _offers(kitchen, "sol_attn", qkv[0].device):
        raise Unavailable("this comfy-kitchen has no Sol-Attn for this GPU")
    q, k, v = (x.transpose(1, 2) for x in qkv)  # [B, N, H, D], any strides

    def call() -> Tensor:
        return kitchen.sol_attn(q, k, v, **option).transpose(1, 2)

    return call


def _offers(kitchen: Any, function: str, device: torch.device) -> bool:
    available = getattr(kitchen, f"{function}_is_available", None)
    return hasattr(kitchen, function) and (available is None or bool(available(device)))


def sol_density(q: Tensor, k: Tensor, tau: float = 1.0, topk_ratio: float = 0.0) -> float:
    """Share of the block pairs that Sol-Attn attends exactly, from its published rule.

    The kernel does not report it and ranks int8 scores, so this is close, not exact.

    Args:
        q, k: `[B, H, N, D]`.
        tau, topk_ratio: see `sol_kept`.
    """
    total = 0.0
    batch, heads = q.shape[:2]
    for b in range(batch):
        for h in range(heads):
            total += float(sol_kept(q[b, h], k[b, h], tau, topk_ratio).float().mean())
    return total / (batch * heads)


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
    centre, means = _block_means(q), _block_means(k)
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


def _block_means(x: Tensor) -> Tensor:
    """Means over blocks of `SOL_BLOCK` tokens, the last one may be ragged; fp32."""
    full = len(x) // SOL_BLOCK * SOL_BLOCK
    means = x[:full].float().unflatten(0, (-1, SOL_BLOCK)).mean(1)
    if full == len(x):
        return means
    return torch.cat([means, x[full:].float().mean(0, keepdim=True)])
