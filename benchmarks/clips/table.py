"""The records of the clips and their table."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from .model import Sampled, Variant
from .picture_metrics import psnr, ssim


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
