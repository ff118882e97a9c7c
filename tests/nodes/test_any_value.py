"""Any value in any input of any node: it is taken, or the error names the input.

Values that ComfyUI's own check lets through, and those that come from nodes of other packs.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rectified_spaattn.nodes import make_extension
from rectified_spaattn.nodes.inputs import NODES, Input
from rectified_spaattn.rspa_core.config import ConfigError
from rectified_spaattn.rspa_core.run.profile import ProfileError

from .test_patching import Patcher
from .test_profiles import FolderPaths

VALUES = {
    "None": None,
    "True": True,
    "False": False,
    "list": [0, 1],
    "dict": {"a": 1},
    "bytes": b"1",
    "object": object(),
    "tensor": torch.zeros(2),
    "number": 5,
    "negative": -7,
    "fraction": 0.3,
    "nan": float("nan"),
    "inf": float("inf"),
    "huge": 10**5000,
    "empty text": "",
    "text": "a, b",
    "null as ComfyUI passes it on": "None",
    "long text": "9" * 5000,
    "many entries": "0, " * 5000,
    "control characters": "a\x00\n\ud800",
    "way out": "../../a",
}
INPUTS = [
    pytest.param(node_id, each.name, id=f"{node_id}-{each.name}")
    for node_id, node in NODES.items()
    for each in node.inputs
]
MAX_MESSAGE = 1000


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The node classes by their ids, with an empty profile folder."""
    folders = FolderPaths(tmp_path / "models")
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    extension = ModuleType("comfy.patcher_extension")
    extension.WrappersMP = SimpleNamespace(APPLY_MODEL="apply_model")
    extension.CallbacksMP = SimpleNamespace(ON_PRE_RUN="on_pre_run", ON_CLEANUP="on_cleanup")
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", extension)
    return {each.__name__: each for each in asyncio.run(make_extension().get_node_list())}


def good(each: Input) -> Any:
    """A value that the node takes."""
    if each.is_widget:
        return each.default
    if each.kind == "MODEL":
        return Patcher()
    return None


@pytest.mark.parametrize(("node_id", "name"), INPUTS)
def test_any_value_is_taken_or_named(node_id: str, name: str, classes: dict[str, Any]) -> None:
    node, cls = NODES[node_id], classes[node_id]
    for label, value in VALUES.items():
        given = {each.name: good(each) for each in node.inputs} | {name: value}
        try:
            cls.execute(**given)
        except (ConfigError, ProfileError) as error:
            message = str(error)
            known = [each for each in node.inputs if each.name in message]
            assert known or "profile" in message, (label, message)
            assert len(message) < MAX_MESSAGE, label


@pytest.mark.parametrize(("node_id", "name"), INPUTS)
def test_what_is_checked_before_the_run_never_fails_itself(
    node_id: str, name: str, classes: dict[str, Any]
) -> None:
    check = getattr(classes[node_id], "validate_inputs", None)
    if check is None or name not in inspect.signature(check).parameters:
        assert NODES[node_id].input(name).kind != "text", "texts are checked before the run"
        return
    for label, value in VALUES.items():
        answer = check(**{name: value})
        assert answer is True or name in answer, (label, answer)
    assert check(**{name: None}) is True, "what another node gives is not known yet"
