"""Whether the kernels can run somewhere, and if not, why: one line for the user."""

from __future__ import annotations

import torch
import triton

from ..rspa_core.config import SparseConfig

MIN_CAPABILITY = (8, 0)
MAX_HEAD_DIM = 128
MIN_TRITON = (3, 3)
BLACKWELL_CAPABILITY = (10, 0)


def unsupported_reason(
    device: torch.device, dtype: torch.dtype, head_dim: int, config: SparseConfig
) -> str | None:
    """None where the kernels are made for calls of this kind, else the reason why not."""
    return capability_reason(
        torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    ) or shape_reason(dtype, head_dim)


def capability_reason(name: str, capability: tuple[int, int]) -> str | None:
    """None if a GPU of this compute capability is supported by the kernels and by Triton here."""
    major, minor = capability
    if capability < MIN_CAPABILITY:
        return f"{name} has compute capability {major}.{minor}, 8.0 or newer is needed"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if capability >= BLACKWELL_CAPABILITY and version < MIN_TRITON:
        return f"{name} needs Triton 3.3 or newer, {triton.__version__} is installed"
    return None


def shape_reason(dtype: torch.dtype, head_dim: int) -> str | None:
    """None if the kernels take heads of this size and type."""
    if not 16 <= head_dim <= MAX_HEAD_DIM:
        return f"heads of {head_dim} channels, 16 to {MAX_HEAD_DIM} are supported"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"attention in {dtype}, float16, bfloat16 and float32 are supported"
    return None
