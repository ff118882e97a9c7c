"""The example workflows and `web/js` in ComfyUI's real page, without ComfyUI.

The page is that of the installed `comfyui-frontend-package`, in headless Chromium;
`browser/page_stub.py` answers it. It validates every workflow against its own schema. What takes a
server is in `test_front_end.py`.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from rectified_spaattn.nodes.host import schema_of, send_status
from rectified_spaattn.nodes.inputs import MAIN, NO_PROFILE, NODES, PROBE_RESULT, REPORT
from rectified_spaattn.nodes.pictures import CompactCanvas
from rectified_spaattn.tests.nodes import comfy_api_stub
from rectified_spaattn.tools.workflow_builder import layout

from .browser import descriptions
from .browser_run import browser
from .test_artist_session import OVERRIDDEN
from .test_layout import READABLE_ZOOM
from .test_workflow_files import FOLDER, ROOT, STEMS, our_nodes, read, read_api, values

for package in ("playwright", "comfyui_frontend_package"):
    pytest.importorskip(package, reason=f"{package} is not installed (make venv)")
pytestmark = pytest.mark.skipif(browser() is None, reason="no Chromium on the path")

Json = dict[str, Any]

BROWSER = Path(__file__).parent / "browser"
FILES = [FOLDER / f"{stem}.json" for stem in STEMS] + sorted((ROOT / "subgraphs").glob("*.json"))
PRESETS = MAIN.input("preset").extra["rspa_presets"]
SIMPLE = "wan2.1_text_to_video"
NESTED = "wan2.2_14B_text_to_video"
EMPTY_GRAPH: Json = {"version": 0.4, "nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0}
FIRST_PAGE = 10
NEW = """kind => {
  const node = LiteGraph.createNode(kind);
  app.canvas.graph.add(node);
  return String(node.id);
}"""
SET = """([id, values]) => {
  const node = app.canvas.graph.getNodeById(id);
  for (const [name, value] of Object.entries(values)) {
    const widget = node.widgets.find(each => each.name === name);
    widget.value = value;
    widget.callback?.(value);
  }
}"""
# A new node of the type that gives what the socket takes, and its link.
CONNECT = """([id, socket]) => {
  const types = {schedule: 'RectifiedSpaAttnSchedule', profile: 'RectifiedSpaAttnLoadProfile'};
  const graph = app.canvas.graph, target = graph.getNodeById(id);
  const source = LiteGraph.createNode(types[socket]);
  graph.add(source);
  source.connect(0, target, target.findInputSlot(socket));
}"""
# Select the only node of a type, and switch it off or on as the page's shortcut does.
SELECT_AND_SWITCH = """([type, command]) => {
  app.canvas.deselectAll();
  app.canvas.select(app.canvas.graph.nodes.find(node => node.type === type));
  return app.extensionManager.command.execute(
    `Comfy.Canvas.ToggleSelectedNodes.${command}`);
}"""
DISCONNECT = """([id, socket]) => {
  const node = app.canvas.graph.getNodeById(id);
  node.disconnectInput(node.findInputSlot(socket));
}"""


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    """`(artist, stub)`: somebody at the page, and what answers it."""
    comfy_api_stub.install()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BROWSER))
        page_stub = importlib.import_module("page_stub")
        workflows = [json.loads(path.read_text(encoding="utf-8")) for path in FILES]
        info = descriptions.with_models(descriptions.recorded(), workflows)
        for kind, node in NODES.items():
            info[kind] = descriptions.described(schema_of(node, {"profile_name": [NO_PROFILE]}))
        with page_stub.opened_page(ROOT, info, browser()) as found:
            yield found


@pytest.fixture
def artist(opened: Any) -> Iterator[Any]:
    """Somebody at the page; leaves no message behind."""
    found, _ = opened
    yield found
    found.dismiss_toasts()


@pytest.fixture
def host(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pack sends to ComfyUI's server goes to the page."""
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=opened[1]))
    monkeypatch.setitem(sys.modules, "server", server)


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_page_finds_nothing_wrong_and_shows_the_file(artist: Any, path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    zoom, text_is_drawn = artist.open_as_template(path.stem, workflow)
    assert zoom >= READABLE_ZOOM
    assert text_is_drawn
    # What the page said about another workflow may still be going.
    nothing = {"messages": [], "unknown": [], "marked": [], "overlaps": []}
    wait_until(artist, lambda: artist.findings() == nothing)
    assert artist.findings() == nothing
    nodes = artist.nodes()
    stored = {str(node["id"]): values(node) for node in our_nodes(workflow)}
    assert {node["id"]: node["widgets"] for node in nodes if node["id"] in stored} == stored
    for node in nodes:
        if node["type"] == MAIN.node_id:
            replaced = [OVERRIDDEN.get(name, ()) for name in node["linked"]]
            assert set(node["off"]) == set().union(*replaced)
    app = workflow["extra"].get("linearData", {"inputs": [], "outputs": []})
    on_show = {node["id"]: node for node in artist.on_show()}
    for node_id, name in app["inputs"]:
        assert name in [widget["name"] for widget in on_show[node_id]["widgets"]]
    assert {on_show[node_id]["type"] for node_id in app["outputs"]} <= {"SaveVideo"}
    if path.parent == FOLDER:
        assert artist.prompt() == read_api(path.stem)


@pytest.fixture
def nodes2(opened: Any) -> Iterator[Any]:
    """Somebody at the page as `artist`, with Nodes 2.0."""
    opened[0].use_nodes2(True)
    yield opened[0]
    opened[0].use_nodes2(False)


@pytest.mark.parametrize("stem", STEMS)
def test_nodes2_draws_no_node_over_another(nodes2: Any, stem: str) -> None:
    """There a note is as high as its text, and some nodes are higher than on the canvas."""
    workflow = read(stem)
    nodes2.open_as_template(stem, workflow)
    whole = {str(node["id"]): layout.whole_height(node) for node in workflow["nodes"]}
    drawn = {node["id"]: node for node in nodes2.drawn()}
    assert nodes2.page.locator("[data-node-id]").count() == len(drawn) == len(whole)
    assert nodes2.drawn_overlaps() == []
    for node_id, node in drawn.items():
        if node["type"] in layout.NOTES:
            assert node["box"][3] <= layout.TITLE + whole[node_id] + 2, node["title"]


@pytest.mark.parametrize("stem", [SIMPLE, NESTED])
def test_app_view_has_what_the_workflow_names(artist: Any, stem: str) -> None:
    artist.open_as_template(stem, read(stem))
    named = {name for _, name in read(stem)["extra"]["linearData"]["inputs"]}
    assert named
    toggle = "app.extensionManager.command.execute('Comfy.ToggleLinear')"
    text = "document.body.innerText.split('\\n')"
    artist.page.evaluate(toggle)
    labels = {name.replace("enabled", "sparse_attention") for name in named}
    assert wait_until(artist, lambda: labels <= {*artist.page.evaluate(text)})
    artist.page.evaluate(toggle)
    assert wait_until(artist, lambda: not labels <= {*artist.page.evaluate(text)})


def test_page_validates_against_its_schema(artist: Any) -> None:
    workflow = read(SIMPLE)
    workflow["nodes"][0]["properties"]["ver"] = "the newest"
    artist.load(workflow)
    wait_for_words(artist, artist.messages, "Invalid workflow against zod schema")
    assert wait_until(artist, lambda: len(artist.messages()) == 1), artist.messages()
    (message,) = artist.messages()
    assert 'invalid semantic version: "the newest" at "nodes[0].properties.ver"' in message


def test_page_names_what_is_wrong_in_a_graph(artist: Any) -> None:
    workflow = read(SIMPLE)
    nodes = {node["type"]: node for node in workflow["nodes"]}
    link = next(link for link in workflow["links"] if link[3] == nodes[MAIN.node_id]["id"])
    link[1] = 999
    nodes["SaveVideo"]["type"] = "NoSuchNode"
    artist.load(workflow)
    wait_for_words(artist, artist.messages, "Missing node: NoSuchNode")
    wait_for_words(artist, artist.messages, "origin 999 does not exist")
    assert artist.findings()["unknown"] == ["NoSuchNode"]


def test_page_misses_a_model_that_no_loader_offers(artist: Any) -> None:
    workflow = read(SIMPLE)
    (loader,) = (node for node in descriptions.nodes_of(workflow) if node["type"] == "UNETLoader")
    loader["widgets_values"][0] = "nowhere.safetensors"
    artist.load(workflow)
    wait_for_words(artist, artist.messages, "nowhere.safetensors is missing")


def test_preset_fills_in_its_values_and_a_change_by_hand_is_custom(artist: Any) -> None:
    artist.load(read(SIMPLE))
    node = attention_node(artist)
    for preset in ("quality", "fast"):
        artist.choose(node, "preset", preset)
        assert artist.values(node) == {"enabled": True, "preset": preset} | PRESETS[preset]
    artist.type_value(node, "sparsity", "0.7")
    by_hand = PRESETS["fast"] | {"sparsity": 0.7}
    assert artist.values(node) == {"enabled": True, "preset": "custom"} | by_hand
    # Values that are a preset's do not pass for anything else.
    artist.type_value(node, "sparsity", str(PRESETS["fast"]["sparsity"]))
    assert artist.value(node, "preset") == "fast"


def test_load_profile_without_files_says_so(artist: Any) -> None:
    artist.load(EMPTY_GRAPH)
    node = artist.page.evaluate(NEW, "RectifiedSpaAttnLoadProfile")
    assert artist.value(node, "profile_name") == NO_PROFILE


@pytest.mark.parametrize(
    ("node_id", "values", "expected"),
    [
        ("RectifiedSpaAttn", {"enabled": False}, set(PRESETS["fast"]) | {"preset"}),
        ("RectifiedSpaAttnOptions", {"rectification": "paper"}, {"tail_keys"}),
        ("RectifiedSpaAttnSchedule", {}, {"preview_shift"}),
        ("RectifiedSpaAttnSchedule", {"ramp": 0.5, "curve": "constant"}, {"end_sparsity"}),
        ("RectifiedSpaAttnSchedule", {"ramp": 0.5, "steps": " ,"}, set()),
        ("RectifiedSpaAttnSchedule", {"ramp": 0.5, "steps": "None "}, set()),
        (
            "RectifiedSpaAttnSchedule",
            {"steps": "off, 0.6"},
            {*("start_sparsity", "end_sparsity", "curve", "start_percent", "end_percent")}
            | {"ramp", "preview_shift"},
        ),
    ],
)
def test_what_another_value_rules_out_is_switched_off(
    artist: Any, node_id: str, values: Json, expected: set[str]
) -> None:
    artist.load(EMPTY_GRAPH)
    node = artist.page.evaluate(NEW, node_id)
    by_default = {"preview_shift"} if node_id == "RectifiedSpaAttnSchedule" else set()
    for given, off in ((values, expected), (NODES[node_id].defaults, by_default)):
        artist.page.evaluate(SET, [node, given])
        assert wait_until(artist, lambda off=off: switched_off(artist, node) == off)


def test_stored_values_give_way_to_their_preset(artist: Any) -> None:
    workflow = read("tune_with_the_probe")
    first, second = (node for node in our_nodes(workflow) if node["type"] == MAIN.node_id)
    place = list(MAIN.defaults).index("sparsity")
    first["widgets_values"][place] = second["widgets_values"][place] = 0.1
    second["widgets_values"][list(MAIN.defaults).index("preset")] = "custom"
    artist.load(workflow)
    assert artist.value(str(first["id"]), "sparsity") == PRESETS["balanced"]["sparsity"]
    assert artist.value(str(second["id"]), "sparsity") == 0.1


def test_what_a_connected_node_replaces_is_switched_off(artist: Any) -> None:
    artist.load(read(SIMPLE))
    node = attention_node(artist)
    schedule, profile = (set(OVERRIDDEN[socket]) for socket in ("schedule", "profile"))
    for script, socket, expected in (
        (CONNECT, "schedule", schedule),
        (CONNECT, "profile", schedule | profile),
        (DISCONNECT, "schedule", profile),
        (DISCONNECT, "profile", set()),
    ):
        artist.page.evaluate(script, [node, socket])
        wait_until(artist, lambda wanted=expected: switched_off(artist, node) == wanted)
        assert switched_off(artist, node) == expected


@pytest.mark.parametrize("command", ["Bypass", "Mute"])
@pytest.mark.parametrize("stem", [SIMPLE, NESTED])
def test_a_node_that_does_not_run_replaces_nothing(artist: Any, stem: str, command: str) -> None:
    """As the page's own command switches it; the schedule may feed a node within a subgraph."""
    artist.load(read(stem))
    if stem == SIMPLE:
        artist.page.evaluate(CONNECT, [attention_node(artist), "schedule"])
    for expected in ({*OVERRIDDEN["schedule"]}, set(), {*OVERRIDDEN["schedule"]}):
        wait_until(artist, lambda wanted=expected: off_in_attention(artist) == [wanted])
        assert off_in_attention(artist) == [expected]
        artist.page.evaluate(SELECT_AND_SWITCH, ["RectifiedSpaAttnSchedule", command])


def test_a_bypassed_node_passes_on_what_it_is_given(artist: Any) -> None:
    """*Save Profile* hands its profile on, so that those values stay replaced."""
    artist.load(read("tune_with_the_probe"))
    patched = {frozenset(), frozenset(OVERRIDDEN["profile"])}
    for kind, expected in (
        ("RectifiedSpaAttnSaveProfile", patched),
        ("RectifiedSpaAttnProbeResult", {frozenset()}),
    ):
        artist.page.evaluate(SELECT_AND_SWITCH, [kind, "Bypass"])
        wait_until(
            artist, lambda wanted=expected: {*map(frozenset, off_in_attention(artist))} == wanted
        )
        assert {*map(frozenset, off_in_attention(artist))} == expected


def test_node_search_has_the_node_on_its_first_page(artist: Any) -> None:
    artist.load(EMPTY_GRAPH)
    found = {word: artist.search(word)[:FIRST_PAGE] for word in descriptions.SEARCHED}
    assert [word for word, titles in found.items() if MAIN.title not in titles] == []


def test_node_search_puts_nodes_before_ours_that_are_used_more(artist: Any) -> None:
    artist.load(EMPTY_GRAPH)
    found = artist.search("wan")
    assert found.index("WanImageToVideo") < found.index(MAIN.title)
    # An alias that is only like the word does not count: "sage" is no "save".
    found = artist.search("save")
    assert found[0] == "Save Video"
    assert MAIN.title not in found[:3]


def test_status_shows_on_the_node_and_on_the_subgraph_around_it(artist: Any, host: None) -> None:
    artist.load(read(NESTED))
    (subgraph,) = (each["id"] for each in artist.on_show() if each["is_subgraph"])
    inner = next(node["id"] for node in artist.nodes() if node["type"] == MAIN.node_id)
    send_status("sparse 1 / dense 3", f"{subgraph}:{inner}")
    wait_for_words(artist, lambda: overlaid(artist), "sparse 1 / dense 3")
    # One line, beneath the node, where it covers nothing of it.
    send_status("sparse 2 / dense 2", f"{subgraph}:{inner}")
    wait_for_words(artist, lambda: overlaid(artist), "sparse 2 / dense 2")

    def number_of_lines() -> int:
        return sum(text.startswith("sparse ") for text in overlaid(artist))

    assert wait_until(artist, lambda: number_of_lines() == 1), overlaid(artist)

    def is_beneath() -> bool:  # a new text has no place until the canvas is drawn
        top, bottom = artist.page.evaluate(LINE_AND_NODE, [subgraph, "sparse 2"])
        return bool(top >= bottom)

    assert wait_until(artist, is_beneath)
    # What came while another graph was open is there on opening, inside and outside.
    artist.enter_subgraph(subgraph)
    wait_for_words(artist, lambda: overlaid(artist), "sparse 2 / dense 2")
    send_status("sparse 2 / dense 3", f"{subgraph}:{inner}")
    wait_for_words(artist, lambda: overlaid(artist), "sparse 2 / dense 3")
    assert {node["id"]: node["text"] for node in artist.shown() if node["text"]} == {
        inner: "sparse 2 / dense 3"
    }
    artist.leave_subgraph()
    artist.look_at(subgraph)
    wait_for_words(artist, lambda: overlaid(artist), "sparse 2 / dense 3")
    assert wait_until(artist, lambda: number_of_lines() == 1), overlaid(artist)


# In the window: the top of the text that begins so, and the bottom of the node.
LINE_AND_NODE = """([id, words]) => {
  const node = app.canvas.graph.getNodeById(id), {scale, offset} = app.canvas.ds;
  const text = [...document.querySelectorAll('.dom-widget')].find(
    each => each.innerText.trim().startsWith(words));
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const bottom = canvas.top + (node.pos[1] + node.size[1] + offset[1]) * scale;
  return [text.getBoundingClientRect().top, bottom];
}"""
SET_MODE = "([id, mode]) => { app.canvas.graph.getNodeById(id).mode = mode; }"
MUTED, BYPASSED = 2, 4


LONG = (
    "sparse 288 / dense 32 (first 10 %, 2 of 20 steps) \u00b7 density 0.17 (0.41 with the context) "
    "\u00b7 about 1.9x per step \u00b7 1,203.4 s, with full attention about 2,114.8 s"
)
# Of the line that lies over the canvas: its tooltip, how words break, and what is cut off.
DRESS = """() => {
  const box = document.querySelector('.dom-widget .rspa-line');
  const breaks = getComputedStyle(box.querySelector('.break-all')).wordBreak;
  const outer = box.closest('.dom-widget').getBoundingClientRect().height;
  const scale = app.canvas.ds.scale;
  return [box.title, breaks, box.scrollHeight - Math.round(outer / scale)];
}"""


def test_a_long_line_is_whole_and_broken_between_words(artist: Any, host: None) -> None:
    artist.load(EMPTY_GRAPH)
    node = artist.page.evaluate(NEW, MAIN.node_id)  # at its default size
    artist.look_at(node)
    send_status(LONG, node)
    wait_for_words(artist, lambda: overlaid(artist), "sparse 288")
    artist.page.wait_for_timeout(400)
    title, breaks, cut = artist.page.evaluate(DRESS)
    assert title == LONG
    assert breaks == "normal"
    assert cut <= 0


@pytest.mark.parametrize("kind", [REPORT.node_id, PROBE_RESULT.node_id])
def test_node_grows_to_its_picture_and_a_double_click_opens_the_whole(
    artist: Any, opened: Any, kind: str
) -> None:
    artist.load(EMPTY_GRAPH)
    node = artist.page.evaluate(NEW, kind)
    artist.look_at(node)
    width, height = artist.page.evaluate(SIZE, node)
    assert CompactCanvas.SIZE * width / CompactCanvas.WIDTH >= 11
    whole = {"filename": "whole.png", "subfolder": "", "type": "temp"}

    def show(high: int) -> None:
        file = io.BytesIO()
        Image.new("RGB", (CompactCanvas.WIDTH, high)).save(file, "png")
        opened[1].pictures |= {f"{high}.png": file.getvalue(), "whole.png": file.getvalue()}
        output = {"images": [whole | {"filename": f"{high}.png"}], "rspa_whole": [whole]}
        opened[1].send_event("executed", node=node, display_node=node, output=output, prompt_id="1")

    show(900)
    assert wait_until(artist, lambda: artist.page.evaluate(SIZE, node)[1] > height + 400)
    assert wait_until(artist, lambda: artist.page.evaluate(PICTURE_SCALE, node) is not None)
    # As wide as the node, so that its text is as large as it can be, and nothing left over.
    assert artist.page.evaluate(PICTURE_SCALE, node) == pytest.approx(
        width / CompactCanvas.WIDTH, rel=0.05
    )
    high = artist.page.evaluate(SIZE, node)[1]
    show(300)
    artist.page.wait_for_timeout(400)
    assert artist.page.evaluate(SIZE, node)[1] == high
    artist.page.evaluate("window.open = address => { window.openedAddress = address; }")
    artist.page.evaluate(
        "id => app.canvas.graph.getNodeById(id).onDblClick({}, [50, 50], app.canvas)", node
    )
    address = artist.page.evaluate("window.openedAddress")
    assert address is not None
    assert "/view?filename=whole.png" in address


SIZE = "id => [...app.canvas.graph.getNodeById(id).size]"
# How large the page shows a picture: as wide and as high as there is room for.
PICTURE_SCALE = """id => {
  const node = app.canvas.graph.getNodeById(id), [image] = node.imgs ?? [];
  const preview = node.widgets?.find(each => each.name === '$$canvas-image-preview');
  if (!image?.naturalWidth || !preview) return null;
  const room = node.size[1] - preview.y - 15;
  return Math.min(node.size[0] / image.naturalWidth, room / image.naturalHeight);
}"""


@pytest.mark.parametrize("mode", [MUTED, BYPASSED])
def test_a_run_clears_the_line_of_a_node_that_is_switched_off(
    artist: Any, opened: Any, host: None, mode: int
) -> None:
    artist.load(read(SIMPLE))
    node = attention_node(artist)
    send_status("sparse 1 / dense 3", node)
    assert wait_until(artist, lambda: lines(artist) == {node: "sparse 1 / dense 3"})
    artist.page.evaluate(SET_MODE, [node, mode])
    opened[1].send_event("execution_start", prompt_id="1")
    assert wait_until(artist, lambda: lines(artist) == {}), lines(artist)
    opened[1].send_event("execution_success", prompt_id="1")


def test_a_run_clears_the_lines_of_a_subgraph_that_is_bypassed(
    artist: Any, opened: Any, host: None
) -> None:
    artist.load(read(NESTED))
    (subgraph,) = (each["id"] for each in artist.on_show() if each["is_subgraph"])
    inner = next(node["id"] for node in artist.nodes() if node["type"] == MAIN.node_id)
    artist.enter_subgraph(subgraph)
    send_status("sparse 1 / dense 3", f"{subgraph}:{inner}")
    assert wait_until(artist, lambda: lines(artist) == {inner: "sparse 1 / dense 3"})
    artist.page.evaluate("app.canvas.setGraph(app.rootGraph)")
    send_status("sparse 2 / dense 3", f"{subgraph}:{inner}")
    # The node inside is told, too, though its graph is not on show.
    assert wait_until(artist, lambda: lines(artist) == {inner: "sparse 2 / dense 3"})
    wait_for_words(artist, lambda: overlaid(artist), "sparse 2 / dense 3")
    artist.page.evaluate(SET_MODE, [subgraph, BYPASSED])
    opened[1].send_event("execution_start", prompt_id="1")
    assert wait_until(artist, lambda: lines(artist) == {}), lines(artist)
    assert wait_until(artist, lambda: "sparse 2 / dense 3" not in overlaid(artist))
    opened[1].send_event("execution_success", prompt_id="1")


def test_the_line_of_an_earlier_run_does_not_pass_for_one_of_this_run(
    artist: Any, opened: Any, host: None
) -> None:
    artist.load(read(SIMPLE))
    node, stub = attention_node(artist), opened[1]

    def shows(text: str) -> bool:
        return wait_until(artist, lambda: lines(artist) == {node: text})

    send_status("sparse 1 / dense 3", node)
    assert shows("sparse 1 / dense 3")
    for _ in range(2):  # ComfyUI has the results in its cache
        stub.send_event("execution_start", prompt_id="1")
        assert shows("waiting"), lines(artist)
        stub.send_event("execution_success", prompt_id="1")
        assert shows("not run this time; before: sparse 1 / dense 3"), lines(artist)
    stub.send_event("execution_start", prompt_id="2")
    send_status("sparse 2 / dense 3", node)
    stub.send_event("execution_success", prompt_id="2")
    assert shows("sparse 2 / dense 3"), lines(artist)
    interruption = {
        "prompt_id": "3",
        "node_id": node,
        "node_type": "CLIPTextEncode",
        "executed": [],
    }
    stub.send_event("execution_start", prompt_id="3")
    assert shows("waiting"), lines(artist)
    stub.send_event("execution_interrupted", **interruption)
    assert shows("interrupted before it ran"), lines(artist)


def lines(artist: Any) -> dict[str, str]:
    """What nodes of all graphs say, by their ids."""
    return {each["id"]: each["text"] for each in artist.shown() if each["text"]}


def off_in_attention(artist: Any) -> list[set[str]]:
    """The widgets switched off in each attention node, those in subgraphs too; each set once."""
    found = [set(node["off"]) for node in artist.nodes() if node["type"] == MAIN.node_id]
    return [each for number, each in enumerate(found) if each not in found[:number]]


def attention_node(artist: Any) -> str:
    """The id of the first attention node in the graph on show."""
    return next(node["id"] for node in artist.on_show() if node["type"] == MAIN.node_id)


def overlaid(artist: Any) -> list[str]:
    """The texts that lie over the canvas."""
    return [each["text"] for each in artist.visible_texts()]


def switched_off(artist: Any, node: str) -> set[str]:
    """Names of the widgets of a node that are shown as disabled."""
    widgets = next(each["widgets"] for each in artist.on_show() if each["id"] == node)
    return {each["name"] for each in widgets if each["disabled"]}


def wait_until(artist: Any, is_so: Callable[[], bool]) -> bool:
    """Whether something is so on the page, or comes to be within 20 s."""
    for _ in range(400):
        if is_so():
            return True
        artist.page.wait_for_timeout(50)
    return False


def wait_for_words(artist: Any, texts: Callable[[], list[str]], words: str) -> None:
    """Until one of the page's `texts` holds `words`; fails after 20 s, with all that it says."""
    wait_until(artist, lambda: words in "\n".join(texts()))
    assert words in "\n".join(texts())
