"""Pictures of the clips: side by side as a GIF, and where they differ from the dense clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..output import COLOURS, INK, STYLE
from ..trained_model import tiny_wan
from .picture_metrics import psnr

MARGIN = 6
LABEL_HEIGHT = 24
SHOWN_FRAMES = 6
PANEL_PIXELS = 256
PANEL_INCHES = 1.9
CURVE_INCHES = 1.7


def save_side_by_side(clips: dict[str, Tensor], path: Path) -> None:
    """Write a GIF with a panel for every clip.

    Args:
        clips: label to RGB `[3, F, H, W]` in [-1, 1], all of one shape.
        path: of the GIF.
    """
    pictures = tiny_wan("pictures")
    images = [pictures.to_images(clip) for clip in clips.values()]
    frames = [_panels(tuple(clips), row) for row in zip(*images, strict=True)]
    # GIF counts in hundredths of a second.
    duration = round(100 / pictures.FRAMES_PER_SECOND) * 10
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)


def _panels(labels: Sequence[str], images: Sequence[Image.Image]) -> Image.Image:
    """One picture of labelled panels beside one another; clips are not enlarged."""
    first = images[0]
    width = min(PANEL_PIXELS, first.width)
    height = round(first.height * width / first.width)
    total = len(images) * (width + MARGIN) - MARGIN
    sheet = Image.new("RGB", (total, height + LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for index, (label, image) in enumerate(zip(labels, images, strict=True)):
        left = index * (width + MARGIN)
        draw.text((left + width / 2, LABEL_HEIGHT / 2), label, fill=INK, font=font, anchor="mm")
        sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, LABEL_HEIGHT))
    return sheet


def save_differences(clips: dict[str, Tensor], title: str, path: Path) -> None:
    """Draw for every clip but the first where it differs from the first, over its frames.

    Args:
        clips: method's name to RGB `[3, F, H, W]` in [-1, 1]; the first one is the dense clip.
        title: of the picture.
        path: of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    (_, dense), *others = clips.items()
    picks = torch.linspace(0, dense.shape[1] - 1, min(SHOWN_FRAMES, dense.shape[1])).round().long()
    # Mean over the colours of the absolute difference, in shares of the range from black to white.
    maps = {label: ((clip - dense).abs().mean(0) / 2)[picks].cpu() for label, clip in others}
    highest = max(1e-6, *(float(np.percentile(each.numpy(), 99.5)) for each in maps.values()))
    with plt.rc_context(STYLE | {"axes.grid": False}):
        rows = len(maps) + 1
        height = rows * (PANEL_INCHES * dense.shape[-2] / dense.shape[-1] + 0.25) + 0.7
        size = (PANEL_INCHES * len(picks) + 1.6, height + CURVE_INCHES)
        figure = plt.figure(figsize=size, layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[height, CURVE_INCHES])
        upper, lower = parts
        bare: dict[str, Any] = {"xticks": [], "yticks": []}
        axes = upper.subplots(rows, len(picks), squeeze=False, subplot_kw=bare)
        images = tiny_wan("pictures").to_images(dense[:, picks.to(dense.device)])
        for column, image in enumerate(images):
            axes[0, column].imshow(image)
            axes[0, column].set_title(f"frame {int(picks[column])}", fontsize=10)
        drawn: Any = None
        for row, heat in zip(axes[1:], maps.values(), strict=True):
            for each, picture in zip(row, heat.numpy(), strict=True):
                drawn = each.imshow(picture, cmap="magma", vmin=0.0, vmax=highest)
        for row, label in zip(axes, ("dense", *maps), strict=True):
            row[0].set_ylabel(label)
        bar = upper.colorbar(drawn, ax=axes[1:], shrink=0.8, pad=0.01)
        bar.set_label("difference to the dense clip (1 = black to white)")
        _draw_psnr(lower.subplots(), dense, others)
        upper.suptitle(title, fontweight="bold")
        figure.savefig(path, dpi=110, facecolor="white")
        plt.close(figure)


def _draw_psnr(axes: Any, dense: Tensor, others: Sequence[tuple[str, Tensor]]) -> None:
    """PSNR to the dense clip, frame by frame."""
    for label, clip in others:
        # Frames take the place of the batch.
        frames, expected = (each.transpose(0, 1)[:, :, None] for each in (clip, dense))
        values = psnr(frames, expected).cpu().numpy()
        axes.plot(values, label=label, color=COLOURS.get(label), linewidth=1.6)
    axes.set_xlabel("frame")
    axes.set_ylabel("PSNR to dense, dB")
    axes.grid(True)
    axes.legend(ncols=len(others))
