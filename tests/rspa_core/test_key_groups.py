"""Groups of keys in the tail of `precise`, against loops in fp64, and what they are for."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from rectified_spaattn.benchmarks.synthetic import HEAD_KINDS, synthetic_qkv
from rectified_spaattn.rspa_core import (
    SparseConfig,
    TokenLayout,
    critical_blocks,
    dense_attention,
    rectified_attention,
    relative_l2,
    token_order,
)
from rectified_spaattn.rspa_core.key_groups import (
    ROUNDS,
    SAMPLED_QUERIES,
    KeyGroups,
    group_keys,
    group_labels,
    group_means,
    head_groups,
)
from rectified_spaattn.rspa_core.ranking import Q_PARTS, group_probs
from rectified_spaattn.rspa_core.rectification import TAIL_VARIANCE_CAP
from rectified_spaattn.rspa_core.tail_weight import LARGEST, SMALLEST

from .cases import video_like

LAYOUT = TokenLayout((3, 9, 13), 3 * 9 * 13 + 5 + 7, video_start=5)
TIE = 1e-5


def grouped_by_hand(points: Tensor, groups: int) -> tuple[list[int], float]:
    """Groups of `points [n, R]` fp64 and the smallest relative gap of any choice made."""
    margin = math.inf

    def pick(values: Tensor, largest: bool) -> int:
        nonlocal margin
        order = sorted(range(len(values)), key=lambda i: (-values[i] if largest else values[i], i))
        if len(order) > 1:
            first, second = float(values[order[0]]), float(values[order[1]])
            margin = min(margin, abs(first - second) / max(first, second, 1e-300))
        return order[0]

    def to(centre: Tensor) -> Tensor:
        return ((points - centre) ** 2).sum(1)

    centres = [points[pick(to(points.mean(0)), largest=True)]]
    while len(centres) < groups:
        nearest = torch.stack([to(centre) for centre in centres]).min(0).values
        if float(nearest.max()) == 0.0:  # fewer different points than groups
            centres.append(points[int(nearest.argmax())])
            continue
        centres.append(points[pick(nearest, largest=True)])

    def labels() -> list[int]:
        distances = torch.stack([to(centre) for centre in centres], 1)
        return [pick(row, largest=False) for row in distances]

    chosen = labels()
    for _ in range(ROUNDS):
        for group in range(groups):
            members = [i for i, label in enumerate(chosen) if label == group]
            if members:
                centres[group] = points[members].mean(0)
        chosen = labels()
    return chosen, margin


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_groups_of_keys(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    features = torch.randn(6, 64, 16, generator=generator)
    features[1, 5] += 40.0
    lengths = torch.tensor([64.0] * 5 + [23.0])
    labels = group_labels(features, lengths, groups)
    compared = 0
    for block in range(6):
        count = int(lengths[block])
        expected, margin = grouped_by_hand(features[block, :count].double(), groups)
        if margin > TIE:
            assert labels[block, :count].tolist() == expected
            compared += 1
    assert compared >= 4
    alone = 64 if groups == 1 else 1
    assert (labels[1] == labels[1, 5]).sum() == alone, "an outlier has a group of its own"


def test_fewer_keys_than_groups() -> None:
    length = torch.tensor([3.0])
    blocks = torch.randn(1, 64, 16)
    found = group_keys(blocks, torch.randn(32, 16), length, 8)
    assert len(set(found.labels[0, :3].tolist())) == 3
    assert found.counts.sum() == 3
    assert found.keys.isfinite().all()
    assert (found.spread == 0).all()
    assert group_means(2 * blocks, found, length).isfinite().all()


def test_queries_of_zero() -> None:
    found = group_keys(torch.randn(2, 64, 16), torch.zeros(32, 16), torch.tensor([64.0, 9.0]), 4)
    assert found.keys.isfinite().all()
    assert (found.spread == 0).all()


def spread_by_hand(members: Tensor, asked: Tensor) -> float:
    """ν of a group of keys `[n, D]`, asked by `[R, D]`; fp64."""
    scale = members.shape[-1] ** -0.5
    gains = []
    for query in asked:
        scores = scale * members @ query
        gains.append(math.log(float((scores - scores.mean()).exp().mean())))
    sampled = (sum(gains) / len(gains)) / float(asked.square().sum(1).mean())
    return math.sqrt(0.5 * scale**2 * float(members.var(0, unbiased=False).mean()) * sampled)


def test_group_statistics() -> None:
    generator = torch.Generator().manual_seed(3)
    k, v = (torch.randn(2, 64, 24, generator=generator) for _ in range(2))
    asked = 2 * torch.randn(32, 24, generator=generator)
    lengths = torch.tensor([64.0, 40.0])
    found = group_keys(k, asked, lengths, 4)
    values = group_means(v, found, lengths)
    for block, length in enumerate((64, 40)):
        for group in range(4):
            members = [t for t in range(length) if found.labels[block, t] == group]
            place = 4 * block + group
            assert found.counts[place] == len(members) > 0
            torch.testing.assert_close(found.keys[place], k[block, members].mean(0))
            torch.testing.assert_close(values[place], v[block, members].mean(0))
            spread = spread_by_hand(k[block, members].double(), asked.double())
            assert float(found.spread[place]) == pytest.approx(spread, rel=1e-4)


def probs_by_hand(q: Tensor, found: KeyGroups, context_k: Tensor, q_block: int) -> Tensor:
    """P `[NQ, NK]` of queries `q [n, D]` in token order; fp64."""
    scale = q.shape[-1] ** -0.5
    num_k = len(found.labels)
    groups = len(found.counts) // num_k
    rows = []
    for start in range(0, len(q), q_block):
        block = q[start : start + q_block]
        row = torch.zeros(num_k, dtype=torch.float64)
        for first in range(0, len(block), q_block // Q_PARTS):
            part = block[first : first + q_block // Q_PARTS]
            query = part.mean(0)
            weights = []
            for place in range(num_k * groups):
                spread = min(float(query @ query * found.spread[place]), TAIL_VARIANCE_CAP)
                logit = float(scale * query @ found.keys[place].double()) + spread
                weights.append(float(found.counts[place]) * math.exp(logit))
            total = sum(weights) + float((scale * context_k @ query).exp().sum())
            mass = torch.tensor(weights, dtype=torch.float64).view(num_k, groups).sum(1) / total
            row += mass * len(part) / len(block)
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("context", [0, 11])
@pytest.mark.parametrize("q_block", [64, 128])
def test_ranking(q_block: int, context: int) -> None:
    """The last q-block has parts without tokens."""
    generator = torch.Generator().manual_seed(q_block + context)
    n = 2 * q_block + q_block // 2 + 3
    q, k = (torch.randn(n, 24, generator=generator) * 2 for _ in range(2))
    context_k = torch.randn(context, 24, generator=generator)
    found = head_groups(q, k, 64, 4)
    probs = group_probs(q, found, context_k, q_block)
    expected = probs_by_hand(q.double(), found, context_k.double(), q_block)
    torch.testing.assert_close(probs.double(), expected, rtol=1e-4, atol=1e-7)
    if not context:
        torch.testing.assert_close(probs.sum(1), torch.ones(len(probs)))


def weight_by_hand(rows: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    """τ of the least Σ_s |out_s(τ) - o_s|²: the best on a grid of logarithms, then by thirds.

    For each row the sums over its kept keys and over the tail, `[D + 1]` with the mass behind the
    values, and o.
    """

    kept, tail, exact = (torch.stack(each) for each in zip(*rows, strict=True))

    def loss(log_weight: float) -> float:
        both = kept + math.exp(log_weight) * tail
        return float((both[:, :-1] / both[:, -1:] - exact).square().sum())

    first, last = math.log(SMALLEST), math.log(LARGEST)
    grid = [first + (last - first) * i / 200 for i in range(201)]
    losses = [loss(point) for point in grid]
    best = losses.index(min(losses))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, 200)]
    while high - low > 1e-7:
        third = (high - low) / 3
        if loss(low + third) < loss(high - third):
            high -= third
        else:
            low += third
    return math.exp((low + high) / 2)


def rows_by_hand(
    q: Tensor, k: Tensor, v: Tensor, critical: Tensor, config: SparseConfig
) -> tuple[Tensor, float]:
    """Video rows of one head, `q, k, v [N, D]` fp64, and the margin of the groups."""
    scale = q.shape[-1] ** -0.5
    order = LAYOUT.video_start + token_order(LAYOUT.grid, config.order)
    context = torch.ones(len(q), dtype=torch.bool)
    context[order] = False
    video_q, video_k, video_v = q[order], k[order], v[order]
    n = len(order)
    asked_rows = [(2 * s + 1) * n // (2 * SAMPLED_QUERIES) for s in range(SAMPLED_QUERIES)]
    asked = video_q[asked_rows]
    features = scale * video_k @ asked.mT
    out = torch.zeros(n, q.shape[-1], dtype=torch.float64)
    stand_ins, margin = [], math.inf
    for start in range(0, n, config.kv_block):
        stop = min(n, start + config.kv_block)
        chosen, gap = grouped_by_hand(features[start:stop], config.tail_keys)
        margin = min(margin, gap)
        here = []
        for group in set(chosen):
            members = [start + t for t, label in enumerate(chosen) if label == group]
            keys = video_k[members]
            spread = spread_by_hand(keys, asked)
            here.append((keys.mean(0), video_v[members].mean(0), len(members), spread))
        stand_ins.append(here)

    @cache
    def block_parts(q_block: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Keys and values that its rows attend exactly; those of its tail, and what is added."""
        neighbours = video_q[q_block * config.q_block : (q_block + 1) * config.q_block]
        squared_length = float((neighbours**2).sum(1).mean())
        mine = critical[q_block]
        keys, values = [k[context]], [v[context]]
        tail_keys, added, tail_values = [], [], []
        for block, here in enumerate(stand_ins):
            if mine[block]:
                part = slice(block * config.kv_block, (block + 1) * config.kv_block)
                keys.append(video_k[part])
                values.append(video_v[part])
                continue
            for mean, value, count, slope in here:
                spread = min(squared_length * slope, TAIL_VARIANCE_CAP)
                tail_keys.append(mean)
                added.append(math.log(count) + spread)
                tail_values.append(value)
        tail = torch.stack(tail_keys), torch.tensor(added).double(), torch.stack(tail_values)
        return torch.cat(keys), torch.cat(values), *tail

    def row_parts(row: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits and values of what the row attends exactly, and of its tail."""
        query = video_q[row]
        keys, values, tail_keys, added, tail_values = block_parts(row // config.q_block)
        return scale * keys @ query, values, scale * tail_keys @ query + added, tail_values

    sampled = []
    for row in asked_rows:
        kept, values, tail, tail_values = row_parts(row)
        top = float(torch.cat([kept, tail]).max())
        sums = []
        for logits, each in ((kept, values), (tail, tail_values)):
            weights = (logits - top).exp()
            sums.append(torch.cat([weights @ each, weights.sum()[None]]))
        sampled.append((*sums, torch.softmax(scale * k @ video_q[row], 0) @ v))
    factor = weight_by_hand(sampled)
    for row in range(n):
        kept, values, tail, tail_values = row_parts(row)
        probs = torch.softmax(torch.cat([kept, tail + math.log(factor)]), 0)
        out[row] = probs @ torch.cat([values, tail_values])
    return out, margin


@pytest.mark.parametrize(
    ("blocks", "tail_keys"),
    [
        ((64, 64), 1), ((64, 64), 4), ((64, 64), 8), ((128, 64), 2), ((128, 128), 4),
        ((128, 128), 8),
    ],
    ids=str,
)  # fmt: skip
def test_output(blocks: tuple[int, int], tail_keys: int) -> None:
    config = SparseConfig(
        0.7, *blocks, rectification="precise", neighbours=False, tail_keys=tail_keys
    )
    compared = 0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        q, k, v = video_like((1, 1, LAYOUT.length, 32), LAYOUT, generator)
        out, stats = rectified_attention(
            q, k, v, LAYOUT, config, backend="reference", return_stats=True
        )
        assert torch.equal(stats.block_mask(), critical_blocks(q, k, LAYOUT, config))
        expected, margin = rows_by_hand(
            *(x[0, 0].double() for x in (q, k, v)), stats.block_mask()[0, 0], config
        )
        if margin < TIE:
            continue
        place = LAYOUT.video_start + token_order(LAYOUT.grid, config.order)
        assert relative_l2(out[0, 0, place], expected.float()) < 1e-5
        compared += 1
        if compared == 2:
            return
    raise AssertionError("every draw is near a tie")


@pytest.mark.parametrize("precision", ["16-bit", "int8"])
def test_groups_lose_less(precision: str) -> None:
    """On heads of every kind, the more groups the smaller the error."""
    layout = TokenLayout((6, 20, 24), 6 * 20 * 24)
    means = {}
    for tail_keys in (1, 2, 4):
        errors = []
        for kind in HEAD_KINDS:
            q, k, v = synthetic_qkv(kind, layout.grid, 1, 64)
            config = SparseConfig(
                0.85, 64, 64, rectification="precise", neighbours=False, tail_keys=tail_keys,
                precision=precision,
            )  # fmt: skip
            out = rectified_attention(q, k, v, layout, config, backend="reference")
            errors.append(relative_l2(out, dense_attention(q, k, v)))
        means[tail_keys] = math.exp(sum(map(math.log, errors)) / len(errors))
    assert means[2] < 0.7 * means[1]
    assert means[4] < 0.8 * means[2]
