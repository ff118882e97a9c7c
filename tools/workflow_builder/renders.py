"""The files that `tools/render_thumbnails.py` writes and the thumbnails are drawn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).resolve().parent / "renders"
RECORDS = FOLDER / "renders.json"


def load_records() -> dict[str, dict[str, Any]]:
    """Settings and measurements by the workflow's stem."""
    return json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}


def save_records(records: dict[str, dict[str, Any]]) -> None:
    """Write them, in order of their stems."""
    text = json.dumps(dict(sorted(records.items())), indent=1)
    RECORDS.write_text(text + "\n", encoding="utf-8")


def load_pair(stem: str) -> tuple[Image.Image, Image.Image]:
    """The dense and the sparse frame of a workflow, RGB."""
    with Image.open(FOLDER / f"{stem}.jpg") as pair:
        picture = pair.convert("RGB")
    half = picture.width // 2
    return (
        picture.crop((0, 0, half, picture.height)),
        picture.crop((half, 0, picture.width, picture.height)),
    )
