"""Turns an official template and a `Spec` into one of this pack's example workflows."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from rectified_spaattn.nodes.inputs import SCHEDULE

from . import nodes, notes
from .catalogue import Options, Report, Schedule, Spec
from .graph import Graph, Workflow, WorkflowError
from .layout import Band, Column, Fold, Ref, arrange, arrange_inside, lead, refs_of

Json = dict[str, Any]

NOTE_TITLE = "Rectified SpaAttn: what to try"
LINKS_TITLE = "Model links"
TREE = re.compile(r"\n[^\n]*Storage Location[^\n]*\n+```[^`]*📂[^`]*```\n*")


def assemble(template: Json, spec: Spec, version: str, origin: str) -> Json:
    """The finished workflow file; `template` is left as it is.

    `version` is this pack's, written into the properties of its nodes; `origin` names the package
    of the template, kept in the file. `WorkflowError` says what no longer fits when a newer
    template has changed.
    """
    workflow = Workflow(copy.deepcopy(template))
    root = workflow.root
    graphs = list(dict.fromkeys(_graph_with(workflow, item.source) for item in spec.insertions))
    root.remove(spec.without)
    workflow.drop_unused_subgraphs()
    inside = spec.inside
    for graph in graphs:
        if inside is not None:
            graph.shift_right(inside.shift.from_x, inside.shift.distance)
    _set_widgets(workflow, spec)
    _adapt_notes(workflow, spec)
    for node_id in spec.collapsed:
        root.node(node_id)["flags"]["collapsed"] = True
    for node_id, distance in spec.lower.items():
        _graph_with(workflow, node_id).node(node_id)["pos"][1] += distance

    named: dict[Ref, Json] = {}
    inserted = []
    for item in spec.insertions:
        size = (item.width, nodes.OURS["RectifiedSpaAttn"].size[1])
        node = nodes.make(
            "RectifiedSpaAttn", item.position, version, spec.preset_widgets, item.title, size
        )
        graph = _graph_with(workflow, item.source)
        inserted.append(graph.insert_after(item.source, node, item.targets))
        _call(named, "attention", node)
    for graph in graphs:
        if spec.options is not None:
            own = [node for node in inserted if node in graph.nodes]
            _call(named, "options", _add_options(graph, spec.options, own, version))
        if inside is not None:
            graph.add_group("Sparse attention", inside.frame, nodes.GROUP_COLOR)
    for graph in graphs:
        if not graph.is_root:
            ids = [node["id"] for node in inserted if node in graph.nodes]
            _add_controls(workflow, graph, spec, ids, version, named)
    for report in spec.reports:
        graph = _graph_with(workflow, report.sampler)
        node = _add_report(workflow, graph, report, inserted[report.of], version)
        _call(named, "report", node)
    if spec.extend is not None:
        named |= spec.extend(workflow, inserted, version)
    holding = [graph for graph in workflow.subgraphs if graph in graphs]
    for fold in spec.folds:
        named[fold.name] = _fold(root, fold, named)
    named["note"] = nodes.note_node(_filled(spec), (0, 0), (450, 560), NOTE_TITLE)
    root.add_node(named["note"])
    if any("links" in _refs(column) for column in spec.columns):
        text = notes.links(files(workflow))
        named["links"] = root.add_node(nodes.note_node(text, (0, 0), (450, 200), LINKS_TITLE))
    arrange(root, spec.columns, named, spec.heights, spec.clip)
    if spec.app:
        workflow.data["extra"]["linearData"] = _app_view(root, spec, named)
    workflow.rename(spec.stem)
    workflow.data["extra"]["built_from"] = f"{spec.template}, {origin}"
    for subgraph in holding:
        subgraph.data["name"] += " + Rectified SpaAttn"
    return workflow.finish()


def _app_view(root: Graph, spec: Spec, named: Mapping[Ref, Json]) -> Json:
    """What the page's app view shows: the widgets of `spec.app`, and every video."""
    inputs = [[str(named[ref]["id"] if ref in named else ref), name] for ref, name in spec.app]
    videos = [str(node["id"]) for node in root.nodes if node["type"] == "SaveVideo"]
    return {"inputs": inputs, "outputs": videos}


def files(workflow: Workflow) -> list[tuple[str, str, str]]:
    """Folder, name and address of the model files that the loaders name, sorted."""
    return sorted(
        {
            (model["directory"], model["name"], model["url"])
            for graph in workflow.graphs
            for node in graph.nodes
            for model in node["properties"].get("models", [])
        }
    )


def _refs(column: Column) -> list[Ref]:
    return [ref for row in column.rows if not isinstance(row, Band) for ref in refs_of(row)]


def _call(named: dict[Ref, Json], name: str, node: Json) -> None:
    """Enter a node under this name, the second as `name2` and so on."""
    number = sum(str(each).rstrip("0123456789") == name for each in named)
    named[f"{name}{number + 1}" if number else name] = node


