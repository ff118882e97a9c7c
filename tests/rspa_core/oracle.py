"""The method evaluated the slow way in fp64: the yardstick for every implementation.

Written from the formulas of arXiv 2511.19835 (IPAR, GAPR) and of the precise mode with one key for
a block, one q-block at a time, with whole score matrices; test_key_groups.py has that for groups of
keys. It shares no code with the package except the token order, the configuration records, a few
constants, and the fit of the tail's weight, which test_tail_weight.py checks by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rectified_spaattn.rspa_core import SparseConfig, TokenLayout, token_order
from rectified_spaattn.rspa_core.key_groups import SAMPLED_QUERIES
from rectified_spaattn.rspa_core.ranking import Q_PARTS
from rectified_spaattn.rspa_core.rectification import TAIL_VARIANCE_CAP
from rectified_spaattn.rspa_core.tail_weight import fitted_weight


@dataclass
class OracleResult:
    """What the oracle found.

    Attributes:
        out: fp64 [B, H, N, D] in the order of the inputs.
        block_mask: bool [B, H, NQ, NK], the critical set.
        accepted: bool [B, H, NQ, NK], blocks that are not critical and pass the gain test.
        top_n_margin: smallest relative gap between the last block selected by its probability
            and the first one left out, over all q-blocks; inf if nothing was decided that way.
        top_p_margin: smallest relative distance of a cumulative sum from `top_p`; inf if off.
        gain_margin: smallest |gain - error| / (gain + error) over blocks that are not critical;
            inf unless the mode is "paper".
        capped: rows and blocks of the tail whose spread term was at its cap.
    """

    out: Tensor
    block_mask: Tensor
    accepted: Tensor
    top_n_margin: float = math.inf
    top_p_margin: float = math.inf
    gain_margin: float = math.inf
    capped: int = 0

    @property
    def margin(self) -> float:
        """Distance from the nearest tie: below the rounding of fp32, decisions may differ."""
        return min(self.top_n_margin, self.top_p_margin, self.gain_margin)


def oracle_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: SparseConfig
) -> OracleResult:
    """Evaluate one attention call, inputs [B, H, N, D] of any float dtype and strides."""
    q, k, v = q.double(), k.double(), v.double()
    batch, heads = q.shape[:2]
    num_q, num_k = _num_blocks(layout, config.q_block), _num_blocks(layout, config.kv_block)
    forced = forced_blocks(layout, config)
    result = OracleResult(
        out=torch.full_like(q, math.nan),
        block_mask=torch.zeros(batch, heads, num_q, num_k, dtype=torch.bool),
        accepted=torch.zeros(batch, heads, num_q, num_k, dtype=torch.bool),
    )
    for b in range(batch):
        for h in range(heads):
            _one_head(result, b, h, q[b, h], k[b, h], v[b, h], forced, layout, config)
    return result


def oracle_dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v


def forced_blocks(layout: TokenLayout, config: SparseConfig) -> Tensor:
    """bool [NQ, NK]: blocks that share tokens with the q-block, and neighbours if asked for."""
    order = token_order(layout.grid, config.order)
    _, height, width = layout.grid
    coords = torch.stack([order // (height * width), order // width % height, order % width], 1)
    blocks_q = _block_ranges(layout, config.q_block)
    blocks_k = _block_ranges(layout, config.kv_block)
    forced = torch.zeros(len(blocks_q), len(blocks_k), dtype=torch.bool)
    for i, (q0, q1) in enumerate(blocks_q):
        for j, (k0, k1) in enumerate(blocks_k):
            forced[i, j] = q0 < k1 and k0 < q1
            if config.neighbours:
                apart = (coords[q0:q1, None] - coords[None, k0:k1]).abs().amax(-1)
                forced[i, j] |= bool((apart <= 1).any())
    return forced


def _num_blocks(layout: TokenLayout, block: int) -> int:
    return math.ceil(math.prod(layout.grid) / block)


def _block_ranges(layout: TokenLayout, block: int) -> list[tuple[int, int]]:
    n = math.prod(layout.grid)
    return [(i * block, min(n, (i + 1) * block)) for i in range(_num_blocks(layout, block))]


def _one_head(
    result: OracleResult,
    b: int,
    h: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forced: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
) -> None:
    """Fill in batch b, head h of `result`; q, k, v are fp64 [N, D]."""
    num_tokens, dim = q.shape
    c = dim**-0.5
    n = math.prod(layout.grid)
    video = layout.video_start + token_order(layout.grid, config.order)  # place of position p
    is_context = torch.ones(num_tokens, dtype=torch.bool)
    is_context[video] = False

    # Context queries attend to everything exactly.
    result.out[b, h, is_context] = oracle_dense(q[is_context], k, v)

    q_video, k_video, v_video = q[video], k[video], v[video]
    k_context, v_context = k[is_context], v[is_context]
    blocks_q = _block_ranges(layout, config.q_block)
    blocks_k = _block_ranges(layout, config.kv_block)
    block_of_key = torch.arange(n) // config.kv_block
    length = torch.tensor([k1 - k0 for k0, k1 in blocks_k], dtype=torch.float64)
    mean_q, mad_q = _pool(q_video, blocks_q)
    mean_k, mad_k = _pool(k_video, blocks_k)
    mean_v, _ = _pool(v_video, blocks_k)
    precise = config.rectification == "precise"
    asked = [(2 * s + 1) * n // (2 * SAMPLED_QUERIES) for s in range(SAMPLED_QUERIES)]
    spread = torch.zeros(len(blocks_k), dtype=torch.float64)
    if precise:
        assert config.tail_keys == 1
        spread = torch.stack([_spread(k_video[k0:k1], q_video[asked]) for k0, k1 in blocks_k])

    def softmax_mass(query: Tensor) -> Tensor:
        """Mass of every block in the eyes of one pooled query, beside the context."""
        logits = c * (mean_k @ query) + torch.log(length)
        logits = logits + (query @ query * spread).clamp(max=TAIL_VARIANCE_CAP)
        context = torch.logsumexp(c * (k_context @ query), dim=0)
        return torch.softmax(torch.cat([logits, context[None]]), dim=0)[:-1]

    critical_of = []
    probs_of = []
    for i, (q0, q1) in enumerate(blocks_q):
        if precise:
            step = config.q_block // Q_PARTS
            parts = [q_video[start : min(q1, start + step)] for start in range(q0, q1, step)]
            probs = sum(len(part) / (q1 - q0) * softmax_mass(part.mean(0)) for part in parts)
        else:
            probs = softmax_mass(mean_q[i])
        probs_of.append(probs)
        critical_of.append(_select(result, probs, forced[i], config))
    result.block_mask[b, h] = torch.stack(critical_of)

    def tail_logits(rows: Tensor, block: int) -> Tensor:
        """Of what rows of q-block `block` leave out, in nats; counts the blocks at the cap."""
        q0, q1 = blocks_q[block]
        critical = critical_of[block]
        raised = (q_video[q0:q1] ** 2).sum(1).mean() * spread[~critical]
        result.capped += int((raised > TAIL_VARIANCE_CAP).sum())
        logits = c * (rows @ mean_k[~critical].mT) + torch.log(length[~critical])
        return logits + raised.clamp(max=TAIL_VARIANCE_CAP)

    def kept(critical: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that are attended exactly."""
        chosen = critical[block_of_key]
        return torch.cat([k_video[chosen], k_context]), torch.cat([v_video[chosen], v_context])

    weight = torch.tensor(1.0, dtype=torch.float64)
    if precise:
        sums = []
        for place in asked:
            row, critical = q_video[place : place + 1], critical_of[place // config.q_block]
            keys, values = kept(critical)
            scores, logits = c * (row @ keys.mT)[0], tail_logits(row, place // config.q_block)[0]
            top = torch.cat([scores, logits]).max()
            mass, tail_mass = (scores - top).exp(), (logits - top).exp()
            exact = torch.softmax(c * (k @ row[0]), 0) @ v
            sums.append(
                (mass @ values, mass.sum(), tail_mass @ mean_v[~critical], tail_mass.sum(), exact)
            )
        weight = fitted_weight(*(torch.stack(part) for part in zip(*sums, strict=True)))

    for i, (q0, q1) in enumerate(blocks_q):
        rows, critical = q_video[q0:q1], critical_of[i]
        keys, values = kept(critical)
        scores = c * (rows @ keys.mT)
        exact = torch.softmax(scores, dim=1) @ values

        if config.rectification == "none":
            out = exact
        elif config.rectification == "paper":
            gain = (mean_k @ mean_q[i]).abs()
            error = (mean_k @ mad_q[i]).abs() + (mad_k @ mean_q[i]).abs()
            accepted = (gain > error) & ~critical
            result.accepted[b, h, i] = accepted
            margins = ((gain - error).abs() / (gain + error))[~critical].tolist()
            result.gain_margin = min([result.gain_margin, *margins])
            share = torch.where(accepted, probs_of[i], 0.0)
            out = (1 - share.sum()) * exact + share @ mean_v
        else:
            # Critical keys and pooled blocks in one softmax: the formula, with e^lse_C * O_C
            # written out as the sum over the critical keys.
            logits = tail_logits(rows, i) + weight.log()
            together = torch.softmax(torch.cat([scores, logits], dim=1), dim=1)
            out = together @ torch.cat([values, mean_v[~critical]])
        result.out[b, h, video[q0:q1]] = out


def _spread(keys: Tensor, asked: Tensor) -> Tensor:
    """ν of a block's keys `[n, D]`, asked by `[R, D]`."""
    c = keys.shape[-1] ** -0.5
    scores = c * (keys @ asked.mT)
    gains = (scores - scores.mean(0)).exp().mean(0).log()
    variance = ((keys - keys.mean(0)) ** 2).mean()
    return (0.5 * c**2 * variance * gains.mean() / (asked**2).sum(1).mean()).sqrt()


def _pool(x: Tensor, blocks: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Mean and mean absolute deviation [blocks, D] over the tokens of each block."""
    mean = torch.stack([x[a:b].mean(0) for a, b in blocks])
    mad = torch.stack([(x[a:b] - x[a:b].mean(0)).abs().mean(0) for a, b in blocks])
    return mean, mad


def _select(result: OracleResult, probs: Tensor, forced: Tensor, config: SparseConfig) -> Tensor:
    """Critical set bool [NK] of one q-block; lowers the margins of `result`."""
    num = len(probs)
    wanted = min(num, max(config.min_blocks, math.floor((1 - config.sparsity) * num + 1e-9)))
    if config.top_p > 0:
        mass = torch.cumsum(probs.sort(descending=True).values, dim=0)
        wanted = max(wanted, min(num, int((mass <= config.top_p).sum()) + 1))
        gap = float((mass / config.top_p - 1).abs().min())
        result.top_p_margin = min(result.top_p_margin, gap)

    critical = forced.clone()
    by_probability = sorted(
        (j for j in range(num) if not forced[j]), key=lambda j: (-float(probs[j]), j)
    )
    free = max(0, wanted - int(forced.sum()))
    for j in by_probability[:free]:
        critical[j] = True
    if 0 < free < len(by_probability):
        last, next_one = (float(probs[j]) for j in by_probability[free - 1 : free + 1])
        result.top_n_margin = min(result.top_n_margin, (last - next_one) / last)
    return critical
