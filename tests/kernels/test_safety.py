"""What happens where a kernel cannot run or must not be trusted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from rectified_spaattn.rspa_core import (
    BackendUnavailable,
    SparseConfig,
    backend_status,
    rectified_attention,
)

from .cases import Case

pytest.importorskip("triton", reason="Triton is not installed")

CASE = Case((2, 5, 9), SparseConfig(0.5, 64, 64))


def first_correct(results: list[float | Exception]) -> object:
    """Run the choice of a tile over candidates that give these errors or raise."""
    from rectified_spaattn.kernels.devices import Tile
    from rectified_spaattn.kernels.selfcheck import first_correct

    candidates = [Tile(64, 8, stages) for stages in range(len(results))]

    def error(tile: Tile) -> float:
        result = results[tile.num_stages]
        if isinstance(result, Exception):
            raise result
        return result

    return first_correct(candidates, error, 1e-2, "Test GPU").num_stages


def test_a_tile_that_does_not_fit_or_is_wrong_gives_way_to_the_next() -> None:
    from triton.runtime.errors import OutOfResources

    too_large = OutOfResources(300_000, 232_448, "shared memory")
    assert first_correct([too_large, 0.5, float("nan"), RuntimeError("compiler"), 1e-3, 0.0]) == 4


@pytest.mark.parametrize("results", [[], [RuntimeError("no such instruction")], [0.5]])
def test_without_a_correct_tile_there_is_a_reason(results: list[float | Exception]) -> None:
    from rectified_spaattn.kernels.selfcheck import NoKernelError

    with pytest.raises(NoKernelError, match="no kernel works on Test GPU: "):
        first_correct(results)


COMMAND = ["tcc.exe", "main.c", "-I", "C:/ComfyUI/python_embeded/Include", "-o", "cuda_utils.pyd"]


def with_context(error: Exception, context: Exception) -> Exception:
    error.__context__ = context
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (subprocess.CalledProcessError(1, COMMAND), "its C compiler failed"),
        (
            subprocess.CalledProcessError(
                1, COMMAND, stderr=b"fatal error: Python.h: No such file"
            ),
            "Python.h is missing",
        ),
        (RuntimeError("Failed to find C compiler. Please specify via CC."), "finds no C compiler"),
        (
            with_context(RuntimeError("no driver"), subprocess.CalledProcessError(1, COMMAND)),
            "its C compiler failed",
        ),
    ],
)
@pytest.mark.parametrize(
    ("platform", "cure"), [("win32", "python_embeded"), ("linux", "python3-dev")]
)
def test_a_triton_that_cannot_compile_is_told_with_the_cure(
    error: Exception, cause: str, platform: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rectified_spaattn.kernels.selfcheck import NoKernelError, explained

    monkeypatch.setattr(sys, "platform", platform)

    @explained
    def before_the_first_kernel() -> object:
        raise error

    for call in (lambda: first_correct([error, 0.0]), before_the_first_kernel):
        with pytest.raises(NoKernelError, match="Triton cannot compile: ") as raised:
            call()
        text = str(raised.value)
        assert cause in text
        assert cure in text
        assert "tcc.exe" not in text


def test_other_errors_before_the_first_kernel_pass() -> None:
    from rectified_spaattn.kernels.selfcheck import explained

    @explained
    def full() -> object:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        full()


def test_a_full_gpu_says_nothing_about_a_tile() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        first_correct([torch.OutOfMemoryError("full"), 0.0])


def test_the_check_of_a_tile_sees_its_error(device: torch.device) -> None:
    from rectified_spaattn.kernels.devices import Tile
    from rectified_spaattn.kernels.selfcheck import TOLERANCE, error_of

    config = SparseConfig(0.6, 128, 64, rectification="paper")
    error = error_of(Tile(64, 4, 1), device, torch.float16, 64, config)
    assert 0 < error < TOLERANCE[torch.float16]


def test_without_triton_a_gpu_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    status = backend_status(torch.device("cuda:0"), torch.bfloat16, 128)
    assert status.name is None
    assert status.reason.startswith("Triton is not installed: 'pip install triton'")
    q, k, v = CASE.inputs(torch.float32, torch.device("cpu"), 0)
    with pytest.raises(BackendUnavailable, match="Triton is not installed"):
        rectified_attention(q, k, v, CASE.layout, CASE.config, backend="triton")


def test_a_cpu_has_a_reason_unless_a_backend_is_asked_for() -> None:
    asked = [
        backend_status(torch.device("cpu"), torch.float32, 64, *backend)
        for backend in ((), ("auto",), ("reference",), ("triton",))
    ]
    assert [status.name for status in asked[:3]] == [None, None, "reference"]
    assert "faster on a CPU" in asked[0].reason
    # In Triton's interpreter its kernels run on a CPU.
    runs = os.environ.get("TRITON_INTERPRET") == "1"
    assert asked[3].name == ("triton" if runs else None)


def test_devices_without_kernels_have_a_reason() -> None:
    status = backend_status(torch.device("mps"), torch.float16, 128)
    assert (status.name, status.reason) == (None, "no kernels for devices of type 'mps'")


def test_gpus_versions_and_heads_that_are_not_supported_have_a_reason() -> None:
    from rectified_spaattn.kernels.devices import capability_reason, shape_reason, version_reason

    assert capability_reason("NVIDIA H200", (9, 0)) is None
    assert "T4 has compute capability 7.5" in capability_reason("NVIDIA T4", (7, 5))
    assert version_reason("3.3.1") is None
    assert "3.2.0 is installed" in version_reason("3.2.0")
    assert shape_reason(torch.bfloat16, 96) is None
    assert "256 channels" in shape_reason(torch.bfloat16, 256)
    assert "8 channels" in shape_reason(torch.float32, 8)
    assert "float64" in shape_reason(torch.float64, 128)


def test_heads_that_are_too_small_are_refused_by_the_kernels(device: torch.device) -> None:
    case = Case((2, 5, 9), SparseConfig(0.5, 64, 64), head_dim=8)
    q, k, v = case.inputs(torch.float32, device, 0)
    with pytest.raises(BackendUnavailable, match="heads of 8 channels"):
        rectified_attention(q, k, v, case.layout, case.config, backend="triton")
