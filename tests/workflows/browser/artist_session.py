"""An artist tries the example workflows in a real ComfyUI: the program behind its tests.

    <ComfyUI's Python> tests/workflows/browser/artist_session.py --comfyui <folder> --out <folder>

Headless Chromium opens every workflow from the template browser, changes inputs by mouse and
keyboard, runs it on the CPU with tiny models, and watches what the nodes show: with `--all` every
workflow, else one. Written to `--out`: `report.json`, which `test_artist_session.py` judges, and
pictures of the window, of which `session_pictures.py` copies some to `docs/images/ui/`. That Python
needs ComfyUI's requirements and playwright.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import front_end
import session_server
from artist import Artist, Node
from check import write_json
from server import PACK_TITLE
from session_plan import (
    LARGE_NODES,
    NODE,
    OPTIONS,
    PICTURED,
    PROBE,
    REPORT,
    RESULT,
    SHORT_STEM,
    Plan,
    plan_of,
)

WORKFLOWS = session_server.ROOT / "workflows"
RUN_SECONDS = 400

Json = dict[str, Any]


class Visit:
    """The artist's way through the workflows; pictures go to the folder `out`."""

    def __init__(self, artist: Artist, out: Path) -> None:
        self.artist = artist
        self.out = out

    def picture(self, name: str, node: str | None = None) -> None:
        """Keep the window as it looks now, or only the part around a node."""
        self.artist.snapshot(self.out / f"{name}.png", node)

    def workflow(self, stem: str, plan: Plan, by_key: bool, tries_presets: bool) -> Json:
        """Open a workflow, make it small, run it; what was seen."""
        artist = self.artist
        artist.open_template(PACK_TITLE, stem)
        own = {(node["graph"], node["id"]) for node in artist.nodes()}
        report: Json = {"messages_opened": artist.messages()}
        if tries_presets:
            report["presets"] = self.presets()
        hosts = [node["id"] for node in artist.on_show() if NODE in node["inside"]]
        if plan.min_tokens is not None:
            self.add_options()
            for host in hosts:
                artist.enter_subgraph(host)
                self.add_options()
                artist.leave_subgraph()
        report["edits"] = self.tune(plan)
        if hosts:  # the front end shows a node's status only in the graph that is on show
            artist.enter_subgraph(hosts[0])
        watched = self.find(PROBE) or self.find(NODE)
        assert watched is not None, "no node of ours in the graph on show"
        report["watched"] = [n["id"] for n in artist.on_show() if n["type"] == NODE]
        artist.look_at(watched)
        artist.press_run(by_key)
        artist.wait_for_texts(3)
        self.picture(f"{stem}.sampling", watched)
        report["seconds"] = artist.wait_until_done(RUN_SECONDS)
        if hosts:
            artist.leave_subgraph()
        report["texts"] = artist.texts()
        report["messages"] = artist.messages()
        report["cut"] = self.look_around(stem)
        for host in hosts:
            artist.look_at(host)
            self.picture(f"{stem}.subgraph", host)
            artist.enter_subgraph(host)
            report["cut"] |= self.look_around(f"{stem}.inside")
            artist.leave_subgraph()
        artist.wait_for_outputs([REPORT, RESULT, "SaveVideo"])
        report["shown"] = artist.shown()
        report["overridden"] = self.overridden(hosts)
        # Not those that the artist has put into free room: a video may grow over them.
        nodes = [node for node in artist.nodes() if (node["graph"], node["id"]) in own]
        report["overlaps"] = front_end.overlaps(nodes)
        return report

    def look_around(self, name: str) -> dict[str, int | None]:
        """Picture every node of interest in the graph on show.

        Returns:
            By node id, how many pixels of its text are cut off; None where it cannot be seen.
        """
        cut: dict[str, int | None] = {}
        texts = {node["id"]: node["text"] for node in self.artist.shown()}
        # Until the page has laid out a video it lies over everything: those first.
        for node in sorted(self.artist.on_show(), key=lambda node: node["type"] != "SaveVideo"):
            if node["type"] not in PICTURED or node["mode"]:
                continue
            is_large = node["type"] in LARGE_NODES
            if is_large:
                self.artist.make_room(True)
            self.artist.look_at(node["id"])
            if node["type"] == "SaveVideo":  # its node grows once the video has been loaded
                self.artist.page.wait_for_timeout(front_end.SETTLE_MS)
                self.artist.look_at(node["id"])
            self.picture(f"{name}.{PICTURED[node['type']]}.{node['id']}", node["id"])
            if is_large:
                self.artist.make_room(False)
            text = texts[node["id"]]
            if text:
                visible = {plain(e["text"]): e["cut"] for e in self.artist.visible_texts()}
                cut[node["id"]] = visible.get(plain(text))
        return cut

    def overridden(self, hosts: list[str]) -> dict[str, Json]:
        """By id of our nodes: the linked inputs, and the widgets that are shown as disabled."""
        nodes = self.artist.on_show()
        for host in hosts:
            self.artist.enter_subgraph(host)
            nodes += self.artist.on_show()
            self.artist.leave_subgraph()
        return {
            node["id"]: {
                "linked": node["linked"],
                "disabled": [each["name"] for each in node["widgets"] if each["disabled"]],
            }
            for node in nodes
            if node["type"] == NODE
        }

    def find(self, kind: str) -> str | None:
        """The first node of a type in the graph on show that is not muted, by its id."""
        found = [n["id"] for n in self.artist.on_show() if n["type"] == kind and n["mode"] == 0]
        return found[0] if found else None

    def tune(self, plan: Plan) -> list[Json]:
        """Type the plan's values into the graph on show and into its subgraphs."""
        nodes = [node for node in self.artist.on_show() if node["mode"] == 0]
        edits = [edit for node in nodes for edit in self.tune_node(node, plan)]
        for host in [node for node in nodes if node["is_subgraph"]]:
            self.artist.enter_subgraph(host["id"])
            edits += self.tune(plan)
            self.artist.leave_subgraph()
        return edits

    def tune_node(self, node: Node, plan: Plan) -> list[Json]:
        """Type the plan's values into one node; what was typed and what its widgets then hold."""
        artist, edits = self.artist, []
        typed = plan.values_for(node)
        for widget in node["widgets"]:
            name, label = widget["name"], widget["label"]
            if widget["disabled"] or widget["hidden"]:
                continue
            if label in typed and str(widget["value"]) != typed[label]:
                change = artist.choose if name == "backend" else artist.type_value
                change(node["id"], name, typed[label])
                text = typed[label]
            elif label in plan.toggles and widget["value"] != plan.toggles[label]:
                artist.toggle(node["id"], name)
                text = plan.toggles[label]
            elif (
                name in ("text", "prompt")
                and plan.prompt
                and not node["title"].startswith("CLIP Text Encode (Negative")
            ):
                if node["type"] not in ("CLIPTextEncode",) and not node["is_subgraph"]:
                    continue
                text = plan.prompt
                artist.write_prompt(node["id"], name, text)
            else:
                continue
            got = artist.value(node["id"], name)
            edits.append({"node": node["type"], "widget": label, "typed": text, "got": got})
        return edits

    def add_options(self) -> None:
        """Add an options node for each of our nodes on show that has none."""
        artist = self.artist
        for node in artist.on_show():
            if node["type"] == NODE and "options" not in node["linked"]:
                artist.look_at(node["id"], scale=0.6)
                added = artist.add_node("Rectified SpaAttn Options", OPTIONS)
                artist.connect(added, "options", node["id"], "options")

    def presets(self) -> list[Json]:
        """Try presets on our node and change an input by hand; leaves it as it was found."""
        artist, seen = self.artist, []
        node = self.find(NODE)
        assert node is not None, "no node of ours in the graph on show"
        before = artist.value(node, "preset")
        for preset, by_hand in (("fast", "0.7"), ("quality", "0.9")):
            choices = artist.open_list(node, "preset")
            self.picture(f"preset.{preset}.list")
            artist.pick(preset)
            chosen = artist.values(node)
            self.picture(f"preset.{preset}", node)
            artist.type_value(node, "sparsity", by_hand)
            changed = artist.values(node)
            self.picture(f"preset.{preset}.by_hand", node)
            entry = {"preset": preset, "choices": choices, "chosen": chosen}
            seen.append(entry | {"by_hand": by_hand, "changed": changed})
        artist.choose(node, "preset", before)
        return seen


