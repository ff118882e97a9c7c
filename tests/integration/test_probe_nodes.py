"""From a probe to a profile that is used, on a real server, and what is said when it cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from rectified_spaattn.rspa_core.run.profile import load_profile

from .comfy_server import GraphError
from .graphs import SCENES, STEPS, Graph, Link, Scene, chain, model_node, rectified, sampled
from .status_listener import StatusListener
from .tiny_models import DEPTH

WAN, HUNYUAN, H3, EXPERTS = (
    SCENES[name] for name in ("wan21_t2v", "hunyuan_t2v", "minimax_h3_i2v", "wan22_t2v_a14b")
)
PROBED = "measured by the probe"
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced")


def probe(**inputs):
    """Our node and the probe behind it."""
    values = {"steps": "1, -1", "blocks": "", "sparsities": "0.3, 0.5, 0.7, 0.9", **inputs}
    return chain(rectified(), model_node("RectifiedSpaAttnProbe", **values))


def ids_of(nodes: dict, *class_types: str) -> list[str]:
    return [key for key, node in nodes.items() if node["class_type"] in class_types]


def add_results(
    nodes: dict, place: float = 0.5, filename: str = "probed", name: str = ""
) -> list[str]:
    """Add a result node and a save node for each probe; returns the ids of the result nodes."""
    samplers = ids_of(nodes, *SAMPLERS)
    results = []
    for number, (model, sampler) in enumerate(
        zip(ids_of(nodes, "RectifiedSpaAttnProbe"), samplers, strict=True)
    ):
        result, save, text = (f"{kind}{number}" for kind in ("result", "save", "text"))
        nodes[result] = {
            "class_type": "RectifiedSpaAttnProbeResult",
            "inputs": {
                "model": [model, 0],
                "after": [sampler, 0],
                "closest_to_fastest": place,
                "name": name,
            },
        }
        nodes[save] = {
            "class_type": "RectifiedSpaAttnSaveProfile",
            "inputs": {"profile": [result, 0], "filename": f"{filename}{number}"},
        }
        nodes[text] = {"class_type": "PreviewAny", "inputs": {"source": [result, 2]}}
        results.append(result)
    return results


@pytest.fixture
def folder(comfy) -> Iterator[Path]:
    """The server's profile folder, left empty."""
    folder = comfy.server.base / "models" / "rectified_spaattn"
    yield folder
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


def last_outputs(comfy) -> dict:
    """What the nodes of the last graph showed."""
    (entry,) = comfy.server.get("/history?max_items=1").values()
    return entry["outputs"]


def with_profile(name: str, **settings):
    """Our node with a loaded profile."""

    def patch(graph: Graph, model: Link) -> Link:
        loaded = graph.add("RectifiedSpaAttnLoadProfile", profile_name=name)
        return rectified(profile=loaded, **settings)(graph, model)

    return patch


@pytest.mark.parametrize("scene", [WAN, HUNYUAN, H3], ids=["wan", "hunyuan", "h3"])
def test_from_a_probe_to_a_profile_in_use(comfy, folder, scene: Scene):
    comfy.require(scene)
    nodes = sampled(scene, probe())
    (result,) = add_results(nodes, name="measured here")
    (probe_id,) = ids_of(nodes, "RectifiedSpaAttnProbe")
    with StatusListener(comfy.server.url) as listener:
        run = comfy.run(nodes)

    blocks = [(kind, index) for kind, index, _ in scene.model.attention_blocks]
    rows = {
        (step, kind, index): (sparse, dense)
        for step, kind, index, sparse, dense in run.report["calls"]
    }
    for step in range(STEPS):
        expected = (1, 0) if step == 1 else (0, 1)
        assert all(rows[(step, *block)] == expected for block in blocks)
    assert run.report["reasons"] == {PROBED: 2 * len(blocks)}
    assert (probe_id, f"probe: step 1 of {STEPS}, block 1 of {DEPTH}") in listener.texts

    shown = last_outputs(comfy)
    assert shown[result]["images"][0]["filename"].endswith(".png")
    (text,) = shown["text0"]["text"]
    assert f"{len(blocks)} of {len(blocks)} blocks in steps 1, 3" in text

    profile = load_profile(folder / "probed0.safetensors")
    assert profile.name == "measured here"
    assert profile.grid == scene.grid
    assert (profile.block_size, profile.rectification) == (64, "paper")
    assert 0.0 < profile.wanted_error < 1.0
    assert len(profile.double) + len(profile.single) == len(blocks)
    assert all(s == 0.0 or 0.3 <= s <= 0.9 for s in (*profile.double, *profile.single))

    run = comfy.run(sampled(scene, with_profile("probed0.safetensors")))
    for step, kind, index, sparse, dense in run.report["calls"]:
        is_sparse = profile.sparsity_of(kind, index) > 0.0
        assert (sparse, dense) == ((1, 0) if is_sparse else (0, 1)), (step, kind, index)


