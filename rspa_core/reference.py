"""The specification: Rectified SpaAttn in plain torch and fp32.

Every kernel is checked against this file. It is written to be read; it still gathers only the
critical blocks, so that its cost follows the density and its memory stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from torch import Tensor

from .config import SparseConfig
from .key_groups import KeyGroups, group_means, sampled_places
from .layout import TokenLayout
from .order import join_sequence, split_sequence
from .pooling import block_lengths, join_blocks, pool_blocks, split_blocks
from .quantisation import TAIL_SCALE_GROUPS, rotated, round_keys, round_queries, smoothing_shift
from .ranking import block_probs
from .rectification import (
    SMALLEST_SHARE,
    capped,
    gain_accepted,
    group_spread_term,
    paper_rectification,
    squared_lengths,
)
from .selection import forced_blocks, select_blocks
from .tail_weight import fitted_weight

_CHUNK_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Gathered keys of one step of the loop: bounds the memory, does not change the result. On a CPU
they stay in its cache, which halves the time; a GPU wants few large steps."""


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    chosen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rectified block-sparse attention, all arithmetic in fp32 (precision "int8": its rounding).

    Context queries attend everything exactly; context keys are attended exactly by every query.

    Args:
        q, k, v: `[B, H, N, D]`, any strides, fp16, bf16 or fp32; RoPE already applied.
        layout: where the video is among the N tokens.
        config: see `SparseConfig`.
        chosen: critical set to take in place of the ranking's, to compare implementations whose
            rounding decides a near tie otherwise: `[B, H, NQ, NK]` bool.

    Returns:
        The output `[B, H, N, D]` in the dtype of `q` (stored as `[B, N, H, D]`, so that heads
        merge without a copy) and the critical set `[B, H, NQ, NK]` bool.
    """
    out, critical, _ = _attend_all(q, k, v, layout, config, chosen, with_lse=False)
    return out, critical


def reference_attention_lse(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: SparseConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference_attention`, and of every row the logarithm of the sum of its weights.

    Returns:
        Output, critical set, and `[B, H, N]` fp32: ln Σ exp(logit) over the keys of the row, those
        of the tail included; of "paper" that of the critical keys less ln R, because these are the
        share R of all.
    """
    out, critical, lse = _attend_all(q, k, v, layout, config, None, with_lse=True)
    assert lse is not None
    return out, critical, lse


