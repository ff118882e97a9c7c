"""Check the example workflows in a real ComfyUI with its real front end, and write a report.

    <ComfyUI's Python> tests/workflows/browser/check.py --comfyui <folder> --out <folder>

That Python needs ComfyUI's requirements and playwright. Written to `--out`: `report.json`, the
server's `object_info.json`, and screenshots of every graph, of every subgraph, and of the template
browser. `test_front_end.py` runs this file and judges the report.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import descriptions
import front_end
import server

ROOT = Path(__file__).resolve().parents[3]
OUR_NODES = (
    "RectifiedSpaAttn",
    "RectifiedSpaAttnOptions",
    "RectifiedSpaAttnSchedule",
    "RectifiedSpaAttnReport",
    "RectifiedSpaAttnProbe",
    "RectifiedSpaAttnProbeResult",
    "RectifiedSpaAttnSaveProfile",
    "RectifiedSpaAttnLoadProfile",
    "RectifiedSpaAttnBenchmark",
)

Json = dict[str, Any]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for report and pictures")
    parser.add_argument("--pack", type=Path, default=ROOT, help="folder of the custom nodes")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser program")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    workflows = read_all(ROOT / "workflows")
    blueprints = read_all(ROOT / "subgraphs")
    with server.running_server(options.comfyui, options.pack) as comfyui:
        known = [*workflows.values(), *blueprints.values()]
        for name in descriptions.video_files(known):
            comfyui.add_video(name)
        object_info = server.get_json(f"{comfyui.address}/object_info")
        report = {
            "comfyui": server.version(comfyui.address),
            "core_nodes": descriptions.core_nodes(object_info, known, OUR_NODES),
            "titles": descriptions.searched_titles(object_info, OUR_NODES),
            "templates": server.get_json(f"{comfyui.address}/api/workflow_templates"),
            "global_subgraphs": server.get_json(f"{comfyui.address}/global_subgraphs"),
            "files": template_files(comfyui.address, list(workflows)),
            "widget_order": {name: widget_order(comfyui.address, name) for name in OUR_NODES},
            "workflows": {stem: {} for stem in workflows},
        }
        for stem, entry in report["workflows"].items():
            prompt = json.loads((ROOT / "workflows" / "api" / f"{stem}.json").read_text("utf-8"))
            entry["errors_without_models"] = prompt_errors(comfyui.address, prompt)
        for workflow in workflows.values():
            for folder, name in model_files(workflow):
                comfyui.add_placeholder(folder, name)
        object_info = server.get_json(f"{comfyui.address}/object_info")
        write_json(options.out / "object_info.json", object_info)
        with front_end.opened(comfyui.address, options.chromium) as page:
            for stem, workflow in workflows.items():
                report["workflows"][stem] |= inspect(page, workflow, options.out / stem)
            # A blueprint is a workflow that holds one instance of its subgraph.
            report["blueprints"] = {
                stem: inspect(page, workflow, options.out / stem)
                for stem, workflow in blueprints.items()
            }
            report["cards"] = page.template_cards(server.PACK_TITLE, next(iter(workflows)))
            page.page.screenshot(path=options.out / "template_browser.png")
        # Last: an accepted prompt starts to run, which would show in the pictures.
        for entry in report["workflows"].values():
            entry["errors_with_models"] = prompt_errors(comfyui.address, entry["prompt"])
    write_json(options.out / "report.json", report)


def read_all(folder: Path) -> dict[str, Json]:
    """The workflow files of a folder by their stems."""
    files = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def write_json(path: Path, data: Json) -> None:
    """Write `data` readably."""
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")


def template_files(address: str, stems: list[str]) -> dict[str, tuple[int, str, int]]:
    """Status, type and size of each workflow and thumbnail as the template browser gets them."""
    base = f"{address}/api/workflow_templates/{server.PACK_FOLDER}"
    return {
        f"{stem}{suffix}": server.get_status(f"{base}/{stem}{suffix}")
        for stem in stems
        for suffix in (".json", ".jpg")
    }


def widget_order(address: str, node: str) -> list[str]:
    """Names of the inputs of `node` that have a widget, in the server's order."""
    info = server.get_json(f"{address}/object_info/{node}")[node]
    widget_types = {"BOOLEAN", "COMBO", "FLOAT", "INT", "STRING"}
    return [
        name
        for kind in ("required", "optional")
        for name in info["input_order"].get(kind, [])
        if info["input"][kind][name][0] in widget_types
    ]


def prompt_errors(address: str, prompt: Json) -> list[list[str]]:
    """`[node class, error type, input, received value]` of each error; empty when accepted."""
    answer = server.post_prompt(address, prompt)
    errors = [
        [
            node["class_type"],
            error["type"],
            error["extra_info"].get("input_name", ""),
            str(error["extra_info"].get("received_value", "")),
        ]
        for node in answer.get("node_errors", {}).values()
        for error in node["errors"]
    ]
    if not errors and "error" in answer:
        errors = [["", answer["error"]["type"], "", answer["error"]["message"]]]
    return errors


def model_files(workflow: Json) -> set[tuple[str, str]]:
    """Folder and name of every model file the workflow's loaders name."""
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    return {
        (model["directory"], model["name"])
        for graph in graphs
        for node in graph["nodes"]
        for model in node.get("properties", {}).get("models", [])
    }


def inspect(page: front_end.FrontEnd, workflow: Json, picture: Path) -> Json:
    """Load one workflow and say what the front end made of it; pictures go beside `picture`."""
    page.load(workflow)
    findings = page.findings()
    nodes = page.nodes()
    previews = page.run(schedule_previews(workflow))
    page.screenshot(picture.with_name(picture.name + ".png"))
    prompt = page.prompt()
    for number, name in enumerate(sorted({node["graph"] for node in nodes} - {""})):
        page.open_subgraph(name)
        page.screenshot(picture.with_name(f"{picture.name}.subgraph{number}.png"))
    return findings | {
        "ours": [node for node in nodes if node["type"] in OUR_NODES],
        "previews": previews,
        "prompt": prompt,
    }


def schedule_previews(workflow: Json) -> list[str]:
    """Ids of the previews in the root graph that need nothing but a schedule node."""
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    return [
        str(target)
        for _, source, _, target, _, _ in workflow["links"]
        if kinds[target] == "PreviewImage" and kinds[source] == "RectifiedSpaAttnSchedule"
    ]


if __name__ == "__main__":
    main()
