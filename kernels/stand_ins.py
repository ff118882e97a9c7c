"""What stands for the blocks that `precise` leaves out, where that is more than their means."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.key_groups import ROUNDS, SAMPLED_QUERIES
from .group import group_kernel
from .stages import Chunk, Sizes, Tail
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
) -> Tail:
    """Groups of keys in place of block means; `shift` is what int8 keys have lost."""
    video = sizes.num_context_q * config.q_block
    number = torch.arange(SAMPLED_QUERIES, device=q.device)
    place = (2 * number + 1) * sizes.video_length // (2 * SAMPLED_QUERIES)
    queries = q[:, :, tables.q_source[video + place].long()].flatten(0, 1)
    queries = torch.nn.functional.pad(queries, (0, sizes.padded_dim - sizes.head_dim))
    keys = k.new_zeros((chunk.count, sizes.tail_length, sizes.padded_dim))
    values = torch.zeros_like(keys)
    size = k.new_full(keys.shape[:2], float("-inf"), dtype=torch.float32)
    variance = torch.zeros_like(size)
    group_kernel[(chunk.count, sizes.num_k)](
        k, v, tables.kv_source, queries.contiguous(), shift, keys, values, size, variance,
        chunk.first, chunk.num_heads, sizes.tail_length, *k.stride(), *v.stride(),
        sizes.head_dim**-0.5, D=sizes.head_dim, DP=sizes.padded_dim, BLOCK=config.kv_block,
        GROUPS=config.tail_keys, R=SAMPLED_QUERIES, ROUNDS=ROUNDS, SHIFTED=shift is not None,
        PRECISION="ieee" if k.dtype == torch.float32 else "tf32",
        num_warps=config.kv_block // 16,
    )  # fmt: skip
    return Tail(keys, values, size, variance)
