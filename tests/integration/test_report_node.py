"""The report node in a real ComfyUI: counts, picture, and which run it shows."""

from __future__ import annotations

import io
import json
import urllib.parse
import urllib.request
from dataclasses import dataclass

import pytest
from PIL import Image

from rectified_spaattn.rspa_core import SparseConfig

from .comfy_server import Run
from .expectations import expected_calls, expected_density
from .graphs import SCENES, STEPS, Graph, rectified, sampled

WAN = SCENES["wan21_t2v"]
CALLS = STEPS * len(WAN.model.attention_blocks)


@dataclass
class Report:
    """What one report node gave: its two texts and the picture it shows."""

    summary: str
    data: dict | None
    picture: Image.Image


def with_report(nodes: dict, model_of: str = "RectifiedSpaAttn", after: str = "KSampler") -> dict:
    """The graph with a report node between the nodes of these classes, and its texts shown."""
    ids = {node["class_type"]: node_id for node_id, node in nodes.items()}
    links = {"model": [ids[model_of], 0], "after": [ids[after], 0]}
    texts = {"summary": ["report", 1], "json": ["report", 2]}
    return {
        **nodes,
        "report": {"class_type": "RectifiedSpaAttnReport", "inputs": links},
        **{
            name: {"class_type": "PreviewAny", "inputs": {"source": link}}
            for name, link in texts.items()
        },
    }


def reported(comfy, nodes: dict) -> tuple[Run, Report]:
    """Run a graph of `with_report`; what the server keeps of it is read as the web page does."""
    run = comfy.run(nodes)
    (entry,) = comfy.server.get("/history?max_items=1").values()
    outputs = entry["outputs"]
    (image,) = outputs["report"]["images"]
    url = f"{comfy.server.url}/view?{urllib.parse.urlencode(image)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        picture = Image.open(io.BytesIO(answer.read()))
    text = {name: "".join(outputs[name]["text"]) for name in ("summary", "json")}
    return run, Report(text["summary"], json.loads(text["json"]), picture)


def test_is_an_output_node(comfy):
    info = comfy.object_info("RectifiedSpaAttnReport")
    assert info["output_node"]
    assert info["output"] == ["IMAGE", "STRING", "STRING"]
    assert info["output_name"] == ["image", "summary", "json"]
    assert all(info["output_tooltips"])


@pytest.mark.parametrize("model_of", ["RectifiedSpaAttn", "ModelSamplingSD3"])
def test_report_of_a_run(comfy, model_of):
    """The same run, whether the model is taken before or after a node that clones it."""
    run, report = reported(comfy, with_report(sampled(WAN, rectified()), model_of))

    assert report.data == run.report
    assert [row[:5] for row in report.data["calls"]] == expected_calls(WAN)
    assert (report.data["sparse"], report.data["dense"]) == (CALLS, 0)
    assert [step["step"] for step in report.data["steps"]] == list(range(STEPS))
    config = SparseConfig(sparsity=0.75, q_block=64, kv_block=64, rectification="paper")
    assert report.data["density"] == pytest.approx(expected_density(WAN.grid, config), abs=1e-3)
    assert f"Attention calls: {CALLS} sparse, 0 dense" in report.summary
    assert f"{STEPS} model calls in {STEPS} steps" in report.summary
    assert report.picture.width == 640
    assert report.picture.height > 250


def test_dense_calls_and_their_reason(comfy):
    nodes = with_report(sampled(WAN, rectified(min_tokens=716)))
    _, report = reported(comfy, nodes)

    assert (report.data["sparse"], report.data["dense"]) == (0, CALLS)
    assert f"  {CALLS}  715 video tokens, below min_tokens 716" in report.summary.splitlines()


def test_runs_again_with_every_run_of_the_sampler(comfy):
    nodes = with_report(sampled(WAN, rectified(sparsity=0.7)))
    for _ in range(2):
        run, report = reported(comfy, nodes)
        assert report.data == run.report, "its times are this run's"


def test_both_experts(comfy):
    """Each of Wan 2.2's experts has its own model, run and report."""
    nodes = sampled(SCENES["wan22_t2v_a14b"], rectified(sparsity=0.7))
    samplers = [key for key, node in nodes.items() if node["class_type"] == "KSamplerAdvanced"]
    graph = with_report(nodes, "ModelSamplingSD3", "KSamplerAdvanced")
    seen = []
    for sampler in samplers:
        links = {"model": nodes[sampler]["inputs"]["model"], "after": [sampler, 0]}
        graph["report"]["inputs"] = links
        run, report = reported(comfy, graph)
        assert report.data == run.reports[len(seen)]
        seen.append(report.data["node"])
    patches = [key for key, node in nodes.items() if node["class_type"] == "RectifiedSpaAttn"]
    assert seen == patches


def unsampled(patched: bool) -> dict:
    """A report on a model that no sampler uses."""
    graph = Graph()
    name = f"{WAN.experts[0]}.safetensors"
    model = graph.add("UNETLoader", unet_name=name, weight_dtype="default")
    if patched:
        rectified(sparsity=0.6)(graph, model)
    graph.add("RSPATestLatent", channels=16, frames=1, height=2, width=2, batch=1, nonce=0)
    source = "RectifiedSpaAttn" if patched else "UNETLoader"
    return with_report(graph.nodes, source, "RSPATestLatent")


def test_no_run_yet(comfy):
    _, report = reported(comfy, unsampled(patched=True))
    assert report.data is None
    assert report.summary.startswith("No sampling run yet")
    assert report.picture.width == 640


def test_model_without_our_node(comfy):
    _, report = reported(comfy, unsampled(patched=False))
    assert report.data is None
    assert report.summary.startswith("Full attention: no Rectified SpaAttn")
