"""Places the nodes of a graph in columns, frames them, and leads links around nodes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from . import nodes
from .graph import SUBGRAPH_INPUT, SUBGRAPH_OUTPUT, Graph
from .nodes import Box, Point

Json = dict[str, Any]
Ref = int | str
Row = Ref | tuple[Ref | tuple[Ref, ...], ...]

TITLE = 30
COLUMN_GAP = 60
"""Between columns, and between nodes side by side: links turn in it."""
ROW_GAP = 70
"""Without the lower node's title; what a newer front end draws a little higher has room in it."""
LANE = 12
"""Between two links in parallel, and between a link and a node."""
TURNS = (16, 24, 32)
"""From a node's edge to where its links turn, one after the other."""
STEEP = 200
"""A link that rises or falls by more would swing out beneath the nodes beside it."""
LEG = 4
"""Half of what the upright part of a link needs."""
WIDTHS = {
    "RectifiedSpaAttnReport": nodes.REPORT_SIZE[0],
    "RectifiedSpaAttnProbeResult": nodes.RESULT_SIZE[0],
    "RectifiedSpaAttnSaveProfile": 338,
    "RectifiedSpaAttnLoadProfile": 300,
}
"""Of nodes that are not as wide as their column."""
BOTTOM = 1260
"""Below it, with a top of 0, a node would make the page open the graph at an illegible size."""
NOTES = ("MarkdownNote", "Note")
SLOT = 20
"""Height of an input or output, as the front end draws it."""
VIDEO_WIDGETS = 110
"""Height of what *Save Video* has above the video."""


@dataclass(frozen=True)
class Band:
    """What follows in a column stands at `y` or lower, in a frame of its own.

    With a `width` it reaches beneath the next columns.
    """

    title: str
    y: float
    width: float = 0


@dataclass(frozen=True)
class Column:
    """Nodes from top to bottom in a frame; those of a tuple stand side by side.

    Those of a tuple within it stand below one another, as wide as the first. All are as wide as the
    column or share its width, but for those that have a width of their own.
    """

    title: str
    width: float
    rows: tuple[Row | Band, ...]


@dataclass(frozen=True)
class Fold:
    """Nodes of the root graph that become one subgraph, `name` in the columns.

    `widgets` are those it shows: label to (node, widget), several where one serves them all.
    `names` are of inputs and outputs, where theirs inside would not do.
    """

    name: str
    title: str
    nodes: tuple[Ref, ...]
    widgets: Mapping[str, tuple[tuple[Ref, str], ...]]
    names: Mapping[tuple[Ref, str], str] = field(default_factory=dict)
    height: float = 320


def arrange(
    graph: Graph,
    columns: Sequence[Column],
    named: Mapping[Ref, Json],
    heights: Mapping[Ref, float],
    clip: tuple[int, int],
) -> None:
    """Place nodes, make the frames anew, lead the links.

    `named` are the nodes that columns name otherwise than by their id. `heights` is in place of
    what nodes have; a video's follows from the size of the `clip`, pixels, a note's from its text:
    it ends at `BOTTOM`, and its frame where the whole text would.
    """
    graph.data["groups"] = []
    x = 0.0
    for column in columns:
        band, y, held = Band(column.title, 0.0), 0.0, list[Json]()
        for row in (*column.rows, None):
            if row is None or isinstance(row, Band):
                graph.add_group(band.title, _around(held), nodes.GROUP_COLOR)
                if row is not None:
                    band, y, held = row, max(y, row.y), []
                continue
            members = {
                ref: named[ref] if ref in named else graph.node(int(ref)) for ref in refs_of(row)
            }
            cells = [refs_of(cell) for cell in (row if isinstance(row, tuple) else (row,))]
            _place([members[cell[0]] for cell in cells], x, y, band.width or column.width)
            for cell in cells:
                (left, top), width = members[cell[0]]["pos"], members[cell[0]]["size"][0]
                for ref in cell:
                    node = members[ref]
                    node["pos"], node["size"][0] = [left, top], width
                    if node["type"] == "SaveVideo":
                        node["size"][1] = round(width * clip[1] / clip[0]) + VIDEO_WIDGETS
                    if ref in heights:
                        node["size"][1] = heights[ref]
                    if node["type"] in NOTES:
                        node["size"][1] = _note_size(node, BOTTOM - top)
                    top += whole_height(node) + ROW_GAP
            held += members.values()
            y = max(node["pos"][1] + whole_height(node) for node in held) + ROW_GAP
        x += column.width + COLUMN_GAP
    lead(graph)


