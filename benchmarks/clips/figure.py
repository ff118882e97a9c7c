"""Pictures of the clips: side by side as a GIF, and where they differ from the dense clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..output import COLOURS, INK, STYLE
from ..trained_model import tiny_wan
from .picture_metrics import psnr

MARGIN = 6
LABEL_HEIGHT = 24
SHOWN_FRAMES = 6
PANEL_INCHES = 1.9
CURVE_INCHES = 1.7


def save_side_by_side(clips: dict[str, Tensor], path: Path, width: int) -> None:
    """Write a GIF with a panel for every clip.

    Args:
        clips: label to RGB `[3, F, H, W]` in [-1, 1], all of one shape.
        path: of the GIF.
        width: of a panel in pixels at most; clips are not enlarged.
    """
    pictures = tiny_wan("pictures")
    frames = [_panels(row, width) for row in _by_frame(clips, pictures.to_images)]
    # GIF counts in hundredths of a second.
    duration = round(100 / pictures.FRAMES_PER_SECOND) * 10
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)


def _by_frame(clips: dict[str, Tensor], to_images: Any) -> list[dict[str, Image.Image]]:
    images = {label: to_images(clip) for label, clip in clips.items()}
    count = len(next(iter(images.values())))
    return [{label: each[index] for label, each in images.items()} for index in range(count)]


def _panels(row: dict[str, Image.Image], width: int) -> Image.Image:
    """One picture of labelled panels beside one another."""
    first = next(iter(row.values()))
    width = min(width, first.width)
    height = round(first.height * width / first.width)
    total = len(row) * (width + MARGIN) - MARGIN
    sheet = Image.new("RGB", (total, height + LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for index, (label, image) in enumerate(row.items()):
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
    highest = max(1e-6, max(float(each.quantile(0.995)) for each in map(_sampled, maps.values())))
    with plt.rc_context(STYLE | {"axes.grid": False}):
        rows = len(maps) + 1
        panel = PANEL_INCHES * dense.shape[-2] / dense.shape[-1]
        heights = [panel + 0.25] * rows + [CURVE_INCHES]
        size = (PANEL_INCHES * len(picks) + 1.6, sum(heights) + 0.7)
        figure = plt.figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(rows + 1, len(picks), height_ratios=heights)
        images = tiny_wan("pictures").to_images(dense[:, picks.to(dense.device)])
        for column, image in enumerate(images):
            axes = _picture_axes(figure, grid[0, column], "dense" if column == 0 else "")
            axes.imshow(image)
            axes.set_title(f"frame {int(picks[column])}", fontsize=10)
        drawn: Any = None
        axes_with_maps = []
        for row, (label, heat) in enumerate(maps.items(), start=1):
            for column in range(len(picks)):
                axes = _picture_axes(figure, grid[row, column], label if column == 0 else "")
                drawn = axes.imshow(heat[column].numpy(), cmap="magma", vmin=0.0, vmax=highest)
                axes_with_maps.append(axes)
        bar = figure.colorbar(drawn, ax=axes_with_maps, shrink=0.8, pad=0.01)
        bar.set_label("difference to the dense clip (1 = black to white)")
        _draw_psnr(figure.add_subplot(grid[-1, :]), dense, others)
        figure.suptitle(title, fontweight="bold")
        figure.savefig(path, dpi=110, facecolor="white")
        plt.close(figure)


def _sampled(heat: Tensor) -> Tensor:
    """At most a million of the values: `quantile` takes no more than 16 millions."""
    flat = heat.flatten()
    return flat[:: max(1, len(flat) // 1_000_000)]


def _picture_axes(figure: Any, place: Any, label: str) -> Any:
    axes = figure.add_subplot(place)
    axes.set_xticks([])
    axes.set_yticks([])
    if label:
        axes.set_ylabel(label)
    return axes


def _draw_psnr(axes: Any, dense: Tensor, others: Sequence[tuple[str, Tensor]]) -> None:
    """PSNR to the dense clip, frame by frame."""
    for label, clip in others:
        # Frames take the place of the batch.
        frames, expected = (each.transpose(0, 1)[:, :, None] for each in (clip, dense))
        values = psnr(frames, expected).cpu().numpy()
        axes.plot(values, label=label, color=COLOURS.get(label), linewidth=1.6)
    axes.set_xlabel("frame")
    axes.set_ylabel("PSNR to dense, dB")
    axes.grid(color="#e4e7eb")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=len(others))
