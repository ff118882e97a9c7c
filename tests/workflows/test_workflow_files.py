"""The example workflows as files: whole graphs, sound values, a thumbnail and an API form each.

Needs no ComfyUI. `test_front_end.py` looks at the same files through ComfyUI itself.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rectified_spaattn.nodes.inputs import NO_PROFILE, NODES
from rectified_spaattn.rspa_core.run.presets import PRESETS
from rectified_spaattn.rspa_core.run.schedule import (
    Position,
    SparsitySchedule,
    parse_dense_steps,
    parse_steps,
)

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflows"
STEMS = sorted(path.stem for path in FOLDER.glob("*.json"))

BOUNDARY = {-10, -20}  # a subgraph's own inputs and outputs, where a node id would stand
MAX_THUMBNAIL_BYTES = 150_000

MUTED = 2
COMPARISON, TUNING = "compare_dense_and_sparse", "tune_with_the_probe"
LOADERS = {"UNETLoader", "LoraLoaderModelOnly"}
SAMPLERS = {"KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"}

each_stem = pytest.mark.parametrize("stem", STEMS)


def read(stem: str) -> Json:
    return json.loads((FOLDER / f"{stem}.json").read_text(encoding="utf-8"))


def read_api(stem: str) -> Json:
    return json.loads((FOLDER / "api" / f"{stem}.json").read_text(encoding="utf-8"))


def graphs(workflow: Json) -> list[Json]:
    """The root graph, then the subgraphs."""
    return [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]


def links(graph: Json) -> list[Json]:
    """Links as objects: files store lists in the root graph and objects in subgraphs."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return [
        dict(zip(names, link, strict=True)) if isinstance(link, list) else link
        for link in graph["links"]
    ]


def our_nodes(workflow: Json) -> Iterator[Json]:
    for graph in graphs(workflow):
        yield from (node for node in graph["nodes"] if node["type"] in NODES)


def values(node: Json) -> Json:
    """Widget values of one of our nodes by name."""
    return dict(zip(NODES[node["type"]].defaults, node["widgets_values"], strict=True))


def source_end(graph: Json, nodes: dict[int, Json], link: Json) -> Json:
    """The output, or the subgraph's input, at which a link starts."""
    if link["origin_id"] == -10:
        return graph["inputs"][link["origin_slot"]]
    return nodes[link["origin_id"]]["outputs"][link["origin_slot"]]


def target_end(graph: Json, nodes: dict[int, Json], link: Json) -> Json:
    """The input, or the subgraph's output, at which a link ends."""
    if link["target_id"] == -20:
        return graph["outputs"][link["target_slot"]]
    return nodes[link["target_id"]]["inputs"][link["target_slot"]]


def test_there_are_workflows() -> None:
    assert len(STEMS) == 17


@each_stem
def test_format(stem: str) -> None:
    workflow = read(stem)

    assert workflow["version"] == 0.4
    assert workflow["extra"]["built_from"]
    ids = [node["id"] for graph in graphs(workflow) for node in graph["nodes"]]
    assert len(ids) == len(set(ids))
    assert max(ids) == workflow["last_node_id"]
    link_ids = [[link["id"] for link in links(graph)] for graph in graphs(workflow)]
    for of_one_graph in link_ids:
        assert len(of_one_graph) == len(set(of_one_graph))
    assert max(map(max, link_ids)) == workflow["last_link_id"]


@each_stem
def test_links_have_two_ends_of_one_type(stem: str) -> None:
    for graph in graphs(read(stem)):
        nodes = {node["id"]: node for node in graph["nodes"]}
        for link in links(graph):
            assert {link["origin_id"], link["target_id"]} <= nodes.keys() | BOUNDARY, link
            source = source_end(graph, nodes, link)
            target = target_end(graph, nodes, link)
            assert link["id"] in (source.get("links") or source.get("linkIds") or []), link
            target_links = target.get("linkIds") or [target.get("link")]
            assert link["id"] in target_links, link
            for end in (source, target):
                assert "*" in (end["type"], link["type"]) or types_meet(end, link), (end, link)


