"""Block statistics of the video tokens: the pooled estimate that everything else rests on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class PooledBlocks:
    """Statistics of the blocks of one tensor over their *true* tokens, in fp32.

    Attributes:
        mean: `[..., NB, D]`.
        mean_abs_dev: `[..., NB, D]`, elementwise mean of |x - mean|.
        lengths: `[NB]` fp32, true tokens per block: the block length, less in a ragged last block.
    """

    mean: Tensor
    mean_abs_dev: Tensor
    lengths: Tensor


def split_blocks(x: Tensor, block: int) -> Tensor:
    """Cut tokens into blocks: `[..., n, D]` to `[..., NB, block, D]`, zeros behind the last token.

    The zeros are never part of a mean or a softmax: see `block_lengths`.
    """
    padding = -x.shape[-2] % block
    if padding:
        x = torch.nn.functional.pad(x, (0, 0, 0, padding))
    return rearrange(x, "... (block token) d -> ... block token d", token=block)


def join_blocks(blocks: Tensor, num_tokens: int) -> Tensor:
    """Undo `split_blocks`: `[..., NB, block, D]` to the `num_tokens` rows that were cut."""
    return rearrange(blocks, "... block token d -> ... (block token) d")[..., :num_tokens, :]


def block_lengths(num_tokens: int, block: int, device: torch.device | None = None) -> Tensor:
    """True tokens per block, `[NB]` fp32: `block` everywhere, less in a ragged last block."""
    starts = torch.arange(0, num_tokens, block, device=device, dtype=torch.float32)
    return (num_tokens - starts).clamp(max=block)


def pool_blocks(x: Tensor, block: int) -> PooledBlocks:
    """Mean and mean absolute deviation per block of `x [..., n, D]` (any float dtype)."""
    blocks = split_blocks(x.float(), block)
    lengths = block_lengths(x.shape[-2], block, x.device)
    per_token = rearrange(lengths, "block -> block 1 1")
    inside = torch.arange(block, device=x.device)[:, None] < per_token
    mean = blocks.sum(-2, keepdim=True) / per_token
    deviation = torch.where(inside, blocks - mean, 0.0)
    return PooledBlocks(mean.squeeze(-2), deviation.abs().sum(-2) / lengths[:, None], lengths)
