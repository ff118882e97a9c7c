"""Shrink the screenshots of `check.py` to the pictures in `docs/images/workflows/`.

<ComfyUI's Python> tests/workflows/browser/pictures.py <the --out folder of check.py>
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

TARGET = Path(__file__).resolve().parents[3] / "docs" / "images" / "workflows"
WIDTH = 1600
"""At least; what is not as wide as that is the blueprint's."""
SCALE = 0.57
"""Of large graphs, which would not be legible if all were made equally wide."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the screenshots")
    folder = parser.parse_args().folder
    TARGET.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as screenshot:
            if screenshot.width < WIDTH:
                continue
            picture = screenshot.convert("RGB")
        width = max(WIDTH, round(picture.width * SCALE))
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        picture.save(TARGET / f"{path.stem}.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    main()
