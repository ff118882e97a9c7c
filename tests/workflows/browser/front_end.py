"""Drives ComfyUI's own web front end in headless Chromium."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, Route, TimeoutError, sync_playwright

CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
VIEWPORT = {"width": 1600, "height": 1000}
# Time for widgets to lay themselves out after a graph has been loaded.
SETTLE_MS = 2500
TRIES = 3
# Time for what a busy machine does late: to answer, and to open the page.
PATIENCE_MS = 20_000
OPENING_MS = 120_000
# Without the first-run tour, its template dialog, and what floats over the corner of the canvas.
USER_SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.OnboardingCoachmarks.Seen": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.CanvasInfo": False,
}

# Everything the checks need to know about the graph as the front end understood it.
INSPECT = """() => {
  const root = app.rootGraph ?? app.graph;
  const graphs = [["", root], ...[...root.subgraphs.values()].map(s => [s.name, s])];
  const describe = (graph, node) => ({
    graph, id: String(node.id), type: node.type, title: node.title,
    known: Boolean(node.isSubgraphNode?.()) || node.type in LiteGraph.registered_node_types,
    has_errors: Boolean(node.has_errors),
    box: [node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT,
          node.size[0],
          (node.flags?.collapsed ? 0 : node.size[1]) + LiteGraph.NODE_TITLE_HEIGHT],
    widgets: Object.fromEntries((node.widgets ?? []).map(w => [w.name, w.value])),
    off: (node.widgets ?? []).filter(w => w.disabled).map(w => w.name),
    linked: (node.inputs ?? []).filter(i => i.link != null).map(i => i.name),
  });
  return graphs.flatMap(([name, graph]) => graph.nodes.map(node => describe(name, node)));
}"""

# Canvas units, as drawn: the elements of Nodes 2.0, or the nodes of the canvas.
DRAWN = """() => {
  const ds = app.canvas.ds, origin = app.canvas.canvas.getBoundingClientRect();
  return app.canvas.graph.nodes.map(node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    const box = element?.getBoundingClientRect();
    const [x, y, width, height] = box
      ? [(box.x - origin.x) / ds.scale - ds.offset[0], (box.y - origin.y) / ds.scale - ds.offset[1],
         box.width / ds.scale, box.height / ds.scale]
      : node.boundingRect;
    return {id: String(node.id), type: node.type, title: node.title, graph: "",
            box: [x, y, width, height].map(Math.round), stored: [...node.pos, ...node.size]};
  });
}"""

# Text of whatever asks for attention: dialogs, toasts, and the error overlay beside the run button.
MESSAGES = """() => [...document.querySelectorAll(
    '[role=dialog], .p-dialog, .p-toast-message, [data-testid*=error], [data-testid*=missing]')]
  .filter(e => e.offsetParent !== null || getComputedStyle(e).position === 'fixed')
  .map(e => e.innerText.trim()).filter(Boolean)"""

SET_NODES2 = "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"

CARD = '[data-testid="template-workflow-{}"]'
ANY_CARD = "[data-testid^=template-workflow-]"
PICTURED_CARD = "card => Boolean(card.querySelector('img')?.naturalWidth)"
SHOWN_CARD = """card => (
  {title: card.innerText.trim(), width: card.querySelector('img')?.naturalWidth ?? 0}
)"""

# All of them, or the first of many: the others get theirs once they come into view.
THUMBNAILS = """() => {
  const cards = [...document.querySelectorAll('[data-testid^=template-workflow-]')].slice(0, 8);
  return cards.length && cards.every(card => card.querySelector('img')?.naturalWidth);
}"""

PICTURE_WIDTHS = """ids => ids.map(
  id => app.rootGraph.getNodeById(id)?.imgs?.[0]?.naturalWidth ?? 0
)"""
PICTURED = f"ids => ({PICTURE_WIDTHS})(ids).every(width => width > 0)"

# Canvas extent of the graph on show, then the view that puts it in the upper left corner.
EXTENT = """() => {
  const nodes = app.canvas.graph.nodes;
  const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1]));
  const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]));
  const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]));
  return [left, top - 90, right, bottom];
}"""
SHOW = """([scale, left, top]) => {
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [30 - left, 30 - top];
  app.canvas.setDirty(true, true);
}"""
OPEN_TEMPLATE = """([name, workflow]) =>
  app.loadGraphData(workflow, true, true, name, {openSource: 'template'})"""
FOCUS = "on => { app.extensionManager.focusMode = on; }"
# Below this the canvas leaves out text.
READABLE_SCALE = 0.75


class FrontEnd:
    """One browser page on a running ComfyUI."""

    def __init__(self, page: Page, address: str, settle_ms: int = SETTLE_MS) -> None:
        self.page = page
        self.address = address
        self.settle_ms = settle_ms

    def open(self) -> None:
        """Open the page and wait until it shows the graph that it begins with."""
        self.page.goto(self.address, timeout=OPENING_MS)
        self.page.wait_for_function(
            "() => Boolean(window.app?.graph?.nodes.length && window.app?.extensionManager && "
            "window.LiteGraph?.registered_node_types?.KSampler)",
            timeout=OPENING_MS,
        )
        self.page.wait_for_timeout(self.settle_ms)

    def load(self, workflow: dict[str, Any]) -> None:
        """Load a UI-format workflow as if its file had been dropped on the page."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(self.settle_ms)

    def open_as_template(self, name: str, workflow: dict[str, Any]) -> tuple[float, bool]:
        """Load a workflow as the template browser does.

        The zoom that the page chooses, and whether nodes are drawn with their text.
        """
        self.page.evaluate(OPEN_TEMPLATE, [name, workflow])
        self.page.wait_for_timeout(self.settle_ms)
        zoom, is_low = self.page.evaluate("[app.canvas.ds.scale, app.canvas.low_quality]")
        return zoom, not is_low

    def nodes(self) -> list[dict[str, Any]]:
        """Every node of the loaded workflow, subgraphs included."""
        return self.page.evaluate(INSPECT)

    def drawn(self) -> list[dict[str, Any]]:
        """The nodes of the graph on show with their boxes as drawn."""
        return self.page.evaluate(DRAWN)

    def drawn_overlaps(self) -> list[list[str]]:
        """Titles of the nodes on show that are drawn over one another."""
        return overlaps(self.drawn())

    def use_nodes2(self, is_on: bool) -> None:
        """Draw nodes as Nodes 2.0, or on the canvas."""
        self.page.evaluate(SET_NODES2, is_on)
        self.page.wait_for_timeout(self.settle_ms)

    def messages(self) -> list[str]:
        """What dialogs, toasts and error panels say now."""
        return self.page.evaluate(MESSAGES)

    def findings(self) -> dict[str, Any]:
        """What is wrong with the loaded workflow, each empty if nothing is."""
        nodes = self.nodes()
        return {
            "messages": self.messages(),
            "unknown": [node["type"] for node in nodes if not node["known"]],
            "marked": [node["title"] for node in nodes if node["has_errors"]],
            "overlaps": overlaps(nodes),
        }

    def dismiss_toasts(self) -> None:
        """Close all toasts; what is about a workflow goes with it, those stay."""
        self.page.evaluate("app.extensionManager.toast.removeAll()")

    def prompt(self) -> dict[str, Any]:
        """The API format of the loaded workflow, subgraphs flattened: what *Run* would send."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def run(self, node_ids: list[str]) -> list[int]:
        """Run only these output nodes of the root graph; the width of the picture each shows."""
        if not node_ids:
            return []
        self.page.evaluate("ids => app.queuePrompt(0, 1, ids)", node_ids)
        with contextlib.suppress(TimeoutError):
            self.page.wait_for_function(PICTURED, arg=node_ids, timeout=30_000)
        return self.page.evaluate(PICTURE_WIDTHS, node_ids)

    def open_subgraph(self, name: str) -> None:
        """Show the inside of the subgraph called `name`."""
        self.page.evaluate(
            """name => {
              // A subgraph may hold others.
              const root = app.rootGraph ?? app.graph;
              const graphs = [root, ...root.subgraphs.values()];
              const host = graphs.flatMap(graph => graph.nodes).find(
                n => n.isSubgraphNode?.() && n.subgraph.name === name);
              app.canvas.openSubgraph(host.subgraph, host);
            }""",
            name,
        )
        self.page.wait_for_timeout(self.settle_ms)

    def screenshot(self, path: Path) -> None:
        """A picture of the whole graph on show, in a window as large as legible text needs."""
        left, top, right, bottom = self.page.evaluate(EXTENT)
        size = {
            "width": int((right - left + 60) * READABLE_SCALE),
            "height": int((bottom - top + 60) * READABLE_SCALE),
        }
        self.page.evaluate(FOCUS, True)
        self.page.set_viewport_size(size)
        self.page.wait_for_timeout(500)
        self.page.evaluate(SHOW, [READABLE_SCALE, left, top])
        self.page.wait_for_timeout(800)
        self.page.screenshot(path=path)
        self.page.set_viewport_size(VIEWPORT)

    def choose_pack(self, pack: str, stem: str) -> Locator:
        """Choose a pack in the open template browser, which is returned; `stem` is one of its."""
        dialog = self.page.get_by_role("dialog")
        card = dialog.locator(CARD.format(stem))
        for _ in range(TRIES):
            # The pictures of the other templates move and may keep a busy page from ever being
            # still, and its list may move under the click: look at what came of it instead.
            dialog.get_by_text(pack, exact=True).first.click(force=True, timeout=PATIENCE_MS)
            with contextlib.suppress(TimeoutError):
                card.wait_for(timeout=PATIENCE_MS / 2)
                break
        self.page.wait_for_timeout(self.settle_ms)
        with contextlib.suppress(TimeoutError):
            self.page.wait_for_function(THUMBNAILS, timeout=PATIENCE_MS)
        return dialog

    def template_cards(self, pack: str, stem: str) -> list[dict[str, Any]]:
        """Open the template browser on `pack`; title and picture width of each card it shows."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        dialog = self.choose_pack(pack, stem)
        cards = dialog.locator(ANY_CARD)
        shown: list[dict[str, Any]] = []
        # Only cards in view have their picture, and more may come while scrolling.
        while len(shown) < cards.count():
            card = cards.nth(len(shown))
            card.scroll_into_view_if_needed(timeout=PATIENCE_MS)
            with contextlib.suppress(TimeoutError):
                handle = card.element_handle()
                self.page.wait_for_function(PICTURED_CARD, arg=handle, timeout=PATIENCE_MS)
            shown.append(card.evaluate(SHOWN_CARD))
        return shown


