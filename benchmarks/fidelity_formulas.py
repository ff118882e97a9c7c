"""Variants of `precise` that no kernel has, straight from their formulas, for some query rows.

A row attends the keys of its critical blocks exactly, and every left-out block takes part in the
same softmax through its stand-ins s, each with a logit, a mean key k̄_s, a mean value v̄_s and a
number of keys n_s:

    t_rs = c q_r·k̄_s + ln n_s + min(variance term, cap)      score and variance as `Tail` says
    o_r  = (Σ_{kept} e^{c q_r·k} v + Σ_s e^{t_rs} v̄_s) / (Σ_{kept} e^{c q_r·k} + Σ_s e^{t_rs})

All scores of a row are in memory at a time: simple, and fast enough for a sample of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..rspa_core import SparseConfig, TokenLayout, token_order
from ..rspa_core.key_groups import KeyGroups, group_means, head_groups, sampled_places
from ..rspa_core.pooling import PooledBlocks, pool_blocks, split_blocks
from ..rspa_core.rectification import capped, variance_term
from ..rspa_core.selection import forced_blocks, group_probs, pooled_probs, select_blocks
from ..rspa_core.tail_weight import fitted_weight
from .fidelity_inputs import Inputs
from .fidelity_oracle import Oracle, heads_of, row_chunks
from .rivals import SOL_BLOCK, sol_kept

OUTLIER_SHARE = 256 / 75_600
MIN_OUTLIERS = 16


@dataclass(frozen=True)
class Tail:
    """How left-out blocks take part.

    Attributes:
        score: "row" (c q_r·k̄) or "pair" (c q̄_i·k̄, one value for all rows of a q-block).
        variance: "none", "row" (w_r S_ij, or |q_r|² ν_g with several groups, as `precise`), "pair"
            (S_ij) or "full" (the product of all channels).
        selection: "precise", "none" (first order), "groups" (as `precise` with several) or "sol"
            (that of Sol-Attn; needs raster order and 64x64).
        groups: stand-ins of a block: 1 for its mean, else means of groups of its keys.
        outliers: keys kept exact for every query, those farthest from their block's mean, as a
            share of all; they are left out of the means.
        split: 0, or how many parts in token order stand for each of the blocks that come next in
            the ranking, as many as are kept; one mean for the others.
        residual: λ, the share of what the critical blocks' stand-ins miss that is added to the
            tail: o_r += (1 - w_C) λ (O_C - Σ_s m_rs v̄_s), m_rs the true mass of the keys of s
            within the critical part, whose share of the row is w_C.
        weighted: the tail of a head counts for what its sampled queries say, as `precise` with
            several keys.
    """

    score: str = "row"
    variance: str = "row"
    selection: str = "precise"
    groups: int = 1
    outliers: float = 0.0
    split: int = 0
    residual: float = 0.0
    weighted: bool = False


FORMULAS: dict[str, Tail] = {
    "pooled mean": Tail(variance="none", selection="none"),
    "precise, tail per block pair": Tail("pair", "pair"),
    "precise, variance per block pair": Tail("row", "pair"),
    "precise, variance of all channels": Tail("row", "full"),
    "precise, outlier keys": Tail(outliers=OUTLIER_SHARE),
    "precise, two resolutions": Tail(split=4),
    "precise, residual .5": Tail(residual=0.5),
    "precise 4 keys, residual .5": Tail(selection="groups", groups=4, residual=0.5, weighted=True),
    "precise 4 keys, ranked by block means": Tail(groups=4, weighted=True),
    "precise 4 keys, tail not weighted": Tail(selection="groups", groups=4),
}
SOL_FORMULA = Tail(variance="none", selection="sol")
"""ComfyUI's Sol-Attn without its int8 rounding."""


@dataclass(frozen=True)
class StandIns:
    """What may stand for blocks.

    Attributes:
        keys, values: means, `[S, D]`.
        variance: of the keys by channel, `[S, D]`.
        counts: keys in the mean, `[S]`.
        block: kv-block that it belongs to, `[S]`.
        owner: stand-in of every key, `[n]`, among the first of these.
    """

    keys: Tensor
    values: Tensor
    variance: Tensor
    counts: Tensor
    block: Tensor
    owner: Tensor


@dataclass(frozen=True)
class RowResult:
    """Output `[H, R, D]` fp32; by head the kept share of block pairs and the recalled mass."""

    out: Tensor
    density: list[float]
    recall: list[float]


