"""Several keys for a left-out block: groups of keys that the same queries like.

One mean forgets that a block holds keys that score differently and carry different values. Here
the keys of a block are put into G groups, and every group stands in the tail of `precise` with its
own mean key, mean value and number. What matters is not how far keys lie apart, but how differently
queries score them. With R queries q_s of the same head, taken at even distances,

    f_t = c (q_1·k_t, ..., q_R·k_t)        |f_t - f_u|² / R ~ mean over q of (c q·k_t - c q·k_u)²

so the groups are those of k-means on f: farthest-first seeds (Gonzalez 1985), which give a sink or
another outlier a group of its own, then `ROUNDS` rounds of Lloyd's algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLED_QUERIES = 32
ROUNDS = 2


@dataclass(frozen=True)
class KeyGroups:
    """What stands for the blocks of one head, group g of block j at j G + g; fp32.

    Attributes:
        keys, values: means of the group's keys and values, `[NB * G, D]`, zero where it is empty.
        counts: tokens in the group, `[NB * G]`.
        variance: of the group's keys, mean over the channels, `[NB * G]`.
    """

    keys: Tensor
    values: Tensor
    counts: Tensor
    variance: Tensor


def sampled_queries(q: Tensor) -> Tensor:
    """Rows floor((s + 1/2) n / R) of `q [n, D]` in token order: `[R, D]`."""
    number = torch.arange(SAMPLED_QUERIES, device=q.device)
    return q[(2 * number + 1) * len(q) // (2 * SAMPLED_QUERIES)]


def group_keys(features: Tensor, lengths: Tensor, groups: int) -> Tensor:
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


def pool_groups(
    k_blocks: Tensor, v_blocks: Tensor, labels: Tensor, lengths: Tensor, groups: int
) -> KeyGroups:
    """Means over the groups of every block.

    Args:
        k_blocks, v_blocks: `[NB, b, D]` fp32.
        labels: from `group_keys`.
        lengths: true tokens per block, `[NB]`.
        groups: G.
    """
    inside = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]
    member = torch.nn.functional.one_hot(labels, groups) * inside[..., None].float()
    counts = member.sum(1)
    shares = (member / counts.clamp(min=1.0)[:, None, :]).mT
    keys = shares @ k_blocks
    # Around the group's mean: a difference of squares would lose the digits.
    own = torch.gather(keys, 1, labels[..., None].expand(-1, -1, keys.shape[-1]))
    variance = shares @ (k_blocks - own).square().mean(-1, keepdim=True)
    return KeyGroups(
        keys.flatten(0, 1), (shares @ v_blocks).flatten(0, 1), counts.flatten(), variance.flatten()
    )
