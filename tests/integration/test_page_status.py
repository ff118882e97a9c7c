"""The line on the node in ComfyUI's real page, through real runs: whose it is, and of which run.

The page is opened in headless Chromium on the server of the newest version. `web/js` without a
server is tested in `tests/workflows/test_page.py`.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rectified_spaattn.nodes.inputs import MAIN

from ..workflows.browser_run import browser
from .comfy_server import ComfyServer
from .graphs import SCENES, rectified, sampled
from .test_server import ours, renamed

pytest.importorskip("playwright", reason="playwright is not installed (make venv)")
pytestmark = [
    pytest.mark.skipif(browser() is None, reason="no Chromium on the path"),
    pytest.mark.parametrize("version", ["current"], indirect=True),
    pytest.mark.timeout(600),
]

BROWSER = Path(__file__).parents[1] / "workflows" / "browser"
RUN_SECONDS = 300
MUTED, BYPASSED = 2, 4
WAN = SCENES["wan21_t2v"]
# As if a file in the form of the API had been dropped on the page.
LOAD = "nodes => app.loadApiJson(nodes, 'graph')"
# The next run has nothing in ComfyUI's cache.
RENEW = """() => {
  for (const node of app.rootGraph.nodes)
    for (const widget of node.widgets ?? []) if (widget.name === 'nonce') widget.value += 1;
}"""
SET_MODE = "([id, mode]) => { app.canvas.graph.getNodeById(id).mode = mode; }"
ENABLE = """([id, on]) => {
  app.canvas.graph.getNodeById(id).widgets.find(each => each.name === 'enabled').value = on;
}"""
INTO_SUBGRAPH = """id => {
  const graph = app.canvas.graph;
  return String(graph.convertToSubgraph(new Set([graph.getNodeById(id)])).node.id);
}"""


class Visitor:
    """Somebody who runs graphs at the page; pictures of the window go to `folder`."""

    def __init__(self, artist: Any, server: ComfyServer, folder: Path) -> None:
        self.artist = artist
        self.server = server
        self.folder = folder

    def load(self, nodes: dict[str, Any]) -> None:
        self.artist.page.evaluate(LOAD, nodes)
        self.artist.page.wait_for_timeout(self.artist.settle_ms)

    def run(self) -> None:
        """Run the graph to its end; it must come to it without an error."""
        self.artist.page.evaluate(RENEW)
        before = self.server.get("/history")
        self.artist.press_run(by_key=False)
        assert self.wait_until_over(before) == "success"

    def wait_until_over(self, before: dict[str, Any]) -> str:
        """The status of the run that is not among those `before`, once it has one."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            entries = self.server.get("/history")
            if new := set(entries) - set(before):
                return entries[new.pop()]["status"]["status_str"]
            self.artist.page.wait_for_timeout(200)
        pytest.fail(f"no result after {RUN_SECONDS} s:\n{self.server.log()[-3000:]}")

    def do(self, script: str, *words: Any) -> Any:
        """What a script in the page returns."""
        return self.artist.page.evaluate(script, words[0] if len(words) == 1 else list(words))

    def picture(self, name: str, node: str) -> None:
        """Keep a picture of the window with this node in its middle."""
        self.artist.look_at(node)
        self.artist.snapshot(self.folder / f"{name}.png")

    def lines(self) -> dict[str, str]:
        """What our nodes in all graphs say, by their ids there."""
        nodes = self.artist.shown()
        return {each["id"]: each["text"] for each in nodes if each["type"] == MAIN.node_id}

    def becomes(self, is_right: Callable[[dict[str, str]], bool]) -> bool:
        """Whether the lines are right, or come to be."""
        for _ in range(200):
            if is_right(self.lines()):
                return True
            self.artist.page.wait_for_timeout(100)
        return False

    def overlaid(self) -> list[str]:
        """The texts that lie over the canvas."""
        return [each["text"] for each in self.artist.visible_texts()]


@pytest.fixture
def visitor(
    comfy: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Visitor]:
    monkeypatch.syspath_prepend(str(BROWSER))
    artist, front_end = importlib.import_module("artist"), importlib.import_module("front_end")
    settings = comfy.server.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(front_end.USER_SETTINGS), encoding="utf-8")
    with front_end.opened(comfy.server.url, browser()) as page:
        somebody = artist.Artist(page.page, page.address)
        yield Visitor(somebody, comfy.server, tmp_path_factory.mktemp("status"))


