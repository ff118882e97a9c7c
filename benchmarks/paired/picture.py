"""The picture to post: figures, and frames of two clips, dense beside sparse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...nodes.pictures import GRID, MUTED, OVERSAMPLING, TEXT, Canvas, drawable, fitted
from .record import Record, figures, setting_words

WIDTH, MAX_HEIGHT = 960, 4000
MARGIN, GAP = 28, 8
PANEL = (WIDTH - 2 * MARGIN - GAP) // 2
COLUMNS = (28, 104, 248, 392, 540, 770)
SHOWN = (0.25, 0.75)
"""Places of the shown frames in a clip."""

Clip = tuple[Sequence[Path], Sequence[Path]]
"""Frames of the dense and of the sparse clip."""


def draw_comparison(record: Record, clips: Sequence[Clip]) -> Image.Image:
    """The finished RGB picture, 960 pixels wide.

    Args:
        record: as `record.check` describes it.
        clips: the frames of each of its clips.
    """
    canvas = Canvas.empty(WIDTH, MAX_HEIGHT)
    right, found = WIDTH - MARGIN, record["summary"]
    canvas.text((MARGIN, 42), fitted(record["device"]["name"], 24, 500), 24, TEXT, "ls")
    versions = f"Rectified SpaAttn {record['pack']}, ComfyUI {record['software']['comfyui']}"
    canvas.text((right, 42), versions, 15, MUTED, "rs")
    workflow = record["workflow"]
    size = f"{workflow['width']}x{workflow['height']}, {workflow['frames']} frames"
    model = " + ".join(workflow["diffusion"] or [workflow["name"]])
    canvas.text((MARGIN, 70), fitted(model, 15, right - MARGIN), 15, MUTED, "ls")
    many = "1 clip" if found["clips"] == 1 else f"{found['clips']} clips"
    line = f"{setting_words(record)}, {size}: {many} against the same seed with the node off"
    if record["device"]["type"] == "cpu":
        line += "; on a CPU times tell nothing"
    canvas.text((MARGIN, 92), fitted(drawable(line), 15, right - MARGIN), 15, MUTED, "ls")
    y = 128.0
    for x, (name, value) in zip(COLUMNS, figures(record).items(), strict=True):
        canvas.text((x, y), name, 14, MUTED, "ls")
        canvas.text((x, y + 22), value, 16, TEXT, "ls")
    canvas.line((MARGIN, y + 38), (right, y + 38), GRID, 1)
    y += 66
    for number, what in _shown(record):
        clip = record["clips"][number]
        words = [f"{what}: seed {clip['seed']:.0f}", f"SSIM {clip['ssim']:.3f}"]
        words[1:1] = ["equal"] if clip["psnr"] is None else [f"PSNR {clip['psnr']:.1f} dB"]
        words += [] if clip["lpips"] is None else [f"LPIPS {clip['lpips']:.3f}"]
        words += [f'"{clip["prompt"]}"'] if clip["prompt"] else []
        caption = fitted(drawable(", ".join(words)), 15, right - MARGIN)
        canvas.text((MARGIN, y), caption, 15, TEXT, "ls")
        y = _panels(canvas, y + 8, clips[number]) + 30
    return canvas.cut(y - 8)


def _shown(record: Record) -> list[tuple[int, str]]:
    """Numbers of the clips that are shown: the worst one and the middle one."""
    values = [clip["psnr"] for clip in record["clips"]]
    order = sorted(range(len(values)), key=lambda each: float("inf") if values[each] is None
                   else values[each])  # fmt: skip
    if len(order) == 1:
        return [(0, "the clip")]
    middle = order[len(order) // 2]
    return [(order[0], "worst clip"), (middle, "best clip" if len(order) == 2 else "middle clip")]


def _panels(canvas: Canvas, y: float, clip: Clip) -> float:
    """Frames of a clip, dense left and sparse right; returns their lower edge."""
    for index, place in enumerate(SHOWN):
        number = round(place * (len(clip[0]) - 1))
        height = 0
        for x, name, files in zip(
            (MARGIN, MARGIN + PANEL + GAP), ("dense", "sparse"), clip, strict=True
        ):
            with Image.open(files[number]) as image:
                picture = image.convert("RGB")
            height = round(picture.height * PANEL / picture.width)
            scaled = picture.resize((PANEL * OVERSAMPLING, height * OVERSAMPLING))
            canvas.image.paste(scaled, (x * OVERSAMPLING, round(y) * OVERSAMPLING))
            if index == 0:
                canvas.fill((x, y, x + 58, y + 22), (30, 31, 36))
                canvas.text((x + 6, y + 16), name, 14, TEXT, "ls")
        y = round(y) + height + GAP
    return y