def _attend_all(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    chosen: Tensor | None,
    with_lse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    batch, heads, length, head_dim = q.shape
    out = q.new_empty((batch, length, heads, head_dim)).transpose(1, 2)
    lse = q.new_empty((batch, heads, length), dtype=torch.float32) if with_lse else None
    critical = torch.empty(
        (batch, heads, layout.num_blocks(config.q_block), layout.num_blocks(config.kv_block)),
        dtype=torch.bool,
        device=q.device,
    )
    for b in range(batch):
        for h in range(heads):
            head_q, head_k, head_v = q[b, h].float(), k[b, h].float(), v[b, h].float()
            taken = None if chosen is None else chosen[b, h]
            rows, mask, logs = _attend_head(head_q, head_k, head_v, layout, config, taken, with_lse)
            out[b, h] = rows
            critical[b, h] = mask
            if lse is not None:
                assert logs is not None
                lse[b, h] = logs
    return out, critical, lse


def _attend_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    chosen: Tensor | None,
    with_lse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One head: `q, k, v [N, D]` fp32 to the output `[N, D]`, the critical set `[NQ, NK]` and, if
    asked for, the logarithms `[N]`.
    """
    video_q, context_q = split_sequence(q, layout, config.order)
    video_k, context_k = split_sequence(k, layout, config.order)
    video_v, context_v = split_sequence(v, layout, config.order)
    probs, groups = block_probs(video_q, video_k, context_k, config)
    critical = chosen
    if critical is None:
        critical = select_blocks(probs, forced_blocks(layout, config, q.device), config)

    q_blocks = split_blocks(video_q, config.q_block)
    places = sampled_places(len(video_q)).to(q.device)
    operands = _Operands(q_blocks, video_q[places], context_q, video_k, context_k)
    shift = None
    if config.precision == "int8":
        shift = smoothing_shift(k)
        operands = operands.rounded(shift, config.kv_block)
    all_k = torch.cat([operands.keys, operands.context_keys])
    all_v = torch.cat([video_v, context_v])
    tail = None
    if groups is not None:
        lengths = block_lengths(len(video_k), config.kv_block, k.device)
        keys = groups.keys
        if shift is not None:
            keys = _rounded_keys(keys, shift, TAIL_SCALE_GROUPS)
        tail = _Tail(
            squared_lengths=squared_lengths(video_q, config.q_block),
            groups=groups,
            keys=keys,
            values=group_means(split_blocks(video_v, config.kv_block), groups, lengths),
        )
        kept = critical[places // config.q_block]
        factor = _tail_weight(
            operands.sampled, kept, all_k, all_v, tail.part(places // config.q_block)
        )
        tail = replace(tail, groups=groups.weighted(factor))
    attend_critical = _CriticalAttention(
        operands.keys, video_v, operands.context_keys, context_v, config, with_lse
    )
    video_out, video_lse = attend_critical(operands.q_blocks, critical, tail)
    if config.rectification == "paper":
        pooled_q = pool_blocks(video_q, config.q_block)
        pooled_k = pool_blocks(video_k, config.kv_block)
        pooled_v = pool_blocks(video_v, config.kv_block)
        scale, compensation = paper_rectification(
            probs, critical, gain_accepted(pooled_q, pooled_k), pooled_v.mean
        )
        if video_lse is not None:
            video_lse = video_lse - scale.clamp(min=SMALLEST_SHARE).log()[:, None]
        scale, compensation = scale[:, None, None], rearrange(compensation, "block d -> block 1 d")
        video_out = scale * video_out + compensation

    context_out, context_lse = context_q, context_q[:, 0]
    if layout.context_length:
        context = operands.context_q[None], all_k[None], all_v[None]
        if with_lse:
            context_out, context_lse = (x[0] for x in attend_with_lse(*context))
        else:
            context_out = attend(*context)[0]
    video_out = join_blocks(video_out, layout.video_length)
    out = join_sequence(video_out, context_out, layout, config.order)
    if video_lse is None:
        return out, critical, None
    video_lse = video_lse.flatten()[: layout.video_length, None]
    lse = join_sequence(video_lse, context_lse[:, None], layout, config.order)[:, 0]
    if shift is not None:  # which the keys have lost: all logits of a row are less by as much
        lse = lse + q.shape[-1] ** -0.5 * (q @ shift)
    return out, critical, lse


@dataclass(frozen=True)
class _Operands:
    """Queries and keys of the products of one head, fp32; of "int8" rounded, with D' channels.

    Attributes:
        q_blocks: `[NQ, b_q, D]`.
        sampled: the sampled queries `[R, D]`, never rounded.
        context_q, keys, context_keys: `[..., D]`.
    """

    q_blocks: Tensor
    sampled: Tensor
    context_q: Tensor
    keys: Tensor
    context_keys: Tensor

    def rounded(self, shift: Tensor, kv_block: int) -> _Operands:
        """The same in int8 steps, see quantisation.py."""
        return _Operands(
            q_blocks=round_queries(self.q_blocks),
            sampled=rotated(self.sampled),
            context_q=round_queries(self.context_q),
            keys=_rounded_keys(self.keys, shift, kv_block),
            context_keys=_rounded_keys(self.context_keys, shift, kv_block),
        )


def _rounded_keys(keys: Tensor, shift: Tensor, length: int) -> Tensor:
    """`round_keys`, so that products scaled by D'^-1/2 are those scaled by D^-1/2."""
    rounded = round_keys(keys, shift, length)
    return rounded * (rounded.shape[-1] / keys.shape[-1]) ** 0.5


def _tail_weight(rows: Tensor, kept: Tensor, k: Tensor, v: Tensor, tail: _Tail) -> Tensor:
    """The factor of tail_weight.py from the sampled queries `rows [R, D]`.

    Args:
        rows: not rounded.
        kept: blocks that their q-blocks attend exactly, `[R, NK]` bool.
        k, v: of the video, in token order, then of the context, `[N, D]`.
        tail: what stands for the other blocks, with the squared lengths `[R]` of the q-blocks.
    """
    num_video, kv_block = int(tail.groups.counts.sum()), tail.groups.labels.shape[1]
    scale = rows.shape[-1] ** -0.5
    scores = scale * (rows @ k.mT)
    left_out = torch.zeros_like(scores, dtype=torch.bool)
    in_kept = repeat(kept, "row block -> row (block key)", key=kv_block)
    left_out[:, :num_video] = ~in_kept[:, :num_video]
    held = scores.masked_fill(left_out, float("-inf"))
    logits = scale * (rows @ tail.keys.mT) + tail.bias(kept)
    # Without what is left out, which may outweigh both so far that nothing of them would remain.
    highest = torch.cat([held, logits], -1).max(-1, keepdim=True).values
    held, logits = (held - highest).exp(), (logits - highest).exp()
    return fitted_weight(
        held @ v, held.sum(-1), logits @ tail.values, logits.sum(-1), scores.softmax(-1) @ v
    )


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(c q k^T + bias) v in fp32: q `[G, R, D]`, k and v `[G, N, D]`, bias `[G, R, N]`."""
    # On a GPU the fused kernels may round fp32 products to tf32.
    run = fused_softmax_attention if q.device.type == "cpu" else softmax_attention
    return run(q, k, v, bias)


def attend_with_lse(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`attend`, and the logarithm of the sum of each row's weights: `[G, R, D]` and `[G, R]`."""
    scores = q.shape[-1] ** -0.5 * (q @ k.mT)
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The formula of `attend` as it stands."""
    scores = q.shape[-1] ** -0.5 * (q @ k.mT)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def fused_softmax_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The same through torch's SDPA, which never holds all the scores."""
    mask = None if bias is None else bias[:, None]
    q, k, v = q[:, None], k[:, None], v[:, None]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0]


