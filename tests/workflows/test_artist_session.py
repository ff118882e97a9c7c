"""What an artist does with the example workflows, in a real ComfyUI and its real front end.

`browser/artist_session.py` opens workflows from the template browser, changes inputs by mouse and
keyboard, runs them on the CPU with tiny models and writes a report, which the tests judge. The
suite does that with one workflow; all of them take about ten minutes:

    RSPA_FULL_SESSION=1 pytest tests/workflows/test_artist_session.py

Skipped with the reason where ComfyUI, playwright or Chromium is missing, as `test_front_end.py`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from .browser_run import report_of

Json = dict[str, Any]

FOLDER = Path(__file__).parent
IS_FULL = os.environ.get("RSPA_FULL_SESSION") == "1"
SECONDS = 3000 if IS_FULL else 900
WORKFLOWS = sorted(path.stem for path in (FOLDER.parents[1] / "workflows").glob("*.json"))
FIRST = "wan2.1_text_to_video"
STEMS = WORKFLOWS if IS_FULL else [FIRST]
NODE = "RectifiedSpaAttn"
PRESET_WIDGETS = ("sparsity", "block_size", "start_percent", "end_percent", "ramp")
OVERRIDDEN = {
    "schedule": ("sparsity", "start_percent", "end_percent", "ramp"),
    "profile": ("sparsity",),
}
"""Widgets that are not live while an input is linked."""
PADDING = 10
"""Of a text field, pixels: so much of it may be out of sight while the text is not."""
PICTURED = ("RectifiedSpaAttnReport", "RectifiedSpaAttnProbeResult")
STATUS = re.compile(r"sparse (\d+) / dense (\d+)")

pytestmark = pytest.mark.timeout(SECONDS + 60)
each_stem = pytest.mark.parametrize("stem", STEMS)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """What `browser/artist_session.py` saw, plus the folder of its pictures under "folder"."""
    words = ("--all",) if IS_FULL else ()
    return report_of("artist_session.py", tmp_path_factory, SECONDS, *words)


def visited(report: Json, stem: str) -> Json:
    """What was seen of a workflow; fails where the artist did not get through it."""
    entry = report["workflows"][stem]
    assert "error" not in entry, f"{entry['error']}\npictures in {report['folder']}"
    return entry


def shown(report: Json, stem: str, *kinds: str) -> list[Json]:
    """What the nodes of these types showed after the run."""
    found = [node for node in visited(report, stem)["shown"] if node["type"] in kinds]
    return [node for node in found if node["mode"] == 0]


def watched(report: Json, stem: str) -> list[str]:
    """Ids of our nodes in the graph that was on show during the run: only those show a status."""
    ids = set(visited(report, stem)["watched"])
    nodes = [node["id"] for node in shown(report, stem, NODE) if node["id"] in ids]
    assert nodes
    return nodes


def test_a_preset_fills_the_inputs_it_names(report: Json) -> None:
    presets = report["definition"]["preset"][1]["rspa_presets"]
    tried = visited(report, FIRST)["presets"]
    assert tried
    for entry in tried:
        assert entry["choices"] == ["custom", *presets]
        expected = presets[entry["preset"]] | {"preset": entry["preset"]}
        assert set(expected) == {*PRESET_WIDGETS, "preset"}
        assert {name: entry["chosen"][name] for name in expected} == expected


def test_a_change_by_hand_goes_back_to_custom(report: Json) -> None:
    for entry in visited(report, FIRST)["presets"]:
        by_hand = {"preset": "custom", "sparsity": float(entry["by_hand"])}
        assert entry["changed"] == entry["chosen"] | by_hand


@each_stem
def test_what_is_overridden_is_shown_as_such(report: Json, stem: str) -> None:
    nodes = visited(report, stem)["overridden"]
    assert nodes
    for node in nodes.values():
        names = [set(OVERRIDDEN.get(name, ())) for name in node["linked"]]
        assert set(node["disabled"]) & set(PRESET_WIDGETS) == set().union(*names)


@each_stem
def test_widgets_take_what_was_typed(report: Json, stem: str) -> None:
    edits = visited(report, stem)["edits"]
    assert edits
    for edit in edits:
        got, typed = edit["got"], edit["typed"]
        assert got == (typed if isinstance(got, str | bool) else float(typed)), edit


@each_stem
def test_front_end_has_nothing_to_complain_about(report: Json, stem: str) -> None:
    entry = visited(report, stem)
    assert entry["messages_opened"] == []
    assert entry["messages"] == []


@each_stem
def test_every_node_of_ours_shows_how_the_run_goes_on(report: Json, stem: str) -> None:
    """The status text of each node changes while sampling, counts up, and ends sparse."""
    texts = visited(report, stem)["texts"]
    nodes = watched(report, stem)
    for node in nodes:
        told = [match for match in map(STATUS.search, texts[node]) if match is not None]
        assert len(told) >= len(texts[node]) - 1, "all but 'waiting for the first model call'"
        counts = [tuple(map(int, match.groups())) for match in told]
        assert len(set(texts[node])) == len(texts[node])
        assert counts == sorted(counts, key=sum)
        assert counts[-1][0] > 0
    # An expert's two model calls may pass between two looks at the page.
    assert max(len(texts[node]) for node in nodes) >= 2


@each_stem
def test_texts_can_be_read_on_the_nodes(report: Json, stem: str) -> None:
    """In the window at 100 %, with nothing cut off."""
    cut = visited(report, stem)["cut"]
    assert set(watched(report, stem)) <= set(cut)
    for node, pixels in cut.items():
        assert pixels is not None, f"the text of node {node} is not in the window"
        assert pixels <= PADDING, f"{pixels} pixels of the text of node {node} are cut off"


@each_stem
def test_reports_and_probes_show_their_picture(report: Json, stem: str) -> None:
    nodes = shown(report, stem, *PICTURED)
    assert nodes
    for node in nodes:
        assert len(node["pictures"]) == 1
        width, height = node["pictures"][0]
        assert width >= 300
        assert height >= 200  # tiny models have as few blocks as two


@each_stem
def test_the_video_is_shown(report: Json, stem: str) -> None:
    nodes = shown(report, stem, "SaveVideo")
    assert nodes
    assert all(node["has_video"] for node in nodes)


@each_stem
def test_no_node_covers_another_once_all_is_shown(report: Json, stem: str) -> None:
    assert visited(report, stem)["overlaps"] == []


@each_stem
def test_pictures_of_the_session_are_kept(report: Json, stem: str) -> None:
    folder = Path(report["folder"])
    assert (folder / "templates.png").exists()
    assert (folder / f"{stem}.sampling.png").exists()
    assert list(folder.glob(f"{stem}.*report.*.png"))
