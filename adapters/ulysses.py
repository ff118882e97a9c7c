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
        rank: of this process.

    Raises:
        ConfigError: there are fewer tokens or heads than processes.
    """

    def __init__(self, tokens: int, heads: int, group: Any = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        number = dist.get_world_size(group)
        for name, value in (("tokens", tokens), ("heads", heads)):
            if value < number:
                raise ConfigError(name, value, f"one for each of {number} processes, or more")
        self.tokens = shares(tokens, number)
        self.heads = shares(heads, number)

    def to_heads(self, x: Tensor) -> Tensor:
        """`[B, H, n, D]`, this process's tokens, to `[B, h, N, D]`, its heads of all tokens."""
        batch, _, tokens, channels = x.shape
        heads = self.heads[self.rank]
        sent = [each * batch * tokens * channels for each in self.heads]
        received = [heads * batch * each * channels for each in self.tokens]
        parts = self._exchange(x.transpose(0, 1), sent, received).split(received)
        shaped = [
            part.view(heads, batch, each, channels)
            for part, each in zip(parts, self.tokens, strict=True)
        ]
        return torch.cat(shaped, dim=2).transpose(0, 1)

    def to_tokens(self, x: Tensor) -> Tensor:
        """`[B, h, N, D]`, this process's heads, to `[B, H, n, D]`, its tokens of all heads."""
        batch, heads, _, channels = x.shape
        tokens = self.tokens[self.rank]
        sent = [heads * batch * each * channels for each in self.tokens]
        received = [each * batch * tokens * channels for each in self.heads]
        parts = [part.flatten() for part in x.transpose(0, 1).split(self.tokens, dim=2)]
        out = self._exchange(torch.cat(parts), sent, received)
        return out.view(sum(self.heads), batch, tokens, channels).transpose(0, 1)

    def _exchange(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """What the others send, one behind the other, for what of `x` goes to each; flat."""
        out = x.new_empty(sum(received))
        dist.all_to_all_single(out, x.flatten(), received, sent, self.group)
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
