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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    if CUDA:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def device() -> torch.device:
    """The device the kernels run on in this test run: CUDA, or the CPU with the interpreter."""
    return torch.device("cuda" if CUDA else "cpu")
