"""Draw the registry's icon and banner: the critical blocks of a synthetic head as a picture.

python tools/draw_brand.py        # writes docs/images/icon.png and docs/images/banner.png
"""

from pathlib import Path

import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from rectified_spaattn.benchmarks.synthetic import synthetic_qkv
from rectified_spaattn.rspa_core import SparseConfig, TokenLayout, critical_blocks

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
BACKGROUND = (16, 24, 36)
EMPTY = (30, 43, 61)
NEAR, FAR = (86, 180, 233), (230, 159, 0)
TEXT, SUBTEXT = (240, 244, 248), (159, 179, 200)
SCALE = 4  # drawn larger and shrunk, for smooth edges


def block_mask(grid: tuple[int, int, int], sparsity: float) -> torch.Tensor:
    """Critical blocks of one head that looks at its own object, bool [NQ, NK]."""
    q, k, _ = synthetic_qkv("content", grid, 1, seed=5)
    layout = TokenLayout(grid, q.shape[2])
    return critical_blocks(q, k, layout, SparseConfig(sparsity=sparsity))[0, 0]


def draw_mask(image: Image.Image, mask: torch.Tensor, left: int, top: int, size: int) -> None:
    """Draw `mask` as rounded cells; the colour tells the distance from the diagonal."""
    draw = ImageDraw.Draw(image)
    count = len(mask)
    cell = size / count
    for row in range(count):
        for column in range(count):
            share = min(1.0, 2.0 * abs(row - column) / count)
            near_to_far = zip(NEAR, FAR, strict=True)
            colour = tuple(round(a + (b - a) * share) for a, b in near_to_far)
            x, y, gap = left + column * cell, top + row * cell, cell * 0.1
            draw.rounded_rectangle(
                (x + gap, y + gap, x + cell - gap, y + cell - gap),
                radius=cell * 0.2,
                fill=colour if mask[row, column] else EMPTY,
            )


def font(size: int, weight: str) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight=weight)
    return ImageFont.truetype(font_manager.findfont(properties), size)


def icon() -> Image.Image:
    """The square icon: a small mask."""
    size = 400 * SCALE
    image = Image.new("RGB", (size, size), BACKGROUND)
    margin = size // 10
    draw_mask(image, block_mask((4, 16, 24), 0.7), margin, margin, size - 2 * margin)
    return image.resize((400, 400), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The 21:9 banner: name on the left, mask on the right."""
    width, height = 1260 * SCALE, 540 * SCALE
    image = Image.new("RGB", (width, height), BACKGROUND)
    margin = height // 9
    size = height - 2 * margin
    draw_mask(image, block_mask((6, 24, 32), 0.75), width - size - margin, margin, size)
    draw = ImageDraw.Draw(image)
    draw.text((margin, height * 0.35), "Rectified", TEXT, font(86 * SCALE, "bold"), anchor="lm")
    draw.text((margin, height * 0.52), "SpaAttn", TEXT, font(86 * SCALE, "bold"), anchor="lm")
    lines = "Block-sparse attention for video in ComfyUI\nWan, HunyuanVideo, MiniMax H3 and LTX"
    draw.multiline_text(
        (margin, height * 0.64), lines, SUBTEXT, font(26 * SCALE, "normal"), spacing=8 * SCALE
    )
    return image.resize((1260, 540), Image.Resampling.LANCZOS)


def main() -> None:
    """Write both pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    icon().save(FOLDER / "icon.png", optimize=True)
    banner().save(FOLDER / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
