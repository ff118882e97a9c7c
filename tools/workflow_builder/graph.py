"""Editing of workflow files in ComfyUI's UI format (version 0.4).

A file holds one root graph and any number of subgraph definitions. Root links are lists
`[id, source, source_slot, target, target_slot, type]`; subgraph links are objects with the same
six facts. `Graph` hides that difference, so that one set of operations serves both.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Json = dict[str, Any]

# Boundary nodes of a subgraph: links that enter or leave it name these instead of a node.
SUBGRAPH_INPUT = -10
SUBGRAPH_OUTPUT = -20


class WorkflowError(ValueError):
    """The template does not have the shape that a specification expects."""


class Workflow:
    """One workflow file: the root graph, its subgraphs, and the counters they share."""

    def __init__(self, data: Json) -> None:
        self.data = data
        self.root = Graph(data, self, is_root=True)
        definitions = data.get("definitions", {}).get("subgraphs", [])
        self.subgraphs = [Graph(item, self, is_root=False) for item in definitions]
        self._last_reroute = 0

    @property
    def graphs(self) -> list[Graph]:
        """The root graph, then every subgraph."""
        return [self.root, *self.subgraphs]

    def add_subgraph(self, name: str) -> Graph:
        """An empty subgraph."""
        data = empty_subgraph(
            name, str(uuid.uuid5(uuid.NAMESPACE_URL, f"rectified-spaattn/{name}"))
        )
        definitions = self.data.setdefault("definitions", {}).setdefault("subgraphs", [])
        definitions.append(data)
        self.subgraphs.append(Graph(data, self, is_root=False))
        return self.subgraphs[-1]

    def drop_unused_subgraphs(self) -> None:
        """Take out those that no node stands for."""
        used = {node["type"] for graph in self.graphs for node in graph.nodes}
        self.subgraphs = [each for each in self.subgraphs if each.data["id"] in used]
        if "definitions" in self.data:
            self.data["definitions"]["subgraphs"] = [each.data for each in self.subgraphs]

    def next_node_id(self) -> int:
        """A node id that no graph of this file uses; ids are unique across subgraphs."""
        return 1 + max(node["id"] for graph in self.graphs for node in graph.nodes)

    def next_link_id(self) -> int:
        """A link id that no graph of this file uses."""
        return 1 + max((link["id"] for graph in self.graphs for link in graph.links()), default=0)

    def next_reroute_id(self) -> int:
        """An id that no reroute of this file uses."""
        self._last_reroute += 1
        return self._last_reroute

    def rename(self, stem: str) -> None:
        """Give the file and its subgraphs their own ids, derived from `stem`.

        A copy that kept the template's ids would be taken for the template by a front end that
        has both open.
        """
        self.data["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"rectified-spaattn/{stem}"))
        for subgraph in self.subgraphs:
            old = subgraph.data["id"]
            new = str(uuid.uuid5(uuid.NAMESPACE_URL, f"rectified-spaattn/{stem}/{old}"))
            subgraph.data["id"] = new
            for graph in self.graphs:
                for node in graph.nodes:
                    if node["type"] == old:
                        node["type"] = new

    def finish(self) -> Json:
        """Write the counters and a view that shows the whole root graph; returns the file."""
        last_node = self.next_node_id() - 1
        last_link = self.next_link_id() - 1
        self.data["last_node_id"] = last_node
        self.data["last_link_id"] = last_link
        for subgraph in self.subgraphs:
            subgraph.data["state"].update(
                lastNodeId=last_node, lastLinkId=last_link, lastRerouteId=self._last_reroute
            )
        for graph in self.graphs:
            for order, node in enumerate(graph.nodes):
                node["order"] = order
        self.data["extra"]["ds"] = self.root.fitting_view()
        return self.data


class Graph:
    """The nodes and links of the root graph or of one subgraph definition."""

    def __init__(self, data: Json, workflow: Workflow, *, is_root: bool) -> None:
        self.data = data
        self.workflow = workflow
        self.is_root = is_root
        self.nodes: list[Json] = data["nodes"]
        for node in self.nodes:
            node["pos"] = _pair(node["pos"])
            node["size"] = _pair(node["size"])

    def node(self, node_id: int) -> Json:
        """The node with this id; `WorkflowError` when the template has no such node."""
        for node in self.nodes:
            if node["id"] == node_id:
                return node
        raise WorkflowError(f"node {node_id} is not in {self.describe()}")

    def describe(self) -> str:
        """How error messages name this graph."""
        return "the root graph" if self.is_root else f"subgraph {self.data['name']!r}"

    def links(self) -> list[Json]:
        """Every link as an object, whatever form the file stores."""
        if not self.is_root:
            return self.data["links"]
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return [dict(zip(names, link, strict=True)) for link in self.data["links"]]

    def add_node(self, node: Json) -> Json:
        """Append `node` with a fresh id and return it."""
        node["id"] = self.workflow.next_node_id()
        self.nodes.append(node)
        return node

    def connect(
        self, source: int, source_slot: int, target: int, target_slot: int, link_type: str
    ) -> int:
        """Add a link and note it on both ends; returns its id.

        `source` and `target` are node ids. An input holds one link, so an occupied target is an
        error rather than a silent replacement.
        """
        target_input = self.node(target)["inputs"][target_slot]
        if target_input.get("link") is not None:
            raise WorkflowError(f"input {target_input['name']} of node {target} is in use")
        link_id = self._store_link(source, source_slot, target, target_slot, link_type)
        output = self.node(source)["outputs"][source_slot]
        output["links"] = [*(output.get("links") or []), link_id]
        target_input["link"] = link_id
        return link_id

    def wire(self, source: Json, output: str, target: Json, name: str) -> int:
        """Connect the output and the input of these names; returns the link's id.

        `WorkflowError` when a node has no such output or input, or the input is in use.
        """
        slots = [slot for slot, entry in enumerate(source["outputs"]) if entry["name"] == output]
        if not slots:
            raise WorkflowError(f"node {source['id']} ({source['type']}) has no output {output!r}")
        slot, _ = find_input(target, name)
        link_type = source["outputs"][slots[0]]["type"]
        return self.connect(source["id"], slots[0], target["id"], slot, link_type)

    def route(self, link_id: int, points: Sequence[tuple[float, float]]) -> None:
        """Lead a link through `points`, in its direction.

        They are the front end's own reroutes: points on the link, which leave its ends as they are.
        """
        if not points:
            return
        parent: Json = {}
        for x, y in points:
            reroute_id = self.workflow.next_reroute_id()
            self._reroutes.append({"id": reroute_id, **parent, "pos": [x, y], "linkIds": [link_id]})
            parent = {"parentId": reroute_id}
        if self.is_root:
            extensions = self.data["extra"].setdefault("linkExtensions", [])
            extensions.append({"id": link_id, **parent})
        else:
            next(link for link in self.links() if link["id"] == link_id).update(parent)

    @property
    def _reroutes(self) -> list[Json]:
        """The list that stores them: version 0.4 has no place of its own for them."""
        return (self.data["extra"] if self.is_root else self.data).setdefault("reroutes", [])

    def disconnect(self, target: int, name: str) -> None:
        """Take away the link into the input `name` of a node of the root graph."""
        _, entry = find_input(self.node(target), name)
        link_id, entry["link"] = entry["link"], None
        self._take_out(link_id)

    def _take_out(self, link_id: int) -> None:
        """Forget a link of the root graph, and take it off the output where it begins."""
        for node in self.nodes:
            for output in node.get("outputs", []):
                if link_id in (output.get("links") or []):
                    output["links"].remove(link_id)
        self.data["links"] = [link for link in self.data["links"] if link[0] != link_id]

    def remove(self, node_ids: Collection[int]) -> None:
        """Take nodes of the root graph out; `WorkflowError` when a node that stays needs one."""
        for link in self.links():
            ends = link["origin_id"], link["target_id"]
            if ends[0] in node_ids and ends[1] not in node_ids:
                raise WorkflowError(f"node {ends[1]} in {self.describe()} needs node {ends[0]}")
            if ends[1] in node_ids and ends[0] not in node_ids:
                output = self.node(ends[0])["outputs"][link["origin_slot"]]
                output["links"].remove(link["id"])
        gone = [self.node(node_id) for node_id in node_ids]
        self.nodes[:] = [node for node in self.nodes if node not in gone]
        self.data["links"] = [link for link in self.data["links"] if link[3] not in node_ids]

    def fold(
        self, title: str, node_ids: Collection[int], names: Mapping[tuple[int, str], str]
    ) -> tuple[Json, Graph]:
        """Put nodes of the root graph into a subgraph; its instance, and what is inside.

        Links that cross its edge become inputs and outputs, called as the input or output inside
        at which they end, or as `names` calls that: (node id, name) to name.
        """
        subgraph = self.workflow.add_subgraph(title)
        moved = [self.node(node_id) for node_id in node_ids]
        instance: Json = {
            "id": self.workflow.next_node_id(),
            "type": subgraph.data["id"],
            "pos": [0, 0],
            "size": [450, 0],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": title,
            "properties": {"proxyWidgets": []},
            "widgets_values": [],
        }
        inside = [
            link
            for link in self.links()
            if link["origin_id"] in node_ids and link["target_id"] in node_ids
        ]
        self.nodes[:] = [node for node in self.nodes if node not in moved] + [instance]
        subgraph.nodes += moved
        subgraph.data["links"] += inside
        gone = {link["id"] for link in inside}
        self.data["links"] = [link for link in self.data["links"] if link[0] not in gone]
        slots: dict[tuple[int, int], int] = {}
        for stored in list(self.data["links"]):
            link_id, source, source_slot, target, target_slot, kind = stored
            key = (source, source_slot)
            if target in node_ids:
                entry = subgraph.node(target)["inputs"][target_slot]
                if key in slots:  # one input serves all
                    subgraph.feed(slots[key], target, entry["name"])
                    self._take_out(link_id)
                    continue
                name = names.get((target, entry["name"]), entry["name"])
                ends = [(target, entry["name"])]
                slots[key] = subgraph.add_subgraph_input(name, name, kind, ends)
                widget = {"widget": {"name": name}} if "widget" in entry else {}
                instance["inputs"].append({"name": name, "type": kind, "link": link_id} | widget)
                stored[3:5] = [instance["id"], slots[key]]
            elif source in node_ids:
                node = subgraph.node(source)
                output = node["outputs"][source_slot]
                output["links"].remove(link_id)
                if key not in slots:
                    name = names.get((source, output["name"]), output["name"])
                    slots[key] = subgraph.add_subgraph_output(name, kind, node, output["name"])
                    instance["outputs"].append({"name": name, "type": kind, "links": []})
                instance["outputs"][slots[key]]["links"].append(link_id)
                stored[1:3] = [instance["id"], slots[key]]
        return instance, subgraph

    def feed(self, slot: int, node_id: int, name: str) -> None:
        """Lead the subgraph's input `slot` to one more input of a node inside, too."""
        entry = self.data["inputs"][slot]
        target_slot, target_input = find_input(self.node(node_id), name)
        link_id = self._store_link(SUBGRAPH_INPUT, slot, node_id, target_slot, entry["type"])
        target_input["link"] = link_id
        entry["linkIds"].append(link_id)

    def insert_after(
        self, source: int, node: Json, targets: tuple[int, ...], link_type: str = "MODEL"
    ) -> Json:
        """Put `node` on the `link_type` links from `source` to `targets`, slot 0 in and out.

        Links to other nodes keep their source. `WorkflowError` when a target is not fed by
        `source`, which means that the template has changed.
        """
        self.add_node(node)
        output = self.node(source)["outputs"][0]
        moved = [
            link["id"]
            for link in self.links()
            if link["origin_id"] == source
            and link["target_id"] in targets
            and link["type"] == link_type
        ]
        if len(moved) != len(targets):
            raise WorkflowError(
                f"node {source} in {self.describe()} feeds {len(moved)} of the nodes {targets}"
            )
        for link_id in moved:
            self._set_origin(link_id, node["id"])
        output["links"] = [link for link in output["links"] if link not in moved]
        node["outputs"][0]["links"] = moved
        self.connect(source, 0, node["id"], 0, link_type)
        return node

    def add_subgraph_input(
        self, name: str, label: str, link_type: str, targets: list[tuple[int, str]]
    ) -> int:
        """Add an input to this subgraph that feeds `targets` (node id, input name).

        Returns the input's slot. Instances of the subgraph must be given the matching input.
        """
        slot, _ = self._add_boundary_slot("inputs", "inputNode", name, label, link_type)
        for node_id, input_name in targets:
            self.feed(slot, node_id, input_name)
        return slot

    def add_subgraph_output(self, name: str, link_type: str, source: Json, output: str) -> int:
        """Add an output to this subgraph that passes on the output of an inner node.

        Returns its slot. Instances of the subgraph must be given the matching output.
        """
        slot, entry = self._add_boundary_slot("outputs", "outputNode", name, name, link_type)
        inner = [index for index, each in enumerate(source["outputs"]) if each["name"] == output]
        link_id = self._store_link(source["id"], inner[0], SUBGRAPH_OUTPUT, slot, link_type)
        source["outputs"][inner[0]]["links"].append(link_id)
        entry["linkIds"].append(link_id)
        return slot

    def move_outputs_beyond(self, x: float) -> None:
        """Put this subgraph's output node to the right of `x`, unless it is there already."""
        distance = x - self.data["outputNode"]["bounding"][0]
        if distance > 0:
            self._move_outputs(distance)

    def shift_right(self, from_x: float, distance: float, above_y: float = float("inf")) -> None:
        """Move every node and group that starts at or right of `from_x` to the right.

        Only things that start above `above_y` move, so that a separate lower part can stay.
        """

        def moves(box: list[float]) -> bool:
            return box[0] >= from_x and box[1] < above_y

        for node in self.nodes:
            if moves(node["pos"]):
                node["pos"][0] += distance
        for group in self.data.get("groups", []):
            if moves(group["bounding"]):
                group["bounding"][0] += distance
        if not self.is_root:
            self._move_outputs(distance)

    def add_group(self, title: str, box: tuple[float, float, float, float], color: str) -> None:
        """Add a titled frame; `box` is x, y, width, height."""
        groups = self.data.setdefault("groups", [])
        next_id = 1 + max((group.get("id", 0) for group in groups), default=0)
        groups.append(
            {
                "id": next_id,
                "title": title,
                "bounding": list(box),
                "color": color,
                "font_size": 24,
                "flags": {},
            }
        )

    def fitting_view(self, width: float = 1500, height: float = 850) -> Json:
        """Scale and offset that show every node in a canvas of `width` x `height` pixels."""
        left = min(node["pos"][0] for node in self.nodes)
        top = min(node["pos"][1] for node in self.nodes) - 60
        right = max(node["pos"][0] + node["size"][0] for node in self.nodes)
        bottom = max(node["pos"][1] + node["size"][1] for node in self.nodes)
        scale = round(min(width / (right - left + 80), height / (bottom - top + 80), 1.0), 3)
        # 70 px on the left are covered by the side bar, 90 px at the top by the tabs.
        return {"scale": scale, "offset": [70 / scale - left + 20, 90 / scale - top + 20]}

    def _add_boundary_slot(
        self, side: str, boundary: str, name: str, label: str, link_type: str
    ) -> tuple[int, Json]:
        """Number and entry of a new slot of the subgraph's input or output node."""
        slots, box = self.data[side], self.data[boundary]["bounding"]
        entry: Json = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.data['id']}/{name}")),
            "name": name,
            "type": link_type,
            "linkIds": [],
            "label": label,
            # Where it is drawn; files keep it, nothing more.
            "pos": [box[0] + 20, box[1] + 20 + 20 * len(slots)],
        }
        slots.append(entry)
        box[3] += 20
        return len(slots) - 1, entry

    def _move_outputs(self, distance: float) -> None:
        self.data["outputNode"]["bounding"][0] += distance
        for output in self.data["outputs"]:
            output["pos"][0] += distance

    def _store_link(
        self, source: int, source_slot: int, target: int, target_slot: int, link_type: str
    ) -> int:
        link_id = self.workflow.next_link_id()
        values = (link_id, source, source_slot, target, target_slot, link_type)
        if self.is_root:
            self.data["links"].append(list(values))
        else:
            names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
            self.data["links"].append(dict(zip(names, values, strict=True)))
        return link_id

    def _set_origin(self, link_id: int, node_id: int) -> None:
        for link in self.data["links"]:
            if self.is_root and link[0] == link_id:
                link[1:3] = [node_id, 0]
            elif not self.is_root and link["id"] == link_id:
                link.update(origin_id=node_id, origin_slot=0)


def empty_subgraph(name: str, subgraph_id: str) -> Json:
    """The definition of a subgraph without nodes."""
    return {
        "id": subgraph_id,
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": 0, "lastLinkId": 0, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": SUBGRAPH_INPUT, "bounding": [-260, 0, 140, 40]},
        "outputNode": {"id": SUBGRAPH_OUTPUT, "bounding": [1260, 0, 120, 40]},
        "inputs": [],
        "outputs": [],
        "widgets": [],
        "nodes": [],
        "groups": [],
        "links": [],
        "extra": {},
    }


def find_input(node: Json, name: str) -> tuple[int, Json]:
    """Slot and entry of the input called `name`; `WorkflowError` when the node has none.

    A widget is listed among the inputs only once something is linked to it: see
    `nodes.widget_input`.
    """
    for slot, entry in enumerate(node["inputs"]):
        if entry["name"] == name:
            return slot, entry
    raise WorkflowError(f"node {node['id']} ({node['type']}) has no input {name!r}")


def _pair(value: list[float] | Json) -> list[float]:
    """Positions and sizes as `[x, y]`; some templates store `{"0": x, "1": y}`."""
    if isinstance(value, dict):
        return [value["0"], value["1"]]
    return list(value)