def types_meet(end: Json, link: Json) -> bool:
    """Types agree; one end may list several, or pass on whatever type it was given."""
    kinds, carried = (set(each["type"].split(",")) for each in (end, link))
    return bool(kinds & carried) or "COMFY_MATCHTYPE_V3" in kinds | carried


@each_stem
def test_every_end_names_a_link(stem: str) -> None:
    for graph in graphs(read(stem)):
        known = {link["id"] for link in links(graph)}
        for node in graph["nodes"]:
            named = {entry["link"] for entry in node.get("inputs", []) if entry.get("link")}
            for entry in node.get("outputs", []):
                named |= set(entry.get("links") or [])
            assert named <= known, (node["id"], named - known)


@each_stem
def test_values_of_our_nodes(stem: str) -> None:
    for node in our_nodes(read(stem)):
        stored = values(node)
        if node["mode"] == MUTED:  # there is no profile to load before the first run
            assert stored == {"profile_name": NO_PROFILE}
            continue
        assert NODES[node["type"]].checked(stored) == stored


@each_stem
def test_attention_nodes_hold_the_values_of_their_preset(stem: str) -> None:
    for node in our_nodes(read(stem)):
        if node["type"] != "RectifiedSpaAttn":
            continue
        stored = values(node)
        assert stored["preset"] == ("4-step" if "_steps" in stem else "balanced")
        chosen = PRESETS[stored["preset"]].as_dict()
        for name in ("sparsity", "block_size", "start_percent", "end_percent", "ramp"):
            assert stored[name] == (str(chosen[name]) if name == "block_size" else chosen[name])


@each_stem
def test_wan_keeps_its_first_two_layers_dense(stem: str) -> None:
    """By one options node for all attention nodes of a graph; no other workflow needs one."""
    options = [node for node in our_nodes(read(stem)) if node["type"] == "RectifiedSpaAttnOptions"]
    if not stem.startswith(("wan", "bernini", "scail")) and stem != COMPARISON:
        assert options == []
        return
    holding = [
        graph
        for graph in graphs(read(stem))
        if any(node["type"] == "RectifiedSpaAttn" for node in graph["nodes"])
    ]
    expected = NODES["RectifiedSpaAttnOptions"].defaults | {"dense_blocks": "0, 1"}
    assert [values(each) for each in options] == [expected for _ in holding]
    linked = [
        node["inputs"]["options"][0]
        for node in read_api(stem).values()
        if node["class_type"] == "RectifiedSpaAttn"
    ]
    assert len({*linked}) == len(holding)