def is_sparse(text: str | None) -> bool:
    """Whether a line is that of a run with sparse calls."""
    return (text or "").startswith("sparse ") and not (text or "").startswith("sparse 0 ")


def test_the_line_is_of_the_node_that_is_there_and_of_this_run(visitor: Visitor) -> None:
    nodes = sampled(WAN, rectified())
    node = ours(nodes)
    visitor.load(nodes)

    visitor.run()
    assert visitor.becomes(lambda lines: is_sparse(lines[node])), visitor.lines()
    visitor.picture("1_first_run", node)

    visitor.do(ENABLE, node, False)
    visitor.run()
    assert visitor.becomes(lambda lines: lines == {node: "off: full attention"}), visitor.lines()
    visitor.picture("2_switched_off", node)

    visitor.do(ENABLE, node, True)
    visitor.run()
    assert visitor.becomes(lambda lines: is_sparse(lines[node])), visitor.lines()
    visitor.do(SET_MODE, node, BYPASSED)
    visitor.run()
    assert visitor.becomes(lambda lines: not lines[node]), visitor.lines()
    visitor.picture("3_bypassed", node)

    visitor.do(SET_MODE, node, 0)
    host = visitor.do(INTO_SUBGRAPH, node)
    (inner,) = visitor.lines()
    visitor.run()
    visitor.picture("4_subgraph", host)
    assert any(map(is_sparse, visitor.overlaid())), "beneath the subgraph"
    visitor.artist.enter_subgraph(host)
    assert visitor.becomes(lambda lines: is_sparse(lines[inner])), visitor.lines()
    visitor.picture("5_inside_the_subgraph", inner)
    assert any(map(is_sparse, visitor.overlaid()))
    visitor.artist.leave_subgraph()
    visitor.artist.look_at(host)
    assert any(map(is_sparse, visitor.overlaid())), "beneath the subgraph again"

    visitor.do(SET_MODE, host, BYPASSED)
    visitor.run()
    assert visitor.becomes(lambda lines: not lines[inner]), visitor.lines()
    assert not any(map(is_sparse, visitor.overlaid()))
    visitor.picture("6_subgraph_bypassed", host)


def test_equal_nodes_in_two_branches_of_which_one_is_muted(visitor: Visitor) -> None:
    first, second = sampled(WAN, rectified()), sampled(WAN, rectified())
    for name in list(second):
        second = renamed(second, name, f"1{name}")
    visitor.load(first | second)

    visitor.run()
    one, two = ours(first), ours(second)
    assert visitor.becomes(lambda lines: is_sparse(lines[one]) and is_sparse(lines[two]))
    visitor.picture("7_equal_nodes", one)
    visitor.picture("8_equal_nodes", two)

    for name in second:
        visitor.do(SET_MODE, name, MUTED)
    visitor.run()
    assert visitor.becomes(lambda lines: is_sparse(lines[one]) and not lines[two]), visitor.lines()
    visitor.picture("9_muted", two)


def test_a_run_that_is_interrupted_says_so(visitor: Visitor) -> None:
    nodes = sampled(WAN, rectified(), steps=400)
    node = ours(nodes)
    visitor.load(nodes)
    before = visitor.server.get("/history")
    visitor.artist.press_run(by_key=False)
    assert visitor.becomes(lambda lines: is_sparse(lines[node])), visitor.lines()
    visitor.artist.page.get_by_role("button", name="Cancel current run").click()
    assert visitor.wait_until_over(before) == "error"
    words = "interrupted\nsparse "
    assert visitor.becomes(lambda lines: lines[node].startswith(words)), visitor.lines()
    visitor.picture("10_interrupted", node)


def test_both_experts_show_one_line(visitor: Visitor) -> None:
    visitor.load(sampled(SCENES["wan22_t2v_a14b"], rectified(start_percent=0.2), steps=2))
    visitor.run()
    words = "both samplers: sparse 6 / dense 2 (first 20 %, 1 of 4 steps)"
    assert visitor.becomes(
        lambda lines: all((each or "").startswith(words) for each in lines.values())
    )
    first, second = visitor.lines()
    line = visitor.lines()[first]
    assert visitor.lines()[second] == line
    assert ", with full attention about " in line
    visitor.picture("11_experts", first)
    visitor.picture("12_experts", second)