def overlaps(nodes: list[dict[str, Any]]) -> list[list[str]]:
    """Titles of the nodes of one graph whose boxes intersect."""
    return [
        [first["title"], second["title"]]
        for first, second in combinations(nodes, 2)
        if first["graph"] == second["graph"] and intersect(first["box"], second["box"])
    ]


def intersect(first: list[float], second: list[float]) -> bool:
    """Whether two boxes `[x, y, width, height]` share more than an edge."""
    return all(
        first[axis] < second[axis] + second[axis + 2]
        and second[axis] < first[axis] + first[axis + 2]
        for axis in (0, 1)
    )


@contextlib.contextmanager
def opened(
    address: str,
    chromium: str,
    serve: Callable[[Page], None] | None = None,
    settle_ms: int = SETTLE_MS,
) -> Iterator[FrontEnd]:
    """A `FrontEnd` on `address` in the browser `chromium` (path of its program).

    With `serve`, which routes the page's requests, no server is needed.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        try:
            page = browser.new_page(viewport=VIEWPORT)
            if serve is None:
                page.route("**/*", lambda route: _only_local(route, address))
            else:
                serve(page)
            front_end = FrontEnd(page, address, settle_ms)
            front_end.open()
            yield front_end
        finally:
            browser.close()


def _only_local(route: Route, address: str) -> None:
    """The front end asks model hosts for file sizes; a check needs nothing from outside."""
    if route.request.url.startswith((address, "data:", "blob:")):
        route.continue_()
    else:
        route.abort()
