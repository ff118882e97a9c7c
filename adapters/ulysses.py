"""Ulysses: several GPUs share a sequence, and the heads of its attention.

Outside of attention each process holds some tokens and all heads. Before attention an all-to-all
gives it all tokens and some heads, behind it another one goes back. Every head is attended on its
own, so sparse attention between the two is that of one GPU, with fewer heads:

    exchange = HeadExchange(layout.length, heads, group)
    q, k, v = (exchange.to_heads(x) for x in (q, k, v))        # all tokens, some heads
    out = exchange.to_tokens(attend_share(q, k, v, layout, config))

A host that makes the all-to-alls by itself calls `attend_share` in place of its attention.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..rspa_core import ConfigError, SparseConfig, TokenLayout, rectified_attention


def shares(total: int, parts: int) -> list[int]:
    """`total` in as many parts, the first ones larger by one where it does not divide."""
    return [total // parts + (part < total % parts) for part in range(parts)]


class HeadExchange:
    """The two all-to-alls, in processes of one group.

    Tokens and heads may be any numbers; as `torch.tensor_split` does, the first processes have
    one more. All processes have to call each method, in the same order.

    Args:
        tokens: of the whole sequence.
        heads: of the model.
        group: processes that share them, None for all.

    Attributes:
        tokens: of each process outside of attention.
        heads: of each process inside.
        length: of the whole sequence.
        rank: of this process.

    Raises:
        ConfigError: there are fewer tokens or heads than processes.
    """

    def __init__(self, tokens: int, heads: int, group: Any = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.length = tokens
        number = dist.get_world_size(group)
        for name, value in (("tokens", tokens), ("heads", heads)):
            if value < number:
                raise ConfigError(name, value, f"one for each of {number} processes, or more")
        self.tokens = shares(tokens, number)
        self.heads = shares(heads, number)

    def to_heads(self, x: Tensor) -> Tensor:
        """`[B, H, n, D]`, this process's tokens, to `[B, h, N, D]`, its heads of all tokens."""
        batch, _, tokens, channels = x.shape
        sizes = [tokens * batch * heads * channels for heads in self.heads]
        sent = x.new_empty(sum(sizes))
        # Tokens first: what comes from the others then is one behind the other.
        parts = x.permute(2, 0, 1, 3).split(self.heads, dim=2)
        for place, part in zip(sent.split(sizes), parts, strict=True):
            place.view(part.shape).copy_(part)
        heads = self.heads[self.rank]
        received = [each * batch * heads * channels for each in self.tokens]
        out = self._exchange(sent, sizes, received)
        return out.view(self.length, batch, heads, channels).permute(1, 2, 0, 3)

    def to_tokens(self, x: Tensor) -> Tensor:
        """`[B, h, N, D]`, this process's heads, to `[B, H, n, D]`, its tokens of all heads."""
        batch, heads, _, channels = x.shape
        sizes = [each * batch * heads * channels for each in self.tokens]
        tokens = self.tokens[self.rank]
        received = [tokens * batch * each * channels for each in self.heads]
        # As attention leaves it, `[B, N, h, D]` in memory, a batch of one is not copied.
        parts = self._exchange(x.permute(2, 0, 1, 3).flatten(), sizes, received).split(received)
        shaped = [
            part.view(tokens, batch, each, channels)
            for part, each in zip(parts, self.heads, strict=True)
        ]
        return torch.cat(shaped, dim=2).permute(1, 2, 0, 3)

    def _exchange(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """What the others send, one behind the other, for what of `x` goes to each; both flat."""
        out = x.new_empty(sum(received))
        dist.all_to_all_single(out, x, received, sent, self.group)
        return out


def attend_share(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    *,
    backend: str = "auto",
) -> Tensor:
    """Sparse attention on a share of the heads, for hosts with all-to-alls of their own.

    Args:
        q, k, v: `[B, h, N, D]` of all tokens of the sequence, as for `rectified_attention`. Behind
            the `layout.length` tokens there may be padding, which no token attends to.
        layout: of the whole sequence, without padding.
        config, backend: as for `rectified_attention`.

    Returns:
        `[B, h, N, D]`, the padding zero.

    Raises:
        ConfigError: an argument is out of range; there are fewer tokens than the layout has, as in
            ring attention, where no process ever has all keys.
        BackendUnavailable: the backend cannot run here.
    """
    length = q.shape[-2]
    if length < layout.length:
        raise ConfigError(
            "tokens of q",
            length,
            f"all {layout.length} of the layout: sparse attention chooses among all keys, and "
            "ring attention never has them in one place (Ulysses has)",
        )
    q, k, v = (x[..., : layout.length, :] for x in (q, k, v))
    out = rectified_attention(q, k, v, layout, config, backend=backend)
    if length == layout.length:
        return out
    return torch.nn.functional.pad(out, (0, 0, 0, length - layout.length))
