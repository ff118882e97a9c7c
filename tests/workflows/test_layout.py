"""How the example workflows look when they are opened, computed from the files.

The page opens a template so that all nodes fit, with a margin; links are curves that it draws from
their ends and reroutes. `test_page.py` has the page's own word on the zoom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import pytest

from rectified_spaattn.tools.workflow_builder import layout

from .test_workflow_files import each_stem, graphs, read

Json = dict[str, Any]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

WINDOW = (1600, 1000)
USED, PADDING = 0.75, 10
"""The part of the window that the nodes fill, and what the page adds around them, canvas pixels."""
READABLE_ZOOM = 8 / 14
"""Below it the page draws nodes without their text."""
TITLE, SLOT = 30, 20
MOST_CONTROL = 20
"""Distance of a reroute's control point, the page's setting "Reroute spline offset"."""
MARKDOWN = ("MarkdownNote", "Note")


def box_of(node: Json) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return (x, y - TITLE, x + width, y + (0 if node["flags"].get("collapsed") else height))


def whole_bottom(node: Json) -> float:
    return float(node["pos"][1] + layout.whole_height(node))


def zoom_of(graph: Json) -> float:
    """As Nodes 2.0 fits it: a collapsed node counts as high as it is once it is opened."""
    boxes = [box_of(node | {"flags": {}}) for node in graph["nodes"]]
    left, top = (min(box[side] for box in boxes) - PADDING for side in (0, 1))
    right, bottom = (max(box[side] for box in boxes) + PADDING for side in (2, 3))
    return USED * min(WINDOW[0] / (right - left), WINDOW[1] / (bottom - top))


@each_stem
def test_opens_at_a_zoom_at_which_nodes_can_be_read(stem: str) -> None:
    assert zoom_of(read(stem)) >= READABLE_ZOOM


@each_stem
def test_no_node_covers_another(stem: str) -> None:
    boxes = {node["id"]: box_of(node) for node in read(stem)["nodes"]}
    for (first, one), (second, other) in combinations(boxes.items(), 2):
        apart = one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
        assert apart, (first, second)


@each_stem
def test_every_node_is_in_a_group(stem: str) -> None:
    workflow = read(stem)
    frames = [group["bounding"] for group in workflow["groups"]]
    for node in workflow["nodes"]:
        left, top, right, bottom = box_of(node)
        held = [
            x <= left and y <= top and right <= x + width and bottom <= y + height
            for x, y, width, height in frames
        ]
        assert sum(held) == 1, (node["id"], node["type"])


@each_stem
def test_groups_do_not_meet(stem: str) -> None:
    for one, other in combinations((group["bounding"] for group in read(stem)["groups"]), 2):
        assert any(
            one[axis] + one[axis + 2] <= other[axis] or other[axis] + other[axis + 2] <= one[axis]
            for axis in (0, 1)
        )


@each_stem
def test_no_link_runs_beneath_a_node(stem: str) -> None:
    """But for the nodes at its ends."""
    workflow = read(stem)
    for link in workflow["links"]:
        curve = list(drawn(workflow, link))
        for node in workflow["nodes"]:
            if node["id"] in (link[1], link[3]):
                continue
            left, top, right, bottom = box_of(node)
            beneath = [p for p in curve if left < p[0] < right and top < p[1] < bottom]
            assert not beneath, (link, node["id"], beneath[0])


@each_stem
def test_a_report_is_small_before_there_is_something_to_report(stem: str) -> None:
    reports = [node for node in read(stem)["nodes"] if node["type"] == "RectifiedSpaAttnReport"]
    assert reports
    for node in reports:
        assert node["size"][0] == 320
        assert node["size"][1] <= 100


@each_stem
def test_every_model_file_has_its_address(stem: str) -> None:
    for graph in graphs(read(stem)):
        for node in graph["nodes"]:
            if node["type"].endswith(("Loader", "LoaderModelOnly", "LoaderSimple")):
                known = {model["name"] for model in node["properties"]["models"] if model["url"]}
                named = [value for value in node["widgets_values"] if ".safetensors" in str(value)]
                assert set(named) <= known, node["type"]


@each_stem
def test_a_note_says_which_file_goes_where(stem: str) -> None:
    """With a link, in the root graph."""
    workflow = read(stem)
    notes = [n["widgets_values"][0] for n in workflow["nodes"] if n["type"] in MARKDOWN]
    models = [
        model
        for graph in graphs(workflow)
        for node in graph["nodes"]
        for model in node["properties"].get("models", [])
    ]
    assert models
    for model in models:
        link = f"[{model['name']}]({model['url']})"
        assert any(link in note and model["directory"] in note for note in notes), model


@each_stem
def test_a_note_covers_nothing_where_it_is_as_high_as_its_text(stem: str) -> None:
    """So Nodes 2.0 draws it; its frame holds it then, too."""
    workflow = read(stem)
    whole = {node["id"]: (*box_of(node)[:3], whole_bottom(node)) for node in workflow["nodes"]}
    for node in workflow["nodes"]:
        if node["type"] not in MARKDOWN:
            continue
        left, top, right, bottom = whole[node["id"]]
        for other, box in whole.items():
            apart = left >= box[2] or box[0] >= right or top >= box[3] or box[1] >= bottom
            assert other == node["id"] or apart, (node["id"], other)
        frames = [group["bounding"] for group in workflow["groups"]]
        assert any(
            x <= left and y <= top and right <= x + width and bottom <= y + height
            for x, y, width, height in frames
        )


def test_height_of_a_note_grows_with_its_text() -> None:
    line = "- [a_file_of_a_model.safetensors](https://example.org/a/long/address)\n"
    few, many = (layout.note_height(line * count, 340) for count in (10, 20))
    assert few < many < 2 * few + 1
    assert layout.note_height("word " * 200, 300) > layout.note_height("word " * 200, 600)


@pytest.mark.parametrize(
    ("route", "is_beneath"), [([], True), ([(140.0, -80.0), (460.0, -80.0)], False)]
)
def test_a_curve_is_drawn_as_the_page_draws_it(route: list[Point], is_beneath: bool) -> None:
    """Straight on it meets what is between; its ends are where the sockets are."""
    curve = list(curve_through([(110.0, 14.0), *route, (490.0, 14.0)]))
    assert (curve[0], curve[-1]) == ((110.0, 14.0), (490.0, 14.0))
    assert any(200 < x < 400 and -30 < y < 100 for x, y in curve) == is_beneath


def drawn(workflow: Json, link: list[Any]) -> Iterator[Point]:
    """Points of a link of the root graph, close to one another."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    link_id, source, source_slot, target, target_slot, _ = link
    extra = workflow["extra"]
    reroutes = {each["id"]: each for each in extra.get("reroutes", [])}
    ends = {each["id"]: each["parentId"] for each in extra.get("linkExtensions", [])}
    route: list[Point] = []
    at = ends.get(link_id)
    while at is not None:
        route.insert(0, tuple(reroutes[at]["pos"]))
        at = reroutes[at].get("parentId")
    (x1, y1), (x2, y2) = nodes[source]["pos"], nodes[target]["pos"]
    start = (x1 + nodes[source]["size"][0] - 9, y1 + SLOT * (source_slot + 0.7))
    end = (x2 + 10, y2 + SLOT * (target_slot + 0.7))
    yield from curve_through([start, *route, end])