def formula_rows(inputs: Inputs, oracle: Oracle, config: SparseConfig, tail: Tail) -> RowResult:
    """Output of the chosen rows.

    Args:
        inputs: the heads.
        oracle: says which rows.
        config: blocks, order and sparsity; its rectification plays no part.
        tail: the variant.

    Raises:
        ValueError: `tail` and `config` do not fit together.
    """
    if tail.selection == "sol":
        if (config.q_block, config.kv_block, config.order) != (SOL_BLOCK, SOL_BLOCK, "raster"):
            raise ValueError("selection = 'sol' is not allowed: only with 64x64 in raster order")
    elif tail.selection not in ("precise", "none", "groups"):
        allowed = "precise, none, groups or sol"
        raise ValueError(f"selection = {tail.selection!r} is not allowed: {allowed}")
    elif tail.selection == "groups" and tail.groups == 1:
        raise ValueError("groups = 1 is not allowed with selection = 'groups': 2 or more")
    out, density, recall = [], [], []
    for q, k, v in heads_of(inputs):
        head = _Head(q, k, v, inputs.layout, config, tail)
        rows, share = head.attend(q[oracle.rows], oracle.row_blocks(config.order, config.q_block))
        out.append(rows)
        recall.append(share)
        density.append(float(head.critical.float().mean()))
    return RowResult(torch.stack(out), density, recall)


