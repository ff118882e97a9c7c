"""The schemas ComfyUI gets are the table of inputs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rectified_spaattn.nodes import make_extension
from rectified_spaattn.nodes.inputs import MAIN, NODES, OPTIONS_NODE, Node
from rectified_spaattn.rspa_core.run.presets import PRESETS

WIDGETS = {"switch": "BOOLEAN", "number": "FLOAT", "integer": "INT", "choice": "COMBO"}
WIDGETS["text"] = "STRING"


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The node classes, as the extension lists them."""
    folders = SimpleNamespace(
        models_dir=str(tmp_path),
        folder_names_and_paths={},
        filename_list_cache={},
        get_filename_list=lambda name: ["fast.safetensors"],
    )

    def add(name: str, path: str, is_default: bool) -> None:
        folders.folder_names_and_paths[name] = ([path], set())

    folders.add_model_folder_path = add
    monkeypatch.setitem(__import__("sys").modules, "folder_paths", folders)
    return asyncio.run(make_extension().get_node_list())


def test_schemas_are_the_table(classes: list[Any]) -> None:
    assert [each.define_schema().node_id for each in classes] == list(NODES)
    for each in classes:
        schema = each.define_schema()
        node = NODES[schema.node_id]
        assert schema.node_id == each.__name__
        assert (schema.display_name, schema.description) == (node.title, node.description)
        assert schema.search_aliases == list(node.aliases)
        assert schema.is_output_node == node.is_output
        assert bool(schema.hidden) == schema.not_idempotent == node.speaks
        assert [given.name for given in schema.inputs] == [wanted.name for wanted in node.inputs]
        for given, wanted in zip(schema.inputs, node.inputs, strict=True):
            assert given.io_type == WIDGETS.get(wanted.kind, wanted.kind)
            assert given.keywords["tooltip"] == wanted.tooltip
            assert given.keywords["optional"] == wanted.optional
            if wanted.is_widget and wanted.name != "profile_name":
                assert given.keywords["default"] == wanted.default
            if wanted.kind in ("number", "integer"):
                assert (given.keywords["min"], given.keywords["max"]) == (wanted.low, wanted.high)
        outputs = [(given.keywords["display_name"], given.io_type) for given in schema.outputs]
        assert outputs == [(wanted.name, wanted.kind) for wanted in node.outputs]


def test_files_are_the_choices_of_load_profile(classes: list[Any]) -> None:
    schema = next(each for each in classes if "Load" in each.__name__).define_schema()
    assert schema.inputs[0].keywords["options"] == ["fast.safetensors"]


@pytest.mark.parametrize("node", NODES.values(), ids=list(NODES))
def test_rows_are_sound(node: Node) -> None:
    names = [each.name for each in node.inputs]
    assert len(set(names)) == len(names)
    assert node.title.startswith("Rectified SpaAttn")
    for each in (*node.inputs, *node.outputs):
        assert each.tooltip.endswith("."), each.name
        assert "  " not in each.tooltip
    for widget in node.widgets:
        if widget.choices or widget.kind != "choice":
            assert widget.checked(widget.default) == widget.default


def test_defaults_are_the_balanced_preset() -> None:
    assert MAIN.defaults["preset"] == "balanced"
    for name, value in MAIN.input("preset").extra["rspa_presets"]["balanced"].items():
        assert MAIN.defaults[name] == value
    assert set(MAIN.input("preset").extra["rspa_presets"]) == set(PRESETS)


def test_texts_are_checked_before_the_run(classes: list[Any]) -> None:
    by_name = {each.__name__: each for each in classes}
    options, probe = by_name["RectifiedSpaAttnOptions"], by_name["RectifiedSpaAttnProbe"]
    schedule = by_name["RectifiedSpaAttnSchedule"]
    assert options.validate_inputs(dense_blocks="0, -1") is True
    assert options.validate_inputs() is True, "another node gives it"
    assert "dense_blocks, entry 1 = 'x'" in options.validate_inputs(dense_blocks="x")
    assert "steps, entry 2 = '2'" in schedule.validate_inputs(steps="off, 2", dense_steps="")
    assert "dense_steps, entry 1" in schedule.validate_inputs(steps="", dense_steps="one")
    assert "blocks, entry 1" in probe.validate_inputs(steps="1", blocks="?", sparsities="0.5")
    assert "sparsities" in probe.validate_inputs(steps="1", blocks="", sparsities="")


def test_values_that_are_plainly_meant_are_taken() -> None:
    assert MAIN.checked({"block_size": 64})["block_size"] == "64"
    assert OPTIONS_NODE.checked({"tail_keys": 8})["tail_keys"] == "8"
    assert OPTIONS_NODE.checked({"min_tokens": 4096.0})["min_tokens"] == 4096
    assert OPTIONS_NODE.checked({"dense_blocks": None})["dense_blocks"] == ""
