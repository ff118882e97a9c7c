"""Small index tables on the GPU: where every token of a layout goes, and what is always kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..rspa_core.key_groups import sampled_places
from ..rspa_core.layout import TokenLayout
from ..rspa_core.order import block_neighbours, token_order


@dataclass(frozen=True)
class IndexTables:
    """Index tables of one layout and blocking, on one device.

    Attributes:
        q_source: `[(NCQ + NQ) * q_block]` int32, token of each packed query row, context rows
            first; -1 where there is none.
        kv_source: `[(NK + NCK) * kv_block]` int32, the same for keys, context keys last.
        sampled: `[R]` int64, token of each sampled query (`sampled_places`).
        all_blocks: int32, every kv-block that is not ragged: what a context query attends.
        forced: `[NQ, NK]` int8, blocks that are always critical.
        max_forced: most forced blocks of a q-block.
    """

    q_source: Tensor
    kv_source: Tensor
    sampled: Tensor
    all_blocks: Tensor
    forced: Tensor
    max_forced: int

    def to(self, device: torch.device) -> IndexTables:
        return IndexTables(
            self.q_source.to(device),
            self.kv_source.to(device),
            self.sampled.to(device),
            self.all_blocks.to(device),
            self.forced.to(device),
            self.max_forced,
        )


# One video render needs one or two layouts; a few more cover context windows and area conds.
@lru_cache(maxsize=8)
def index_tables(
    layout: TokenLayout,
    order: str,
    q_block: int,
    kv_block: int,
    neighbours: bool,
    device: torch.device,
) -> IndexTables:
    """Tables for `layout`, cached; `index_tables.cache_clear()` frees them."""
    video = token_order(layout.grid, order) + layout.video_start
    context = torch.cat(
        [torch.arange(layout.video_start), torch.arange(layout.video_end, layout.length)]
    )
    num_q, num_k = layout.num_blocks(q_block), layout.num_blocks(kv_block)
    if neighbours:
        forced = block_neighbours(layout.grid, order, q_block, kv_block)
    else:
        own = torch.arange(num_k)[None, :] // (q_block // kv_block)
        forced = own == torch.arange(num_q)[:, None]
    full_video = torch.arange(layout.video_length // kv_block)
    full_context = num_k + torch.arange(layout.context_length // kv_block)
    tables = IndexTables(
        q_source=torch.cat([_padded(context, q_block), _padded(video, q_block)]),
        kv_source=torch.cat([_padded(video, kv_block), _padded(context, kv_block)]),
        sampled=video[sampled_places(len(video))],
        all_blocks=torch.cat([full_video, full_context]).int(),
        forced=forced.to(torch.int8),
        max_forced=int(forced.sum(-1).max()),
    )
    return tables.to(device)


def _padded(index: Tensor, block: int) -> Tensor:
    """`index` as int32, filled with -1 to a whole number of blocks."""
    return torch.nn.functional.pad(index.int(), (0, -len(index) % block), value=-1)
