"""Queries, keys and values that behave like attention heads of a video model.

Random Gaussian q and k give attention without structure: no block matters more than another and
no sparse method can work. Trained video heads look at 3-D neighbours, at the same object, at
scattered details, at everything, or at a few sink tokens. This module builds such heads from
formulas, so that the benchmarks and the tests share one input factory.

Every head is built from three parts of the D channels, with x the (t, y, x) coordinate of a token:

    position  phi(x) = [cos(w_m . x), sin(w_m . x)] / sqrt(M),  w_m ~ N(0, diag(1 / length^2))
              phi(x) . phi(y) ~ exp(-|x - y|^2 / (2 length^2))    (random Fourier features: Rahimi
              and Recht 2007; like 3-D RoPE, the score depends on the difference of positions only)
    content   e(x) = unit vector of the cluster that token x belongs to. Clusters are the argmax of
              smooth random fields over space and time: moving regions with soft, curved borders.
              The keys of one cluster share a strength of 1 +- 0.25.
    noise     eta * N(0, 1) in q and in k, which puts N(0, eta^4) noise on every logit

    logit(x, y) = D^-1/2 q_x . k_y ~ position_logit * exp(-|x - y|^2 / (2 length^2))
                                     + content_logit * [cluster(x) = cluster(y)] + noise

    v(x) = cluster value + smooth field + white noise, so that values follow the keys.

Kinds (table `HEAD_KINDS`): `local` looks at 3-D neighbours, `content` at its own object, `fine` at
small scattered regions a few tokens wide (a block mean represents them badly), `flat` at nearly
everything, `sink` is local plus a few scattered keys that together draw 30 % of the attention of a
typical query. `mixed` deals the five kinds to the heads in turn.

These heads are stand-ins for trained ones: they rank speed exactly (only the shape and the kept
blocks matter) and fidelity roughly. End-to-end quality has to be measured on a trained model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadKind:
    """Numbers that define one kind of head; lengths are in latent tokens.

    Attributes:
        position_logit: logit between a query and the key at its own place.
        position_length: (t, y, x) standard deviations of the positional kernel.
        content_logit: logit between a query and a key of the same cluster.
        content_cell: (t, y, x) size of the cells of the random fields that form the clusters.
        clusters: number of clusters.
        noise: eta, the standard deviation of the noise in q and k before scaling.
        sinks: sink keys per 10,000 video tokens (at least 4 where it is not 0).
    """

    position_logit: float
    position_length: tuple[float, float, float]
    content_logit: float
    content_cell: tuple[float, float, float]
    clusters: int
    noise: float
    sinks: float = 0.0


HEAD_KINDS: dict[str, HeadKind] = {
    "local": HeadKind(11.0, (2.0, 3.0, 3.0), 2.0, (6.0, 12.0, 12.0), 16, 0.8),
    "content": HeadKind(4.0, (4.0, 8.0, 8.0), 8.0, (8.0, 10.0, 10.0), 24, 0.9),
    "fine": HeadKind(5.0, (2.0, 4.0, 4.0), 8.0, (3.0, 3.0, 3.0), 48, 0.9),
    "flat": HeadKind(0.8, (4.0, 12.0, 12.0), 0.6, (8.0, 12.0, 12.0), 16, 0.5),
    "sink": HeadKind(9.0, (2.0, 4.0, 4.0), 3.0, (6.0, 12.0, 12.0), 16, 0.8, sinks=4.0),
}
KINDS: tuple[str, ...] = (*HEAD_KINDS, "mixed")

# The keys of a cluster share a strength with this spread, so that some objects draw more attention.
_CLUSTER_STRENGTH_SPREAD = 0.25
_SINK_SHARE = 0.3
# Head h draws from seed * _SEED_STRIDE + h: a head is the same however many heads are asked for.
_SEED_STRIDE = 1_000_003


def head_kind_of(kind: str, head: int) -> str:
    """Return the name of the kind that head `head` has in inputs of kind `kind`.

    Raises:
        ValueError: `kind` is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r} is not allowed: one of {', '.join(KINDS)}")
    return tuple(HEAD_KINDS)[head % len(HEAD_KINDS)] if kind == "mixed" else kind


