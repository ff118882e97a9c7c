"""The geometry of Wan's VAE, and the linear code that the autoencoder's training begins with.

Four frames of 8 x 8 pixels, a patch, become 16 numbers. As with Wan's VAE the first latent frame
codes the first frame alone, here as if that frame were shown four times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

CHANNELS = 16
STRIDE_T = 4
STRIDE = 8
PATCH = 3 * STRIDE_T * STRIDE * STRIDE


@dataclass(frozen=True, eq=False)
class LinearCode:
    """The best linear code: `latent = (basis @ patch - mean) / std` for every patch of a video.

    Attributes:
        basis: `[16, 768]` float32 with orthonormal rows, over patches in the order colour, frame,
            row, column (3 x 4 x 8 x 8) of RGB in [-1, 1].
        mean, std: `[16]` float32, of each channel over the clips the code was fitted to.
    """

    basis: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, clips: Tensor | Iterable[Tensor]) -> LinearCode:
        """The 16 principal components of the patches of `clips`, on the clips' device.

        Args:
            clips: RGB in [-1, 1], `[B, 3, F, H, W]`, or several such batches, of any sizes that
                have latents.

        Raises:
            ValueError: no clips, or a size that has no latents.
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