class _Head:
    """One head: its blocks, what is kept of them and what stands for the rest."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: TokenLayout,
        config: SparseConfig,
        tail: Tail,
    ) -> None:
        index = token_order(layout.grid, config.order).to(q.device)
        q, self.k, self.v = q[index], k[index], v[index]
        self.tail, self.config = tail, config
        self.outlier = _outliers(self.k, config.kv_block, tail.outliers)
        self.pooled_q = pool_blocks(q, config.q_block)
        self.pooled_k = _pool(self.k, config.kv_block, self.outlier)
        self.block = torch.arange(len(k), device=k.device) // config.kv_block
        self.groups: KeyGroups | None = None
        if tail.groups > 1:
            self.groups = head_groups(q, self.k, config.kv_block, tail.groups)
        self.critical, ranking = self._select(q, forced_blocks(layout, config, q.device))
        self.stand_ins = self._stand_ins()
        # A stand-in takes part where its block is left out: [NQ, S].
        self.used = ~self.critical[:, self.stand_ins.block]
        if tail.split:
            self._add_parts(ranking)
        if tail.weighted:
            counts = self._weight(q) * self.stand_ins.counts
            self.stand_ins = replace(self.stand_ins, counts=counts)

    def _select(self, q: Tensor, forced: Tensor) -> tuple[Tensor, Tensor]:
        """Critical set `[NQ, NK]`, and the same with twice the budget."""
        share = 1.0 - self.config.sparsity
        if self.tail.selection == "sol":
            kept = sol_kept(q, self.k, topk_ratio=share)
            return kept, kept
        if self.groups is not None and self.tail.selection == "groups":
            probs = group_probs(q, self.groups, q[:0], self.config.q_block)
        else:
            probs = pooled_probs(self.pooled_q, self.pooled_k, q[:0], self.tail.selection)
        wider = replace(self.config, sparsity=max(0.0, 1.0 - 2 * share))
        return select_blocks(probs, forced, self.config), select_blocks(probs, forced, wider)

    def _stand_ins(self) -> StandIns:
        """Means of whole blocks or of groups of their keys."""
        kv_block, groups, pooled = self.config.kv_block, self.groups, self.pooled_k
        blocks = torch.arange(len(pooled.mean), device=self.k.device)
        if groups is None:
            values = _pool(self.v, kv_block, self.outlier).mean
            return StandIns(
                pooled.mean, values, pooled.variance, pooled.lengths, blocks, self.block
            )
        number, head_dim = self.tail.groups, self.k.shape[-1]
        own = (blocks[:, None] * number + groups.labels).flatten()
        # The same in all channels: ½ c² Σ_d q_d² var_d is then |q|² ν.
        variance = 2.0 * head_dim * groups.spread[:, None].expand_as(groups.keys)
        return StandIns(
            groups.keys,
            group_means(split_blocks(self.v, kv_block), groups, pooled.lengths),
            variance,
            groups.counts,
            blocks.repeat_interleave(number),
            own[: len(self.k)],
        )

    def _add_parts(self, ranking: Tensor) -> None:
        """Parts in place of the mean for the blocks that come next in the ranking."""
        whole, part = self.stand_ins, self.config.kv_block // self.tail.split
        keys, values = _pool(self.k, part, self.outlier), _pool(self.v, part, self.outlier)
        parent = torch.arange(len(keys.mean), device=ranking.device) // self.tail.split
        self.stand_ins = StandIns(
            torch.cat([whole.keys, keys.mean]),
            torch.cat([whole.values, values.mean]),
            torch.cat([whole.variance, keys.variance]),
            torch.cat([whole.counts, keys.lengths]),
            torch.cat([whole.block, parent]),
            whole.owner,
        )
        split = ranking & ~self.critical
        self.used = torch.cat([self.used & ~split, split[:, parent]], -1)

    def _weight(self, q: Tensor) -> Tensor:
        """The factor of tail_weight.py, from the sampled ones of `q [n, D]` in token order."""
        places = sampled_places(len(q)).to(q.device)
        scores, kept, logits = self._scores(q[places], places // self.config.q_block)
        exact = scores.masked_fill(~kept, float("-inf"))
        # Of what takes part: a key that is left out may be so high that nothing else counts.
        highest = torch.maximum(exact.max(-1).values, logits.max(-1).values)[:, None]
        mass, tail = (exact - highest).exp(), (logits - highest).exp()
        return fitted_weight(
            mass @ self.v, mass.sum(-1), tail @ self.stand_ins.values, tail.sum(-1),
            scores.softmax(-1) @ self.v,
        )  # fmt: skip

    def attend(self, rows: Tensor, row_block: Tensor) -> tuple[Tensor, float]:
        """Output of `rows [R, D]`, which lie in q-blocks `row_block [R]`; and the mass recalled."""
        out, recall = [], 0.0
        first = 0
        for part in row_chunks(rows, len(self.k)):
            found, share = self._attend(part, row_block[first : first + len(part)])
            out.append(found)
            recall += float(share.sum())
            first += len(part)
        return torch.cat(out), recall / len(rows)

    def _attend(self, rows: Tensor, row_block: Tensor) -> tuple[Tensor, Tensor]:
        scores, kept, logits = self._scores(rows, row_block)
        exact = scores.masked_fill(~kept, float("-inf"))
        recall = (exact.logsumexp(-1) - scores.logsumexp(-1)).exp()
        probs = torch.cat([exact, logits], -1).softmax(-1)
        exact, pooled = probs[:, : len(self.k)], probs[:, len(self.k) :]
        out = exact @ self.v
        critical_part = out
        out = out + pooled @ self.stand_ins.values
        if self.tail.residual:
            share = exact.sum(-1, keepdim=True)
            mass = exact.new_zeros(len(rows), len(self.stand_ins.values))
            mass.index_add_(1, self.stand_ins.owner, exact)
            missed = (critical_part - mass @ self.stand_ins.values) / share
            out = out + (1.0 - share) * self.tail.residual * missed
        return out, recall

    def _scores(self, rows: Tensor, row_block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c q_r·k `[R, n]`, which of these are kept, and t_rs `[R, S]`, -inf where unused."""
        scores = rows.shape[-1] ** -0.5 * (rows @ self.k.mT)
        kept = self.critical[row_block][:, self.block] | self.outlier
        logits = self._logits(rows, row_block)
        return scores, kept, logits.masked_fill(~self.used[row_block], float("-inf"))

    def _logits(self, rows: Tensor, row_block: Tensor) -> Tensor:
        """t_rs, `[R, S]`."""
        scale = rows.shape[-1] ** -0.5
        queries = rows if self.tail.score == "row" else self.pooled_q.mean[row_block]
        return (
            scale * (queries @ self.stand_ins.keys.mT)
            + self.stand_ins.counts.log()
            + capped(self._spread(rows, row_block))
        )

    def _spread(self, rows: Tensor, row_block: Tensor) -> Tensor:
        """The variance term, `[R, S]`."""
        stand_ins, kind = self.stand_ins, self.tail.variance
        if kind == "none":
            return rows.new_zeros(())
        if kind == "full":
            return 0.5 / rows.shape[-1] * (rows.square() @ stand_ins.variance.mT)
        pooled = PooledBlocks(stand_ins.keys, stand_ins.keys, stand_ins.variance, stand_ins.counts)
        spread = variance_term(self.pooled_q, pooled)[row_block]
        if kind == "pair":
            return spread
        mean_length = self.pooled_q.mean_square.sum(-1)[row_block]
        return spread * (rows.square().sum(-1) / mean_length)[:, None]


def _outliers(k: Tensor, block: int, share: float) -> Tensor:
    """The keys `[n]` bool farthest from their block's mean."""
    chosen = torch.zeros(len(k), dtype=torch.bool, device=k.device)
    if share:
        mean = pool_blocks(k, block).mean.repeat_interleave(block, 0)[: len(k)]
        count = max(MIN_OUTLIERS, round(share * len(k)))
        chosen[(k - mean).square().sum(-1).topk(min(count, len(k))).indices] = True
    return chosen


def _pool(x: Tensor, block: int, without: Tensor) -> PooledBlocks:
    """Statistics of blocks less the tokens `without`; a block that has none left counts 0."""
    if not bool(without.any()):
        return pool_blocks(x, block)
    inside = split_blocks((~without).float()[:, None], block)
    blocks = split_blocks(x, block)
    lengths = inside.sum((-1, -2))
    per_token = lengths.clamp(min=1.0)[:, None]
    mean = (blocks * inside).sum(-2) / per_token
    deviation = (blocks - mean[:, None]) * inside
    return PooledBlocks(
        mean,
        deviation.abs().sum(-2) / per_token,
        deviation.square().sum(-2) / per_token,
        lengths,
    )
