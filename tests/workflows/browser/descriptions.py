"""What a server tells the page about nodes: made from schemas for ours, recorded for ComfyUI's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]

RECORD = Path(__file__).with_name("core_nodes.json")
"""`{"comfyui": its version, "nodes": {type: description}, "titles": {type: title}}`;
`export_api.py` writes it."""
# By these, artists look for a node like ours.
SEARCHED = (
    *("sparse", "attention", "speed", "wan", "accelerate", "sage", "radial", "cache", "加速"),
    *("hunyuan", "video"),
)
# What ComfyUI adds to inputs that do not say it.
DEFAULTS = {"COMBO": {"multiselect": False}, "STRING": {"multiline": False}}
# Texts for the reader, which the page does without, and what no node of the workflows has.
LEFT_OUT = {
    *("description", "tooltip", "output_tooltips", "search_aliases"),
    *("price_badge", "essentials_category", "hidden"),
}


def nodes_of(workflow: Json) -> Iterator[Json]:
    """The nodes of a workflow and of its subgraphs."""
    for graph in (workflow, *workflow.get("definitions", {}).get("subgraphs", [])):
        yield from graph["nodes"]


def video_files(workflows: Iterable[Json]) -> set[str]:
    """Names of the videos that workflows load."""
    nodes = (node for workflow in workflows for node in nodes_of(workflow))
    return {node["widgets_values"][0] for node in nodes if node["type"] == "LoadVideo"}


def recorded() -> Json:
    """The descriptions of ComfyUI's nodes, by type: whole for those in the workflows."""
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    return named(found["titles"]) | found["nodes"]


def bare(description: Any) -> Any:
    """A description without its texts, which are not needed, nor ours to copy."""
    if isinstance(description, dict):
        return {key: bare(each) for key, each in description.items() if key not in LEFT_OUT}
    return [bare(each) for each in description] if isinstance(description, list) else description


def core_nodes(object_info: Json, workflows: Iterable[Json], ours: Iterable[str]) -> Json:
    """The bare descriptions of those nodes in the workflows that are ComfyUI's, by type."""
    kinds = {node["type"] for workflow in workflows for node in nodes_of(workflow)}
    return {kind: bare(object_info[kind]) for kind in sorted(kinds & {*object_info} - {*ours})}


def searched_titles(object_info: Json, ours: Iterable[str]) -> dict[str, str]:
    """The titles of ComfyUI's nodes that have a searched word in their name, by type."""
    titles = {kind: each["display_name"] or kind for kind, each in object_info.items()}
    return {
        kind: title
        for kind, title in sorted(titles.items())
        if kind not in {*ours} and any(word in f"{kind} {title}".lower() for word in SEARCHED)
    }


def named(titles: Mapping[str, str]) -> Json:
    """Descriptions of nodes of which only the title is known."""
    empty = {"input": {}, "output": [], "output_name": [], "output_is_list": [], "description": ""}
    empty |= {"python_module": "nodes", "category": "core", "output_node": False}
    return {kind: empty | {"name": kind, "display_name": titles[kind]} for kind in titles}


def record(comfyui_version: str, nodes: Json, titles: Mapping[str, str]) -> None:
    """Write the record, one node a line."""
    lines = [f"{json.dumps(kind)}: {json.dumps(each)}" for kind, each in nodes.items()]
    text = ",\n".join(lines)
    RECORD.write_text(
        f'{{"comfyui": {json.dumps(comfyui_version)}, "nodes": {{\n{text}\n}},\n'
        f'"titles": {json.dumps(titles)}}}\n',
        encoding="utf-8",
    )


def with_models(object_info: Json, workflows: Iterable[Json]) -> Json:
    """`object_info` of a server that has every model file the workflows name."""
    found = json.loads(json.dumps(object_info))
    for workflow in workflows:
        for node in nodes_of(workflow):
            names = [model["name"] for model in node.get("properties", {}).get("models", [])]
            for choices in file_lists(found[node["type"]]) if names else ():
                choices += [name for name in names if name not in choices]
    return found


def file_lists(description: Json) -> Iterator[list[str]]:
    """The lists of files among the choices of a loader."""
    for name, (kind, *options) in description["input"]["required"].items():
        if name.rstrip("12").endswith("_name"):
            yield kind if isinstance(kind, list) else options[0]["options"]


def described(schema: Any) -> Json:
    """A schema made with the stand-in for `comfy_api` as ComfyUI describes it to the page."""
    inputs: dict[str, Mapping[str, Any]] = {"required": {}}
    for each in schema.inputs:
        keywords = dict(each.keywords)
        side = "optional" if keywords.pop("optional") else "required"
        options = keywords.pop("extra_dict", {}) | keywords | DEFAULTS.get(each.io_type, {})
        inputs.setdefault(side, {})[each.name] = [each.io_type, options]
    return {
        "input": inputs,
        "input_order": {side: list(each) for side, each in inputs.items()},
        "output": [each.io_type for each in schema.outputs],
        "output_is_list": [False for _ in schema.outputs],
        "output_name": [each.keywords["display_name"] for each in schema.outputs],
        "output_tooltips": [each.keywords["tooltip"] for each in schema.outputs],
        "name": schema.node_id,
        "display_name": schema.display_name,
        "description": schema.description,
        "search_aliases": schema.search_aliases,
        "python_module": "custom_nodes.rectified-spaattn",
        "category": schema.category,
        "output_node": schema.is_output_node,
    }
