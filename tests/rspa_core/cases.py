"""Deterministic random attention calls for the comparison with the oracle."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from rectified_spaattn.rspa_core import SparseConfig, TokenLayout

BLOCKS = ((64, 64), (128, 64), (128, 128))
RECTIFICATIONS = ("paper", "precise", "none")
ORDERS = ("gilbert", "tile", "raster")
STORAGES = ("contiguous", "transposed", "sliced heads", "stride 2", "fused")
# Shorter than a block, ragged, exact multiples, single rows and frames.
SMALL_GRIDS = (
    (1, 5, 7),
    (3, 4, 5),
    (2, 8, 8),
    (1, 13, 17),
    (4, 8, 8),
    (300, 1, 1),
    (5, 7, 9),
    (6, 8, 8),
    (1, 1, 401),
)
MEDIUM_GRIDS = (
    (5, 10, 10),
    (4, 12, 12),
    (7, 9, 11),
    (9, 9, 9),
    (4, 13, 17),
    (7, 12, 13),
    (5, 16, 16),
    (6, 15, 16),
    (1, 27, 38),
)
LARGE_GRIDS = ((9, 11, 13), (5, 16, 18), (1, 37, 40))


@dataclass(frozen=True)
class Case:
    """One attention call; `seed` alone decides the tensors."""

    seed: int
    layout: TokenLayout
    config: SparseConfig
    batch: int
    heads: int
    head_dim: int
    scale: float
    storage: str

    def tensors(self, attempt: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v fp32 [B, H, N, D] in the storage of the case; `attempt` redraws them."""
        generator = torch.Generator().manual_seed(1000 * self.seed + attempt)
        shape = (self.batch, self.heads, self.layout.length, self.head_dim)
        q, k, v = video_like(shape, self.layout, generator)
        q, k = self.scale * q, self.scale * k
        return store(q, k, v, self.storage)


def video_like(
    shape: tuple[int, int, int, int], layout: TokenLayout, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v fp32 whose attention is neither flat nor one-hot, as in a video model.

    Video tokens follow a smooth random field over the grid plus noise, so that the means of
    blocks say something; keys have a common offset; heads differ in sharpness.
    """
    batch, heads, _, dim = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    axes = [torch.arange(n, dtype=torch.float32) for n in layout.grid]
    coords = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    span = slice(layout.video_start, layout.video_end)
    fields = torch.zeros(2, *shape)
    for field in fields:
        waves = 0.25 * normal(batch, heads, 3, dim)
        phases = 2 * math.pi * torch.rand(batch, heads, 1, dim, generator=generator)
        field[:, :, span] = math.sqrt(2.0) * torch.cos(coords @ waves + phases)
    sharpness = 0.6 + 0.6 * torch.rand(batch, heads, 1, 1, generator=generator)
    q = sharpness * (fields[0] + 0.7 * normal(*shape))
    k = sharpness * (fields[0] + 0.7 * normal(*shape)) + 0.3 * normal(batch, heads, 1, dim)
    v = fields[1] + normal(*shape) + 0.5 * normal(batch, heads, 1, dim)
    return q, k, v


def store(q: Tensor, k: Tensor, v: Tensor, storage: str) -> tuple[Tensor, Tensor, Tensor]:
    """The same values in another memory layout."""
    if storage == "fused":  # one [B, N, 3, H, D] projection
        fused = torch.stack([x.transpose(1, 2) for x in (q, k, v)], dim=2).contiguous()
        q, k, v = (x.transpose(1, 2) for x in fused.unbind(2))
        return q, k, v
    return store_one(q, storage), store_one(k, storage), store_one(v, storage)


def store_one(x: Tensor, storage: str) -> Tensor:
    batch, heads, length, dim = x.shape
    if storage == "transposed":  # [B, N, H, D] seen as [B, H, N, D]
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if storage == "sliced heads":
        wide = torch.full((batch, heads + 2, length, dim), math.nan)
        wide[:, 1:-1] = x
        return wide[:, 1:-1]
    if storage == "stride 2":
        wide = torch.full((batch, heads, length, 2 * dim), math.nan)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x.contiguous()


def make_cases(per_combination: int = 6) -> list[Case]:
    """Every rectification x order x block pair, `per_combination` times, the rest at random."""
    cases: list[Case] = []
    combinations = [(r, o, b) for r in RECTIFICATIONS for o in ORDERS for b in BLOCKS]
    for repeat in range(per_combination):
        for rectification, order, (q_block, kv_block) in combinations:
            seed = len(cases)
            draw = random.Random(seed)
            # Per combination: two small grids, two large ones with one head, medium ones.
            large = repeat >= per_combination - 2
            small = repeat < 2
            grid = draw.choice(LARGE_GRIDS if large else SMALL_GRIDS if small else MEDIUM_GRIDS)
            before, after = draw.choice([(0, 0), (0, 9), (23, 0), (5, 70), (1, 1)])
            config = SparseConfig(
                sparsity=draw.choice([0.0, 0.3, 0.5, 0.6, 0.6, 0.75, 0.75, 0.9, 0.95]),
                q_block=q_block,
                kv_block=kv_block,
                top_p=draw.choice([0.0, 0.0, 0.3, 0.9]),
                rectification=rectification,
                order=order,
                # Neighbours cover most of a small grid: without them more is left to decide.
                neighbours=draw.random() < 0.35,
                min_blocks=draw.choice([1, 1, 1, 3]),
                tail_keys=1,
            )
            cases.append(
                Case(
                    seed=seed,
                    layout=TokenLayout(grid, math.prod(grid) + before + after, before),
                    config=config,
                    batch=1 if large else draw.choice([1, 1, 2]),
                    heads=1 if large else draw.choice([1, 2, 3]),
                    head_dim=draw.choice([64, 96, 128]),
                    # 1.6 makes rows whose spread term reaches its cap.
                    scale=draw.choice([0.8, 1.0, 1.0, 1.2, 1.6, 1.6]),
                    storage=draw.choice(STORAGES),
                )
            )
    return cases


def case_id(case: Case) -> str:
    config = case.config
    blocks = f"{config.q_block}x{config.kv_block}"
    grid = "x".join(map(str, case.layout.grid))
    return f"{case.seed:03d}-{config.rectification}-{config.order}-{blocks}-{grid}"