def curve_through(points: list[Point]) -> Iterator[Point]:
    """The page's curve from an output over reroutes to an input.

    Out of an output and into an input it is level; through a reroute it goes in the mean direction
    of what comes before and after.
    """
    directions: list[Point] = [(1.0, 0.0)]
    for before, at, after in zip(points, points[1:], points[2:], strict=False):
        came, goes = (math.atan2(b[1] - a[1], b[0] - a[0]) for a, b in ((before, at), (at, after)))
        half = (came - goes) / 2
        if abs(half) > math.pi / 2:
            half += math.pi
        directions.append((math.cos(came - half), math.sin(came - half)))
    directions.append((1.0, 0.0))
    last = len(points) - 2
    for number, (start, end) in enumerate(pairwise(points)):
        far = math.dist(start, end) / 4
        controls = []
        for place, way, is_socket, sign in (
            (start, directions[number], number == 0, 1),
            (end, directions[number + 1], number == last, -1),
        ):
            reach = sign * (far if is_socket else min(MOST_CONTROL, far))
            controls.append((place[0] + reach * way[0], place[1] + reach * way[1]))
        count = max(2, int(math.dist(start, end) / 4))
        for step in range(count + 1):
            yield bezier((start, *controls, end), step / count)


def bezier(corners: tuple[Point, ...], t: float) -> Point:
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
    x, y = (sum(w * c[axis] for w, c in zip(weights, corners, strict=True)) for axis in (0, 1))
    return (x, y)
