"""Sparsity profiles on a real server: saved, listed, loaded, and refused with words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rectified_spaattn.nodes.inputs import NO_PROFILE
from rectified_spaattn.rspa_core.run.profile import (
    ModelFingerprint,
    SparsityProfile,
    load_profile,
    save_profile,
)

from .comfy_server import GraphError
from .graphs import SCENES, Graph, Link, rectified, sampled
from .status_listener import StatusListener
from .tiny_models import DEPTH, WIDTH

TINY_WAN = ModelFingerprint("Wan", DEPTH, 0, WIDTH, WIDTH // 128)
TINY_HUNYUAN = ModelFingerprint("HunyuanVideo", DEPTH, DEPTH, WIDTH, WIDTH // 128)
WAN_SCENE, HUNYUAN_SCENE = SCENES["wan21_t2v"], SCENES["hunyuan_t2v"]


def profile_of(model: ModelFingerprint, name: str, sparsity: float = 0.75) -> SparsityProfile:
    single = (sparsity,) * model.single_blocks
    double = (0.0, *(sparsity,) * (model.double_blocks - 1))
    grid = (5, 11, 13)
    return SparsityProfile(
        model, double, single, grid, 0.05, 64, "precise", "gilbert", 4, name
    )  # fmt: skip


@pytest.fixture
def folder(comfy) -> Iterator[Path]:
    """The server's profile folder, removed before and after each test."""
    folder = comfy.server.base / "models" / "rectified_spaattn"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def listed(comfy) -> list[str]:
    """What the combo of the Load node offers."""
    inputs = comfy.object_info("RectifiedSpaAttnLoadProfile")["input"]["optional"]
    return inputs["profile_name"][1]["options"]


def load_and_save(name: str, filename: str) -> dict:
    graph = Graph()
    profile = graph.add("RectifiedSpaAttnLoadProfile", profile_name=name)
    graph.add("RectifiedSpaAttnSaveProfile", profile=profile, filename=filename)
    return graph.nodes


def with_profile(name: str):
    """Our node with a loaded profile."""

    def patch(graph: Graph, model: Link) -> Link:
        loaded = graph.add("RectifiedSpaAttnLoadProfile", profile_name=name)
        return rectified(profile=loaded)(graph, model)

    return patch


def test_nothing_is_made_before_something_is_saved(comfy, folder):
    assert not folder.exists()
    assert listed(comfy) == [NO_PROFILE]


@pytest.mark.parametrize("given", [{}, {"profile_name": None}, {"profile_name": NO_PROFILE}])
def test_an_empty_folder_says_what_to_do(comfy, folder, given):
    graph = Graph()
    profile = graph.add("RectifiedSpaAttnLoadProfile", **given)
    graph.add("RectifiedSpaAttnSaveProfile", profile=profile, filename="profile")
    with pytest.raises(GraphError, match=r"there is no profile in .* yet: make one") as caught:
        comfy.run(graph.nodes)
    assert "models/rectified_spaattn" in str(caught.value)


def test_saved_profiles_are_listed_and_loaded(comfy, folder):
    """What is saved appears in the combo without a restart, and never overwrites a file."""
    profile = profile_of(TINY_HUNYUAN, "hand-made")
    save_profile(profile, folder / "first.safetensors")
    (folder / "readme.txt").write_text("not a profile")
    assert listed(comfy) == ["first.safetensors"]

    nodes = load_and_save("first.safetensors", "wan/copy")
    with StatusListener(comfy.server.url) as listener:
        comfy.run(nodes)
        nodes["2"]["inputs"]["filename"] = "wan/copy.safetensors"  # so that it runs again
        comfy.run(nodes)
    copies = [folder / "wan" / f"{name}.safetensors" for name in ("copy", "copy_00002")]
    assert [load_profile(copy) for copy in copies] == [profile, profile]
    assert set(listed(comfy)) == {"first.safetensors"} | {
        os.path.join("wan", copy.name) for copy in copies
    }
    texts = [text for node, text in listener.texts if node == "2"]
    assert texts == [f"Saved models/rectified_spaattn/wan/{copy.name}" for copy in copies]
    assert ("1", "\n".join(profile.describe().splitlines()[:2])) in listener.texts

    comfy.run(load_and_save(os.path.join("wan", "copy_00002.safetensors"), "third"))
    assert load_profile(folder / "third.safetensors") == profile


