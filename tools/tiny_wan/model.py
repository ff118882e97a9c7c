"""Wan 2.1's text-to-video transformer in plain torch, with the key names of the native checkpoints.

Same arithmetic as the public model, so that a checkpoint trained here loads wherever Wan does; only
the widths differ. Self-attention goes through a function that the caller may replace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""`attend(q, k, v, layer)`: self-attention of `q, k, v [B, H, N, D]`, with RoPE applied, in block
`layer` (from 0); returns `[B, H, N, D]`. Tokens are in raster order: frame, row, column."""

PATCH_SIZE = (1, 2, 2)
LATENT_CHANNELS = 16
FREQ_DIM = 256
EPS = 1e-6
THETA = 10000.0


@dataclass(frozen=True)
class WanConfig:
    """Widths of a model.

    Loaders that go by key names alone take heads of 128 channels and a `text_dim` of 4096 for
    granted; `model_files.save_model` writes metadata that says otherwise where they allow it.

    Attributes:
        dim: channels of a token, a multiple of `heads`.
        layers: transformer blocks.
        heads: attention heads; `dim / heads` is even.
        ffn_dim: hidden channels of the feed-forward network.
        text_dim: channels of a text token.
    """

    dim: int = 384
    layers: int = 8
    heads: int = 3
    ffn_dim: int = 1024
    text_dim: int = 4096

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "ffn_dim", "text_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed are numbers from 1")
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"dim is {self.dim}, allowed are multiples of 2 x {self.heads}, twice the heads"
            )

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.dim // self.heads

    @property
    def parameters(self) -> int:
        """Numbers in the checkpoint."""
        dim, linear = self.dim, self.dim * self.dim + self.dim
        patch = math.prod(PATCH_SIZE) * LATENT_CHANNELS
        embeddings = patch * dim + dim  # patches
        embeddings += self.text_dim * dim + dim + linear
        embeddings += FREQ_DIM * dim + dim + linear + 6 * linear  # time
        block = 8 * linear + 4 * dim + 2 * dim + 6 * dim  # attention, its norms, norm3, modulation
        block += 2 * dim * self.ffn_dim + self.ffn_dim + dim
        head = dim * patch + patch + 2 * dim
        return embeddings + self.layers * block + head

    def forward_flops(self, tokens: int) -> float:
        """Floating-point operations of one forward of one sample with dense attention.

        The time and text embeddings, a few tokens each, are left out.
        """
        patch = math.prod(PATCH_SIZE) * LATENT_CHANNELS
        # Cross-attention has keys and values of a few text tokens only: q and o count.
        linear = self.layers * (6 * self.dim**2 + 2 * self.dim * self.ffn_dim)
        linear += 2 * self.dim * patch
        return 2.0 * tokens * linear + self.layers * 4.0 * tokens**2 * self.dim


USUAL = WanConfig()
"""Every loader of Wan files takes it. Its file has 19 MB; with autoencoder and prompts it is 24."""

SMALL = WanConfig(dim=64, layers=2, heads=2, ffn_dim=128, text_dim=128)
"""For tests: trains on a CPU."""


