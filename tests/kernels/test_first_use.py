"""Kernels of a first call are compiled side by side, each variant once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from rectified_spaattn.rspa_core import SparseConfig

from .cases import Case

pytest.importorskip("triton", reason="Triton is not installed")


class FakeKernel:
    """Counts what is compiled; the constant `SIZE` is part of a variant."""

    params = (
        SimpleNamespace(name="x", is_constexpr=False),
        SimpleNamespace(name="n", is_constexpr=False),
        SimpleNamespace(name="SIZE", is_constexpr=True),
    )

    def __init__(self, problem: Exception | None = None, together: int = 1) -> None:
        self.problem = problem
        self.compiled: list[dict[str, object]] = []
        self._barrier = threading.Barrier(together)

    def warmup(self, grid: tuple[int, ...], **arguments: object) -> SimpleNamespace:
        self._barrier.wait(timeout=10)
        self.compiled.append(arguments)
        if self.problem is not None:
            raise self.problem
        return SimpleNamespace(run=None)


@pytest.fixture(autouse=True)
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling asks for a GPU's number only; where there is one, that is the one."""
    if torch.cuda.is_available():
        return
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())


def launches_of(kernel: FakeKernel, *arguments: dict[str, object]) -> list[object]:
    from rectified_spaattn.kernels import recorded, run

    with recorded() as launches:
        for each in arguments:
            run(kernel, (1,), **each)
    return launches


def test_each_variant_is_compiled_once() -> None:
    from rectified_spaattn.kernels import compiling

    half, single = torch.zeros(4, dtype=torch.float16), torch.zeros(4)
    kernel = FakeKernel()
    launches = launches_of(
        kernel,
        {"x": half, "n": 3, "SIZE": 64},
        {"x": half.clone(), "n": 5, "SIZE": 64},  # another number, the same binary
        {"x": half, "n": 3, "SIZE": 128},
        {"x": single, "n": 3, "SIZE": 64},
        {"x": None, "n": 3, "SIZE": 64},
    )
    progress: list[tuple[int, int]] = []
    device = torch.device("cuda", 0)
    with compiling(launches, device, lambda *both: progress.append(both)) as count:
        assert count == 4
    assert len(kernel.compiled) == 4
    assert progress == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_compilers_run_side_by_side() -> None:
    """Each waits until all three are there: one after the other none would come back."""
    from rectified_spaattn.kernels import compiling

    kernel = FakeKernel(together=3)
    launches = launches_of(kernel, *({"SIZE": size} for size in (1, 2, 3)))
    with compiling(launches, torch.device("cuda", 0), threads=3):
        pass
    assert len(kernel.compiled) == 3


def test_a_problem_is_left_to_the_launch() -> None:
    from rectified_spaattn.kernels import compiling

    kernel = FakeKernel(problem=RuntimeError("no such instruction"))
    launches = launches_of(kernel, {"SIZE": 1}, {"SIZE": 2})
    progress: list[tuple[int, int]] = []
    with compiling(launches, torch.device("cuda", 0), lambda *both: progress.append(both)):
        pass
    assert len(kernel.compiled) == 2
    assert progress == [(0, 2), (1, 2), (2, 2)]


def test_other_work_is_done_meanwhile() -> None:
    """The kernel waits for what the caller does beside it."""
    from rectified_spaattn.kernels import compiling

    kernel = FakeKernel(together=2)
    with compiling(launches_of(kernel, {"SIZE": 1}), torch.device("cuda", 0)):
        kernel._barrier.wait(timeout=10)
    assert len(kernel.compiled) == 1


@pytest.mark.parametrize("rectification", ["none", "paper", "precise"])
def test_a_recorded_call_launches_nothing(rectification: str, device: torch.device) -> None:
    from rectified_spaattn.kernels import recorded
    from rectified_spaattn.kernels.devices import Tile
    from rectified_spaattn.kernels.launch import launch

    case = Case((2, 5, 9), SparseConfig(0.5, 64, 64, rectification=rectification), (3, 0))
    q, k, v = case.inputs(torch.float32, device, 0)
    arguments = (q, k, v, case.layout, case.config, Tile(32, 4, 1), False)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what is not written with NaN
    try:
        with recorded() as launches:
            out, *_ = launch(*arguments)
        assert out.isnan().all()
        assert launches
        out, *_ = launch(*arguments)  # behind it, everything runs again
        assert out.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(before)


VARIANTS = """
import torch
from rectified_spaattn.kernels import recorded
from rectified_spaattn.kernels.devices import Tile
from rectified_spaattn.kernels.launch import launch
from rectified_spaattn.rspa_core import SparseConfig, TokenLayout

found = []
for grid, sparsity, heads in (((3, 16, 16), 0.5, 2), ((5, 24, 20), 0.9, 3), ((2, 40, 31), 0.75, 1)):
    layout = TokenLayout(grid, grid[0] * grid[1] * grid[2])
    q = torch.zeros(1, heads, layout.length, 128, dtype=torch.bfloat16)
    with recorded() as launches:
        launch(q, q, q, layout, SparseConfig(sparsity), Tile(64, 8, 2), False)
    found.append({launch.variant for launch in launches})
assert found[0] == found[1] == found[2]
print(len(found[0]))
"""


def test_other_sizes_and_sparsities_need_no_new_variant() -> None:
    """What a first render has compiled serves the next one with other settings."""
    # Without the interpreter, which the tests turn on, kernels are those that would be compiled.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", VARIANTS], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout) > 8
