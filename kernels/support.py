"""Whether the kernels can run somewhere, and if not, why: one line for the user."""

from __future__ import annotations

import torch
import triton

from ..rspa_core.config import SparseConfig
from .attend import attend_kernel

MIN_CAPABILITY = (8, 0)
MIN_TRITON = (3, 3)
MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 128


def unsupported_reason(
    device: torch.device, dtype: torch.dtype, head_dim: int, config: SparseConfig
) -> str | None:
    """None where the kernels are made for calls of this kind, else the reason why not."""
    if device.type == "cpu":
        reason = interpreter_reason()
    elif torch.version.hip is not None:
        reason = "the kernels are made for NVIDIA GPUs, this PyTorch is built for AMD"
    else:
        name = torch.cuda.get_device_name(device)
        reason = version_reason(triton.__version__) or capability_reason(
            name, torch.cuda.get_device_capability(device)
        )
    return reason or shape_reason(dtype, head_dim)


def interpreter_reason() -> str | None:
    """None if Triton's interpreter is on, without which nothing runs on a CPU."""
    if isinstance(attend_kernel, triton.runtime.JITFunction):
        return "on a CPU the kernels run in Triton's interpreter only (TRITON_INTERPRET=1)"
    return None


def version_reason(version: str) -> str | None:
    """None if this Triton is new enough."""
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_TRITON:
        return f"Triton 3.3 or newer is needed (PyTorch 2.7 brings it), {version} is installed"
    return None


def capability_reason(name: str, capability: tuple[int, int]) -> str | None:
    """None if the kernels run on GPUs of this compute capability."""
    major, minor = capability
    if capability < MIN_CAPABILITY:
        return f"{name} has compute capability {major}.{minor}, 8.0 or newer is needed"
    return None


def shape_reason(dtype: torch.dtype, head_dim: int) -> str | None:
    """None if the kernels take heads of this size and type."""
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        return f"heads of {head_dim} channels, {MIN_HEAD_DIM} to {MAX_HEAD_DIM} are supported"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"attention in {dtype}, float16, bfloat16 and float32 are supported"
    return None
