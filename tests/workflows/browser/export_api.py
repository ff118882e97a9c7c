"""Write `workflows/api/<stem>.json`: the example workflows in API format, for headless use.

    <ComfyUI's Python> tests/workflows/browser/export_api.py --comfyui <folder>

The front end itself does the conversion, so subgraphs are flattened exactly as *Run* does it. Also
written: `core_nodes.json`, how ComfyUI describes its nodes in the workflows, for the tests of the
page without a server. That Python needs ComfyUI's requirements and playwright.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import descriptions
import front_end
import server
from check import OUR_NODES, read_all

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
        workflows = read_all(ROOT / "workflows")
        for name in descriptions.video_files(workflows.values()):
            comfyui.add_video(name)
        for stem, workflow in workflows.items():
            page.load(workflow)
            text = json.dumps(page.prompt(), indent=1, ensure_ascii=False)
            (target / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
        known = [*workflows.values(), *read_all(ROOT / "subgraphs").values()]
        info = server.get_json(f"{comfyui.address}/object_info")
        descriptions.record(
            server.version(comfyui.address),
            descriptions.core_nodes(info, known, OUR_NODES),
            descriptions.searched_titles(info, OUR_NODES),
        )


if __name__ == "__main__":
    main()
