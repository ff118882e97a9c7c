"""The nodes that the builder adds, in the form a workflow file stores them.

A file keeps widget values by position, so the order of the two tables below is the order of the
inputs in `nodes/`. `tests/workflows/test_front_end.py` compares them with a running ComfyUI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

PACK_ID = "rectified-spaattn"
SCHEDULE_TYPE = "RSPA_SCHEDULE"

ATTENTION_WIDGETS: Mapping[str, Any] = {
    "enabled": True,
    "sparsity": 0.75,
    "block_size": "128",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "rectification": "paper",
    "token_order": "gilbert",
    "top_p": 0.0,
    "dense_blocks": "",
    "min_tokens": 8192,
    "verbose": False,
    "precision": "auto",
}

SCHEDULE_WIDGETS: Mapping[str, Any] = {
    "start_sparsity": 0.6,
    "end_sparsity": 0.8,
    "curve": "linear",
    "start_percent": 0.1,
    "end_percent": 1.0,
    "steps": "",
    "dense_steps": "",
    "preview_steps": 20,
}

# The node colours are the front end's own "cyan" preset, its notes are drawn in the usual black.
NODE_COLORS = {"color": "#233", "bgcolor": "#355"}
NOTE_COLORS = {"color": "#222", "bgcolor": "#000"}
GROUP_COLOR = "#8AA"


def attention_node(
    values: Mapping[str, Any], position: tuple[float, float], width: float, title: str, version: str
) -> Json:
    """A `RectifiedSpaAttn` node with the defaults of the schema, overridden by `values`."""
    node = _node("RectifiedSpaAttn", position, (width, 320), version)
    node["inputs"] = [
        {"name": "model", "type": "MODEL", "link": None},
        {"name": "schedule", "shape": 7, "type": SCHEDULE_TYPE, "link": None},
    ]
    node["outputs"] = [{"name": "MODEL", "type": "MODEL", "links": []}]
    node["widgets_values"] = _positional(ATTENTION_WIDGETS, values)
    return node | {"title": title} | NODE_COLORS


def schedule_node(
    values: Mapping[str, Any], position: tuple[float, float], title: str, version: str
) -> Json:
    """A `RectifiedSpaAttnSchedule` node with the schema's defaults, overridden by `values`."""
    node = _node("RectifiedSpaAttnSchedule", position, (400, 318), version)
    node["inputs"] = []
    node["outputs"] = [
        {"name": "schedule", "type": SCHEDULE_TYPE, "links": []},
        {"name": "preview", "type": "IMAGE", "links": []},
    ]
    node["widgets_values"] = _positional(SCHEDULE_WIDGETS, values)
    return node | {"title": title} | NODE_COLORS


def preview_node(position: tuple[float, float], size: tuple[float, float], title: str) -> Json:
    """A core `PreviewImage` node, which shows the curve that a schedule describes."""
    node = _node("PreviewImage", position, size, None)
    node["inputs"] = [{"name": "images", "type": "IMAGE", "link": None}]
    node["outputs"] = []
    node["widgets_values"] = []
    return node | {"title": title}


def note_node(text: str, position: tuple[float, float], size: tuple[float, float]) -> Json:
    """A `MarkdownNote`, which only the front end knows; the server never sees it."""
    return {
        "id": 0,
        "type": "MarkdownNote",
        "pos": list(position),
        "size": list(size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Rectified SpaAttn: what to try",
        "properties": {},
        "widgets_values": [text],
    } | NOTE_COLORS


def widget_input(node: Json, name: str, widget_type: str) -> None:
    """List the widget `name` among the inputs of `node`, so that a link can drive it."""
    node["inputs"].append(
        {"name": name, "type": widget_type, "widget": {"name": name}, "link": None}
    )


def _node(
    node_type: str, position: tuple[float, float], size: tuple[float, float], version: str | None
) -> Json:
    core = {"cnr_id": "comfy-core", "ver": "0.8.0"}
    origin = core if version is None else {"cnr_id": PACK_ID, "ver": version}
    return {
        "id": 0,
        "type": node_type,
        "pos": list(position),
        "size": list(size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "properties": origin | {"Node name for S&R": node_type},
    }


def _positional(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> list[Any]:
    unknown = set(values) - set(defaults)
    if unknown:
        raise ValueError(f"widgets {sorted(unknown)} do not exist: one of {list(defaults)}")
    return list((dict(defaults) | dict(values)).values())
