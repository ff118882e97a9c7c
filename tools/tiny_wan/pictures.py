"""Pictures of videos: GIFs, and contact sheets that show frames side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

FRAMES_PER_SECOND = 16  # as Wan's videos
GAP = 4


def to_images(video: Tensor) -> list[Image.Image]:
    """The frames of a video `[3, F, H, W]`, RGB in [-1, 1]; what lies outside is cut off."""
    scaled = (video.float().clamp(-1, 1) + 1) * 127.5
    frames = scaled.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
    return [Image.fromarray(frame) for frame in frames]


def save_gif(video: Tensor, path: str | Path) -> None:
    """Write a video `[3, F, H, W]` in [-1, 1] as a GIF that loops, 16 frames a second."""
    frames = to_images(video)
    # GIF counts in hundredths of a second.
    duration = round(100 / FRAMES_PER_SECOND) * 10
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)


def contact_sheet(videos: Sequence[Tensor], columns: int = 6) -> Image.Image:
    """A picture with a row of `columns` evenly spaced frames for each video.

    Args:
        videos: RGB in [-1, 1], each `[3, F, H, W]`, all of one height and width.
        columns: frames to show of each, 1 or more.
    """
    height, width = videos[0].shape[-2:]
    size = (columns * (width + GAP) - GAP, len(videos) * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    for row, video in enumerate(videos):
        picks = torch.linspace(0, video.shape[1] - 1, columns).round().long()
        for column, frame in enumerate(to_images(video[:, picks.to(video.device)])):
            sheet.paste(frame, (column * (width + GAP), row * (height + GAP)))
    return sheet
