"""Copy pictures of `artist_session.py` to `docs/images/ui/`, the large ones in few colours.

<ComfyUI's Python> tests/workflows/browser/session_pictures.py <its --out folder, after --all>
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

TARGET = Path(__file__).resolve().parents[3] / "docs" / "images" / "ui"
MAX_BYTES = 400_000
MAX_FULL_BYTES = 200_000
"""Larger ones, those of a whole window, get few colours."""
COLOURS = 256
PICTURES = {
    "wan2.1_text_to_video.sampling": "status_while_sampling",
    "wan2.1_text_to_video.report": "report",
}
"""Name in that folder, without the node's id, and name in the documents."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the pictures")
    folder = parser.parse_args().folder
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, target in PICTURES.items():
        found = sorted([*folder.glob(f"{name}.png"), *folder.glob(f"{name}.[0-9]*.png")])
        if not found:
            raise SystemExit(f"{folder} has no picture {name}; was it made with --all?")
        path = TARGET / f"{target}.png"
        with Image.open(found[0]) as picture:
            full = picture.convert("RGB")
        full.save(path, optimize=True)
        if path.stat().st_size > MAX_FULL_BYTES:
            full.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size > MAX_BYTES:
            raise SystemExit(f"{path} has {path.stat().st_size} bytes, at most {MAX_BYTES}")


if __name__ == "__main__":
    main()