@dataclass(frozen=True)
class _Tail:
    """Weighted keys and values in place of the blocks left out, see rectification.py; all fp32.

    Attributes:
        squared_lengths: mean |q_r|² of every q-block, `[NQ]`.
        groups: of the keys of every block.
        keys, values: means of the groups, `[NK * G, D]`; of "int8" rounded keys.
    """

    squared_lengths: Tensor
    groups: KeyGroups
    keys: Tensor
    values: Tensor

    def part(self, chosen: slice | Tensor) -> _Tail:
        """The same for some q-blocks."""
        return replace(self, squared_lengths=self.squared_lengths[chosen])

    def bias(self, critical: Tensor) -> Tensor:
        """What makes c q·k̄ the logit, `[NQ, NK * G]`; -inf for groups of critical blocks."""
        spread = capped(group_spread_term(self.squared_lengths, self.groups.spread))
        bias = self.groups.counts.log() + spread
        return bias.masked_fill(self.groups.of_blocks(critical), float("-inf"))


class _CriticalAttention:
    """Attention of q-blocks on critical kv-blocks, all context tokens and, if given, a tail."""

    def __init__(
        self,
        k: Tensor,
        v: Tensor,
        context_k: Tensor,
        context_v: Tensor,
        config: SparseConfig,
        with_lse: bool,
    ) -> None:
        self.k_blocks = split_blocks(k, config.kv_block)
        self.v_blocks = split_blocks(v, config.kv_block)
        self.lengths = block_lengths(k.shape[0], config.kv_block, k.device)
        self.context_k = context_k
        self.context_v = context_v
        self.with_lse = with_lse

    def __call__(
        self, q_blocks: Tensor, critical: Tensor, tail: _Tail | None
    ) -> tuple[Tensor, Tensor | None]:
        """`q_blocks [NQ, b_q, D]`, `critical [NQ, NK]` to `[NQ, b_q, D]` and, with `with_lse`, the
        logarithms `[NQ, b_q]`, in bounded chunks.
        """
        counts = critical.sum(-1)
        kv_block, head_dim = self.k_blocks.shape[1:]
        per_q_block = int(counts.max()) * kv_block * head_dim * 4
        step = max(1, _CHUNK_BYTES.get(critical.device.type, 1 << 28) // per_q_block)
        chunks = [
            self._chunk(q_blocks[part], critical[part], tail and tail.part(part))
            for part in (slice(i, i + step) for i in range(0, len(q_blocks), step))
        ]
        out = torch.cat([rows for rows, _ in chunks])
        return out, torch.cat([lse for _, lse in chunks]) if self.with_lse else None

    def _chunk(self, q: Tensor, critical: Tensor, tail: _Tail | None) -> tuple[Tensor, Tensor]:
        counts = critical.sum(-1)
        # Critical block numbers first, in ascending order; rows with fewer are filled up.
        kv_indices = critical.float().argsort(dim=-1, descending=True, stable=True)
        kv_indices = kv_indices[:, : int(counts.max())]
        filled = torch.arange(kv_indices.shape[1], device=q.device) < counts[:, None]
        token = torch.arange(self.k_blocks.shape[1], device=q.device)
        valid = filled[..., None] & (token < self.lengths[kv_indices][..., None])

        # One softmax over critical keys, context keys and, with a tail, one key per other block.
        as_keys = "q_block kv_block key d -> q_block (kv_block key) d"
        keys = [rearrange(self.k_blocks[kv_indices], as_keys)]
        values = [rearrange(self.v_blocks[kv_indices], as_keys)]
        no_bias = q.new_zeros(len(q), 1, 1)
        valid = rearrange(valid, "q_block kv_block key -> q_block 1 (kv_block key)")
        bias = [torch.where(valid, no_bias, float("-inf"))]
        if len(self.context_k):
            keys.append(self._each(self.context_k, q))
            values.append(self._each(self.context_v, q))
            bias.append(no_bias.expand(-1, -1, len(self.context_k)))
        if tail is not None:
            keys.append(self._each(tail.keys, q))
            values.append(self._each(tail.values, q))
            bias.append(tail.bias(critical)[:, None])
        operands = q, self._joined(keys, 1), self._joined(values, 1), self._joined(bias, 2)
        return attend_with_lse(*operands) if self.with_lse else (attend(*operands), q[..., 0])

    @staticmethod
    def _joined(parts: list[Tensor], dim: int) -> Tensor:
        return torch.cat(parts, dim) if len(parts) > 1 else parts[0]

    @staticmethod
    def _each(x: Tensor, q: Tensor) -> Tensor:
        """The same keys or values for every q-block: `[N, D]` to `[NQ, N, D]`, a view."""
        return x.expand(len(q), -1, -1)


def relative_l2(out: Tensor, ref: Tensor) -> float:
    """How far an output is from another one: ‖out - ref‖₂ / ‖ref‖₂ over all elements, in fp32."""
    return float((out.float() - ref.float()).norm() / ref.float().norm())
