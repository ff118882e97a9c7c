"""What a user sees of the pack in ComfyUI: nodes, help, status line, errors, interruption."""

from __future__ import annotations

import urllib.request

import pytest

from rectified_spaattn.nodes.inputs import NODES

from .comfy_server import PACK_FOLDER, GraphError
from .expectations import check_wholly_sparse
from .graphs import SCENES, STEPS, chain, rectified, sampled
from .status_listener import StatusListener

WAN = SCENES["wan21_t2v"]


def test_pack_loads(comfy):
    # In brackets: a node pack. Without: a file of ComfyUI's own, as one that needs OpenGL.
    assert "(IMPORT FAILED)" not in comfy.server.log()


@pytest.mark.parametrize("name", NODES)
def test_node_is_described(comfy, name):
    info = comfy.object_info(name)
    assert PACK_FOLDER in info["python_module"]
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    # ComfyUI sends required and optional inputs apart; within each the order is ours.
    for group in ("required", "optional"):
        sent = list(info["input"].get(group, {}))
        assert sent == [each.name for each in NODES[name].inputs if each.name in sent]
    assert set(inputs) == {each.name for each in NODES[name].inputs}
    for field, (_, options) in inputs.items():
        assert options.get("tooltip"), field


@pytest.mark.parametrize("name", NODES)
def test_help_page_is_served(comfy, name):
    url = f"{comfy.server.url}/extensions/{PACK_FOLDER}/docs/{name}.md"
    with urllib.request.urlopen(url, timeout=10) as page:
        assert page.status == 200
        assert page.read().decode().lstrip().startswith("#")


def test_status_line(comfy):
    """The node shows what ran, on itself and nowhere else, and ends with the final counts."""
    nodes = sampled(WAN, rectified())
    (node_id,) = [key for key, node in nodes.items() if node["class_type"] == "RectifiedSpaAttn"]
    with StatusListener(comfy.server.url) as listener:
        run = comfy.run(nodes)

    assert {node for node, _ in listener.texts} == {node_id}
    last = listener.texts[-1][1]
    assert last.startswith(f"sparse {2 * STEPS} / dense 0")
    assert f"density {run.report['density']:.2f}" in last


def test_status_follows_a_node_that_was_moved(comfy):
    """In a subgraph a node has another id: the line shows on it, and on the subgraph."""
    nodes = sampled(WAN, rectified())
    before = ours(nodes)
    comfy.run(nodes)
    with StatusListener(comfy.server.url) as listener:
        comfy.run(renamed(nodes, before, f"129:{before}"))

    assert {node for node, _ in listener.texts} == {"129", f"129:{before}"}


def test_equal_nodes_each_show_their_own_line(comfy):
    """Two loaders and two nodes with equal settings, as for two seeds side by side."""
    first, second = sampled(WAN, rectified()), sampled(WAN, rectified())
    for node_id in list(second):
        second = renamed(second, node_id, f"1{node_id}")
    (sampler,) = [node for node in second.values() if node["class_type"] == "KSampler"]
    sampler["inputs"]["seed"] = 8
    (saver,) = [node for node in second.values() if node["class_type"] == "RSPATestSaveLatent"]
    saver["inputs"]["name"] = "second"
    with StatusListener(comfy.server.url) as listener:
        comfy.run(first | second)

    ends = {node: text for node, text in listener.texts if text.startswith("sparse")}
    assert set(ends) == {ours(first), ours(second)}


def test_two_experts_show_one_line(comfy):
    """Wan 2.2 in four steps: neither expert alone has enough calls to tell what was gained."""
    nodes = sampled(SCENES["wan22_t2v_a14b"], rectified(start_percent=0.2), steps=2)
    with StatusListener(comfy.server.url) as listener:
        comfy.run(nodes)

    last = dict(listener.texts)
    assert len(last) == 2
    (line,) = set(last.values())
    assert line.startswith("both samplers: sparse 6 / dense 2 (first 20 %, 1 of 4 steps)")
    assert "x per step" in line or "x slower per step" in line
    assert ", with full attention about " in line


def test_a_node_that_is_switched_off_says_so(comfy):
    """The line of a run before, sparse, does not stay."""
    nodes = sampled(WAN, rectified())
    comfy.run(nodes)
    with StatusListener(comfy.server.url) as listener:
        comfy.run(sampled(WAN, rectified(enabled=False)))
    assert listener.texts == [(ours(nodes), "off: full attention")]

    with StatusListener(comfy.server.url) as listener:
        run = comfy.run(sampled(WAN, chain(rectified(), rectified(enabled=False))))
    assert "off: the Rectified SpaAttn node before this one stays in force" in [
        text for _, text in listener.texts
    ]
    check_wholly_sparse(run.report, WAN)


def ours(nodes: dict) -> str:
    """The id of the one attention node of a graph."""
    (found,) = [key for key, node in nodes.items() if node["class_type"] == "RectifiedSpaAttn"]
    return found


def renamed(nodes: dict, old: str, new: str) -> dict:
    """A graph in which one node has another id."""
    return {
        new if key == old else key: {
            **node,
            "inputs": {
                name: [new, value[1]] if isinstance(value, list) and value[0] == old else value
                for name, value in node["inputs"].items()
            },
        }
        for key, node in nodes.items()
    }


def test_one_summary_line_per_run(comfy):
    """Without `verbose` a run leaves one line in the log."""
    run = comfy.run(sampled(WAN, rectified(verbose=False)))
    assert run.reports == []
    assert run.log.count("Rectified SpaAttn") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dense_blocks": "first"}, "dense_blocks, entry 1 = 'first' is not allowed"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent = 0.8 is not allowed"),
    ],
)
def test_settings_that_make_no_sense(comfy, settings, message):
    """The error on the node names the field, the value and what is allowed."""
    with pytest.raises(GraphError, match=message):
        comfy.run(sampled(WAN, rectified(**settings)))


def test_interrupted_run(comfy):
    """Stopping a run half-way leaves nothing behind for the next one."""
    with StatusListener(comfy.server.url) as listener:
        comfy.server.interrupt_when(sampled(WAN, rectified(), steps=400), seen="step 3 of 400")
    first, second = listener.texts[-1][1].splitlines()
    assert first == "interrupted"
    assert second.startswith("sparse ")

    run = comfy.run(sampled(WAN, rectified()))
    check_wholly_sparse(run.report, WAN)
    assert run.report["forwards"] == STEPS
