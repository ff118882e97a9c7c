"""Every entry of the tile table compiles for its architecture, fits, and does not spill."""

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

# `precise` holds q and its squares in registers beside the accumulator where tensor cores take
# their first operand from registers. What does not fit is parked around the tail, outside the main
# loop.
PRECISE_SPILL_BYTES = 400


@pytest.mark.timeout(300)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tile_table(arch: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, SCRIPT, str(arch)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert {tuple(record["blocks"]) for record in records} == {(128, 128), (128, 64), (64, 64)}
    for record in records:
        assert record["shared"] <= record["limit"], record
        allowed = PRECISE_SPILL_BYTES if record["rectification"] == "precise" else 0
        assert record["spilled"] <= allowed, record
