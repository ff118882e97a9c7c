"""What the artist reads: tooltips on every input and output, and help pages that name them all.

The schemas are read from the source, because building them needs ComfyUI.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ..node_inputs import INPUTS

ROOT = Path(__file__).resolve().parents[2]
NODES = {"RectifiedSpaAttn": "sparse_attention.py", "RectifiedSpaAttnSchedule": "schedule.py"}


def sockets(node_id: str, kind: str) -> list[tuple[str, set[str]]]:
    """(id, keywords) of each `Input` or `Output` in a node's file, in the order of the source."""
    tree = ast.parse((ROOT / "nodes" / NODES[node_id]).read_text(encoding="utf-8"))
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        target, args = call.func, call.args
        if isinstance(target, ast.Name) and target.id == "build":
            target, args = args[0], args[1:]
        if isinstance(target, ast.Attribute) and target.attr == kind:
            name = args[0].value if args else "model"
            found.append((call.lineno, name, {keyword.arg for keyword in call.keywords}))
    return [(name, keywords) for _, name, keywords in sorted(found, key=lambda each: each[0])]


@pytest.mark.parametrize("node_id", NODES)
def test_input_order(node_id: str) -> None:
    assert [name for name, _ in sockets(node_id, "Input")] == INPUTS[node_id]


def test_inputs_added_later_may_be_missing() -> None:
    """Workflows and prompts saved before an input existed get its default."""
    inputs = sockets("RectifiedSpaAttn", "Input")
    first = INPUTS["RectifiedSpaAttn"].index("verbose") + 1
    assert inputs[first:]
    assert [name for name, given in inputs[first:] if not {"optional", "default"} <= given] == []

    tree = ast.parse((ROOT / "nodes" / NODES["RectifiedSpaAttn"]).read_text(encoding="utf-8"))
    (execute,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "execute"
    )
    arguments, defaults = execute.args.args, execute.args.defaults
    has_default = {argument.arg for argument in arguments[len(arguments) - len(defaults) :]}
    assert {name for name, _ in inputs[first:]} <= has_default


@pytest.mark.parametrize("node_id", NODES)
@pytest.mark.parametrize("kind", ["Input", "Output"])
def test_every_socket_has_a_tooltip(node_id: str, kind: str) -> None:
    missing = [name for name, keywords in sockets(node_id, kind) if "tooltip" not in keywords]
    assert sockets(node_id, kind)
    assert missing == []


@pytest.mark.parametrize("node_id", NODES)
def test_help_page_names_every_input_and_output(node_id: str) -> None:
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    names = [name for kind in ("Input", "Output") for name, _ in sockets(node_id, kind)]
    assert [name for name in names if f"`{name}`" not in page] == []