def test_text_is_in_the_result(comfy, folder):
    profile = profile_of(TINY_WAN, "")
    save_profile(profile, folder / "text.safetensors")
    nodes = load_and_save("text.safetensors", "text_copy")
    nodes["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}}
    comfy.run(nodes)
    (entry,) = comfy.server.get("/history?max_items=1").values()
    (summary,) = entry["outputs"]["3"]["text"]
    assert summary == profile.describe()
    (saved,) = entry["outputs"]["2"]["text"]
    assert saved.splitlines()[0] == "Saved models/rectified_spaattn/text_copy.safetensors"


def test_a_changed_file_is_read_again(comfy, folder):
    path = folder / "changing.safetensors"
    nodes = load_and_save(path.name, "result")
    for number, sparsity in enumerate((0.5, 0.6)):
        save_profile(profile_of(TINY_WAN, "", sparsity), path)
        comfy.run(nodes)
        results = sorted(folder.glob("result*"))
        assert len(results) == number + 1
        assert load_profile(results[-1]).double[1] == sparsity
    comfy.run(nodes)
    assert len(list(folder.glob("result*"))) == 2  # nothing changed: from ComfyUI's cache


@pytest.mark.parametrize(
    "filename", ["../escaped", "/escaped", "a/../../escaped", "..\\escaped", "", "con"]
)
def test_filenames_do_not_lead_out(comfy, folder, filename):
    save_profile(profile_of(TINY_WAN, ""), folder / "source.safetensors")
    with pytest.raises(GraphError, match="filename = "):
        comfy.run(load_and_save("source.safetensors", filename))
    assert [path.name for path in comfy.server.base.rglob("*escaped*")] == []
    assert [path.name for path in folder.rglob("*.safetensors")] == ["source.safetensors"]


@pytest.mark.parametrize(
    "name", ["../../output/x.safetensors", "gone.safetensors", "../source.safetensors"]
)
def test_only_listed_files_are_loaded(comfy, folder, name):
    save_profile(profile_of(TINY_WAN, ""), folder / "source.safetensors")
    with pytest.raises(GraphError, match="no such file in models/rectified_spaattn"):
        comfy.run(load_and_save(name, "copy"))


@pytest.mark.parametrize("kept", [0, 1, 8, 100, -1])
def test_a_truncated_file_is_refused_before_anything_runs(comfy, folder, kept):
    path = folder / "cut.safetensors"
    save_profile(profile_of(TINY_WAN, ""), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(GraphError, match="custom_validation_failed") as caught:
        comfy.run(sampled(WAN_SCENE, with_profile("cut.safetensors")))
    assert str(path) in str(caught.value)
    assert comfy.server.get("/system_stats")

    save_profile(profile_of(TINY_WAN, ""), path)
    comfy.run(load_and_save("cut.safetensors", "whole"))


def test_a_model_is_no_profile(comfy, folder, tiny_folder):
    folder.mkdir()
    (folder / "model.safetensors").hardlink_to(tiny_folder / "wan21_t2v.safetensors")
    with pytest.raises(GraphError, match="more than 1 MiB"):
        comfy.run(load_and_save("model.safetensors", "copy"))


def test_a_profile_of_the_model_is_used(comfy, folder):
    """Block 0 dense, block 1 sparse, as the profile says."""
    save_profile(profile_of(TINY_WAN, ""), folder / "tiny.safetensors")
    run = comfy.run(sampled(WAN_SCENE, with_profile("tiny.safetensors")))
    assert run.report["sparse"] > 0
    assert run.report["dense"] == run.report["sparse"]


@pytest.mark.parametrize(
    ("scene", "own", "other"),
    [(WAN_SCENE, TINY_WAN, TINY_HUNYUAN), (HUNYUAN_SCENE, TINY_HUNYUAN, TINY_WAN)],
    ids=["wan", "hunyuan"],
)
def test_a_profile_of_another_model_is_refused(comfy, folder, scene, own, other):
    """The error names both models, which is also how their sizes are read off the real ones."""
    save_profile(profile_of(other, "not for this"), folder / "other.safetensors")
    with pytest.raises(GraphError, match="it belongs to another model") as caught:
        comfy.run(sampled(scene, with_profile("other.safetensors")))
    for part in (own.describe(), other.describe(), "not for this"):
        assert part in str(caught.value)