def synthetic_qkv(
    kind: str,
    grid: tuple[int, int, int],
    heads: int,
    head_dim: int = 128,
    context: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Build q, k, v of a video attention call: tokens in raster (t, y, x) order, then the context.

    Args:
        kind: one of `KINDS`.
        grid: (T, H, W) of the latent tokens.
        heads: number of heads.
        head_dim: channels of a head, a multiple of 8, 16 or more.
        context: number of context (text) tokens behind the video.
        dtype: element type of the result; everything is computed in fp32 first.
        device: where the tensors are made. The same seed gives the same values on the same kind of
            device (the noise comes from the device's own generator).
        seed: any non-negative integer.

    Returns:
        q, k, v, contiguous [1, heads, N, head_dim] with N = T * H * W + context.
        Beside the result about 8 x N x head_dim x 4 bytes are in use: one head at a time is built.

    Raises:
        ValueError: an argument outside the ranges above; the message names it.
    """
    head_kind_of(kind, 0)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"grid = {grid} is not allowed: three sizes (T, H, W) of 1 or more")
    if head_dim < 16 or head_dim % 8:
        raise ValueError(f"head_dim = {head_dim} is not allowed: a multiple of 8, 16 or more")
    for name, value, least in (("heads", heads, 1), ("context", context, 0), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} = {value} is not allowed: {least} or more")
    device = torch.device(device)
    shape = (1, heads, math.prod(grid) + context, head_dim)
    q, k, v = (torch.empty(shape, dtype=dtype, device=device) for _ in range(3))
    for head in range(heads):
        head_kind = HEAD_KINDS[head_kind_of(kind, head)]
        parts = _one_head(head_kind, grid, head_dim, context, device, seed * _SEED_STRIDE + head)
        for target, (video, text) in zip((q, k, v), parts, strict=True):
            target[0, head, : len(video)], target[0, head, len(video) :] = video, text
    return q, k, v


def _one_head(
    kind: HeadKind,
    grid: tuple[int, int, int],
    head_dim: int,
    context: int,
    device: torch.device,
    seed: int,
) -> list[tuple[Tensor, Tensor]]:
    """Build one head: [(q_video, q_text), (k_video, k_text), (v_video, v_text)], fp32 [n, D]."""
    # Small parameters come from the CPU generator: the clusters are the same on every device.
    rng = torch.Generator().manual_seed(seed)
    noise_rng = torch.Generator(device).manual_seed(seed)

    def small(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng).to(device)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise_rng, device=device)

    coords = torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid)).float()
    count = coords.shape[0]
    content_dim = head_dim // 4
    position_dim = head_dim - content_dim
    root = head_dim**0.25  # q and k both carry it, so that D^-1/2 q.k is the intended logit

    frequencies = small(position_dim // 2, 3) / torch.tensor(kind.position_length, device=device)
    position = _fourier_features(coords, frequencies)
    cluster = _clusters(grid, kind, rng, device)
    directions = torch.nn.functional.normalize(small(kind.clusters, content_dim), dim=-1)
    strength = 1.0 + _CLUSTER_STRENGTH_SPREAD * small(kind.clusters, 1)

    content = directions[cluster] * math.sqrt(kind.content_logit)
    signal_q = torch.cat([position * math.sqrt(kind.position_logit), content], dim=-1)
    signal_k = signal_q.clone()
    signal_k[:, position_dim:] *= strength[cluster]
    q = signal_q * root + kind.noise * noise(count, head_dim)
    k = signal_k * root + kind.noise * noise(count, head_dim)
    del signal_q, signal_k, position, content

    slow = small(16, 3) / (3.0 * torch.tensor(kind.position_length, device=device))
    v = small(kind.clusters, head_dim)[cluster] * 0.7
    v += _fourier_features(coords, slow) @ small(32, head_dim) * 0.7
    v += 0.4 * noise(count, head_dim)

    if kind.sinks:
        direction = torch.nn.functional.normalize(small(head_dim), dim=0)
        sinks = max(4, round(kind.sinks * count / 10_000))
        _add_sinks(q, k, v, torch.randperm(count, generator=rng)[:sinks].to(device), direction)

    # Text: each context token names one cluster weakly and is read by every query a little.
    text_cluster = torch.randint(kind.clusters, (context,), generator=rng).to(device)
    text_signal = torch.zeros(context, head_dim, device=device)
    text_signal[:, position_dim:] = directions[text_cluster] * math.sqrt(kind.content_logit)
    text_q = text_signal * root + kind.noise * noise(context, head_dim)
    text_k = text_signal * root + kind.noise * noise(context, head_dim)
    text_v = noise(context, head_dim)
    return [(q, text_q), (k, text_k), (v, text_v)]


def _fourier_features(coords: Tensor, frequencies: Tensor) -> Tensor:
    """Return [cos(w.x), sin(w.x)] / sqrt(M) for coords [n, 3], frequencies [M, 3]: [n, 2 M]."""
    # Multiply and add in fp32: a TF32 matrix product would lose the phase of far tokens.
    phase = (coords[:, None, :] * frequencies[None]).sum(-1)
    return torch.cat([phase.cos(), phase.sin()], dim=-1) / math.sqrt(len(frequencies))


def _clusters(
    grid: tuple[int, int, int], kind: HeadKind, rng: torch.Generator, device: torch.device
) -> Tensor:
    """Return the int64 cluster of every token, [T * H * W].

    Each cluster owns a random field: normal values on a coarse lattice with one point per cell,
    interpolated linearly. A token belongs to the cluster whose field is largest there.
    """
    lattice = [
        math.ceil(size / cell) + 1 for size, cell in zip(grid, kind.content_cell, strict=True)
    ]
    coarse = torch.randn((1, kind.clusters, *lattice), generator=rng).to(device)
    best = torch.full(grid, -math.inf, device=device)
    cluster = torch.zeros(grid, dtype=torch.int64, device=device)
    for index in range(kind.clusters):  # one field at a time keeps the peak at two grids
        field = torch.nn.functional.interpolate(
            coarse[:, index : index + 1], size=grid, mode="trilinear", align_corners=True
        )[0, 0]
        larger = field > best
        best = torch.where(larger, field, best)
        cluster[larger] = index
    return cluster.reshape(-1)


def _add_sinks(q: Tensor, k: Tensor, v: Tensor, where: Tensor, direction: Tensor) -> None:
    """Turn the keys at `where` [S] into sinks, in place; q, k, v are fp32 [n, D].

    All queries share one component along the unit vector `direction` [D], the sinks' keys consist
    of nothing else, and their common logit is set so that they draw `_SINK_SHARE` of the attention
    of a typical query: logit = LSE of the other keys + ln(share / (1 - share)) - ln S.
    """
    scale = q.shape[-1] ** -0.5
    for rows in (q, k):
        rows -= torch.outer(rows @ direction, direction)
    sample = q[:: max(1, len(q) // 64)]
    mass = (sample @ k.mT * scale).logsumexp(dim=-1).median()
    logit = mass + math.log(_SINK_SHARE / (1 - _SINK_SHARE)) - math.log(len(where))
    component = (logit.clamp(min=1.0) / scale).sqrt() * direction
    q += component
    k[where] = component
    v[where] *= 0.1  # sinks of trained models carry small values
