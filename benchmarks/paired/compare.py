"""How far two clips of one seed are apart: frame by frame from PNG files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..clips.picture_metrics import psnr, ssim

Distance = Callable[[Tensor, Tensor], Tensor]


def lpips_distance() -> Distance | None:
    """LPIPS with AlexNet, or None where the package is not installed or cannot load its weights.

    R. Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018.
    """
    try:
        import lpips
    except ImportError:
        return None
    try:
        return lpips.LPIPS(net="alex", verbose=False)
    except OSError as error:  # torchvision fetches AlexNet when it is first used
        print(f"LPIPS is left out, its weights cannot be loaded: {error}")
        return None


def compare(
    dense: Sequence[Path], sparse: Sequence[Path], distance: Distance | None
) -> dict[str, float | None]:
    """PSNR in dB, SSIM and LPIPS of a clip to the dense one.

    Args:
        dense, sparse: the frames as PNG, in their order.
        distance: of pictures `[1, 3, H, W]` in [-1, 1], or None.

    Returns:
        "psnr", over the whole clip, None where all frames are equal; "ssim" and "lpips", means over
        frames, the latter None without `distance`.

    Raises:
        ValueError: other numbers or sizes of frames.
    """
    errors, likeness, distances = [], [], []
    if len(dense) != len(sparse) or not dense:
        raise ValueError(f"clips have {len(dense)} and {len(sparse)} frames, allowed is one number")
    for pair in zip(dense, sparse, strict=True):
        x, y = (_picture(path) for path in pair)
        clips = x[:, :, None], y[:, :, None]
        errors.append(10 ** (-float(psnr(*clips)) / 10))
        likeness.append(float(ssim(*clips)))
        if distance is not None:
            with torch.no_grad():
                distances.append(float(distance(x, y)))
    error = fmean(errors)
    return {
        "psnr": -10 * math.log10(error) if error else None,
        "ssim": fmean(likeness),
        "lpips": fmean(distances) if distances else None,
    }


def _picture(path: Path) -> Tensor:
    """RGB `[1, 3, H, W]` in [-1, 1]."""
    with Image.open(path) as image:
        values = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1.0).permute(2, 0, 1)[None]
