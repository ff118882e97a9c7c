"""What an artist does with ComfyUI's front end, by mouse and keyboard only, in headless Chromium.

Scripts in the page only read: where things are and what they say. The one exception is the view,
which is moved without the mouse wheel.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from front_end import CARD, PATIENCE_MS, SETTLE_MS, TRIES, VIEWPORT, FrontEnd
from playwright.sync_api import Locator, TimeoutError, expect

PANEL = 50
"""Width of the side bar, pixels."""
LARGE_HEIGHT = 1400
"""Of a window that shows a whole report."""
TEXT_PREVIEW = "$$node-text-preview"


# Nodes of the graph on show. `disabled` widgets get their value over a link.
NODES = """() => app.canvas.graph.nodes.map(n => ({
  id: String(n.id), type: n.type, title: n.title, mode: n.mode,
  is_subgraph: Boolean(n.isSubgraphNode?.()), name: n.subgraph?.name ?? n.type,
  inside: n.subgraph?.nodes.map(each => each.type) ?? [],
  linked: (n.inputs ?? []).filter(i => i.link != null).map(i => i.name),
  widgets: (n.widgets ?? []).map(w => ({
    name: w.name, label: w.label ?? w.name, value: w.value, type: w.type, hidden: Boolean(w.hidden),
    disabled: Boolean(w.computedDisabled ?? w.disabled)})),
}))"""
LOOK = """([id, scale, panel, part]) => {
  const node = app.canvas.graph.getNodeById(id), ds = app.canvas.ds;
  const {width, height} = app.canvas.canvas.getBoundingClientRect();
  const middle = part === 'all' ? node.size[1] / 2 : part === 'title' ? 0
    : node.widgets.find(w => w.name === part).y;
  ds.scale = scale;
  ds.offset = [(width + panel) / 2 / scale - node.pos[0] - node.size[0] / 2,
               (height + panel) / 2 / scale - node.pos[1] - middle];
  app.canvas.setDirty(true, true);
  return app.canvas.frame;
}"""
# Widgets and buttons get their place when the canvas is drawn.
IS_DRAWN = "frame => app.canvas.frame > frame"
FIELD = ".graphdialog input, .graphdialog textarea"
GRAPH = "() => String(app.canvas.graph.id)"
WIDGET_AT = """([id, name]) => {
  const node = app.canvas.graph.getNodeById(id), ds = app.canvas.ds;
  const widget = node.widgets.find(w => w.name === name);
  const canvas = app.canvas.canvas.getBoundingClientRect();
  return [canvas.x + (node.pos[0] + node.size[0] / 2 + ds.offset[0]) * ds.scale,
          canvas.y + (node.pos[1] + widget.y + 10 + ds.offset[1]) * ds.scale];
}"""
# Whether a node is too high for the window.
IS_HIGHER = """id => app.canvas.graph.getNodeById(id).size[1] * app.canvas.ds.scale
  > app.canvas.canvas.getBoundingClientRect().height"""
VALUE = """([id, name]) =>
  app.canvas.graph.getNodeById(id).widgets.find(w => w.name === name).value"""
CORNER = """id => {
  const node = app.canvas.graph.getNodeById(id), ds = app.canvas.ds;
  const canvas = app.canvas.canvas.getBoundingClientRect();
  return [canvas.x + (node.pos[0] + node.size[0] + ds.offset[0]) * ds.scale,
          canvas.y + (node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT / 2 + ds.offset[1]) * ds.scale];
}"""
# A place in the window where the canvas is empty.
EMPTY = """panel => {
  const ds = app.canvas.ds, graph = app.canvas.graph;
  for (let y = innerHeight - 20; y > 200; y -= 20)
    for (let x = innerWidth - 20; x > panel + 20; x -= 20) {
      const place = [x / ds.scale - ds.offset[0], y / ds.scale - ds.offset[1]];
      if (!graph.getNodeOnPos(...place) && document.elementFromPoint(x, y) === app.canvas.canvas)
        return [x, y];
    }
  throw new Error('no empty place in the window');
}"""
SLOT = """([id, side, name]) => {
  const node = app.canvas.graph.getNodeById(id), ds = app.canvas.ds;
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const slot = node[side].findIndex(each => each.name === name);
  const [x, y] = side === 'inputs' ? node.getInputPos(slot) : node.getOutputPos(slot);
  return [canvas.x + (x + ds.offset[0]) * ds.scale, canvas.y + (y + ds.offset[1]) * ds.scale];
}"""
# Where in the window the node is that was added last: its upper left corner.
NEWEST = """() => {
  const {pos} = app.canvas.graph.nodes.at(-1), ds = app.canvas.ds;
  return [(pos[0] + ds.offset[0]) * ds.scale, (pos[1] + ds.offset[1]) * ds.scale];
}"""
# A place in the window with room for the node that was added last: its upper left corner.
ROOM = """panel => {
  const nodes = [...app.canvas.graph.nodes], [width, height] = nodes.pop().size;
  const ds = app.canvas.ds, title = LiteGraph.NODE_TITLE_HEIGHT;
  const isFree = (x, y) => nodes.every(n => x > n.pos[0] + n.size[0] || x + width < n.pos[0]
    || y - title > n.pos[1] + n.size[1] || y + height < n.pos[1] - title);
  for (let y = innerHeight - height * ds.scale - 30; y > 150; y -= 20)
    for (let x = panel + 30; x < innerWidth - width * ds.scale - 30; x += 20)
      if (isFree(x / ds.scale - ds.offset[0], y / ds.scale - ds.offset[1])) return [x, y];
  throw new Error('no room in the window');
}"""
HAS_MORE = "count => app.canvas.graph.nodes.length > count"
IS_LINKED = """([id, name]) => {
  const node = app.canvas.graph.getNodeById(id);
  return node.inputs.find(each => each.name === name).link != null;
}"""
# The part of the window around a node, without side bar and tabs.
AROUND = """([id, panel]) => {
  const node = app.canvas.graph.getNodeById(id), ds = app.canvas.ds, margin = 24;
  const left = Math.max(panel + 10, (node.pos[0] + ds.offset[0]) * ds.scale - margin);
  const top = Math.max(90, (node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT + ds.offset[1]) * ds.scale
    - margin);
  const right = (node.pos[0] + node.size[0] + ds.offset[0]) * ds.scale + margin;
  const bottom = (node.pos[1] + node.size[1] + ds.offset[1]) * ds.scale + margin;
  return {x: left, y: top, width: Math.min(right, innerWidth) - left,
          height: Math.min(bottom, innerHeight) - top};
}"""
# Everything nodes show after or during a run, of all graphs: texts, pictures, boxes.
SHOWN = """preview => {
  const root = app.rootGraph ?? app.graph;
  return [root, ...root.subgraphs.values()].flatMap(graph => graph.nodes.map(n => ({
    id: String(n.id), type: n.type, title: n.title, mode: n.mode,
    text: n.widgets?.find(w => w.name === preview)?.value ?? null,
    pictures: (n.imgs ?? []).map(i => [i.naturalWidth, i.naturalHeight]),
    has_video: Boolean(n.videoContainer), size: [...n.size],
  })));
}"""
# Whether nodes of these types that are not muted, in all graphs, have their picture or video.
HAVE_OUTPUTS = """kinds => {
  const root = app.rootGraph ?? app.graph;
  return [root, ...root.subgraphs.values()].flatMap(graph => graph.nodes)
    .filter(n => kinds.includes(n.type) && n.mode === 0)
    .every(n => n.videoContainer || n.imgs?.length && n.imgs.every(i => i.naturalWidth));
}"""
# Keeps every new text of every node, as it appears, in window.sessionTexts: [node id, text].
COLLECT = """preview => {
  window.sessionTexts = [];
  clearInterval(window.sessionTimer);
  const last = {}, root = app.rootGraph ?? app.graph;
  window.sessionTimer = setInterval(() => {
    for (const graph of [root, ...root.subgraphs.values()])
      for (const node of graph.nodes) {
        const text = node.widgets?.find(w => w.name === preview)?.value;
        if (text && text !== last[node.id]) {
          last[node.id] = text;
          window.sessionTexts.push([String(node.id), text]);
        }
      }
  }, 50);
}"""
QUEUE_LENGTH = """async () => {
  const queue = await (await fetch('/queue')).json();
  return queue.queue_running.length + queue.queue_pending.length;
}"""
VISIBLE_TEXTS = """() => [...document.querySelectorAll('.dom-widget')]
  .filter(e => e.checkVisibility({visibilityProperty: true}) && e.firstElementChild)
  .map(e => ({text: e.innerText.trim(),
              cut: e.firstElementChild.scrollHeight - e.firstElementChild.clientHeight}))"""

Node = dict[str, Any]


class Artist(FrontEnd):
    """Somebody at the page. Nodes are named by their id in the graph on show."""

    def open_templates(self, pack: str, stem: str) -> Locator:
        """Open the template browser by its button and choose the pack in its list.

        Returns:
            The template browser, which then shows the workflow `stem` of the pack.
        """
        self.page.locator(".templates-tab-button").click()
        return self.choose_pack(pack, stem)

    def open_template(self, pack: str, stem: str) -> None:
        """Open the workflow `stem` of the pack by clicking its card."""
        dialog = self.open_templates(pack, stem)
        dialog.locator(CARD.format(stem)).click()
        dialog.wait_for(state="hidden", timeout=PATIENCE_MS)
        self.page.wait_for_timeout(SETTLE_MS)

    def close_templates(self) -> None:
        """Close the template browser by its cross."""
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("button", name="Close").first.click()
        dialog.wait_for(state="hidden", timeout=PATIENCE_MS)

    def on_show(self) -> list[Node]:
        """The nodes of the graph on show with their widgets."""
        return self.page.evaluate(NODES)

    def look_at(self, node: str, scale: float = 1.0, part: str = "all") -> None:
        """Bring a node to the middle of the window.

        Args:
            node, scale: which, and its size on the screen.
            part: "title" or a widget that has been drawn, for the middle of the window if the node
                is too high for it.
        """
        frame = self.page.evaluate(LOOK, [node, scale, PANEL, "all"])
        if part != "all" and self.page.evaluate(IS_HIGHER, node):
            frame = self.page.evaluate(LOOK, [node, scale, PANEL, part])
        self.page.wait_for_function(IS_DRAWN, arg=frame, timeout=PATIENCE_MS)
        self.page.wait_for_timeout(400)

    def make_room(self, is_large: bool) -> None:
        """Make the window high enough for the largest nodes, or as it was."""
        self.page.set_viewport_size(VIEWPORT | ({"height": LARGE_HEIGHT} if is_large else {}))
        self.page.wait_for_timeout(400)

    def place_of(self, node: str, widget: str, tag: str = "CANVAS") -> list[float]:
        """Show a widget; where to click it, once it is there. `tag` is of what takes the click."""
        self.look_at(node, part=widget)
        place = self.page.evaluate(WIDGET_AT, [node, widget])
        # On a busy machine text fields follow the canvas late and may still lie over the widget.
        shows = "([x, y, tag]) => document.elementFromPoint(x, y)?.tagName === tag"
        self.page.wait_for_function(shows, arg=[*place, tag], timeout=10_000)
        return place

    def value(self, node: str, widget: str) -> Any:
        """What a widget holds."""
        return self.page.evaluate(VALUE, [node, widget])

    def values(self, node: str) -> dict[str, Any]:
        """What all widgets of a node hold."""
        (found,) = [each for each in self.on_show() if each["id"] == node]
        return {widget["name"]: widget["value"] for widget in found["widgets"]}

    def type_value(self, node: str, widget: str, text: str) -> None:
        """Double-click a number or text widget, replace its value, confirm with Enter."""
        field = self.open_field(node, widget)
        for _ in range(TRIES):
            # It closes by itself where the mouse was not on it in time.
            if not field.is_visible():
                field = self.open_field(node, widget)
            with contextlib.suppress(TimeoutError):
                field.click(timeout=5_000)
                self.page.keyboard.press("Control+a")
                self.page.keyboard.press("Delete")
                self.page.keyboard.type(text)
                # On a busy machine it may get the keyboard late: look before confirming.
                if field.input_value(timeout=5_000) == text:
                    break
        self.page.keyboard.press("Enter")
        field.wait_for(state="hidden", timeout=5_000)
        self.page.wait_for_timeout(150)

    def open_field(self, node: str, widget: str) -> Locator:
        """Double-click a number or text widget; the field that opens."""
        field, graph = self.page.locator(FIELD), self.page.evaluate(GRAPH)
        for _ in range(TRIES):
            self.page.mouse.dblclick(*self.place_of(node, widget))
            with contextlib.suppress(TimeoutError):
                field.wait_for(timeout=5_000)
                break
            # On a busy machine a node may still be laid out: beside a widget, a double-click opens
            # the subgraph.
            if self.page.evaluate(GRAPH) != graph:
                self.leave_subgraph()
        return field

    def open_list(self, node: str, widget: str) -> list[str]:
        """Click a combo; the choices that its menu shows."""
        self.page.mouse.click(*self.place_of(node, widget))
        entries = self.page.locator(".litecontextmenu .litemenu-entry")
        entries.first.wait_for(timeout=5_000)
        return entries.all_inner_texts()

    def choose(self, node: str, widget: str, option: str) -> None:
        """Choose from a combo by mouse."""
        self.open_list(node, widget)
        self.pick(option)

    def pick(self, option: str) -> None:
        """Click an entry of the open menu."""
        menu = self.page.locator(".litecontextmenu")
        menu.locator(f'.litemenu-entry[data-value="{option}"]').click()
        menu.wait_for(state="hidden", timeout=5_000)
        self.page.wait_for_timeout(200)

    def toggle(self, node: str, widget: str) -> None:
        """Click a switch until it has turned."""
        before = self.value(node, widget)
        has_turned = f"([id, name, before]) => ({VALUE})([id, name]) !== before"
        for _ in range(TRIES):
            self.page.mouse.click(*self.place_of(node, widget))
            with contextlib.suppress(TimeoutError):
                self.page.wait_for_function(has_turned, arg=[node, widget, before], timeout=5_000)
                break

    def add_node(self, title: str, kind: str) -> str:
        """Double-click an empty place, search for a node, take the first; its id."""
        before = {node["id"] for node in self.on_show()}
        place = self.page.evaluate(EMPTY, PANEL)
        self.page.mouse.dblclick(*place)
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("combobox").first.fill(title, timeout=PATIENCE_MS)
        found = dialog.get_by_role("option").first
        expect(found).to_contain_text(title, timeout=PATIENCE_MS)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(HAS_MORE, arg=len(before), timeout=PATIENCE_MS)
        self.page.wait_for_timeout(600)
        # The new node follows the mouse, which holds it somewhere, until it is put down.
        x, y = place
        self.page.mouse.move(x - 5, y - 5, steps=4)
        left, top = self.page.evaluate(NEWEST)
        wanted_left, wanted_top = self.page.evaluate(ROOM, PANEL)
        x, y = x - 5 + wanted_left - left, y - 5 + wanted_top - top
        self.page.mouse.move(x, y, steps=4)
        self.page.mouse.click(x, y)
        self.page.wait_for_timeout(400)
        (added,) = [node for node in self.on_show() if node["id"] not in before]
        assert added["type"] == kind, added
        return added["id"]

    def search(self, words: str, picture: Path | None = None) -> list[str]:
        """Titles that the node search lists for `words`, best first; with a picture of them."""
        dialog = self.page.get_by_role("dialog")
        entries = dialog.get_by_role("option")
        field = dialog.get_by_role("combobox").first
        for _ in range(TRIES):  # a click just after another dialog was closed may be lost
            self.page.mouse.dblclick(*self.page.evaluate(EMPTY, PANEL))
            with contextlib.suppress(TimeoutError):
                field.wait_for(timeout=3_000)
                break
        field.fill(words, timeout=10_000)
        entries.first.wait_for(timeout=10_000)
        self.page.wait_for_timeout(600)
        found = entries.all_inner_texts()
        if picture is not None:
            self.page.screenshot(path=picture)
        self.page.keyboard.press("Escape")
        dialog.wait_for(state="hidden", timeout=5_000)
        return [text.splitlines()[0] for text in found]

    def connect(self, source: str, output: str, target: str, name: str) -> None:
        """Drag a link from an output to an input, both in the window."""
        self.page.mouse.move(*self.page.evaluate(SLOT, [source, "outputs", output]))
        self.page.mouse.down()
        # The page moves the view while a link is dragged near its edge: where to is asked twice.
        for aside in (-20, 2):
            x, y = self.page.evaluate(SLOT, [target, "inputs", name])
            self.page.mouse.move(x + aside, y, steps=4)
        self.page.mouse.up()
        self.page.wait_for_function(IS_LINKED, arg=[target, name], timeout=PATIENCE_MS)

    def write_prompt(self, node: str, widget: str, text: str) -> None:
        """Replace the text of a prompt."""
        x, y = self.place_of(node, widget, "TEXTAREA")
        self.page.mouse.click(x, y)
        self.page.wait_for_timeout(200)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)
        # A click on the empty canvas, so that keys go to the graph again and nothing is selected.
        self.page.mouse.click(*self.page.evaluate(EMPTY, PANEL))
        self.page.wait_for_timeout(200)

    def enter_subgraph(self, node: str) -> None:
        """Open the inside of a subgraph by the button in its title."""
        self.look_at(node, part="title")
        x, y = self.page.evaluate(CORNER, node)
        with self.another_graph():
            self.page.mouse.click(x - 17, y)

    def leave_subgraph(self) -> None:
        """Go back to the graph around it."""
        with self.another_graph():
            self.page.keyboard.press("Escape")

    @contextlib.contextmanager
    def another_graph(self) -> Iterator[None]:
        """Returns once what is done meanwhile has put another graph on show."""
        before = self.page.evaluate(GRAPH)
        yield
        is_other = f"before => ({GRAPH})() !== before"
        self.page.wait_for_function(is_other, arg=before, timeout=PATIENCE_MS)
        self.page.wait_for_timeout(1000)

    def press_run(self, by_key: bool) -> None:
        """Queue the graph by Ctrl+Enter or by the Run button, and start collecting texts."""
        self.page.evaluate(COLLECT, TEXT_PREVIEW)
        if by_key:
            self.page.keyboard.press("Control+Enter")
        else:
            # The second button of that name opens the list of its modes.
            self.page.get_by_role("button", name="Run", exact=True).first.click()
        # A short run may be over before the queue is asked.
        has_begun = f"async () => window.sessionTexts.length || await ({QUEUE_LENGTH})() > 0"
        self.page.wait_for_function(has_begun)

    def texts(self) -> dict[str, list[str]]:
        """The successive texts of every node since the run began."""
        collected: dict[str, list[str]] = {}
        for node, text in self.page.evaluate("window.sessionTexts"):
            collected.setdefault(node, []).append(text)
        return collected

    def wait_for_texts(self, count: int) -> None:
        """Wait until nodes have shown so many texts, or until the run is over."""
        while self.page.evaluate("window.sessionTexts.length") < count:
            if not self.page.evaluate(QUEUE_LENGTH):
                return
            self.page.wait_for_timeout(100)

    def wait_until_done(self, seconds: float) -> float:
        """Wait until the queue is empty; the seconds it took. `RuntimeError` if it does not end."""
        start = time.monotonic()
        while self.page.evaluate(QUEUE_LENGTH):
            if time.monotonic() - start > seconds:
                raise RuntimeError(f"still running after {seconds} s; texts: {self.texts()}")
            self.page.wait_for_timeout(200)
        self.page.wait_for_timeout(SETTLE_MS)
        return time.monotonic() - start

    def wait_for_outputs(self, kinds: list[str]) -> None:
        """Give nodes of these types some time to show their picture or video."""
        with contextlib.suppress(TimeoutError):
            self.page.wait_for_function(HAVE_OUTPUTS, arg=kinds, timeout=PATIENCE_MS)

    def shown(self) -> list[Node]:
        """What every node of every graph shows: text, pictures, video."""
        return self.page.evaluate(SHOWN, TEXT_PREVIEW)

    def visible_texts(self) -> list[dict[str, Any]]:
        """Texts that lie over the canvas now, and how many pixels of each are cut off."""
        return self.page.evaluate(VISIBLE_TEXTS)

    def snapshot(self, path: Path, node: str | None = None) -> None:
        """A picture of the window as it is, or of the part of it around a node."""
        clip = None if node is None else self.page.evaluate(AROUND, [node, PANEL])
        self.page.screenshot(path=path, clip=clip)
