"""Pictures of what somebody sees first: templates as opened, the nodes at their own size, searches.

    <ComfyUI's Python> tests/workflows/browser/first_look.py --comfyui <folder> --out <folder>

In a window of 1600 x 1000, for each look (classic or Nodes 2.0, dark or light, English or Chinese);
`--looks` and `--only` choose some. `report.json` has the zoom of each template, what meets in it as
drawn, and what each search lists, for people to judge together with the pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import urllib.request
from itertools import product
from pathlib import Path
from typing import Any

import descriptions
import front_end
import server
from artist import Artist
from check import OUR_NODES, ROOT, model_files, read_all, write_json

Json = dict[str, Any]

RENDERERS = {"classic": False, "nodes2": True}
LOOKS = ["-".join(each) for each in product(RENDERERS, ("dark", "light"), ("en", "zh"))]
EMPTY_GRAPH: Json = {"version": 0.4, "nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0}
# Side by side, each as large as the page makes it.
ADD = """kinds => {
  let x = 0, y = 0;
  kinds.forEach((kind, index) => {
    const node = LiteGraph.createNode(kind);
    app.graph.add(node);
    node.pos = [x, y];
    x += node.size[0] + 60;
    if (index % 4 === 3) { x = 0; y += 420; }
  });
}"""
VIEW = """() => {
  app.canvas.ds.scale = 0.8;
  app.canvas.ds.offset = [110, 160];
  app.canvas.setDirty(true, true);
}"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser program")
    parser.add_argument("--looks", nargs="+", choices=LOOKS, default=LOOKS, help="default: all")
    parser.add_argument("--only", nargs="+", metavar="STEM", help="templates, without the rest")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    workflows = read_all(ROOT / "workflows")
    report: Json = {}
    with server.running_server(options.comfyui, ROOT) as comfyui:
        for workflow in workflows.values():
            for folder, name in model_files(workflow):
                comfyui.add_placeholder(folder, name)
        for name in descriptions.video_files(workflows.values()):
            comfyui.add_video(name)
        for look in options.looks:
            choose(comfyui.address, look)
            with front_end.opened(comfyui.address, options.chromium) as page:
                artist = Artist(page.page, page.address)
                chosen = {stem: workflows[stem] for stem in options.only or workflows}
                report[look] = {
                    stem: template(artist, stem, workflow, options.out / f"{look}.{stem}.png")
                    for stem, workflow in chosen.items()
                }
                if not options.only:
                    own_graph(artist, options.out / f"{look}.nodes.png")
                    report[look]["searches"] = searches(artist, options.out, look)
                    artist.open_templates(server.PACK_TITLE, next(iter(workflows)))
                    artist.page.screenshot(path=options.out / f"{look}.templates.png")
    write_json(options.out / "report.json", report)


def choose(address: str, look: str) -> None:
    """Set the page's settings, as its own dialog does."""
    renderer, palette, language = look.split("-")
    settings = {
        "Comfy.VueNodes.Enabled": RENDERERS[renderer],
        "Comfy.ColorPalette": palette,
        "Comfy.Locale": language,
    }
    request = urllib.request.Request(
        f"{address}/settings",
        data=json.dumps(settings).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60):
        pass


def template(artist: Artist, stem: str, workflow: Json, picture: Path) -> Json:
    """Open a template, take its picture, and say how it was drawn."""
    zoom, is_legible = artist.open_as_template(stem, workflow)
    artist.page.screenshot(path=picture)
    return {
        "zoom": round(zoom, 3),
        "is_legible": is_legible,
        "overlaps": artist.drawn_overlaps(),
        "messages": artist.messages(),
        "nodes": artist.drawn(),
    }


def own_graph(artist: Artist, picture: Path) -> None:
    """The pack's nodes in a graph of one's own, at the sizes that they come with."""
    artist.load(EMPTY_GRAPH)
    artist.page.evaluate(ADD, list(OUR_NODES))
    artist.page.evaluate(VIEW)
    artist.page.wait_for_timeout(front_end.SETTLE_MS)
    artist.page.screenshot(path=picture)


def searches(artist: Artist, out: Path, look: str) -> dict[str, list[str]]:
    """What the node search lists for words by which artists look for a node like ours."""
    artist.load(EMPTY_GRAPH)
    return {
        word: artist.search(word, out / f"{look}.search.{word}.png")
        for word in descriptions.SEARCHED
    }


if __name__ == "__main__":
    main()
