"""First use: kernels are compiled once, the node says so, and other settings compile nothing."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest

from .comfy_server import all_checkouts, clean_environment, find_checkout
from .first_use import DENSE, FIRST, QUALITY, SERIES, WITHOUT_DENSE, measure, run_step

NEEDED = "import triton, torch; torch.zeros(1, device='cuda')"


@pytest.fixture(scope="module")
def rows(version: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All runs on a GPU, by name."""
    checkout = find_checkout(*all_checkouts()[version])
    assert not isinstance(checkout, str), checkout
    tried = subprocess.run(
        [checkout.python, "-c", NEEDED], env=clean_environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if tried.returncode:
        reason = tried.stderr.strip().rpartition("\n")[2]
        pytest.skip(f"this ComfyUI's Python has no GPU with Triton: {reason}")
    made, _ = measure(checkout, tmp_path_factory.mktemp("first_use"), on_gpu=True)
    return {row["name"]: row for row in made}


@pytest.mark.parametrize("name", [FIRST, FIRST + WITHOUT_DENSE])
def test_first_use_compiles_and_says_so(rows, name):
    assert rows[name]["new_files"] > 0
    form = re.compile(r"compiling the kernels, once: (\d+) of (\d+)")
    counts = [tuple(map(int, form.fullmatch(text).groups())) for text in rows[name]["texts"]]
    assert len(set(counts)) > 1
    assert counts == sorted(counts)
    assert all(done <= total == counts[0][1] for done, total in counts)


def test_other_settings_compile_nothing(rows):
    assert [name for name, row in rows.items() if row["compiled_again"]] == []
    assert rows[QUALITY]["new_files"] > 0  # so the cache does show what is compiled


def test_runs_are_sparse_but_for_their_dense_steps(rows):
    dense = {step.name for step in DENSE}
    for name, row in rows.items():
        if name not in dense:
            assert row["sparse"] > 0
            assert all(reason.startswith("schedule: ") for reason in row["reasons"]), row
            assert (row["dense"] == 0) == name.endswith(WITHOUT_DENSE)


def test_the_same_runs_on_a_cpu(comfy):
    """Small and dense: nothing is compiled."""
    for step in (*SERIES[0], *SERIES[1][len(DENSE) :]):
        row = run_step(comfy.server, step)
        assert row["new_files"] == 0
        assert row["texts"] == []
        if step not in DENSE:
            assert row["sparse"] == 0
            (reason,) = row["reasons"]
            assert reason.endswith("below min_tokens 8192")
