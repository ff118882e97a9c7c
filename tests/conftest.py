"""Set-up shared by all tests.

Without a CUDA device the Triton kernels run in Triton's interpreter. Triton reads TRITON_INTERPRET
when a kernel is decorated, so it is set here, before any test module imports the kernels.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from .shared_failure import SharedFailure, first_to_report, shared_folder

if TYPE_CHECKING:
    import torch


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("dist", "no") != "no":
        return  # other processes run the tests, and importing torch takes seconds
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
        # Small tensors, several test processes: threads would only wait for one another, here and
        # in the programs that tests start.
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-tiles", action="store_true", help="compile every tile for every architecture"
    )


@pytest.fixture
def device() -> torch.device:
    """The device the kernels run on in this test run: CUDA, or the CPU with the interpreter."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure that many tests share is reported by the first of them; the others skip."""
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, SharedFailure):
        folder = shared_folder(item.config._tmp_path_factory)
        first = first_to_report(folder, error.what, item.nodeid)
        report.longrepr = str(error)
        if first != item.nodeid:
            path, line, _ = item.location
            report.outcome = "skipped"
            report.longrepr = (path, line or 0, f"Skipped: {error.what}: see {first}")
    return report
