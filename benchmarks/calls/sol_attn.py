"""ComfyUI's own sparse attention, Sol-Attn of comfy-kitchen: its call, and its published rule."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...rspa_core.pooling import pool_blocks
from .comparison import Unavailable

SOL_BLOCK = 64
SOL_TAU = (1.0, 1.3)


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
