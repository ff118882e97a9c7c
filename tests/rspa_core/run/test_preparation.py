"""Kernels are compiled while a run is still dense, and its first sparse call waits for them."""

from __future__ import annotations

import math
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rectified_spaattn.rspa_core import SparseConfig, TokenLayout
from rectified_spaattn.rspa_core.dispatch import BackendStatus
from rectified_spaattn.rspa_core.run.calls import RunSettings, SparseRun
from rectified_spaattn.rspa_core.run.reasons import DenseReason, Reason, why
from rectified_spaattn.rspa_core.run.report import RunReport
from rectified_spaattn.rspa_core.run.schedule import Position

GPU = torch.device("cuda", 0)
LAYOUT = TokenLayout((2, 8, 8), 130)
BLOCK = ("double", 0)


class DenseFirst:
    """A schedule whose step 0 is dense."""

    has_ramp = False

    def sparsity_at(self, position: Position) -> float | DenseReason:
        return 0.5 if position.step else why(Reason.BEFORE_START, 20.0)


class Rig:
    """A run whose GPU is made up: what it prepares waits for `go`."""

    def __init__(self, problem: Exception | None = None, backend: str = "auto") -> None:
        self.go = threading.Event()
        self.problem = problem
        self.asked: list[tuple[object, ...]] = []
        self.sent: list[str] = []
        report = RunReport(lambda text, node: self.sent.append(text), "7")
        settings = RunSettings(SparseConfig(0.5), DenseFirst(), backend=backend)
        status = BackendStatus("triton", "")
        self.run = SparseRun(settings, report, self.attend, lambda *_: status, self.prepare)
        self.run.begin()

    def prepare(self, *asked: object) -> None:
        from rectified_spaattn.kernels import progress

        listener = progress.get()
        assert listener is not None
        listener(3, 9)
        self.asked.append(asked)
        assert self.go.wait(10)
        if self.problem is not None:
            raise self.problem

    def attend(self, q: Tensor, *args: object, **options: object) -> tuple[Tensor, SimpleNamespace]:
        assert self.go.is_set(), "what is being prepared is waited for"
        return q, SimpleNamespace(density=torch.tensor(0.5))

    def call(self, step: int, device: torch.device = GPU) -> Tensor | None:
        """The first attention call of a step; its tensors are on the CPU."""
        forward = self.run.open(self.run.plan(LAYOUT, Position(step, 4)), torch.device("cpu"))
        decision = forward.decide(BLOCK, 1, device, torch.bfloat16, 64)
        q = torch.zeros(1, 1, LAYOUT.length, 64)
        return None if decision is None else forward.attend(decision, q, q, q, lambda: q)


@pytest.fixture
def made_up_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls come from the CPU, and what is prepared for the GPU is theirs."""
    monkeypatch.setattr(SparseRun, "preparation", lambda self, device: self._preparations.get(GPU))


@pytest.mark.usefixtures("made_up_gpu")
def test_dense_steps_prepare_once_and_the_first_sparse_call_waits() -> None:
    rig = Rig()
    assert rig.call(0) is None
    assert rig.call(0) is None
    threading.Timer(0.3, rig.go.set).start()
    assert rig.call(1) is not None
    config = rig.run.settings.config
    assert rig.asked == [(GPU, torch.bfloat16, 64, config, True, False)]
    assert "compiling the kernels, once: 3 of 9" in rig.sent
    assert rig.sent[-1] == "waiting for the first model call"


@pytest.mark.usefixtures("made_up_gpu")
def test_a_dense_forward_beside_a_compiler_is_no_measure_of_time() -> None:
    rig = Rig()
    wanted = []
    for beside in (True, False):
        forward = rig.run.open(rig.run.plan(LAYOUT, Position(0, 4)), torch.device("cpu"))
        assert forward.decide(BLOCK, 1, GPU, torch.bfloat16, 64) is None
        rig.go.set()
        while rig.run.preparation(GPU).ended == math.inf:
            time.sleep(0.01)
        rig.run.close(forward, None)
        wanted.append(rig.run.report.record().dense_forward_seconds)
        assert len(wanted[-1]) == 1, beside
    assert wanted[0] != wanted[1]


@pytest.mark.usefixtures("made_up_gpu")
def test_a_problem_is_left_to_the_call() -> None:
    rig = Rig(RuntimeError("no compiler"))
    assert rig.call(0) is None
    rig.go.set()
    assert rig.call(1) is not None
    assert rig.run.failures.count == 0


@pytest.mark.parametrize(
    ("device", "backend"), [(torch.device("cpu"), "auto"), (GPU, "reference")], ids=str
)
def test_nothing_to_prepare(device: torch.device, backend: str) -> None:
    rig = Rig(backend=backend)
    assert rig.call(0, device) is None
    assert not rig.asked
