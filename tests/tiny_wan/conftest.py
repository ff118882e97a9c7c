"""The modules of `tools/tiny_wan`, which is no part of the package, for its tests."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="session")
def tiny() -> Iterator[SimpleNamespace]:
    """The modules by their names."""
    names = [path.stem for path in (TOOLS / "tiny_wan").glob("*.py") if path.stem != "__init__"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        modules = {name: importlib.import_module(f"tiny_wan.{name}") for name in names}
        yield SimpleNamespace(**modules)
