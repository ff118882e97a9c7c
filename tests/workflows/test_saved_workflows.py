"""Workflows saved by earlier versions of the nodes mean the same today.

`saved/*.json` are workflow files as those versions wrote them, with values that no default has;
`saved/expected.json` says what every widget of our nodes must show. The front end itself loads them
in `test_artist_session.py`; here the rule it follows is checked: values belong to widgets by
position, and a widget behind the last value takes its default.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from ..node_inputs import INPUTS

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / "tests" / "workflows" / "saved"
EXPECTED = json.loads((SAVED / "expected.json").read_text(encoding="utf-8"))
FILES = {"RectifiedSpaAttn": "sparse_attention.py", "RectifiedSpaAttnSchedule": "schedule.py"}
SOCKETS = {"model", "schedule", "profile"}


def argument_defaults(node_type: str) -> dict[str, Any]:
    """Defaults of a node's `execute`: what a saved prompt gets that lacks an input."""
    tree = ast.parse((ROOT / "nodes" / FILES[node_type]).read_text(encoding="utf-8"))
    (execute,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "execute"
    )
    names = [argument.arg for argument in execute.args.args]
    defaults = execute.args.defaults
    constants = {"CUSTOM": "custom", "PRECISE_TAIL_KEYS": "4"}
    return {
        name: constants[default.id] if isinstance(default, ast.Name) else ast.literal_eval(default)
        for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=True)
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_values_keep_their_widgets(name: str) -> None:
    workflow = json.loads((SAVED / name).read_text(encoding="utf-8"))
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    nodes = {str(node["id"]): node for graph in graphs for node in graph["nodes"]}
    assert EXPECTED[name]
    for node_id, expected in EXPECTED[name].items():
        node = nodes[node_id]
        widgets = [each for each in INPUTS[node["type"]] if each not in SOCKETS]
        values = node["widgets_values"]
        shown = dict(zip(widgets, values, strict=False))
        defaults = argument_defaults(node["type"])
        shown |= {widget: defaults[widget] for widget in widgets[len(values) :]}
        assert shown == expected


def test_no_value_is_a_default() -> None:
    """Else a default in the place of a saved value would not be seen."""
    defaults = argument_defaults("RectifiedSpaAttn")
    (first, *_) = EXPECTED["wan2.1_text_to_video.before_presets.json"].values()
    for name in ("rectification", "top_p", "min_tokens"):
        assert first[name] != defaults[name]


@pytest.mark.parametrize("path", sorted((SAVED / "api").glob("*.json")), ids=lambda path: path.stem)
def test_saved_prompts_name_only_inputs_there_are(path: Path) -> None:
    prompt = json.loads(path.read_text(encoding="utf-8"))
    ours = [node for node in prompt.values() if node["class_type"] in INPUTS]
    assert ours
    for node in ours:
        assert set(node["inputs"]) <= set(INPUTS[node["class_type"]])
