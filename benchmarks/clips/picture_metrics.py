"""How alike two videos look: PSNR and SSIM, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over whole clips, in dB.

    Args:
        first, second: `[B, 3, F, H, W]` of one shape, RGB in [-1, 1]; what lies outside is cut
            off, as on a screen.

    Returns:
        `[B]` fp32 on the clips' device: 10 log10(1 / mean squared error in [0, 1]), infinite where
        the clips are equal.

    Raises:
        ValueError: other shapes.
    """
    first, second = _checked(first, second)
    return -10.0 * torch.log10((first - second).square().flatten(1).mean(1))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity, the mean over pixels, colours and frames.

    Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error
    visibility to structural similarity", IEEE Transactions on Image Processing 13(4), 2004: a
    Gaussian window of 11 x 11 with standard deviation 1.5, K1 = 0.01, K2 = 0.03, no padding; the
    weighted variances are the biased ones of the paper. Colours are rated one by one.

    Args:
        first, second: as for `psnr`; height and width 11 or more.

    Returns:
        `[B]` fp32 on the clips' device, 1 where the clips are equal.

    Raises:
        ValueError: other shapes.
    """
    first, second = _checked(first, second)
    if min(first.shape[-2:]) < WINDOW:
        height, width = first.shape[-2:]
        raise ValueError(f"height and width are {height}, {width}, allowed are {WINDOW} or more")
    # Frame by frame: the moments of a whole clip would take several times its memory.
    frames = zip(first.unbind(2), second.unbind(2), strict=True)
    return torch.stack([_ssim_of_pictures(x, y) for x, y in frames]).mean(0)


def _ssim_of_pictures(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM `[B]` of `x` and `y [B, 3, H, W]` in [0, 1]."""
    # Differences of squares: fp32 would be exact to three digits only.
    x, y = x.double(), y.double()
    mean_x, mean_y, square_x, square_y, product = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    variance_x, variance_y = square_x - mean_x.square(), square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1).float()


def _blur(pictures: Tensor) -> Tensor:
    """Gaussian means `[..., H - 10, W - 10]` of `[..., H, W]`."""
    # Products of fp64 matrices: exact on every device and twice as fast as a convolution.
    rows, columns = (_windows(size, pictures) for size in pictures.shape[-2:])
    return rows.mT @ (pictures @ columns)


def _windows(size: int, like: Tensor) -> Tensor:
    """Matrix `[size, size - 10]` with the window's weights in every column."""
    places = torch.arange(WINDOW, device=like.device, dtype=like.dtype) - WINDOW // 2
    weights = (-0.5 * (places / SIGMA).square()).exp()
    rows = torch.eye(size, device=like.device, dtype=like.dtype)
    return torch.nn.functional.conv1d(rows[:, None], (weights / weights.sum())[None, None])[:, 0]


def _checked(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both clips in [0, 1] in fp32."""
    if first.ndim != 5 or first.shape[1] != 3 or 0 in first.shape or first.shape != second.shape:
        raise ValueError(
            f"clips have shapes {tuple(first.shape)} and {tuple(second.shape)}, "
            "allowed are two of one shape [B, 3, F, H, W]"
        )
    return _to_unit(first), _to_unit(second)


def _to_unit(clips: Tensor) -> Tensor:
    return (clips.float().clamp(-1.0, 1.0) + 1.0) / 2.0
