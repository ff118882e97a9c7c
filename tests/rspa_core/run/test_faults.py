"""Faults injected into the sparse calls of a run: each ends in the dense result, with a reason.

With a GPU the kernels run there, and every place of a call is tried; on a CPU, in Triton's
interpreter, some of them are.
"""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rectified_spaattn.rspa_core import SparseConfig, TokenLayout
from rectified_spaattn.rspa_core.attention import dense_attention
from rectified_spaattn.rspa_core.config import RECTIFICATIONS
from rectified_spaattn.rspa_core.run.calls import FAILURE_LIMIT, RunSettings, SparseRun
from rectified_spaattn.rspa_core.run.record import RunRecord
from rectified_spaattn.rspa_core.run.schedule import Position

pytest.importorskip("triton", reason="Triton is not installed")

HAS_GPU = torch.cuda.is_available()
NEEDS_GPU = pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU")
LAYOUT = TokenLayout((2, 7, 9), 2 * 7 * 9 + 20, 9)
HEADS, HEAD_DIM = (2, 64) if HAS_GPU else (1, 16)
CONFIG = SparseConfig(0.5, 64, 64, precision="16-bit")
BLOCK = ("double", 0)
STAGES = (
    "pool_queries", "pool_keys", "pool_values", "group_keys", "rank", "select", "weigh_tail",
    "attend",
)  # fmt: skip
"""Functions of kernels/launch.py."""
ALLOCATORS = ("empty", "new_empty", "empty_strided", "zeros", "new_zeros", "full", "ones", "clone")


def inputs(device: torch.device, seed: int = 0) -> list[Tensor]:
    """q, k, v `[1, HEADS, N, HEAD_DIM]` fp16 on the GPU, fp32 on a CPU."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    shape = (1, HEADS, LAYOUT.length, HEAD_DIM)
    return [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]


class Host:
    """A model of one attention call, run as ComfyUI's nodes and the adapters run theirs."""

    def __init__(
        self, device: torch.device, config: SparseConfig = CONFIG, layout: TokenLayout = LAYOUT
    ) -> None:
        self.device = device
        self.layout = layout
        self.run = SparseRun(RunSettings(config, backend="triton"))
        self.run.begin()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One model call; as often as the run asks for."""
        dense = lambda: dense_attention(q, k, v)  # noqa: E731
        forward = self.run.open(self.run.plan(self.layout, Position(0, 4)), self.device)
        while True:
            decision = forward.decide(BLOCK, 1, q.device, q.dtype, q.shape[-1])
            out = None if decision is None else forward.attend(decision, q, k, v, dense)
            out = dense() if out is None else out
            again = self.run.close(forward, out)
            if again is None:
                return out
            forward = again

    def end(self) -> RunRecord:
        """The run's record; a new run has begun."""
        self.run.finish("Test")
        record = self.run.report.last_run
        assert record is not None
        self.run.begin()
        return record

    def goes_on_dense(self, q: Tensor, k: Tensor, v: Tensor) -> str:
        """The reason why a call with a fault was dense; its output is that of full attention."""
        out = self.forward(q, k, v)
        assert torch.equal(out, dense_attention(q, k, v))
        record = self.end()
        assert (record.sparse, record.dense) == (0, 1)
        (reason,) = record.reasons
        return reason.text

    def is_sparse(self, q: Tensor, k: Tensor, v: Tensor, expected: Tensor) -> None:
        """A call without a fault, after one with: as if nothing had been."""
        assert torch.equal(self.forward(q, k, v), expected)
        record = self.end()
        assert (record.sparse, record.dense) == (1, 0)


@pytest.fixture
def host(device: torch.device) -> Host:
    return Host(device)


@pytest.fixture
def given(device: torch.device) -> list[Tensor]:
    return inputs(device)


@pytest.fixture(scope="module")
def expected() -> Tensor:
    """What the sparse call gives; its kernels are compiled now."""
    device = torch.device("cuda" if HAS_GPU else "cpu")
    host = Host(device)
    out = host.forward(*inputs(device))
    assert host.end().sparse == 1
    return out


@contextmanager
def nothing_left(device: torch.device) -> Iterator[None]:
    """What is done inside leaves no memory behind on the GPU."""
    if device.type != "cuda":
        yield
        return

    def used() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    before = used()
    yield
    assert used() == before


