"""Several keys for a left-out block: groups of keys that the same queries like.

One mean forgets that a block holds keys that score differently and carry different values. Here
the keys of a block are put into G groups, and every group stands in the tail of `precise` with its
own mean key, mean value and number. What matters is not how far keys lie apart, but how differently
queries score them. With R queries q_s of the same head, taken at even distances,

    f_t = c (q_1·k_t, ..., q_R·k_t)        |f_t - f_u|² / R ~ mean over q of (c q·k_t - c q·k_u)²

so the groups are those of k-means on f: farthest-first seeds (Gonzalez 1985), which give a sink or
another outlier a group of its own, then `ROUNDS` rounds of Lloyd's algorithm.

A group's keys together count for more than their number times what their mean does, the more the
wider they lie and the longer the query: ln n_g + |q|² ν_g for n_g keys, with the mean |q|² of a
q-block. To second order, as if they lay alike in all channels, that is a_g; the sampled queries say
r_g. The first gives the tail too little weight, the second too much where a key matters to few
queries; their geometric mean neither:

    a_g = 1/2 c² v_g      v_g: mean variance of the channels
    r_g = 1/R Σ_s ln( 1/n_g Σ_{t in g} exp(f_ts - f̄_gs) ) / (1/R Σ_s |q_s|²)
    ν_g = √(a_g r_g)      f̄_g: mean of f over the group
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from torch import Tensor

from .pooling import block_lengths, split_blocks

SAMPLED_QUERIES = 32
ROUNDS = 2
LARGEST_GAIN = 60.0
"""f_ts - f̄_gs counts as this at most: the sum stays in fp32, and the term is capped far below."""


@dataclass(frozen=True)
class KeyGroups:
    """Groups of the keys of every block of one head, group g of block j at j G + g; fp32.

    Attributes:
        labels: group of every key of every block, `[NB, b]` int64.
        keys: means of the groups' keys, `[NB * G, D]`, zero where a group is empty.
        counts: tokens in the group, `[NB * G]`.
        spread: ν, `[NB * G]`, nats per squared length of a query.
    """

    labels: Tensor
    keys: Tensor
    counts: Tensor
    spread: Tensor

    def of_blocks(self, chosen: Tensor) -> Tensor:
        """For every group what `chosen [..., NB]` says of its block, `[..., NB * G]`."""
        number = len(self.counts) // len(self.labels)
        return repeat(chosen, "... block -> ... (block group)", group=number)

    def weighted(self, factor: Tensor) -> KeyGroups:
        """The same groups, which count for `factor` times their number."""
        return replace(self, counts=factor * self.counts)


def sampled_places(length: int) -> Tensor:
    """Rows of a head in token order whose queries are asked, floor((s + 1/2) n / R): `[R]`."""
    return (2 * torch.arange(SAMPLED_QUERIES) + 1) * length // (2 * SAMPLED_QUERIES)


def sampled_queries(q: Tensor) -> Tensor:
    """The queries at `sampled_places` of `q [n, D]` in token order: `[R, D]`."""
    return q[sampled_places(len(q)).to(q.device)]


def group_keys(k_blocks: Tensor, queries: Tensor, lengths: Tensor, groups: int) -> KeyGroups:
    """Groups of the keys of every block, and what makes one key of each.

    Args:
        k_blocks: `[NB, b, D]` fp32; what lies behind a block's last token is ignored.
        queries: see `sampled_queries`, `[R, D]` fp32.
        lengths: true tokens per block, `[NB]`.
        groups: G.
    """
    head_dim = queries.shape[-1]
    features = head_dim**-0.5 * (k_blocks @ queries.mT)
    labels = group_labels(features, lengths, groups)
    member = _members(labels, lengths, groups)
    keys = _means(k_blocks, member)
    # Around the group's mean: a difference of squares would lose the digits.
    variance = _apart(k_blocks, keys, labels).square().mean(-1, keepdim=True)
    variance = _means(variance, member)[..., 0]
    gain = _apart(features, _means(features, member), labels).clamp(max=LARGEST_GAIN).exp()
    # An empty group has 0 here, and no part in anything.
    gain = _means(gain, member).clamp(min=1.0).log().mean(-1)
    length = queries.square().sum(-1).mean().clamp(min=torch.finfo(torch.float32).tiny)
    spread = (0.5 / head_dim * variance * gain / length).sqrt().flatten()
    keys = rearrange(keys, "block group d -> (block group) d")
    return KeyGroups(labels, keys, member.sum(1).flatten(), spread)


def head_groups(video_q: Tensor, video_k: Tensor, kv_block: int, groups: int) -> KeyGroups:
    """`group_keys` of one head: `video_q`, `video_k [n, D]` fp32 in token order."""
    lengths = block_lengths(len(video_k), kv_block, video_k.device)
    return group_keys(split_blocks(video_k, kv_block), sampled_queries(video_q), lengths, groups)


def group_means(blocks: Tensor, groups: KeyGroups, lengths: Tensor) -> Tensor:
    """Means over the groups of `blocks [NB, b, D]` fp32: `[NB * G, D]`, zero where one is empty."""
    number = len(groups.counts) // len(blocks)
    means = _means(blocks, _members(groups.labels, lengths, number))
    return rearrange(means, "block group d -> (block group) d")


def _members(labels: Tensor, lengths: Tensor, groups: int) -> Tensor:
    """1 where a key of a block belongs to a group, `[NB, b, G]` fp32."""
    inside = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]
    return torch.nn.functional.one_hot(labels, groups) * inside[..., None].float()


def _means(blocks: Tensor, member: Tensor) -> Tensor:
    """`blocks [NB, b, D]` and `member [NB, b, G]` to `[NB, G, D]`."""
    return (member / member.sum(1, keepdim=True).clamp(min=1.0)).mT @ blocks


def _apart(blocks: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """`blocks [NB, b, D]` less what `centres [NB, G, D]` and `labels [NB, b]` say of each row."""
    return blocks - torch.gather(centres, 1, labels[..., None].expand_as(blocks))


def group_labels(features: Tensor, lengths: Tensor, groups: int) -> Tensor:
    """Group of every key of every block.

    Seed 0 is the key farthest from the block's mean, every further seed the one farthest from the
    seeds before it; of equal ones the first key, and for a key the lowest of equally near groups.
    A group that loses all its keys keeps its centre.

    Args:
        features: f, `[NB, b, R]` fp32; what lies behind a block's last token is ignored.
        lengths: true tokens per block, `[NB]`.
        groups: G.

    Returns:
        `[NB, b]` int64, 0 ... G - 1.
    """
    inside = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
    weights = inside.float()[..., None]
    mean = (features * weights).sum(1, keepdim=True) / lengths[:, None, None]
    distance = (features - mean).square().sum(-1)
    centres = features.new_zeros(len(features), groups, features.shape[-1])
    for group in range(groups):
        seed = distance.masked_fill(~inside, -1.0).argmax(1)
        centres[:, group] = features[torch.arange(len(features), device=seed.device), seed]
        from_seed = (features - centres[:, group, None]).square().sum(-1)
        distance = from_seed if group == 0 else torch.minimum(distance, from_seed)
    labels = _nearest(features, centres)
    for _ in range(ROUNDS):
        member = torch.nn.functional.one_hot(labels, groups) * weights
        counts = member.sum(1)[..., None]
        centres = torch.where(counts > 0, member.mT @ features / counts.clamp(min=1.0), centres)
        labels = _nearest(features, centres)
    return labels


def _nearest(features: Tensor, centres: Tensor) -> Tensor:
    """Number of the nearest centre, `[NB, b]`."""
    # One group at a time: differences of all at once would be G times the features.
    distances = [(features - centre[:, None]).square().sum(-1) for centre in centres.unbind(1)]
    return torch.stack(distances, -1).argmin(-1)