def plain(text: str) -> str:
    """The text with single spaces, however it was broken into lines."""
    return " ".join(text.split())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for report and pictures")
    parser.add_argument("--all", action="store_true", help="every workflow, not only one")
    parser.add_argument("--only", action="append", help="this workflow; may be repeated")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser program")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    checkout = session_server.find_checkout("", str(options.comfyui))
    if isinstance(checkout, str):
        parser.error(checkout)
    files = sorted(WORKFLOWS.glob("*.json"))
    workflows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    is_short = not (options.all or options.only)
    stems = options.only or (
        sorted(workflows, key=lambda stem: stem != SHORT_STEM) if options.all else [SHORT_STEM]
    )
    report: Json = {"workflows": {}}
    with (
        tempfile.TemporaryDirectory(prefix="rspa-artist-") as folder,
        session_server.running(checkout, Path(folder) / "comfy", [*workflows.values()]) as server,
        front_end.opened(server.url, options.chromium) as page,
    ):
        visit = Visit(Artist(page.page, page.address), options.out)
        inputs = server.get(f"/object_info/{NODE}")[NODE]["input"]
        report["definition"] = inputs["required"] | inputs.get("optional", {})
        for number, stem in enumerate(stems):
            plan = plan_of(stem, is_short)
            try:
                seen = visit.workflow(
                    stem, plan, by_key=number % 2 == 0, tries_presets=stem == SHORT_STEM
                )
            except Exception as error:  # the other workflows can still be judged
                seen = {"error": f"{type(error).__name__}: {error}"}
                visit.picture(f"{stem}.failed")
            report["workflows"][stem] = seen
            write_json(options.out / "report.json", report)
        visit.artist.open_templates(PACK_TITLE, SHORT_STEM)
        visit.picture("templates")
        visit.artist.close_templates()
    write_json(options.out / "report.json", report)


if __name__ == "__main__":
    main()
