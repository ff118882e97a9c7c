"""A fixed linear code for video with the geometry of Wan's VAE.

Four frames of 8 x 8 pixels become 16 numbers, by a product with one matrix whose rows are
orthonormal, so that latents turn back into RGB without a network. As with Wan's VAE the first
latent frame codes the first frame alone, here as if that frame were shown four times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

CHANNELS = 16
STRIDE_T = 4
STRIDE = 8
PATCH = 3 * STRIDE_T * STRIDE * STRIDE
REACH = 3
# Keeps the smoother decoder's fit well posed when the clips are few; latents have unit variance.
RIDGE = 1e-4


@dataclass(frozen=True, eq=False)
class LinearCode:
    """The code: `latent = (basis @ patch - mean) / std` for every patch of a video.

    Attributes:
        basis: `[16, 768]` float32 with orthonormal rows, over patches in the order colour, frame,
            row, column (3 x 4 x 8 x 8) of RGB in [-1, 1].
        mean, std: `[16]` float32, of each channel over the clips the code was fitted to.
    """

    basis: Tensor
    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        for name, shape in _SHAPES.items():
            if tuple(getattr(self, name).shape) != shape:
                found = tuple(getattr(self, name).shape)
                raise ValueError(f"{name} has shape {found}, allowed is {shape}")
        if not bool((self.std > 0).all()):
            raise ValueError("std has entries that are not above 0")

    @classmethod
    def fit(cls, clips: Tensor | Iterable[Tensor]) -> LinearCode:
        """The 16 principal components of the patches of `clips`, on the clips' device.

        Args:
            clips: RGB in [-1, 1], `[B, 3, F, H, W]`, or several such batches, of any sizes that
                `encode` takes.

        Raises:
            ValueError: no clips, or a size that `encode` does not take.
        """
        count = 0
        total = moment = torch.zeros(())
        for batch in [clips] if isinstance(clips, Tensor) else clips:
            patches = to_patches(batch.float()).reshape(-1, PATCH)
            # Sums over millions of patches need more digits than float32 has.
            total = total.to(patches.device) + patches.sum(0, dtype=torch.float64)
            moment = moment.to(patches.device) + (patches.T @ patches).double()
            count += len(patches)
        if not count:
            raise ValueError("clips is empty, at least one batch is needed")
        average, moment = total / count, moment / count
        # Videos look alike in a mirror and, in short, backwards. Said so exactly, components come
        # out even or odd in time, and odd ones are zero where one frame stands for four.
        square = moment.view(3, STRIDE_T, STRIDE, STRIDE, 3, STRIDE_T, STRIDE, STRIDE)
        square = (square + square.flip(1, 5)) / 2
        square = (square + square.flip(3, 7)) / 2
        vectors = torch.linalg.eigh(square.reshape(PATCH, PATCH)).eigenvectors
        basis = vectors[:, -CHANNELS:].flip(1).T.contiguous()
        peak = basis.gather(1, basis.abs().argmax(1, keepdim=True))
        basis = basis * peak.sign()
        mean = basis @ average
        variance = ((basis @ moment) * basis).sum(1) - mean**2
        std = variance.clamp_min(1e-12).sqrt()
        return cls(basis.float(), mean.float(), std.float())

    def to(self, device: torch.device | str) -> LinearCode:
        """The same code on another device."""
        if self.basis.device == torch.device(device):
            return self  # checking its numbers again would wait for the device
        return LinearCode(self.basis.to(device), self.mean.to(device), self.std.to(device))

    def encode(self, video: Tensor) -> Tensor:
        """Latents of `video`.

        Args:
            video: RGB in [-1, 1], `[B, 3, F, H, W]`, F = 4 n + 1, H and W multiples of 8.

        Returns:
            `[B, 16, n + 1, H / 8, W / 8]` float32 on the video's device.

        Raises:
            ValueError: another shape.
        """
        code = self.to(video.device)
        latent = (to_patches(video.float()) @ code.basis.T - code.mean) / code.std
        return latent.permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latent: Tensor) -> Tensor:
        """The video that fits `latent` best; the first frame is the mean of its four decodings.

        Args:
            latent: `[B, 16, T, h, w]`.

        Returns:
            RGB `[B, 3, 4 T - 3, 8 h, 8 w]` float32 on the latent's device, not clamped.

        Raises:
            ValueError: another shape.
        """
        check_latent(latent)
        code = self.to(latent.device)
        numbers = latent.float().permute(0, 2, 3, 4, 1) * code.std + code.mean
        return from_patches(numbers @ code.basis)

    def save(self, path: str | Path) -> None:
        """Write the code as a safetensors file of about 50 kB."""
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _SHAPES}
        save_file(tensors, str(path))

    @classmethod
    def load(cls, path: str | Path) -> LinearCode:
        """Read a file that `save` wrote, to the CPU; `ValueError` if it holds something else."""
        tensors = load_file(str(path))
        if set(tensors) != set(_SHAPES):
            raise ValueError(f"{path} holds {sorted(tensors)}, allowed is {sorted(_SHAPES)}")
        return cls(**tensors)


_SHAPES = {"basis": (CHANNELS, PATCH), "mean": (CHANNELS,), "std": (CHANNELS,)}


@dataclass(frozen=True, eq=False)
class SmoothDecoder:
    """A patch as a linear function of the 3 x 3 latents around it, for pictures people look at.

    `LinearCode.decode` treats every patch alone, so blocks of 8 x 8 pixels show at edges. This
    decoder gains one to two dB; measurements should stay with `LinearCode.decode`, which loses
    nothing of a latent.

    Attributes:
        kernel: `[768, 16, 1, 3, 3]` float32, patches in the order of `LinearCode.basis`.
        bias: `[768]` float32.
    """

    kernel: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, code: LinearCode, clips: Iterable[Tensor]) -> SmoothDecoder:
        """The best such decoder for latents of `code`, on the clips' device.

        Args:
            code: what `decode` will get latents of.
            clips: batches of RGB in [-1, 1], each `[B, 3, F, H, W]` of a size that the code takes.

        Raises:
            ValueError: no clips, or a size that the code does not take.
        """
        count = 0
        square = cross = torch.zeros(())
        for batch in clips:
            around = _pad(code.encode(batch)).unfold(3, REACH, 1).unfold(4, REACH, 1)
            around = around.permute(0, 2, 3, 4, 1, 5, 6).reshape(-1, CHANNELS * REACH * REACH)
            around = F.pad(around, (0, 1), value=1.0)
            patches = to_patches(batch.float()).reshape(-1, PATCH)
            square = square.to(around.device) + (around.T @ around).double()
            cross = cross.to(around.device) + (around.T @ patches).double()
            count += len(patches)
        if not count:
            raise ValueError("clips is empty, at least one batch is needed")
        square = square / count + RIDGE * torch.eye(len(square), device=square.device)
        weight = torch.linalg.solve(square, cross / count).float()
        kernel = weight[:-1].T.reshape(PATCH, CHANNELS, 1, REACH, REACH).contiguous()
        return cls(kernel, weight[-1].contiguous())

    def decode(self, latent: Tensor) -> Tensor:
        """RGB `[B, 3, 4 T - 3, 8 h, 8 w]` of latents `[B, 16, T, h, w]`; like `LinearCode.decode`.

        Raises:
            ValueError: another shape.
        """
        check_latent(latent)
        kernel, bias = self.kernel.to(latent.device), self.bias.to(latent.device)
        patches = F.conv3d(_pad(latent.float()), kernel, bias)
        return from_patches(patches.permute(0, 2, 3, 4, 1).contiguous())

    def to(self, device: torch.device | str) -> SmoothDecoder:
        """The same decoder on another device."""
        return SmoothDecoder(self.kernel.to(device), self.bias.to(device))

    def save(self, path: str | Path) -> None:
        """Write the decoder as a safetensors file of about 450 kB."""
        save_file({"kernel": self.kernel.cpu(), "bias": self.bias.cpu()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> SmoothDecoder:
        """Read a file that `save` wrote, to the CPU."""
        return cls(**load_file(str(path)))


def latent_shape(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Frames, rows and columns of the latents of such a video; `ValueError` if it has none."""
    if frames < 1 or frames % STRIDE_T != 1:
        raise ValueError(f"frames is {frames}, allowed is {STRIDE_T} n + 1: 1, 5, 9, 13, ...")
    for name, size in (("height", height), ("width", width)):
        if size < STRIDE or size % STRIDE:
            raise ValueError(f"{name} is {size}, allowed are multiples of {STRIDE}")
    return (frames + STRIDE_T - 1) // STRIDE_T, height // STRIDE, width // STRIDE


