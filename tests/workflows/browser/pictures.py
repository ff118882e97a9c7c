"""Shrink the screenshots of `check.py` to the pictures in `docs/images/workflows/`.

<ComfyUI's Python> tests/workflows/browser/pictures.py <the --out folder of check.py>
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

TARGET = Path(__file__).resolve().parents[3] / "docs" / "images" / "workflows"
WIDTH = 1600
# A larger graph would not be legible at that width; a smaller one is the blueprint's.
MAX_SCREENSHOT_WIDTH = 2800


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the screenshots")
    folder = parser.parse_args().folder
    TARGET.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as screenshot:
            if not WIDTH <= screenshot.width <= MAX_SCREENSHOT_WIDTH:
                continue
            picture = screenshot.convert("RGB")
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
        picture.save(TARGET / f"{path.stem}.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    main()
