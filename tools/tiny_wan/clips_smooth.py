"""A smoother way back from latents to pictures, for pictures that people look at.

`LinearCode.decode` treats every patch alone, so blocks of 8 x 8 pixels show at edges. This decoder
is linear as well, but looks at the 3 x 3 latents around each patch, fitted by least squares to
clips. It gains one to two dB; measurements should stay with `LinearCode.decode`, which loses
nothing of a latent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from .latents import CHANNELS, PATCH, LinearCode, from_patches, to_patches

REACH = 3
# Keeps the fit well posed when the clips are few; small beside the unit variance of latents.
RIDGE = 1e-4


@dataclass(frozen=True, eq=False)
class SmoothDecoder:
    """A patch as a linear function of the latents around it.

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
        if latent.dim() != 5 or latent.shape[1] != CHANNELS or 0 in latent.shape:
            raise ValueError(
                f"latent has shape {tuple(latent.shape)}, "
                f"allowed is [B, {CHANNELS}, T, h, w] with no empty axis"
            )
        kernel, bias = self.kernel.to(latent.device), self.bias.to(latent.device)
        patches = F.conv3d(_pad(latent.float()), kernel, bias)
        return from_patches(patches.permute(0, 2, 3, 4, 1).contiguous())

    def save(self, path: str | Path) -> None:
        """Write the decoder as a safetensors file of about 450 kB."""
        save_file({"kernel": self.kernel.cpu(), "bias": self.bias.cpu()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> SmoothDecoder:
        """Read a file that `save` wrote, to the CPU."""
        return cls(**load_file(str(path)))


def _pad(latent: Tensor) -> Tensor:
    """Latents with the outermost rows and columns repeated once on every side."""
    return F.pad(latent, (1, 1, 1, 1, 0, 0), mode="replicate")