def arrange_inside(graph: Graph) -> None:
    """Place the nodes of a subgraph by how many others their inputs lead through."""
    depths: dict[int, int] = {}

    def depth(node_id: int) -> int:
        if node_id not in depths:
            sources = [x["origin_id"] for x in graph.links() if x["target_id"] == node_id]
            depths[node_id] = max((1 + depth(x) for x in sources if x != SUBGRAPH_INPUT), default=0)
        return depths[node_id]

    x = 0.0
    ordered = sorted(graph.nodes, key=lambda node: depth(node["id"]))
    for _, group in groupby(ordered, key=lambda node: depth(node["id"])):
        members, y = list(group), 0.0
        for node in members:
            node["pos"] = [x, y]
            y += node["size"][1] + ROW_GAP
        x += max(node["size"][0] for node in members) + COLUMN_GAP
    graph.data["inputNode"]["bounding"][:2] = [-300, 0]
    graph.data["outputNode"]["bounding"][:2] = [x, 0]
    lead(graph)


def lead(graph: Graph, link_ids: Iterable[int] | None = None) -> None:
    """Lead links (all, or these) upright between the columns and level through free lanes."""
    boxes = [box_of(node) for node in graph.nodes]
    titles = [(*group["bounding"][:3], TITLE) for group in graph.data["groups"]]
    taken: list[Box] = []
    wanted = [link for link in graph.links() if link_ids is None or link["id"] in link_ids]
    ends = {link["id"]: _ends(graph, link) for link in wanted}
    # The nearest lanes are for those that have the shortest way.
    wanted.sort(key=lambda link: math.dist(*ends[link["id"]]))
    for number, link in enumerate(wanted):
        (x1, y1), (x2, y2) = ends[link["id"]]
        turn = TURNS[number % len(TURNS)]
        left, right = x1 + turn, x2 - turn
        between = (x1, min(y1, y2), x2 - x1, abs(y2 - y1))
        if x2 > x1 and not any(_meet(between, box) for box in boxes):
            if abs(y2 - y1) > STEEP:
                graph.route(link["id"], ((left, y1), (left, y2)))
            continue
        for y in _lanes(boxes, y1, y2):
            lane = (min(left, right), y - LANE, abs(right - left), 2 * LANE)
            legs = [
                (x - LEG, min(y, at), 2 * LEG, abs(y - at)) for x, at in ((left, y1), (right, y2))
            ]
            if any(_meet(lane, box) for box in (*boxes, *titles, *taken)) or any(
                _meet(leg, box) for leg in legs for box in boxes
            ):
                continue
            taken.append((lane[0], y, lane[2], 1))
            before = ((left, y1),) if abs(y - y1) > STEEP else ()
            after = ((right, y2),) if abs(y - y2) > STEEP else ()
            graph.route(link["id"], (*before, (left, y), (right, y), *after))
            break


def refs_of(row: Row) -> tuple[Ref, ...]:
    """The nodes of a row, or of what stands below one another in it."""
    if not isinstance(row, tuple):
        return (row,)
    return tuple(ref for each in row for ref in refs_of(each))


def box_of(node: Json) -> Box:
    """What a node covers, with its title: x, y, width, height."""
    (x, y), (width, _) = node["pos"], node["size"]
    return (x, y - TITLE, width, _height(node) + TITLE)


LEAST_NOTE = 100
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
ITEM = re.compile(r"([-*]|\d+\.) ")