def test_probing_changes_only_measured_steps_and_they_are_dense(comfy):
    """With every step measured the video is that of full attention, bit for bit."""
    run = comfy.run(sampled(WAN, probe(steps="0%, 50%, 100%")))
    assert run.samples.equal(comfy.dense(WAN))


def test_steps_that_are_not_measured_are_as_without_a_probe(comfy):
    run = comfy.run(sampled(WAN, probe(steps="7")))
    assert run.samples.equal(comfy.run(sampled(WAN, rectified())).samples)
    assert run.report["dense"] == 0


def test_both_experts_have_their_own_profile(comfy, folder):
    nodes = sampled(EXPERTS, probe(steps="1"))
    assert len(add_results(nodes)) == 2
    run = comfy.run(nodes)
    assert [report["reasons"] for report in run.reports] == [{PROBED: DEPTH}] * 2
    first, second = (load_profile(folder / f"probed{number}.safetensors") for number in (0, 1))
    assert first.model == second.model
    assert first.wanted_error != second.wanted_error, "each was measured by itself"


def test_another_place_of_the_slider_does_not_sample_again(comfy, folder):
    """And closer is less sparsity."""
    nodes = sampled(WAN, probe())
    nodes[ids_of(nodes, "RSPATestLatent")[0]]["inputs"]["nonce"] = 123_456
    (result,) = add_results(nodes)
    means = []
    for place in (1.0, 0.5, 0.0):
        nodes[result]["inputs"]["closest_to_fastest"] = place
        nodes["save0"]["inputs"]["filename"] = f"place_{place}"
        start = comfy.server.log_path.stat().st_size
        entry = comfy.server._wait(comfy.server._queue(nodes))
        assert entry["status"]["status_str"] == "success"
        assert ("Rectified SpaAttn" in comfy.server.log(start)) == (not means)
        (path,) = folder.glob(f"place_{place}*.safetensors")
        means.append(math.fsum(load_profile(path).double))
    assert means[0] >= means[1] >= means[2] > 0.0
    assert means[0] > means[2]


def test_guidance_and_chosen_blocks(comfy, folder):
    """Two forwards per step count as one measurement; blocks left out get the others' median."""
    nodes = sampled(WAN, probe(steps="2", blocks="-1"), cfg=3.0, negative_tokens=50)
    add_results(nodes)
    run = comfy.run(nodes)
    assert run.report["reasons"] == {PROBED: 2}
    (text,) = last_outputs(comfy)["text0"]["text"]
    assert f"1 of {DEPTH} blocks in step 2" in text
    assert "Not measured, the median of the others" in text
    first, second = load_profile(folder / "probed0.safetensors").double
    assert first == second


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": "one"}, "steps, entry 1 = 'one' is not allowed"),
        ({"blocks": "first"}, "blocks, entry 1 = 'first' is not allowed"),
        ({"sparsities": "1"}, "sparsities, entry 1 = '1' is not allowed"),
        ({"steps": "7"}, f"the probe has measured nothing: the sampler took {STEPS} steps"),
    ],
)
def test_settings_that_measure_nothing(comfy, folder, settings, message):
    nodes = sampled(WAN, probe(**settings))
    add_results(nodes)
    with pytest.raises(GraphError, match=message):
        comfy.run(nodes)


def test_nodes_in_the_wrong_place(comfy, folder):
    alone = model_node("RectifiedSpaAttnProbe", steps="1", blocks="", sparsities="0.5")
    with pytest.raises(GraphError, match="place the probe after it"):
        comfy.run(sampled(WAN, alone))

    nodes = sampled(WAN, probe())
    (result,) = add_results(nodes)
    nodes[result]["inputs"]["model"] = [ids_of(nodes, "RectifiedSpaAttn")[0], 0]
    with pytest.raises(GraphError, match="comes out of a Rectified SpaAttn Probe node"):
        comfy.run(nodes)


def test_after_something_that_is_no_sampler(comfy, folder):
    # Sparsities of its own: the server would give a probe that has measured in an earlier run.
    nodes = sampled(WAN, probe(sparsities="0.31"))
    (result,) = add_results(nodes)
    (sampler,) = ids_of(nodes, "KSampler")
    latent = nodes[sampler]["inputs"]["latent_image"]
    nodes = {key: node for key, node in nodes.items() if node["class_type"] != "RSPATestSaveLatent"}
    nodes[result]["inputs"]["after"] = latent
    with pytest.raises(GraphError, match="no sampler has used this model yet"):
        comfy.run(nodes)


@pytest.mark.parametrize("name", ["RectifiedSpaAttnProbe", "RectifiedSpaAttnProbeResult"])
def test_inputs_and_outputs_are_described(comfy, name):
    info = comfy.object_info(name)
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    assert all(options.get("tooltip") for _, options in inputs.values())
    assert all(info["output_tooltips"])
