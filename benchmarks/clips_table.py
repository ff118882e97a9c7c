"""The records of the clips, their table, and the file they are saved to."""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .clips_model import Sampled, Variant
from .picture_metrics import mean_and_spread, psnr, ssim


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
    sparse_calls: int | None = None
    dense_calls: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    psnr: float | None = None
    ssim: float | None = None


def runs_of(
    variant: Variant, scene: int, seeds: list[int], sampled: Sampled, videos: Tensor, dense: Tensor
) -> list[Run]:
    """A record for each clip of a batch.

    Args:
        videos, dense: RGB `[S, 3, F, H, W]` of this variant and of full attention.
    """
    report, batch = sampled.report, len(seeds)
    counted: dict[str, Any] = {}
    steps = sampled.step_seconds
    if report is not None:
        steps = steps[variant.dense_steps :]
        counted = {
            "density": report.density,
            "sparse_calls": report.sparse,
            "dense_calls": report.dense,
            "reasons": dict(report.reasons),
        }
    seconds = math.fsum(sampled.step_seconds) / batch
    step = statistics.median(steps) / batch if steps else None
    likeness: list[dict[str, Any]] = [{} for _ in seeds]
    if report is not None:
        pairs = zip(psnr(videos, dense).tolist(), ssim(videos, dense).tolist(), strict=True)
        likeness = [{"psnr": decibels, "ssim": similarity} for decibels, similarity in pairs]
    return [
        Run(variant, scene, seed, batch, seconds, step, **counted, **alike)
        for seed, alike in zip(seeds, likeness, strict=True)
    ]


def table_of(runs: list[Run]) -> list[dict[str, Any]]:
    """One row for each variant, means over its clips; spreads are standard deviations (n - 1)."""
    rows = []
    for variant in dict.fromkeys(run.variant for run in runs):
        group = [run for run in runs if run.variant == variant]
        row: dict[str, Any] = {**asdict(variant), "variant": variant.label, "clips": len(group)}
        for name in ("seconds", "sparse_step_seconds", "density", "psnr", "ssim"):
            values = [value for run in group if (value := getattr(run, name)) is not None]
            row[name], row[f"{name}_spread"] = mean_and_spread(values) if values else (None, None)
        # Calls are counted by batch, and all batches of a run are alike.
        row["sparse_calls"], row["dense_calls"] = group[0].sparse_calls, group[0].dense_calls
        row["reasons"] = group[0].reasons
        rows.append(row)
    return rows


HEADINGS: tuple[str, ...]
HEADINGS = ("variant", "kept", "dense steps", "s", "s/sparse step", "density", "sparse", "dense")
HEADINGS += ("PSNR dB", "SSIM")


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table as text."""
    lines = [list(HEADINGS)]
    for row in rows:
        is_dense = row["rectification"] == "dense"
        lines.append(
            [
                row["variant"],
                "" if is_dense else f"{row['kept']:g}",
                "" if is_dense else str(row["dense_steps"]),
                f"{row['seconds']:.2f}",
                _text(row["sparse_step_seconds"], "{:.3f}"),
                _text(row["density"], "{:.3f}"),
                _text(row["sparse_calls"], "{}"),
                _text(row["dense_calls"], "{}"),
                _with_spread(row, "psnr", "{:.2f}"),
                _with_spread(row, "ssim", "{:.4f}"),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    texts.insert(1, "-" * len(texts[0]))
    return texts


def _text(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def _with_spread(row: dict[str, Any], name: str, form: str) -> str:
    value, spread = row[name], row[f"{name}_spread"]
    if value is None:
        return ""
    return form.format(value) + ("" if math.isnan(spread) else f" ± {form.format(spread)}")


def save_results(about: dict[str, Any], runs: list[Run], path: Path) -> None:
    """Write what is known so far as JSON; infinities and NaN become null."""
    data = {**about, "table": table_of(runs), "runs": [_flat(run) for run in runs]}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(_finite(data), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def _flat(run: Run) -> dict[str, Any]:
    record = asdict(run)
    return {**record.pop("variant"), "variant": run.variant.label, **record}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