def broken(error: Exception) -> Callable[..., Any]:
    """A function that raises."""

    def call(*_: Any, **__: Any) -> Any:
        raise copy.copy(error)  # the traceback of one that is kept would keep the call's tensors

    return call


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_fails(
    host: Host, given: list[Tensor], expected: Tensor, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    error = RuntimeError("CUDA error: too many resources requested for launch")
    if HAS_GPU:
        host.is_sparse(*given, expected)  # the tables of a run stay until it ends
    with nothing_left(host.device):
        with monkeypatch.context() as patch:
            patch.setattr(f"rectified_spaattn.kernels.launch.{stage}", broken(error))
            assert host.goes_on_dense(*given) == f"RuntimeError: {error}"
        if HAS_GPU or stage == STAGES[-1]:
            host.is_sparse(*given, expected)


class NoMemory(TorchDispatchMode):
    """While it is open, the allocation of this number fails; None: they are only counted."""

    def __init__(self, failing: int | None) -> None:
        super().__init__()
        self.failing = failing
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in ALLOCATORS:
            self.seen += 1
            if self.seen - 1 == self.failing:
                raise torch.OutOfMemoryError("no memory")
        return func(*args, **(kwargs or {}))


def test_out_of_memory_at_every_allocation(
    host: Host, given: list[Tensor], expected: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = host.run.attention
    mode = NoMemory(None)

    def call(*args: Any, **options: Any) -> Any:
        with mode:
            return attention(*args, **options)

    monkeypatch.setattr(host.run, "attention", call)
    host.is_sparse(*given, expected)
    count = mode.seen
    assert count > 10
    for failing in range(0, count, 1 if HAS_GPU else max(1, count // 4)):
        mode = NoMemory(failing)
        with nothing_left(host.device):
            assert host.goes_on_dense(*given) == "OutOfMemoryError: no memory", failing


@NEEDS_GPU
def test_a_gpu_that_is_full(device: torch.device) -> None:
    """Its memory is limited for real, from what full attention takes to what sparse does."""
    host = Host(device, layout=TokenLayout((8, 30, 52), 8 * 30 * 52))
    shape = (1, 24, host.layout.length, HEAD_DIM)
    q, k, v = (torch.randn(shape, device=device).half() for _ in range(3))
    host.forward(q, k, v)
    wanted = dense_attention(q, k, v)
    total = torch.cuda.get_device_properties(host.device).total_memory

    def peak(call: Callable[[], Any]) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_reserved()

    # The allocator's segments for what is small: 2 MiB and 20 MiB.
    slack = 22 << 20
    sparse = peak(lambda: host.forward(q, k, v))
    dense = peak(lambda: dense_attention(q, k, v))
    host.end()
    reasons = set()
    try:
        for share in range(9):
            limit = dense + (sparse - dense) * share // 8 + slack
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
            out = host.forward(q, k, v)
            torch.cuda.set_per_process_memory_fraction(1.0)  # to compare takes memory, too
            record = host.end()
            reasons |= {each.text.split(":")[0] for each in record.reasons}
            assert record.sparse or torch.equal(out, wanted)
            del out  # what the next call gets instead
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert reasons == {"OutOfMemoryError"}


def test_a_kernel_that_does_not_compile(
    host: Host, given: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rectified_spaattn.kernels import op
    from rectified_spaattn.kernels.selfcheck import NoKernelError

    error = NoKernelError("no kernel works on Test GPU: no such instruction")
    with monkeypatch.context() as patch:
        patch.setattr(op, "trusted_tile", broken(error))
        patch.setattr(op, "launch", broken(error))  # a CPU asks for no tile
        assert host.goes_on_dense(*given) == str(error)


NOT_FINITE = [(value, name) for value in ("nan", "inf", "-inf") for name in "qkv"]


@pytest.mark.parametrize(("value", "name"), NOT_FINITE if HAS_GPU else NOT_FINITE[::4])
@pytest.mark.parametrize("rectification", RECTIFICATIONS if HAS_GPU else ["precise"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_inputs_that_are_not_finite(
    device: torch.device, given: list[Tensor], name: str, value: str, rectification: str
) -> None:
    """Never a picture with holes of its own: the whole forward is that of full attention."""
    host = Host(device, SparseConfig(0.5, 64, 64, rectification=rectification, precision="16-bit"))
    given["qkv".index(name)][0, 0, LAYOUT.video_start + 5, 3] = float(value)
    out, wanted = host.forward(*given), dense_attention(*given)
    assert torch.equal(out.isfinite(), wanted.isfinite())
    assert torch.equal(out.nan_to_num(), wanted.nan_to_num()) or bool(wanted.isfinite().all())


def test_failures_that_go_on_end_the_sparse_part_of_the_run(
    host: Host, given: list[Tensor], expected: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    attention = host.run.attention

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(args)
        raise RuntimeError("unspecified launch failure")

    monkeypatch.setattr(host.run, "attention", failing)
    for _ in range(FAILURE_LIMIT + 3):
        assert torch.equal(host.forward(*given), dense_attention(*given))
    assert len(calls) == FAILURE_LIMIT
    assert host.end().dense == FAILURE_LIMIT + 3
    monkeypatch.setattr(host.run, "attention", attention)
    host.is_sparse(*given, expected)


@NEEDS_GPU
def test_another_device_in_between(host: Host, given: list[Tensor], expected: Tensor) -> None:
    on_cpu = [each.cpu().float() for each in given]
    for _ in range(2):
        assert torch.equal(host.forward(*given), expected)
        assert torch.equal(host.forward(*on_cpu), dense_attention(*on_cpu))


@NEEDS_GPU
def test_two_streams_at_once(host: Host, given: list[Tensor], expected: Tensor) -> None:
    others = inputs(host.device, seed=1)
    wanted = expected, host.forward(*others)
    torch.cuda.synchronize()
    found: list[list[Tensor]] = [[], []]

    def work(which: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                found[which].append(host.forward(*(given, others)[which]))
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outs, out in zip(found, wanted, strict=True):
        assert len(outs) == 20
        assert all(torch.equal(each, out) for each in outs)


@NEEDS_GPU
@pytest.mark.parametrize("is_warm", [False, True])
def test_a_graph_that_is_being_recorded(
    host: Host, given: list[Tensor], expected: Tensor, is_warm: bool
) -> None:
    """It would be played again at other steps: what a step decides must not be in it."""
    run = host.run if is_warm else Host(host.device).run
    dense_attention(*given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    forward = run.open(run.plan(LAYOUT, Position(0, 4)), host.device)
    with torch.cuda.graph(graph):
        decision = forward.decide(BLOCK, 1, given[0].device, given[0].dtype, HEAD_DIM)
        out = dense_attention(*given)
    assert decision is None
    graph.replay()
    assert torch.equal(out, dense_attention(*given))
    run.close(forward, out)
    run.finish("Test")
    assert run.report.last_run is not None
    (reason,) = run.report.last_run.reasons
    assert reason.code == "graph"
    host.is_sparse(*given, expected)
