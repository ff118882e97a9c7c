"""Entries of the tile table compile for their architecture, fit, and their loops do not spill.

By default the tiles that a GPU gets when no check fails, for the two kinds of code there are: that
of Hopper, and that of all others, which differ in shared memory (checked in test_tiles.py, too).
`make test-all` compiles every tile for every architecture.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SCRIPT = Path(__file__).with_name("compile_tiles.py")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
USUAL = (89, 90)

# What does not fit beside the innermost loops is parked around them, mostly for the tail of
# `precise`, which comes last. Inside these loops nothing spills, which is checked below.
PARKED_BYTES = 100


@pytest.mark.timeout(900)  # minutes, where other processes have the processors
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tile_table(arch: int, pytestconfig: pytest.Config) -> None:
    is_whole = pytestconfig.getoption("--all-tiles")
    if arch not in USUAL and not is_whole:
        pytest.skip("compiles for minutes: make test-all")
    options = [] if is_whole else ["--first"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, SCRIPT, str(arch), *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert {tuple(record["blocks"]) for record in records} == {(128, 128), (128, 64), (64, 64)}
    for record in records:
        assert record["shared"] <= record["limit"], record
        assert record["spilled"] <= PARKED_BYTES, record
        assert record["spills_in_loops"] == 0, record
