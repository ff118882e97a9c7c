"""The subgraph blueprint: a Wan sampler with this pack's node inside, as one node to drop in.

ComfyUI offers every `subgraphs/*.json` of a node pack in its node library. The file is a workflow
that holds one instance of one subgraph.
"""

from __future__ import annotations

import uuid
from typing import Any

from rectified_spaattn.rspa_core.run.presets import PRESETS

from . import nodes
from .graph import Graph, Workflow, empty_subgraph

Json = dict[str, Any]

NAME = "Rectified SpaAttn (Wan sampler)"
DESCRIPTION = (
    "Sampler for Wan video models with sparse, rectified attention inside, and a report of what "
    "really ran. Goes between the model loader (or its LoRAs) and VAE Decode."
)
SHIFT, STEPS, CFG = 8.0, 30, 6.0  # of the official Wan 2.1 template

# Name shown on the node, inner node, its widget, type: the widgets of the instance, in order.
PROMOTED = (
    ("sparse_attention", "attention", "enabled", "BOOLEAN"),
    ("preset", "attention", "preset", "COMBO"),
    ("dense_blocks", "options", "dense_blocks", "STRING"),
    ("shift", "shift", "shift", "FLOAT"),
    ("seed", "sampler", "seed", "INT"),
    ("steps", "sampler", "steps", "INT"),
    ("cfg", "sampler", "cfg", "FLOAT"),
    ("sampler_name", "sampler", "sampler_name", "COMBO"),
    ("scheduler", "sampler", "scheduler", "COMBO"),
    ("denoise", "sampler", "denoise", "FLOAT"),
)
SOCKETS = (
    ("model", "attention", "model", "MODEL"),
    ("positive", "sampler", "positive", "CONDITIONING"),
    ("negative", "sampler", "negative", "CONDITIONING"),
    ("latent_image", "sampler", "latent_image", "LATENT"),
)
OUTPUTS = (
    ("LATENT", "sampler", "LATENT", "LATENT"),
    ("report", "report", "image", "IMAGE"),
    ("summary", "report", "summary", "STRING"),
)


def build_blueprint(version: str) -> Json:
    """The file's content; `version` is this pack's."""
    inner = _inner_nodes(version)
    subgraph_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"rectified-spaattn/{NAME}"))
    instance: Json = {
        "id": 1,
        "type": subgraph_id,
        "pos": [0, 0],
        "size": [400, 380],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [{"name": name, "type": of, "link": None} for name, _, _, of in SOCKETS],
        "outputs": [{"name": name, "type": of, "links": []} for name, _, _, of in OUTPUTS],
        "title": NAME,
        "properties": {"proxyWidgets": [["-1", name] for name, *_ in PROMOTED]},
        "widgets_values": [],
    }
    for name, of_node, widget, of in PROMOTED:
        nodes.widget_input(instance, name, of)
        node = inner[of_node]
        order = list(nodes.kind_of(node["type"]).widgets)
        instance["widgets_values"].append(node["widgets_values"][order.index(widget)])
    data: Json = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"rectified-spaattn/{NAME}/file")),
        "revision": 0,
        "last_node_id": 0,
        "last_link_id": 0,
        "nodes": [instance],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [_empty_subgraph(subgraph_id)]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }
    workflow = Workflow(data)
    (graph,) = workflow.subgraphs
    _fill(graph, inner)
    return workflow.finish()


def _inner_nodes(version: str) -> dict[str, Json]:
    chosen = PRESETS["balanced"].as_dict()
    values = {"preset": "balanced", "block_size": str(chosen["block_size"])}
    values |= {name: chosen[name] for name in ("sparsity", "start_percent", "end_percent", "ramp")}
    sampler = {"steps": STEPS, "cfg": CFG}
    return {
        "attention": nodes.make("RectifiedSpaAttn", (0, 0), version, values),
        "options": nodes.make(
            "RectifiedSpaAttnOptions", (0, 440), version, {"dense_blocks": "0, 1"}
        ),
        "shift": nodes.make("ModelSamplingSD3", (460, 0), version, {"shift": SHIFT}),
        "sampler": nodes.make("KSampler", (460, 140), version, sampler),
        "report": nodes.make("RectifiedSpaAttnReport", (840, 0), version),
    }


def _empty_subgraph(subgraph_id: str) -> Json:
    return empty_subgraph(NAME, subgraph_id) | {
        "category": "Video generation and editing/Sampling",
        "description": DESCRIPTION,
        "extra": {
            "BlueprintDescription": DESCRIPTION,
            "BlueprintSearchAliases": ["sparse attention", "SpaAttn", "faster Wan", "Wan sampler"],
        },
    }


def _fill(graph: Graph, inner: dict[str, Json]) -> None:
    for node in inner.values():
        graph.add_node(node)
    attention, options, shift, sampler, report = inner.values()
    graph.wire(options, "options", attention, "options")
    graph.wire(attention, "model", shift, "model")
    graph.wire(shift, "MODEL", sampler, "model")
    model_link = graph.wire(attention, "model", report, "model")
    graph.wire(sampler, "LATENT", report, "after")
    graph.route(model_link, ((430, -60), (816, -60)))
    for name, of_node, socket, of in SOCKETS:
        graph.add_subgraph_input(name, name, of, [(inner[of_node]["id"], socket)])
    for name, of_node, widget, of in PROMOTED:
        nodes.widget_input(inner[of_node], widget, of)
        graph.add_subgraph_input(name, name, of, [(inner[of_node]["id"], widget)])
    for name, of_node, output, of in OUTPUTS:
        graph.add_subgraph_output(name, of, inner[of_node], output)
