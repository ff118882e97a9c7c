"""Write `workflows/api/<stem>.json`: the example workflows in API format, for headless use.

    <ComfyUI's Python> tests/workflows/browser/export_api.py --comfyui <folder>

The front end itself does the conversion, so subgraphs are flattened exactly as *Run* does it. That
Python needs ComfyUI's requirements and playwright.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import front_end
import server

ROOT = Path(__file__).resolve().parents[3]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--pack", type=Path, default=ROOT, help="folder of the custom nodes")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser program")
    options = parser.parse_args()
    target = ROOT / "workflows" / "api"
    target.mkdir(exist_ok=True)
    with (
        server.running_server(options.comfyui, options.pack) as comfyui,
        front_end.opened(comfyui.address, options.chromium) as page,
    ):
        for path in sorted((ROOT / "workflows").glob("*.json")):
            page.load(json.loads(path.read_text(encoding="utf-8")))
            text = json.dumps(page.prompt(), indent=1, ensure_ascii=False)
            (target / path.name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
