"""What stands for the blocks that `precise` leaves out, where that is more than their means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.key_groups import LARGEST_GAIN, ROUNDS, SAMPLED_QUERIES
from .group import group_mean_kernel, label_kernel
from .stages import Chunk, Sizes, Statistic, Tail
from .tables import IndexTables


def group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: SparseConfig,
    sizes: Sizes,
    tables: IndexTables,
    chunk: Chunk,
    shift: Tensor | None,
) -> tuple[Tail, Statistic]:
    """Groups of keys in place of block means, and their means `[HC, tail_length, DP]` with all
    digits; `shift` is what int8 keys have lost.
    """
    video = sizes.num_context_q * config.q_block
    number = torch.arange(SAMPLED_QUERIES, device=q.device)
    place = (2 * number + 1) * sizes.video_length // (2 * SAMPLED_QUERIES)
    queries = q[:, :, tables.q_source[video + place].long()].flatten(0, 1)
    queries = torch.nn.functional.pad(queries, (0, sizes.padded_dim - sizes.head_dim))
    shape = (chunk.count, sizes.tail_length)
    size = k.new_full(shape, float("-inf"), dtype=torch.float32)
    variance = torch.zeros_like(size)
    labels = k.new_empty((chunk.count, sizes.num_k * config.kv_block), dtype=torch.int8)
    constants: dict[str, Any] = {
        "D": sizes.head_dim, "DP": sizes.padded_dim, "BLOCK": config.kv_block,
        "GROUPS": config.tail_keys,
        "PRECISION": "ieee" if k.dtype == torch.float32 else "tf32",
    }  # fmt: skip
    grid = (chunk.count, sizes.num_k)
    scale = sizes.head_dim**-0.5
    heads = (chunk.first, chunk.num_heads, sizes.tail_length)
    label_kernel[grid](
        k, tables.kv_source, queries.contiguous(), labels, size, variance, *heads, *k.stride(),
        scale, LARGEST_GAIN, R=SAMPLED_QUERIES, ROUNDS=ROUNDS,
        num_warps=config.kv_block // 32, **constants,
    )  # fmt: skip

    values = k.new_zeros((*shape, sizes.padded_dim))
    mean = Statistic(
        torch.zeros_like(values), None if k.dtype == torch.float32 else torch.zeros_like(values)
    )
    keys = mean.high if shift is None else torch.zeros_like(values)
    group_mean_kernel[grid](
        k, tables.kv_source, labels, shift, mean.high, mean.low, keys, variance,
        *heads, *k.stride(), scale, VARIANCE=True, SHIFTED=shift is not None,
        MEAN_LOW=mean.low is not None, num_warps=config.kv_block // 16, **constants,
    )  # fmt: skip
    group_mean_kernel[grid](
        v, tables.kv_source, labels, None, values, None, None, None, *heads, *v.stride(),
        scale, VARIANCE=False, SHIFTED=False, MEAN_LOW=False,
        num_warps=config.kv_block // 16, **constants,
    )  # fmt: skip
    return Tail(keys, values, size, variance), mean
