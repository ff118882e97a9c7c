"""The benchmark node: what it returns, shows, saves, and how it speaks to ComfyUI."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rectified_spaattn.benchmarks.calls import ours
from rectified_spaattn.benchmarks.calls.problem import Shape
from rectified_spaattn.benchmarks.my_card import measure
from rectified_spaattn.benchmarks.my_card.record import check
from rectified_spaattn.nodes import benchmark, host
from rectified_spaattn.nodes.benchmark import RectifiedSpaAttnBenchmark
from rectified_spaattn.rspa_core import ConfigError

from ..benchmarks.small_card import FREE, small_card


class Interrupted(BaseException):
    """As newer cores raise it."""


class Core:
    """As much of ComfyUI as the node asks: memory, progress, interruption, the output folder."""

    def __init__(self, folder: Path, free: int) -> None:
        self.free, self.asked = free, []
        self.interrupted_at = 2.0
        self.shares: list[int] = []
        self.modules = {
            "comfy": ModuleType("comfy"),
            "comfy.model_management": SimpleNamespace(
                get_torch_device=lambda: torch.device("cpu"),
                get_free_memory=lambda device: self.free,
                free_memory=self.free_memory,
                throw_exception_if_processing_interrupted=self.throw,
            ),
            "comfy.utils": SimpleNamespace(ProgressBar=lambda total, node_id: self),
            "folder_paths": SimpleNamespace(get_output_directory=lambda: str(folder)),
        }
        self.modules["comfy"].model_management = self.modules["comfy.model_management"]  # type: ignore[attr-defined]

    def free_memory(self, least: int, device: torch.device) -> None:
        self.asked.append(least)
        self.free = least

    def throw(self) -> None:
        if self.shares and self.shares[-1] >= 100 * self.interrupted_at:
            raise Interrupted

    def update_absolute(self, value: int, total: int) -> None:
        assert total == 100
        self.shares.append(value)


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Core:
    made = Core(tmp_path, 10 << 30)
    monkeypatch.setattr(measure, "CPU_SHAPE", Shape((2, 8, 8), 5))
    for name, module in made.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(benchmark, "send_status", lambda text, node_id: lines.append(text))
    return lines


def test_small_run(core: Core, said: list[str], tmp_path: Path) -> None:
    result = RectifiedSpaAttnBenchmark.execute(call="auto")
    image, summary, text = result.values
    assert image.shape[2:] == (960, 3)
    assert image.dtype == torch.float32
    assert result.ui.image is image
    record = check(json.loads(text))
    assert record["break_even"] is None
    assert json.loads((tmp_path / "rectified_spaattn" / "card_cpu.json").read_text()) == record
    assert "nothing about graphics cards" in summary
    assert said[-1].endswith("Saved as output/rectified_spaattn/card_cpu.json.")
    assert "ours balanced: timing" in said
    assert core.shares[0] == 0
    assert core.shares == sorted(core.shares)
    assert core.shares[-1] == 100
    assert core.asked == []


def test_interruption_ends_it(core: Core, said: list[str], tmp_path: Path) -> None:
    core.interrupted_at = 0.3
    with pytest.raises(Interrupted):
        RectifiedSpaAttnBenchmark.execute(call="auto")
    assert core.shares[-1] < 60
    assert list(tmp_path.iterdir()) == []


def test_refusal_is_shown(core: Core, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph with this node and others goes on."""

    def refused(*_: Any) -> None:
        raise measure.Refused("0.5 GiB of GPU memory are free, 1.8 are needed")

    monkeypatch.setattr(measure, "measure", refused)
    result = RectifiedSpaAttnBenchmark.execute(call="wan-480p")
    image, summary, text = result.values
    assert result.ui.image is image
    assert summary == said[-1] == "0.5 GiB of GPU memory are free, 1.8 are needed"
    assert json.loads(text) is None


@pytest.mark.parametrize("has_triton", [True, False])
def test_a_small_card_without_the_libraries(
    has_triton: bool, core: Core, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """6 GB, no SageAttention, no comfy-kitchen, and then no Triton either: each says so."""
    small_card(monkeypatch)
    core.free = FREE
    core.modules["comfy.model_management"].get_torch_device = lambda: torch.device("cuda")  # type: ignore[attr-defined]
    for name in ("sageattention", "comfy_kitchen"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(measure, "compare", partial(measure.compare, rivals=True))
    if not has_triton:
        monkeypatch.setitem(sys.modules, "triton", None)
        sparse = partial(ours.rectified_attention, backend="triton")  # as "auto" on a GPU
        monkeypatch.setattr(ours, "rectified_attention", sparse)

    image, summary, text = RectifiedSpaAttnBenchmark.execute(call="auto").values
    assert image.shape[2:] == (960, 3)
    record = check(json.loads(text))
    assert record["call"]["heads"] < record["call"]["model_heads"]
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["dense PyTorch"]["ms"] > 0
    for name in ("dense SageAttention", "dense comfy-kitchen INT8", "Sol-Attn top-k 0.25"):
        assert rows[name]["reason"].startswith("not installed: pip install ")
        assert f"{name}: not installed: pip install " in summary
    for name in ("ours quality", "ours balanced", "ours fast"):
        assert (rows[name]["ms"] is not None) == has_triton
    if has_triton:
        assert "Not installed, so not compared: dense SageAttention, dense comfy-kitchen" in summary
        assert said[-1].startswith(("Preset ", "It does not pay on this card"))
    else:
        words = "Sparse attention does not run here: Triton is not installed: 'pip install triton'"
        assert words in summary
        assert r"portable: python_embeded\python.exe -m pip install triton-windows" in summary
        assert said[-1].startswith(words)
    saved = tmp_path / "rectified_spaattn" / "card_nvidia_geforce_rtx_3060.json"
    assert json.loads(saved.read_text()) == record
    assert core.shares[-1] == 100


def test_wrong_call_is_named(core: Core) -> None:
    with pytest.raises(ConfigError, match="call = 'wan-8k' is not allowed: one of auto, wan-720p"):
        RectifiedSpaAttnBenchmark.execute(call="wan-8k")


def test_models_stay_loaded_where_the_smallest_call_fits(core: Core) -> None:
    device = torch.device("cpu")
    assert host.free_memory(device, 1 << 30) == 10 << 30
    assert core.asked == []
    assert host.free_memory(device, 11 << 30) == 11 << 30
    assert core.asked == [11 << 30]
