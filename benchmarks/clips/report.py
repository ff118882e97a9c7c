"""Records of the clips, their table, and pictures: side by side, and where they differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..output import COLOURS, INK, STYLE
from ..trained_model import tiny_wan
from .model import Sampled, Variant
from .picture_metrics import psnr, ssim

COLUMNS = {
    "kept": ("kept", "{:g}"),
    "dense_steps": ("dense steps", "{}"),
    "seconds": ("s", "{:.2f}"),
    "sparse_step_seconds": ("s/sparse step", "{:.3f}"),
    "density": ("density", "{:.3f}"),
    "mean_kept": ("mean kept", "{:.3f}"),
    "sparse_calls": ("sparse", "{}"),
    "dense_calls": ("dense", "{}"),
    "psnr": ("PSNR dB", "{:.2f}"),
    "psnr_spread": ("±", "{:.2f}"),
    "psnr_worst_scene": ("worst scene", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "ssim_spread": ("±", "{:.4f}"),
}
"""Of the table: field of a row to heading and form."""

MARGIN = 6
LABEL_HEIGHT = 24
SHOWN_FRAMES = 6
WIDEST_PIXELS = 1024
PANEL_INCHES = 1.9
CURVE_INCHES = 1.7


@dataclass(frozen=True)
class Run:
    """One clip.

    Attributes:
        variant: how self-attention ran.
        scene, seed: of the clip.
        batch: clips that were sampled at once.
        seconds: of sampling, the batch's share of this clip.
        sparse_step_seconds: the same for one step, the median over those with sparse calls; over
            all steps for full attention. None where there are none.
        density: kept share of the block pairs that was really computed, None without sparse calls.
        mean_kept: the same over all calls, of which dense ones keep all.
        sparse_calls, dense_calls: attention calls of the batch, None for full attention.
        reasons: dense calls by reason.
        psnr, ssim: against the dense clip, None for the dense one; PSNR in dB.
    """

    variant: Variant
    scene: int
    seed: int
    batch: int
    seconds: float
    sparse_step_seconds: float | None
    density: float | None = None
    mean_kept: float | None = None
    sparse_calls: int | None = None
    dense_calls: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    psnr: float | None = None
    ssim: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return describe(self.variant) | {k: v for k, v in asdict(self).items() if k != "variant"}


def describe(variant: Variant) -> dict[str, Any]:
    """Columns of a record that tell which variant it is."""
    return {
        "variant": variant.label,
        "method": variant.name,
        "block": variant.block,
        "kept": None if variant.shares else variant.kept,
        "dense_steps": variant.dense_steps,
        "precision": variant.precision,
        "ramp": variant.ramp,
        "shares": list(variant.shares),
    }


def runs_of(
    variant: Variant, scene: int, seeds: list[int], sampled: Sampled, videos: Tensor, dense: Tensor
) -> list[Run]:
    """A record for each clip of a batch.

    Args:
        videos, dense: RGB `[S, 3, F, H, W]` of this variant and of full attention.
    """
    record, batch = sampled.record, len(seeds)
    counted: dict[str, Any] = {}
    likeness: list[dict[str, Any]] = [{} for _ in seeds]
    steps = sampled.step_seconds
    if record is not None:
        steps = [steps[each.step] for each in record.steps if each.sparse and each.step is not None]
        counted = {
            "density": record.density,
            "mean_kept": ((record.density or 0.0) * record.sparse + record.dense)
            / max(record.sparse + record.dense, 1),
            "sparse_calls": record.sparse,
            "dense_calls": record.dense,
            "reasons": {reason.text: count for reason, count in record.reasons.items()},
        }
        pairs = zip(psnr(videos, dense).tolist(), ssim(videos, dense).tolist(), strict=True)
        likeness = [{"psnr": decibels, "ssim": similarity} for decibels, similarity in pairs]
    seconds = math.fsum(sampled.step_seconds) / batch
    step = statistics.median(steps) / batch if steps else None
    return [
        Run(variant, scene, seed, batch, seconds, step, **counted, **alike)
        for seed, alike in zip(seeds, likeness, strict=True)
    ]


def table_of(runs: list[Run]) -> list[dict[str, Any]]:
    """One row for each variant, means over its clips; spreads are standard deviations (n - 1)."""
    rows = []
    for variant in dict.fromkeys(run.variant for run in runs):
        group = [run for run in runs if run.variant == variant]
        row: dict[str, Any] = {**describe(variant), "clips": len(group)}
        for name in ("seconds", "sparse_step_seconds", "density", "mean_kept", "psnr", "ssim"):
            values = [value for run in group if (value := getattr(run, name)) is not None]
            row[name], row[f"{name}_spread"] = mean_and_spread(values) if values else (None, None)
        scenes: dict[int, list[float]] = {}
        for run in group:
            if run.psnr is not None:
                scenes.setdefault(run.scene, []).append(run.psnr)
        means = [mean_and_spread(values)[0] for values in scenes.values()]
        row["psnr_worst_scene"] = min(means) if len(means) > 1 else None
        # Calls are counted by batch, and all batches of a run are alike.
        for name in ("sparse_calls", "dense_calls", "reasons"):
            row[name] = getattr(group[0], name)
        rows.append(row)
    return rows


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample (n - 1), which is NaN below two values."""
    mean = math.fsum(values) / len(values)
    finite = len(values) > 1 and math.isfinite(mean)
    return mean, statistics.stdev(values, mean) if finite else math.nan


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
    width = min(WIDEST_PIXELS // len(images), first.width)
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
