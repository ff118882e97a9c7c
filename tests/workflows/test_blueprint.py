"""The subgraph blueprint as a file. `test_front_end.py` opens it in ComfyUI itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rectified_spaattn.rspa_core.run.presets import PRESETS

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "subgraphs").glob("*.json"))
INPUTS, OUTPUTS = -10, -20


@pytest.fixture
def blueprint() -> Json:
    (path,) = FILES
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def subgraph(blueprint: Json) -> Json:
    (only,) = blueprint["definitions"]["subgraphs"]
    return only


def node_of(subgraph: Json, kind: str) -> Json:
    (found,) = (node for node in subgraph["nodes"] if node["type"] == kind)
    return found


def test_file_is_one_instance_named_as_the_file(blueprint: Json, subgraph: Json) -> None:
    (instance,) = blueprint["nodes"]
    assert instance["type"] == subgraph["id"]
    assert instance["title"] == subgraph["name"] == FILES[0].stem
    assert subgraph["description"]


def test_instance_has_the_slots_of_the_subgraph(blueprint: Json, subgraph: Json) -> None:
    (instance,) = blueprint["nodes"]
    for side in ("inputs", "outputs"):
        assert [(each["name"], each["type"]) for each in instance[side]] == [
            (each["name"], each["type"]) for each in subgraph[side]
        ]


def test_every_link_is_named_at_both_ends(subgraph: Json) -> None:
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    assert subgraph["links"]
    for link in subgraph["links"]:
        if link["origin_id"] == INPUTS:
            source = subgraph["inputs"][link["origin_slot"]]["linkIds"]
        else:
            source = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        assert link["id"] in source
        if link["target_id"] == OUTPUTS:
            target = subgraph["outputs"][link["target_slot"]]["linkIds"]
        else:
            target = [nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"]]
        assert link["id"] in target


def test_promoted_widgets_show_what_is_stored_inside(blueprint: Json, subgraph: Json) -> None:
    (instance,) = blueprint["nodes"]
    widgets = [each["name"] for each in instance["inputs"] if "widget" in each]
    assert instance["properties"]["proxyWidgets"] == [["-1", name] for name in widgets]
    shown = dict(zip(widgets, instance["widgets_values"], strict=True))
    assert shown["preset"] == "balanced"
    sampler = node_of(subgraph, "KSampler")["widgets_values"]
    names = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")
    assert [shown[name] for name in names] == [sampler[0], *sampler[2:]]


def test_attention_node_holds_the_values_of_its_preset(subgraph: Json) -> None:
    chosen = PRESETS["balanced"]
    expected = [chosen.sparsity, str(chosen.block_size)]
    expected += [chosen.start_percent, chosen.end_percent, chosen.ramp]
    stored = node_of(subgraph, "RectifiedSpaAttn")["widgets_values"]
    assert stored == [True, "balanced", *expected]


def test_nodes_carry_the_version_of_the_pack(subgraph: Json) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"', text, re.MULTILINE)
    assert version is not None
    for kind in ("RectifiedSpaAttn", "RectifiedSpaAttnOptions", "RectifiedSpaAttnReport"):
        properties = node_of(subgraph, kind)["properties"]
        assert (properties["cnr_id"], properties["ver"]) == ("rectified-spaattn", version[1])
