"""Turns an official template and a `Spec` into one of this pack's example workflows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from rectified_spaattn.nodes.inputs import SCHEDULE

from . import nodes
from .catalogue import Options, Report, Schedule, Spec
from .graph import Graph, Workflow, WorkflowError
from .nodes import Box

Json = dict[str, Any]

NOTE_TITLE = "Rectified SpaAttn: what to try"


def assemble(template: Json, spec: Spec, version: str, origin: str) -> Json:
    """The finished workflow file; `template` is left as it is.

    `version` is this pack's, written into the properties of its nodes; `origin` names the package
    of the template, kept in the file. `WorkflowError` says what no longer fits when a newer
    template has changed.
    """
    workflow = Workflow(copy.deepcopy(template))
    graphs = list(dict.fromkeys(_graph_with(workflow, item.source) for item in spec.insertions))
    workflow.root.remove(spec.without)
    for graph in graphs:
        graph.shift_right(spec.shift.from_x, spec.shift.distance, spec.shift.above_y)
    if spec.root_shift is not None:
        shift = spec.root_shift
        workflow.root.shift_right(shift.from_x, shift.distance, shift.above_y)
    _set_widgets(workflow, spec)
    for node_id, distance in spec.lower.items():
        _graph_with(workflow, node_id).node(node_id)["pos"][1] += distance

    inserted = []
    for item in spec.insertions:
        size = (item.width, nodes.OURS["RectifiedSpaAttn"].size[1])
        node = nodes.make(
            "RectifiedSpaAttn", item.position, version, spec.preset_widgets, item.title, size
        )
        graph = _graph_with(workflow, item.source)
        inserted.append(graph.insert_after(item.source, node, item.targets))
    for graph in graphs:
        if spec.options is not None:
            own = [node for node in inserted if node in graph.nodes]
            _add_options(graph, spec.options, own, version)
        _add_groups(graph, spec.groups)
    _add_groups(workflow.root, spec.root_groups)
    for graph in graphs:
        if graph.is_root:
            continue
        inner = [node["id"] for node in inserted if node in graph.nodes]
        _add_controls(workflow, graph, spec, inner, version)
    for report in spec.reports:
        graph = _graph_with(workflow, report.sampler)
        _add_report(workflow, graph, report, inserted[report.of], version)
    if spec.extend is not None:
        spec.extend(workflow, inserted, version)

    x, y, width, height = spec.note_box
    note = nodes.note_node(_filled(spec), (x, y), (width, height), NOTE_TITLE)
    workflow.root.add_node(note)
    workflow.rename(spec.stem)
    workflow.data["extra"]["built_from"] = f"{spec.template}, {origin}"
    for subgraph in workflow.subgraphs:
        subgraph.data["name"] += " + Rectified SpaAttn"
    return workflow.finish()


def _filled(spec: Spec) -> str:
    """The note with the preset's numbers."""
    chosen = spec.chosen
    numbers = {
        "preset": spec.preset,
        "sparsity": f"{chosen.sparsity:g}",
        "skipped": f"{chosen.sparsity:.0%}",
        "start": f"{chosen.start_percent:g}",
        "block_size": chosen.block_size,
        "dense": spec.sparsity_of_steps().count(None),
        "steps": spec.steps,
        "before": spec.steps_before,
    }
    return spec.note.format_map(numbers)


def _graph_with(workflow: Workflow, node_id: int) -> Graph:
    for graph in workflow.graphs:
        if any(node["id"] == node_id for node in graph.nodes):
            return graph
    raise WorkflowError(f"no graph of the template holds node {node_id}")


def _instance_of(workflow: Workflow, graph: Graph) -> Json:
    return next(node for node in workflow.root.nodes if node["type"] == graph.data["id"])


def _set_widgets(workflow: Workflow, spec: Spec) -> None:
    for (node_id, position), value in spec.widgets.items():
        values = _graph_with(workflow, node_id).node(node_id)["widgets_values"]
        if not isinstance(value, type(values[position])):
            raise WorkflowError(
                f"node {node_id}, widget {position} holds {values[position]!r}: "
                f"{value!r} does not look like a value for it"
            )
        values[position] = value
    for node_id, (folder, name, address) in spec.files.items():
        loader = _graph_with(workflow, node_id).node(node_id)
        loader["widgets_values"][0] = name
        loader["properties"]["models"] = [{"name": name, "url": address, "directory": folder}]


def _add_options(graph: Graph, options: Options, attention: list[Json], version: str) -> None:
    """One options node for all attention nodes."""
    size = (options.width, nodes.OURS["RectifiedSpaAttnOptions"].size[1])
    node = graph.add_node(
        nodes.make("RectifiedSpaAttnOptions", options.position, version, options.values, size=size)
    )
    for each in attention:
        graph.wire(node, "options", each, "options")


def _add_groups(graph: Graph, groups: Mapping[str, Box]) -> None:
    for title, box in groups.items():
        graph.add_group(title, box, nodes.GROUP_COLOR)


def _add_controls(
    workflow: Workflow, graph: Graph, spec: Spec, node_ids: list[int], version: str
) -> None:
    """Schedules beside the subgraph's instance, and one on/off switch on it."""
    instance = _instance_of(workflow, graph)
    for schedule in spec.schedules:
        targets = [(node_ids[index], "schedule") for index in schedule.feeds]
        graph.add_subgraph_input(schedule.name, schedule.name, SCHEDULE, targets)
        instance["inputs"].append(
            {"name": schedule.name, "shape": 7, "type": SCHEDULE, "link": None}
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
        nodes.make(
            "RectifiedSpaAttnSchedule",
            schedule.position,
            version,
            schedule.values,
            schedule.title,
        )
    )
    root.wire(node, "schedule", instance, schedule.name)
    _add_preview(root, node, "preview", schedule.preview, f"{schedule.title}: curve")


def _add_report(
    workflow: Workflow, graph: Graph, report: Report, attention: Json, version: str
) -> None:
    """The report, and for one inside a subgraph a preview of its picture outside."""
    node = nodes.make("RectifiedSpaAttnReport", report.position, version, title=report.title)
    graph.add_node(node)
    sampler = graph.node(report.sampler)
    model_link = graph.wire(attention, "model", node, "model")
    after_link = graph.wire(sampler, sampler["outputs"][0]["name"], node, "after")
    graph.route(model_link, report.model_route)
    graph.route(after_link, report.after_route)
    if graph.is_root:
        return
    graph.add_subgraph_output(report.name, "IMAGE", node, "image")
    graph.route(node["outputs"][0]["links"][0], report.output_route)
    graph.move_outputs_beyond(report.position[0] + node["size"][0] + 80)
    instance = _instance_of(workflow, graph)
    instance["outputs"].append({"name": report.name, "type": "IMAGE", "links": []})
    box = (*report.preview, *nodes.REPORT_PREVIEW_SIZE)
    preview = _add_preview(workflow.root, instance, report.name, box, report.title)
    workflow.root.route(preview["inputs"][0]["link"], report.preview_route)


def _add_preview(root: Graph, source: Json, output: str, box: Box, title: str | None) -> Json:
    x, y, width, height = box
    preview = nodes.make("PreviewImage", (x, y), "", title=title, size=(width, height))
    root.wire(source, output, root.add_node(preview), "images")
    return preview