def note_height(text: str, width: float) -> float:
    """About what a note of this width needs without a scroll bar: Nodes 2.0 draws it so high.

    Fitted to 35 notes as drawn; none is more than 6 % off, for which there is 8 % more.
    """
    inner, height, in_code = width - 40, 0.0, False
    for line in text.split("\n"):
        shown = LINK.sub(r"\1", line).replace("**", "").replace("`", "").strip()
        if line.strip().startswith("```"):
            in_code = not in_code
            height += 39
        elif in_code:
            height += 10
        elif not set(shown) <= set("|-: "):
            cells = shown.strip("|").split("|") if shown.startswith("|") else [shown]
            room = inner / len(cells) - 16 if shown.startswith("|") else inner
            room -= 24 if ITEM.match(shown) else 0
            if shown.startswith("#"):
                height += 56
            else:
                height += 24 if shown.startswith("|") else 19
                height += 10 * max(math.ceil(6 * len(cell.strip()) / room) for cell in cells)
    return max(round(1.08 * height), LEAST_NOTE)


def whole_height(node: Json) -> float:
    """The height of a node, of a note as high as its text."""
    if node["type"] in NOTES and not node["flags"].get("collapsed"):
        return note_height(node["widgets_values"][0], node["size"][0])
    return _height(node)


def _note_size(node: Json, room: float) -> float:
    """The height to store: of a collapsed note once it is opened, which the page counts, too."""
    if node["flags"].get("collapsed"):
        return max(room, 0)
    return min(whole_height(node), max(room, LEAST_NOTE))


def _height(node: Json) -> float:
    return 0 if node["flags"].get("collapsed") else node["size"][1]


def _place(members: Sequence[Json], x: float, y: float, width: float) -> None:
    own = [WIDTHS[node["type"]] for node in members if node["type"] in WIDTHS]
    rest = width - sum(own) - COLUMN_GAP * (len(members) - 1)
    for node in members:
        node["pos"] = [x, y]
        node["size"][0] = WIDTHS.get(node["type"], rest / max(len(members) - len(own), 1))
        x += node["size"][0] + COLUMN_GAP


def _around(members: Sequence[Json]) -> Box:
    """A frame around nodes with room for its title."""
    boxes = [box_of(node) for node in members]
    left, top = min(box[0] for box in boxes) - 10, min(box[1] for box in boxes) - 44
    right = max(box[0] + box[2] for box in boxes) + 10
    bottom = max(node["pos"][1] + whole_height(node) for node in members) + 10
    return (left, top, right - left, bottom - top)


def _ends(graph: Graph, link: Json) -> tuple[Point, Point]:
    """Where a link begins and ends; at a widget about there."""
    places = []
    for node_id, slot, side in (
        (link["origin_id"], link["origin_slot"], "outputs"),
        (link["target_id"], link["target_slot"], "inputs"),
    ):
        if node_id in (SUBGRAPH_INPUT, SUBGRAPH_OUTPUT):
            boundary = "inputNode" if node_id == SUBGRAPH_INPUT else "outputNode"
            x, y, width, _ = graph.data[boundary]["bounding"]
            places.append((x + (width if node_id == SUBGRAPH_INPUT else 0), y + SLOT * (slot + 1)))
            continue
        node = graph.node(node_id)
        x = node["pos"][0] + (node["size"][0] if side == "outputs" else 0)
        places.append((x, node["pos"][1] + SLOT * (slot + 0.7)))
    return places[0], places[1]


def _lanes(boxes: Sequence[Box], y1: float, y2: float) -> Iterator[float]:
    """Heights for a lane, those first that cost the shortest way."""
    top = min(box[1] for box in boxes) - 400
    bottom = max(box[1] + box[3] for box in boxes) + 400
    steps = [top + LANE * step for step in range(int((bottom - top) / LANE))]
    yield from sorted(steps, key=lambda y: abs(y - y1) + abs(y - y2))


def _meet(first: Box, second: Box) -> bool:
    return all(
        first[axis] < second[axis] + second[axis + 2]
        and second[axis] < first[axis] + first[axis + 2]
        for axis in (0, 1)
    )
