"""The modules of `tools/tiny_wan`, which is no part of the package, and footage for their tests."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="session")
def tiny() -> Iterator[SimpleNamespace]:
    """The modules by their names."""
    names = [path.stem for path in (TOOLS / "tiny_wan").glob("*.py") if path.stem != "__init__"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        modules = {name: importlib.import_module(f"tiny_wan.{name}") for name in names}
        yield SimpleNamespace(**modules)


@pytest.fixture
def run_tool(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Runs a program of `tools/` in this process, which has imported what it needs."""
    precision, is_searching = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark

    def run(name: str, *words: object) -> None:
        program = str(TOOLS / name)
        monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        runpy.run_path(program, run_name="__main__")

    yield run
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = is_searching


def waves(frames: int, height: int, width: int, speed: float) -> Tensor:
    """`[F, 3, H, W]` uint8."""
    f, y, x = torch.meshgrid(*map(torch.arange, (frames, height, width)), indexing="ij")
    shades = [
        (1.5 * torch.sin(speed * f + y / (5 + i) + x / (9 - i))).clamp(-1, 1) for i in range(3)
    ]
    return ((torch.stack(shades, dim=1) + 1) * 127).to(torch.uint8)


@pytest.fixture(scope="session")
def footage(tiny: SimpleNamespace) -> Any:
    """Moving waves instead of real videos: two scenes."""
    shot = tiny.footage.Shot
    shots = (shot(0, waves(9, 40, 60, 0.2)), shot(1, waves(30, 50, 44, 0.6)))
    return tiny.footage.Footage(("calm", "rough"), shots)
