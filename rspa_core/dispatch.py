"""The one place where the method meets its kernels: which backend runs, and the call to it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .config import SparseConfig
from .layout import TokenLayout
from .reference import reference_attention, reference_attention_lse

BackendResult = tuple[Tensor, Tensor, Callable[[], Tensor], Tensor | None]
"""Output `[B, H, N, D]`, kv_counts `[B, H, NQ]` int32, a function giving the block mask, and the
logarithms of the sums of weights `[B, H, N]` fp32, None where they are not asked for."""


ON_CPU = "full attention is faster on a CPU (sparse all the same: backend 'reference')"


class BackendUnavailable(RuntimeError):
    """No kernel can run this call here. The message is the reason, written for the user."""


@dataclass(frozen=True)
class BackendStatus:
    """What a run uses: the backend's name, or None and the reason why there is none."""

    name: Literal["triton", "reference"] | None
    reason: str


def backend_status(
    device: torch.device, dtype: torch.dtype, head_dim: int, backend: str = "auto"
) -> BackendStatus:
    """Which backend a sampling run uses for calls of this kind, without running anything.

    Args:
        device, dtype, head_dim: of q, k and v.
        backend: "auto": the kernels, none on a CPU, where full attention is many times faster than
            the reference; "reference" or "triton": that one.
    """
    if backend == "reference":
        return BackendStatus("reference", "plain torch, as asked for")
    if device.type == "cpu" and backend == "auto":
        return BackendStatus(None, ON_CPU)
    if device.type not in ("cpu", "cuda"):
        return BackendStatus(None, f"no kernels for devices of type {device.type!r}")
    reason = kernels_missing_reason(device, dtype, head_dim)
    if reason is not None:
        return BackendStatus(None, reason)
    return BackendStatus("triton", "Triton kernels")


def kernels_missing_reason(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None where the Triton kernels can take such calls, else one line for the user."""
    reason = triton_missing_reason()
    if reason is not None:
        return reason
    from ..kernels.devices import unsupported_reason

    return unsupported_reason(device, dtype, head_dim)


def triton_missing_reason() -> str | None:
    """None where Triton can be imported, else what to install, as one line for the user."""
    if importlib.util.find_spec("triton") is not None:
        return None
    return (
        "Triton is not installed: 'pip install triton' on Linux, 'pip install triton-windows' on "
        "Windows (portable: python_embeded\\python.exe -m pip install triton-windows)"
    )


@contextmanager
def compile_progress(listener: Callable[[int, int], None]) -> Iterator[None]:
    """While it is open, `listener` hears how many kernels of a first call are compiled, and of how
    many; called in the thread of the call.
    """
    from ..kernels import progress

    token = progress.set(listener)
    try:
        yield
    finally:
        progress.reset(token)


def prepare(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    config: SparseConfig,
    has_context: bool,
    with_lse: bool = False,
) -> None:
    """Compile and check the kernels that `run_triton` would use for calls of this kind.

    Raises:
        Exception: as `run_triton`; a call raises it again.
    """
    if device.type != "cuda" or kernels_missing_reason(device, dtype, head_dim) is not None:
        return
    from ..kernels.selfcheck import checked_config, trusted_tile

    with torch.cuda.device(device):
        trusted_tile(device, dtype, head_dim, checked_config(config), has_context, with_lse)


def release_tables() -> None:
    """Free the index tables that the kernels keep on the GPU between calls."""
    package = __package__.rpartition(".")[0]
    plan = sys.modules.get(f"{package}.kernels.plan")  # only if the kernels were ever used
    if plan is not None:
        plan.index_tables.cache_clear()


def run_reference(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: SparseConfig, with_lse: bool
) -> BackendResult:
    """Run the plain torch reference."""
    lse = None
    if with_lse:
        out, critical, lse = reference_attention_lse(q, k, v, layout, config)
    else:
        out, critical = reference_attention(q, k, v, layout, config)
    return out, critical.sum(-1, dtype=torch.int32), lambda: critical, lse


def run_triton(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: SparseConfig, with_lse: bool
) -> BackendResult:
    """Run the Triton kernels. They write no block mask: asking for it runs the call again.

    Raises:
        BackendUnavailable: Triton is missing, the GPU is too old, or no tile passed its check.
    """
    reason = kernels_missing_reason(q.device, q.dtype, q.shape[-1])
    if reason is not None:
        raise BackendUnavailable(reason)
    from ..kernels.op import NoKernelError, rectified_attention_op

    try:
        out, kv_counts, _, lse = rectified_attention_op(q, k, v, layout, config, False, with_lse)
    except NoKernelError as error:
        raise BackendUnavailable(str(error)) from error

    def block_mask() -> Tensor:
        return rectified_attention_op(q, k, v, layout, config, True)[2].bool()

    return out, kv_counts, block_mask, lse if with_lse else None
