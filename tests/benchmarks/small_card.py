"""A graphics card of 6 GB that is not there: tensors stay on the CPU, and sizes are a test's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rectified_spaattn.benchmarks.calls.problem import Shape, make_problem
from rectified_spaattn.benchmarks.my_card import measure

GIB = 1 << 30
FREE = 5 * GIB
PAIR_S = 2e-11
"""Seconds for a query and a key of one head."""


def small_card(monkeypatch: pytest.MonkeyPatch) -> list[Shape]:
    """Have `measure` find an RTX 3060; returns the shapes that it will have asked for."""
    interleaved = measure.measure_interleaved
    asked: list[Shape] = []

    def small(shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
        asked.append(shape)
        assert (dtype, device.type) == (torch.bfloat16, "cuda")
        return make_problem(Shape((2, 9, 9), 5), torch.float32, torch.device("cpu"))

    cuda: dict[str, Any] = {
        "get_device_name": "NVIDIA GeForce RTX 3060\u2122",
        "get_device_capability": (8, 6),
        "get_device_properties": SimpleNamespace(total_memory=6 * GIB),
        "mem_get_info": (FREE, 6 * GIB),
        "empty_cache": None,
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(measure, "_dense_pair_s", lambda device, dtype: PAIR_S)
    monkeypatch.setattr(measure, "make_problem", small)
    monkeypatch.setattr(measure, "EVEN_GRIDS", ((2, 9, 9), (21, 45, 80)))
    monkeypatch.setattr(
        measure,
        "measure_interleaved",
        lambda calls, device, **more: interleaved(calls, torch.device("cpu")),
    )
    return asked
