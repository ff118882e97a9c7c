"""A learned code for video with the geometry of Wan's VAE.

As with Wan's VAE four frames of 8 x 8 pixels become 16 numbers, and the first latent frame codes
the first frame alone, here as if it were shown four times. Convolutions run over rows and columns,
then over frames, on tensors that keep channels last: `[B, T, H, W, C]`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .latents import (
    CHANNELS,
    PATCH,
    STRIDE,
    STRIDE_T,
    LinearCode,
    check_latent,
    from_patches,
    to_patches,
)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the network.

    Attributes:
        encoder: channels and blocks, at the latents' resolution.
        decoder: channels and blocks of each level, from the latents' resolution up; each level has
            twice the frames, rows and columns of the one before. The last one is half as high and
            wide as the video.
    """

    encoder: tuple[int, int] = (192, 2)
    decoder: tuple[tuple[int, int], ...] = ((256, 2), (160, 2), (80, 2))


USUAL = AutoencoderConfig()
SMALL = AutoencoderConfig((16, 1), ((16, 1), (16, 1), (8, 1)))
"""For tests."""


class SpaceTimeConv(nn.Module):
    """A convolution over 3 x 3 pixels, then one over 3 frames; borders are zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, H, W, C]` to the same shape.

        What convolutions see is "channels last" in memory: no view copies anything.
        """
        b, t, h, w, c = x.shape
        x = self.space(x.reshape(b * t, h, w, c).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = F.silu(x).reshape(b, t, h * w, c)
        return self.time(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(b, t, h, w, c)


class Block(nn.Module):
    """A residual block; it starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = SpaceTimeConv(channels)
        nn.init.zeros_(self.conv.time.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x))


class Up(nn.Module):
    """Twice the frames, rows and columns, from `wide` to `narrow` channels."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        self.linear = nn.Linear(wide, 8 * narrow)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, _ = x.shape
        cells = self.linear(x).view(b, t, h, w, 2, 2, 2, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return cells.reshape(b, 2 * t, 2 * h, 2 * w, -1)


def _silent(wide: int, narrow: int) -> nn.Linear:
    """A layer that starts with weights of zero."""
    layer = nn.Linear(wide, narrow)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Autoencoder(nn.Module):
    """Video to latents of mean 0 and variance 1, and back.

    Both ways are a linear map plus what a network adds to it, at first nothing. With the maps of
    a linear code to start from, training begins at that code's quality.

    Attributes:
        mean, std: buffers `[16]`, of the channels that the encoder gives over the footage.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.linear_encoder = nn.Linear(PATCH, CHANNELS)
        self.linear_decoder = nn.Linear(CHANNELS, PATCH)
        width, blocks = config.encoder
        self.encoder = nn.Sequential(
            nn.Linear(PATCH, width),
            *(Block(width) for _ in range(blocks)),
            nn.LayerNorm(width),
            _silent(width, CHANNELS),
        )
        width = config.decoder[0][0]
        layers: list[nn.Module] = [nn.Linear(CHANNELS, width), SpaceTimeConv(width)]
        for level, (channels, blocks) in enumerate(config.decoder):
            layers += [Up(width, channels)] if level else []
            layers += [Block(channels) for _ in range(blocks)]
            width = channels
        grown = 2 ** (len(config.decoder) - 1)
        self.last = (STRIDE_T // grown, STRIDE // grown, STRIDE // grown, 3)
        layers += [nn.LayerNorm(width), _silent(width, math.prod(self.last))]
        self.decoder = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("std", torch.ones(CHANNELS))

    def encode(self, video: Tensor) -> Tensor:
        """Latents `[B, 16, n + 1, H / 8, W / 8]` float32 of RGB `[B, 3, 4 n + 1, H, W]` in [-1, 1].

        Raises:
            ValueError: another shape; H and W are multiples of 8.
        """
        numbers = (self.numbers(video.float()).float() - self.mean) / self.std
        return numbers.permute(0, 4, 1, 2, 3).contiguous()

    def numbers(self, video: Tensor) -> Tensor:
        """What the encoder gives for `video`, `[B, T, h, w, 16]`; latents before `mean`, `std`."""
        patches = to_patches(video)
        return self.linear_encoder(patches) + self.encoder(patches)

    def decode(self, latent: Tensor) -> Tensor:
        """RGB `[B, 3, 4 T - 3, 8 h, 8 w]` float32, not clamped, of latents `[B, 16, T, h, w]`.

        Raises:
            ValueError: another shape.
        """
        check_latent(latent)
        return self.pictures(latent.float().permute(0, 2, 3, 4, 1) * self.std + self.mean)

    def pictures(self, numbers: Tensor) -> Tensor:
        """RGB `[B, 3, F, H, W]` float32 of `numbers`."""
        cells = self.decoder(numbers).float()
        b, t, h, w, _ = cells.shape
        depth, high, wide, _ = self.last
        video = cells.view(b, t, h, w, *self.last).permute(0, 7, 1, 4, 2, 5, 3, 6)
        video = video.reshape(b, 3, t * depth, h * high, w * wide)
        return video[:, :, STRIDE_T - 1 :] + from_patches(self.linear_decoder(numbers).float())

    @torch.no_grad()
    def start_from(self, code: LinearCode) -> None:
        """Make the linear maps those of `code`."""
        self.linear_encoder.weight.copy_(code.basis / code.std[:, None])
        self.linear_encoder.bias.copy_(-code.mean / code.std)
        self.linear_decoder.weight.copy_((code.basis * code.std[:, None]).T)
        self.linear_decoder.bias.copy_(code.mean @ code.basis)

    @torch.no_grad()
    def calibrate(self, clips: Iterable[Tensor]) -> None:
        """Set `mean` and `std` to those of what the encoder gives for `clips`."""
        found = [self.numbers(clip).float().flatten(0, 3) for clip in clips]
        self.mean.copy_(torch.cat(found).mean(0))
        self.std.copy_(torch.cat(found).std(0, correction=0).clamp_min(1e-6))

    @torch.no_grad()
    def save(self, path: str | Path) -> None:
        """Write the network: matrices in 8 bits with a scale for every row, the rest in float32."""
        tensors = {}
        for name, value in self.state_dict().items():
            value = value.detach().cpu().float()
            if value.dim() > 1:
                scale = value.flatten(1).abs().amax(1).clamp_min(1e-8) / 127
                shape = (-1, *[1] * (value.dim() - 1))
                tensors[f"{name}.scale"] = scale
                value = (value / scale.view(shape)).round().to(torch.int8)
            tensors[name] = value.contiguous()
        save_file(tensors, str(path), {"config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path: str | Path) -> Autoencoder:
        """A network from a file that `save` wrote, on the CPU, in float32, for use only."""
        with safe_open(str(path), framework="pt") as file:
            sizes = json.loads(file.metadata()["config"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        for name in [name for name in tensors if f"{name}.scale" in tensors]:
            value = tensors[name]
            scale = tensors.pop(f"{name}.scale")
            tensors[name] = value * scale.view(-1, *[1] * (value.dim() - 1))
        levels = tuple((channels, blocks) for channels, blocks in sizes["decoder"])
        network = cls(AutoencoderConfig(tuple(sizes["encoder"]), levels))
        network.load_state_dict(tensors)
        return network.eval().requires_grad_(False)
