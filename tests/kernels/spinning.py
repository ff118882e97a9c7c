"""A kernel that never ends, for a trial to deal with."""

import torch
import triton
import triton.language as tl


@triton.jit
def spin_kernel(flag):
    """Waits for a flag that nobody sets, as warps do that wait for each other."""
    value = tl.load(flag, volatile=True)
    while value == 0:
        value = tl.load(flag, volatile=True)
    tl.store(flag, value + 1)


def spin(device: str) -> float:
    """Launch it and wait for what it gives."""
    flag = torch.zeros(1, dtype=torch.int32, device=device)
    spin_kernel[(1024,)](flag)
    return float(flag.item())