def to_patches(video: Tensor) -> Tensor:
    """Patches `[B, T, h, w, 768]` of a video `[B, 3, F, H, W]`, the first frame four times."""
    if video.dim() != 5 or video.shape[1] != 3 or not len(video):
        raise ValueError(f"video has shape {tuple(video.shape)}, allowed is [B, 3, F, H, W]")
    t, h, w = latent_shape(*video.shape[2:])
    first = video[:, :, :1].expand(-1, -1, STRIDE_T - 1, -1, -1)
    video = torch.cat([first, video], dim=2)
    cells = video.reshape(len(video), 3, t, STRIDE_T, h, STRIDE, w, STRIDE)
    return cells.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(len(video), t, h, w, PATCH)


def from_patches(patches: Tensor) -> Tensor:
    """The video `[B, 3, F, H, W]` of patches `[B, T, h, w, 768]`."""
    b, t, h, w, _ = patches.shape
    cells = patches.view(b, t, h, w, 3, STRIDE_T, STRIDE, STRIDE)
    video = cells.permute(0, 4, 1, 5, 2, 6, 3, 7)
    video = video.reshape(b, 3, t * STRIDE_T, h * STRIDE, w * STRIDE)
    first = video[:, :, :STRIDE_T].mean(dim=2, keepdim=True)
    return torch.cat([first, video[:, :, STRIDE_T:]], dim=2)


def check_latent(latent: Tensor) -> None:
    """`ValueError` unless `latent` is `[B, 16, T, h, w]` with no empty axis."""
    if latent.dim() != 5 or latent.shape[1] != CHANNELS or 0 in latent.shape:
        raise ValueError(
            f"latent has shape {tuple(latent.shape)}, "
            f"allowed is [B, {CHANNELS}, T, h, w] with no empty axis"
        )


def _pad(latent: Tensor) -> Tensor:
    """Latents with the outermost rows and columns repeated once on every side."""
    return F.pad(latent, (1, 1, 1, 1, 0, 0), mode="replicate")