@each_stem
def test_our_nodes_are_marked_as_ours(stem: str) -> None:
    version = re.search(
        r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert version is not None
    for node in our_nodes(read(stem)):
        assert node["properties"]["cnr_id"] == "rectified-spaattn"
        assert node["properties"]["ver"] == version[1]


@each_stem
def test_note_says_what_to_try(stem: str) -> None:
    notes = [node for node in read(stem)["nodes"] if node["type"] == "MarkdownNote"]
    (ours,) = (note for note in notes if "Rectified SpaAttn" in note.get("title", ""))
    assert "### Then try" in ours["widgets_values"][0]


@each_stem
def test_seeds_are_fixed(stem: str) -> None:
    """A comparison with and without the node needs the same noise twice."""
    text = json.dumps([graph["nodes"] for graph in graphs(read(stem))])
    assert '"randomize"' not in text


@each_stem
def test_app_view_has_prompt_and_video(stem: str) -> None:
    """Of the two left out, one is followed in the graph; the other's prompt has no name."""
    app = read(stem)["extra"].get("linearData")
    if stem in (TUNING, "bernini_r_video_editing"):
        assert app is None
        return
    assert {"prompt", "text", "value"} & {name for _, name in app["inputs"]}
    kinds = {str(node["id"]): node["type"] for node in read(stem)["nodes"]}
    assert "SaveVideo" in {kinds[node_id] for node_id in app["outputs"]}


@each_stem
def test_thumbnail(stem: str) -> None:
    path = FOLDER / f"{stem}.jpg"
    assert path.stat().st_size < MAX_THUMBNAIL_BYTES
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (640, 640)


def test_nothing_is_left_over() -> None:
    """Pictures and API files belong to workflows: ComfyUI lists every .json of the folder."""
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == STEMS
    assert sorted(path.stem for path in (FOLDER / "api").glob("*")) == STEMS


def upstream(prompt: Json, node_id: str, name: str) -> Iterator[str]:
    """Ids of the nodes before the input `name` of a node, nearest first, along model links."""
    value = prompt[node_id]["inputs"].get(name)
    if not isinstance(value, list):
        return
    yield value[0]
    for before in ("model", "guider", "on_true", "on_false"):
        yield from upstream(prompt, value[0], before)


@each_stem
def test_api_file_has_our_node_between_loader_and_sampler(stem: str) -> None:
    prompt = read_api(stem)
    samplers = [key for key, node in prompt.items() if node["class_type"] in SAMPLERS]
    assert samplers
    first_of_two = []
    for sampler in samplers:
        name = "guider" if "guider" in prompt[sampler]["inputs"] else "model"
        kinds = [prompt[key]["class_type"] for key in upstream(prompt, sampler, name)]
        if stem.startswith("ltx") and "RectifiedSpaAttn" not in kinds:
            first_of_two.append(sampler)
            continue
        if prompt[sampler]["_meta"]["title"] == "KSampler (dense)":
            assert stem == COMPARISON
            assert "RectifiedSpaAttn" not in kinds
            continue
        assert kinds.count("RectifiedSpaAttn") == 1, kinds
        position = kinds.index("RectifiedSpaAttn")
        assert LOADERS & set(kinds[position:]), kinds
        assert not LOADERS & set(kinds[:position]), kinds
    assert len(first_of_two) == stem.startswith("ltx")


@each_stem
def test_api_file_has_the_values_of_the_workflow(stem: str) -> None:
    prompt = read_api(stem)
    for node in our_nodes(read(stem)):
        if node["mode"] == MUTED:
            assert not any(entry["class_type"] == node["type"] for entry in prompt.values())
            continue
        (inputs,) = (
            entry["inputs"]
            for key, entry in prompt.items()
            if key.split(":")[-1] == str(node["id"]) and entry["class_type"] == node["type"]
        )
        linked = {name for name, value in inputs.items() if isinstance(value, list)}
        for name, value in values(node).items():
            assert name in linked or inputs[name] == value, name


@each_stem
def test_files_name_no_place_of_one_machine(stem: str) -> None:
    for text in (json.dumps(read(stem)), json.dumps(read_api(stem))):
        assert not re.search(r'"(/|~|[A-Za-z]:\\\\)', text)
        assert "localhost" not in text


@each_stem
def test_each_sparse_sampling_has_a_report(stem: str) -> None:
    """On the model that the sampler gets, after that sampler; of the probe's run its result."""
    prompt = read_api(stem)
    reports = [
        node["inputs"]
        for node in prompt.values()
        if node["class_type"] in ("RectifiedSpaAttnReport", "RectifiedSpaAttnProbeResult")
    ]
    reported = {inputs["after"][0]: inputs["model"][0] for inputs in reports}
    assert len(reported) == len(reports)
    for key, node in prompt.items():
        if node["class_type"] not in SAMPLERS:
            continue
        name = "guider" if "guider" in node["inputs"] else "model"
        before = list(upstream(prompt, key, name))
        if any(prompt[each]["class_type"] == "RectifiedSpaAttn" for each in before):
            assert reported.pop(key) in before
    assert not reported


def test_comparison_samples_one_seed_twice_and_stitches_the_clips() -> None:
    prompt = read_api(COMPARISON)
    dense, sparse = (
        {**node["inputs"], "model": None}
        for node in sorted(prompt.values(), key=lambda node: node["_meta"]["title"])
        if node["class_type"] == "KSampler"
    )
    assert dense == sparse
    (stitch,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "ImageStitch")
    sides = [
        prompt[prompt[stitch[name][0]]["inputs"]["samples"][0]] for name in ("image1", "image2")
    ]
    assert [side["_meta"]["title"] for side in sides] == ["KSampler (dense)", "KSampler (sparse)"]


def test_tuning_renders_with_the_fresh_profile_on_the_first_run() -> None:
    """The file to load is only there afterwards: its node waits, muted."""
    prompt = read_api(TUNING)
    (profile,) = (
        node["inputs"]["profile"]
        for node in prompt.values()
        if node["class_type"] == "RectifiedSpaAttn" and "profile" in node["inputs"]
    )
    save = prompt[profile[0]]
    assert save["class_type"] == "RectifiedSpaAttnSaveProfile"
    result = prompt[save["inputs"]["profile"][0]]
    assert result["class_type"] == "RectifiedSpaAttnProbeResult"
    assert prompt[result["inputs"]["model"][0]]["class_type"] == "RectifiedSpaAttnProbe"
    (load,) = (
        node for node in read(TUNING)["nodes"] if node["type"] == "RectifiedSpaAttnLoadProfile"
    )
    assert load["mode"] == MUTED


@each_stem
def test_thumbnail_shows_the_workflow(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strip of steps is what the nodes are set to, and the clip was rendered that way."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    specs = importlib.import_module("workflow_builder.catalogue").SPECS
    (spec,) = (spec for spec in specs if spec.stem == stem)
    own = steps_of(read(stem), spec.steps)
    assert spec.sparsity_of_steps() == pytest.approx([None] * spec.steps_before + own)
    record = importlib.import_module("workflow_builder.thumbnails").load_records()[stem]
    chosen = spec.chosen
    assert record["block_size"] == chosen.block_size
    assert record["rectification"] == chosen.rectification
    assert record["tail_keys"] == chosen.tail_keys
    rendered = spec.sparsity_of_steps(record["sampled_steps"])
    assert record["sparsity_of_steps"] == pytest.approx(rendered)
    assert bool(record["sparsity_of_layers"]) == spec.picture.is_tuned == (stem == TUNING)
    assert (record["scene"], record["seed"]) == (spec.picture.scene, spec.picture.seed)
    clips = [(each.picture.scene, each.picture.seed) for each in specs]
    assert len(set(clips)) == len(clips), "no two show the same clip"


def steps_of(workflow: Json, count: int) -> list[float | None]:
    """Sparsity of every step, as the nodes of the workflow are set."""
    ours = list(our_nodes(workflow))
    schedules = [node for node in ours if node["type"] == "RectifiedSpaAttnSchedule"]
    if not schedules:
        set_to = values(next(node for node in ours if node["type"] == "RectifiedSpaAttn"))
        percents = set_to["start_percent"], set_to["end_percent"]
        return steps(SparsitySchedule(set_to["sparsity"], 0.0, "constant", *percents), count)
    shown = []
    for node in schedules:
        set_to = values(node)
        preview = set_to.pop("preview_steps")
        del set_to["preview_shift"]
        set_to["steps"] = parse_steps(set_to["steps"])
        set_to["dense_steps"] = parse_dense_steps(set_to["dense_steps"])
        shown += steps(SparsitySchedule(**set_to), preview)
    return shown


def steps(schedule: SparsitySchedule, count: int) -> list[float | None]:
    """Sparsity of each of `count` steps, which ComfyUI's simple scheduler spaces evenly."""
    found = [schedule.sparsity_at(Position(step, count, step / count)) for step in range(count)]
    return [sparsity if isinstance(sparsity, float) else None for sparsity in found]
