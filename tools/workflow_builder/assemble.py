"""Turns an official template and a `Spec` into one of this pack's example workflows."""

from __future__ import annotations

import copy
from typing import Any

from . import nodes
from .graph import Graph, Workflow, WorkflowError
from .specs import Schedule, Spec

Json = dict[str, Any]


def assemble(template: Json, spec: Spec, version: str, origin: str) -> Json:
    """The finished workflow file; `template` is left as it is.

    `version` is this pack's, written into the properties of its nodes; `origin` names the package
    of the template, kept in the file. `WorkflowError` says what no longer fits when a newer
    template has changed.
    """
    workflow = Workflow(copy.deepcopy(template))
    graph = _graph_with(workflow, spec.insertions[0].source)
    graph.shift_right(spec.shift.from_x, spec.shift.distance, spec.shift.above_y)
    if spec.root_shift is not None:
        shift = spec.root_shift
        workflow.root.shift_right(shift.from_x, shift.distance, shift.above_y)
    _set_widgets(workflow, spec)
    for node_id, distance in spec.lower.items():
        graph.node(node_id)["pos"][1] += distance

    inserted = [
        graph.insert_after(
            item.source,
            nodes.attention_node(item.values, item.position, item.width, item.title, version),
            item.targets,
        )
        for item in spec.insertions
    ]
    graph.add_group("Sparse attention", spec.group, nodes.GROUP_COLOR)
    if spec.schedules:
        _add_controls(workflow, graph, spec, [node["id"] for node in inserted], version)

    x, y, width, height = spec.note_box
    workflow.root.add_node(nodes.note_node(spec.note, (x, y), (width, height)))
    workflow.rename(spec.stem)
    workflow.data["extra"]["built_from"] = f"{spec.template}, {origin}"
    for subgraph in workflow.subgraphs:
        subgraph.data["name"] += " + Rectified SpaAttn"
    return workflow.finish()


def _graph_with(workflow: Workflow, node_id: int) -> Graph:
    for graph in workflow.graphs:
        if any(node["id"] == node_id for node in graph.nodes):
            return graph
    raise WorkflowError(f"no graph of the template holds node {node_id}")


def _set_widgets(workflow: Workflow, spec: Spec) -> None:
    for (node_id, position), value in spec.widgets.items():
        values = _graph_with(workflow, node_id).node(node_id)["widgets_values"]
        if not isinstance(value, type(values[position])):
            raise WorkflowError(
                f"node {node_id}, widget {position} holds {values[position]!r}: "
                f"{value!r} does not look like a value for it"
            )
        values[position] = value


def _add_controls(
    workflow: Workflow, graph: Graph, spec: Spec, node_ids: list[int], version: str
) -> None:
    """Schedules beside the subgraph's instance, and one on/off switch on it."""
    instance = next(node for node in workflow.root.nodes if node["type"] == graph.data["id"])
    for schedule in spec.schedules:
        targets = [(node_ids[index], "schedule") for index in schedule.feeds]
        graph.add_subgraph_input(schedule.name, schedule.name, nodes.SCHEDULE_TYPE, targets)
        instance["inputs"].append(
            {"name": schedule.name, "shape": 7, "type": nodes.SCHEDULE_TYPE, "link": None}
        )
        _add_schedule(workflow.root, schedule, instance, version)
    for node_id in node_ids:
        nodes.widget_input(graph.node(node_id), "enabled", "BOOLEAN")
    graph.add_subgraph_input(
        "enabled", "sparse_attention", "BOOLEAN", [(node_id, "enabled") for node_id in node_ids]
    )
    nodes.widget_input(instance, "enabled", "BOOLEAN")
    instance["inputs"][-1]["label"] = "sparse_attention"
    if "proxyWidgets" in instance["properties"]:
        instance["properties"]["proxyWidgets"].append([str(node_ids[0]), "enabled"])
    if instance["widgets_values"]:
        instance["widgets_values"].append(True)


def _add_schedule(root: Graph, schedule: Schedule, instance: Json, version: str) -> None:
    node = root.add_node(
        nodes.schedule_node(schedule.values, schedule.position, schedule.title, version)
    )
    slot = len(instance["inputs"]) - 1
    root.connect(node["id"], 0, instance["id"], slot, nodes.SCHEDULE_TYPE)
    x, y, width, height = schedule.preview
    preview = root.add_node(nodes.preview_node((x, y), (width, height), f"{schedule.title}: curve"))
    root.connect(node["id"], 1, preview["id"], 0, "IMAGE")
