"""The arguments of ComfyUI's attention functions, and q, k, v in the form the core wants them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .run_record import Block

MASKED = "attention mask"

# Arguments of ComfyUI's attention functions that leave the mathematics alone.
HARMLESS = frozenset({"transformer_options", "_inside_attn_wrapper"})


@dataclass(frozen=True)
class CallArguments:
    """What follows q, k, v in a call of ComfyUI's attention functions."""

    heads: int
    mask: Tensor | None
    skip_reshape: bool
    skip_output_reshape: bool
    attn_precision: torch.dtype | None
    extra: Mapping[str, Any]


def read_arguments(
    heads: int,
    mask: Tensor | None = None,
    attn_precision: torch.dtype | None = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **extra: Any,
) -> CallArguments:
    """Bind the arguments after q, k, v by the order all of ComfyUI's attention functions share."""
    return CallArguments(heads, mask, skip_reshape, skip_output_reshape, attn_precision, extra)


def block_of(kwargs: Mapping[str, Any]) -> Block:
    options = kwargs.get("transformer_options") or {}
    return options.get("block_type", ""), options.get("block_index")


def total_blocks(call: CallArguments) -> int | None:
    return (call.extra.get("transformer_options") or {}).get("total_blocks")


def unsupported_argument(q: Tensor, call: CallArguments) -> str | None:
    """The argument of a call that asks for mathematics we do not do, as a reason, or None."""
    if call.mask is not None:
        return MASKED
    if call.attn_precision is not None:
        return f"attn_precision {call.attn_precision}"
    for name, value in call.extra.items():
        if not _is_neutral(name, value, head_dim_of(q, call)):
            return f"attention argument {name}"
    return None


def _is_neutral(name: str, value: Any, head_dim: int) -> bool:
    """Whether an optional argument leaves softmax(q k^T / sqrt(D)) v as it is."""
    if value is None or name in HARMLESS:
        return True
    if name == "scale":
        return math.isclose(value, head_dim**-0.5, rel_tol=1e-6)
    if name == "low_precision_attention":  # the one flag whose False asks for something
        return value is not False
    return value is False


def head_dim_of(q: Tensor, call: CallArguments) -> int:
    return q.shape[-1] if call.skip_reshape else q.shape[-1] // call.heads


def to_heads(tensor: Tensor, call: CallArguments) -> Tensor:
    """View `[B, N, H*D]` (or `[B, H, N, D]` as it is) as `[B, H, N, D]`; never a copy."""
    return tensor if call.skip_reshape else split_heads(tensor, call.heads)


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """View `[B, N, H*D]` as `[B, H, N, D]`."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def from_heads(out: Tensor, call: CallArguments) -> Tensor:
    """`[B, H, N, D]` to what the caller wants: that, or `[B, N, H*D]`."""
    if call.skip_output_reshape:
        return out
    return out.transpose(1, 2).flatten(2)