def _fold(root: Graph, fold: Fold, named: Mapping[Ref, Json]) -> Json:
    """Put nodes of the root graph into a subgraph; its instance."""

    def number(ref: Ref) -> int:
        return ref if isinstance(ref, int) else named[ref]["id"]

    names = {(number(ref), name): called for (ref, name), called in fold.names.items()}
    instance, graph = root.fold(fold.title, [number(ref) for ref in fold.nodes], names)
    for entry in instance["inputs"]:
        if "widget" in entry:
            _show_widget(instance, entry["name"], None)
    for label, targets in fold.widgets.items():
        ends = [(number(ref), widget) for ref, widget in targets]
        for node_id, widget in ends:
            node = graph.node(node_id)
            kinds = nodes.WIDGETS[node["type"]]
            kind = str(kinds[widget])
            value = node["widgets_values"][list(kinds).index(widget)]
            if all(entry["name"] != widget for entry in node["inputs"]):
                nodes.widget_input(node, widget, kind)
        graph.add_subgraph_input(label, label, kind, ends)
        nodes.widget_input(instance, label, kind)
        _show_widget(instance, label, value)
    instance["size"][1] = fold.height
    arrange_inside(graph)
    return instance


def _show_widget(instance: Json, name: str, value: Any) -> None:
    instance["properties"]["proxyWidgets"].append(["-1", name])
    instance["widgets_values"].append(value)


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


def _adapt_notes(workflow: Workflow, spec: Spec) -> None:
    """In the template's notes: without what `spec.cut` names, and faults are reported to us.

    Without the tree of folders as well, which says what stands above each link, and in the colours
    of our notes.
    """
    missing = set(spec.cut)
    for graph in (workflow.root, *workflow.subgraphs):
        for node in graph.nodes:
            if node["type"] not in ("MarkdownNote", "Note"):
                continue
            text = node["widgets_values"][0]
            missing -= {each for each in missing if each in text}
            lines = text.split("\n")
            text = "\n".join(line for line in lines if not any(each in line for each in spec.cut))
            text = TREE.sub("\n\n", text)
            link = f"({notes.OFFICIAL_ISSUES})"
            text = text.replace(f"[workflow_templates/issues]{link}", f"[Rectified SpaAttn]{link}")
            node["widgets_values"][0] = text.replace(notes.OFFICIAL_ISSUES, notes.ISSUES)
            node |= nodes.NOTE_COLORS
            node.setdefault("title", LINKS_TITLE)
    if missing:
        raise WorkflowError(f"no note holds {', '.join(sorted(missing))}")


def _add_options(graph: Graph, options: Options, attention: list[Json], version: str) -> Json:
    """One options node for all attention nodes."""
    size = (options.width, nodes.OURS["RectifiedSpaAttnOptions"].size[1])
    node = graph.add_node(
        nodes.make("RectifiedSpaAttnOptions", options.position, version, options.values, size=size)
    )
    for each in attention:
        graph.wire(node, "options", each, "options")
    return node


def _add_controls(
    workflow: Workflow,
    graph: Graph,
    spec: Spec,
    node_ids: list[int],
    version: str,
    named: dict[Ref, Json],
) -> None:
    """Schedules beside the subgraph's instance, and one on/off switch on it."""
    instance = _instance_of(workflow, graph)
    for schedule in spec.schedules:
        targets = [(node_ids[index], "schedule") for index in schedule.feeds]
        graph.add_subgraph_input(schedule.name, schedule.name, SCHEDULE, targets)
        instance["inputs"].append(
            {"name": schedule.name, "shape": 7, "type": SCHEDULE, "link": None}
        )
        _add_schedule(workflow.root, schedule, instance, version, named)
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


def _add_schedule(
    root: Graph, schedule: Schedule, instance: Json, version: str, named: dict[Ref, Json]
) -> None:
    node = root.add_node(
        nodes.make("RectifiedSpaAttnSchedule", (0, 0), version, schedule.values, schedule.title)
    )
    _call(named, "schedule", node)
    root.wire(node, "schedule", instance, schedule.name)
    if schedule.has_preview:
        preview = nodes.make("PreviewImage", (0, 0), "", title=f"{schedule.title}: curve")
        preview["size"][1] = 220
        root.wire(node, "preview", root.add_node(preview), "images")
        _call(named, "preview", preview)


def _add_report(
    workflow: Workflow, graph: Graph, report: Report, attention: Json, version: str
) -> Json:
    """The report in the root graph; what it reads in a subgraph gets outputs of its own."""
    root = workflow.root
    node = root.add_node(nodes.make("RectifiedSpaAttnReport", (0, 0), version, title=report.title))
    sampler = graph.node(report.sampler)
    after = sampler["outputs"][0]["name"]
    if graph.is_root:
        root.wire(attention, "model", node, "model")
        root.wire(sampler, after, node, "after")
        return node
    instance = _instance_of(workflow, graph)
    new = []
    for source, output, target in ((attention, "model", "model"), (sampler, after, "after")):
        kind = "MODEL" if target == "model" else "LATENT"
        name = f"{report.name}_{kind.lower()}".lstrip("_")
        graph.add_subgraph_output(name, kind, source, output)
        new.append(graph.links()[-1]["id"])
        instance["outputs"].append({"name": name, "type": kind, "links": []})
        root.wire(instance, name, node, target)
    lead(graph, new)
    return node