def sinusoidal_embedding(t: Tensor) -> Tensor:
    """Embedding `[B, 256]` float32 of timesteps `t [B]` in 0..1000: cosines, then sines."""
    half = FREQ_DIM // 2
    steps = torch.arange(half, device=t.device, dtype=torch.float32)
    angles = torch.outer(t.float(), torch.pow(10000, -steps / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def rope_table(
    grid: tuple[int, int, int], head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the 3-D rotary embedding.

    Args:
        grid: frames, rows and columns of tokens; N is their product.
        head_dim: channels of a head; rows and columns get a third each (rounded down to even
            numbers), frames the rest.
        device: where the tables go.

    Returns:
        Two tensors `[N, 1, head_dim / 2]` float32, computed in float64.
    """
    side = 2 * (head_dim // 6)
    angles = []
    for axis, width in enumerate((head_dim - 2 * side, side, side)):
        exponents = torch.arange(width // 2, dtype=torch.float64) * 2 / max(width, 1)
        frequencies = torch.outer(torch.arange(grid[axis], dtype=torch.float64), THETA**-exponents)
        shape = [1, 1, 1, width // 2]
        shape[axis] = grid[axis]
        angles.append(frequencies.view(shape).expand(*grid, -1))
    table = torch.cat(angles, dim=-1).reshape(math.prod(grid), 1, head_dim // 2)
    return table.cos().float().to(device), table.sin().float().to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring channels of `x [B, N, H, D]` by the angles of `rope_table`, in fp32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys; the norm spans all heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim, eps=EPS)
        self.norm_k = nn.RMSNorm(dim, eps=EPS)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Attend from `x [B, N, C]` to `context [B, L, C]`; `attend` replaces torch's attention."""
        # Under autocast products are bf16 and the norms' weights are not; torch's fused norm wants
        # one dtype.
        dtype = self.norm_q.weight.dtype
        q = self.norm_q(self.q(x).to(dtype)).unflatten(-1, (self.heads, -1))
        k = self.norm_k(self.k(context).to(dtype)).unflatten(-1, (self.heads, -1))
        v = self.v(context).unflatten(-1, (self.heads, -1))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        q, k, v = (each.to(v.dtype).transpose(1, 2) for each in (q, k, v))
        out = (attend or F.scaled_dot_product_attention)(q, k, v)
        return self.o(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention to the text and a feed-forward network."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=EPS, elementwise_affine=False)
        self.self_attn = Attention(dim, config.heads)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = Attention(dim, config.heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, dim),
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor,
        rope: tuple[Tensor, Tensor],
        attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
    ) -> Tensor:
        """`x [B, N, C]`, `time [B, 6, C]` (shift, scale, gate; twice), `context [B, L, C]`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + time).chunk(6, dim=1)
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + self.self_attn(y, y, rope, attend) * gate1
        x = x + self.cross_attn(self.norm3(x), context)
        return x + self.ffn(self.norm2(x) * (1 + scale2) + shift2) * gate2


class Head(nn.Module):
    """The output layer: from tokens to patches of the velocity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS, elementwise_affine=False)
        self.head = nn.Linear(dim, math.prod(PATCH_SIZE) * LATENT_CHANNELS)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x [B, N, C]` and `time [B, C]` to `[B, N, 64]`: row, column, channel of a patch."""
        shift, scale = (self.modulation + time.unsqueeze(1)).chunk(2, dim=1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class WanModel(nn.Module):
    """The transformer: noisy latents, time and text to velocity."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(LATENT_CHANNELS, dim, PATCH_SIZE, stride=PATCH_SIZE)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(FREQ_DIM, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(dim)
        self._ropes: dict[tuple[tuple[int, int, int], torch.device], tuple[Tensor, Tensor]] = {}
        self._initialise()

    def _initialise(self) -> None:
        """Wan's initial weights; the output layer starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.data.flatten(1))
        for embedding in (self.text_embedding, self.time_embedding):
            for module in embedding:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def _rope(self, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """The tables of `grid`, kept for the next call: training uses a handful of grids."""
        if (grid, device) not in self._ropes:
            self._ropes[grid, device] = rope_table(grid, self.config.head_dim, device)
        return self._ropes[grid, device]

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, attend: Attend | None = None
    ) -> Tensor:
        """The velocity, noise minus clean latents, at `x`.

        Args:
            x: noisy latents `[B, 16, T, H, W]`, H and W even.
            t: timesteps `[B]` in 0 (clean) to 1000 (noise).
            context: text tokens `[B, L, text_dim]`.
            attend: self-attention to use; torch's by default.

        Returns:
            `[B, 16, T, H, W]` in the dtype of `x`.

        Raises:
            ValueError: another number of channels, or odd H or W.
        """
        if x.dim() != 5 or x.shape[1] != LATENT_CHANNELS or x.shape[3] % 2 or x.shape[4] % 2:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, "
                f"allowed is [B, {LATENT_CHANNELS}, T, H, W] with even H and W"
            )
        dtype = self.patch_embedding.weight.dtype
        patches, grid = patchify(x.to(dtype))
        # One product; a convolution is many times slower in bf16.
        weight = self.patch_embedding.weight.flatten(1)
        tokens = F.linear(patches, weight, self.patch_embedding.bias)
        time = self.time_embedding(sinusoidal_embedding(t).to(dtype))
        modulation = self.time_projection(time).unflatten(1, (6, -1))
        context = self.text_embedding(context.to(dtype))
        rope = self._rope(grid, x.device)
        for layer, block in enumerate(self.blocks):
            bound = None if attend is None else partial(_call, attend, layer)
            tokens = block(tokens, modulation, context, rope, bound)
        return unpatchify(self.head(tokens, time), grid).to(x.dtype)


def _call(attend: Attend, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend` with the layer given first, for `partial`."""
    return attend(q, k, v, layer)


def patchify(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Patches `[B, N, 64]` (channel, row, column) of latents, and frames, rows, columns of them."""
    (b, c, t, h, w), (pt, ph, pw) = x.shape, PATCH_SIZE
    grid = (t // pt, h // ph, w // pw)
    cells = x.reshape(b, c, grid[0], pt, grid[1], ph, grid[2], pw)
    return cells.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, math.prod(grid), -1), grid


def unpatchify(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Latents `[B, 16, T, H, W]` of patches `[B, N, 64]` on `grid` (frames, rows, columns)."""
    (t, h, w), (pt, ph, pw) = grid, PATCH_SIZE
    cells = tokens.view(len(tokens), t, h, w, pt, ph, pw, LATENT_CHANNELS)
    video = cells.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return video.reshape(len(tokens), LATENT_CHANNELS, t * pt, h * ph, w * pw)
