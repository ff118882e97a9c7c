"""Set-up shared by all tests.

Without a CUDA device the Triton kernels run in Triton's interpreter. Triton reads TRITON_INTERPRET
when a kernel is decorated, so it is set here, before any test module imports the kernels.
"""

import os

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")
    # Small tensors, several test processes: threads would only wait for one another.
    torch.set_num_threads(1)


@pytest.fixture
def device() -> torch.device:
    """The device the kernels run on in this test run: CUDA, or the CPU with the interpreter."""
    return torch.device("cuda" if CUDA else "cpu")
