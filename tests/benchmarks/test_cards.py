"""Estimates for graphics cards: what is counted in machine code, and what compiled kernels cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rectified_spaattn.benchmarks.calls.problem import SHAPES
from rectified_spaattn.benchmarks.cards.__main__ import ARCHITECTURES, call_records
from rectified_spaattn.benchmarks.cards.estimate import (
    METHODS,
    dense_calls,
    dense_share,
    sparse_call,
)
from rectified_spaattn.benchmarks.cards.hardware import CARDS, SAGE_TRITON, efficiency
from rectified_spaattn.benchmarks.cards.machine_code import LoopCost, attention_loops, spills_in

USUAL_ARCHITECTURE = 89
# Cycles and instructions for 16 x 64 scores of a warp.
MOST_TENSOR_CYCLES = {"main": 1600, "tail": 2200}
MOST_INSTRUCTIONS = {"main": 800, "tail": 1000}
LEAST_GAIN = {"RTX 4090": 1.3, "RTX 5090": 1.15}
"""Over Sol-Attn."""
CARD = next(card for card in CARDS if card.name == "RTX 4090")
IDLE = LoopCost({"tensor": 1536.0, "issue": 500.0}, 0)


def listing(*lines: str) -> str:
    """Text as cuobjdump writes it, an instruction every 16 bytes."""
    return "\n".join(
        f"        /*{16 * i:04x}*/    {line} ;   /* 0x0 */" for i, line in enumerate(lines)
    )


def softmax(*more: str) -> tuple[str, ...]:
    return ("MUFU.EX2 R0, R1",) * 8 + more


def test_counts_the_pipes_of_a_loop() -> None:
    body = softmax(
        *("HMMA.16816.F16 R4, R8, R12, R4",) * 64,
        *("IMMA.16832.S8.S8.SAT R4, R8.ROW, R12.COL, R4",) * 32,
        "LDSM.16.M88.4 R8, [R1]",
        "LDS.128 R8, [R1]",
        "@P0 LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]",
        "STS [R1], R2",
        "FFMA R1, R2, R3, R4",
        "HADD2.F32 R1, -RZ, R2.H0_H0",
        "FMNMX R1, R2, R3, !PT",
        "UIADD3 UR4, UR4, 0x1, URZ",
    )
    (loop,) = attention_loops(listing("MOV R1, R2", *body, "@!P1 BRA 0x10", "EXIT"))
    cost = LoopCost.of(loop)
    assert cost.cycles == {
        "tensor": 64 * 16 + 32 * 16,
        "shared": 16 + 16 + 16 + 4,
        "special": 8 * 8,
        "float": 2,
        "integer": 2,
        "issue": len(body) + 1,
    }
    assert cost.bound == 1536
    assert cost.spills == 0


def test_products_with_fp32_sums_take_twice_as_long() -> None:
    body = softmax(*("HMMA.16816.F32.BF16 R4, R8, R12, R4",) * 256)
    (loop,) = attention_loops(listing(*body, "@P0 BRA 0x0"))
    cost = LoopCost.of(loop)
    assert cost.cycles["tensor"] == 4096  # of 16 x 64 scores, twice which the loop has
    assert cost.cycles["special"] == 8 * 8 / 2


def test_finds_innermost_loops_only() -> None:
    product = "HMMA.16816.F16 R4, R8, R12, R4"
    inner = softmax(product, "STL [R1], R2", "LDL R2, [R1]")
    code = listing(
        "NOP", *inner, "@P0 BRA 0x10", "MOV R1, R2", "@P1 BRA 0x0",  # a loop around the loop
        "FADD R1, R1, R2", "@P0 BRA 0xe0",  # no products
        "MUFU.EX2 R1, R2", product, "@P0 BRA 0x100", "EXIT",  # too few exponentials
    )  # fmt: skip
    (loop,) = attention_loops(code)
    assert [each.address for each in loop] == [16 * i for i in range(1, 13)]
    assert spills_in(loop) == 2


def test_refuses_products_of_unknown_rate() -> None:
    (loop,) = attention_loops(listing(*softmax("HMMA.1688.F32.TF32 R4, R8, R12, R4"), "BRA 0x0"))
    with pytest.raises(ValueError, match="no rate is known"):
        LoopCost.of(loop)


def test_dense_attention_in_the_model_is_what_was_published() -> None:
    # With the cycles of SageAttention's kernel and every block kept, its own time comes out.
    shape = SHAPES["wan-720p"]
    call = sparse_call(CARD, shape, METHODS["balanced"], [IDLE])
    kept = METHODS["balanced"].sparsity
    assert call.kept == pytest.approx(dense_calls(CARD, shape)[SAGE_TRITON] * (1 - kept), rel=0.01)
    assert call.tail == 0.0
    assert efficiency(CARD) == pytest.approx(0.73, abs=0.005)


def test_steps_of_a_render_that_stay_dense() -> None:
    shares = {method: dense_share(method) for method in METHODS}
    expected = {"quality": 4 / 20, "balanced": 4 / 20, "fast": 3 / 20, "4-step": 1 / 4}
    assert shares == expected | {"paper 128": 4 / 20}


def test_rows_of_a_card() -> None:
    loops = {(89, block, mode): [IDLE, IDLE] for block in (64, 128) for mode in ("precise",)}
    rows = call_records(CARD, "Wan 14B 720p", ["quality", "balanced"], loops)
    assert [row["attention"] for row in rows[-2:]] == ["quality", "balanced"]
    assert max(row["x call"] for row in rows[:-2]) == 1.0
    for row in rows[-2:]:
        assert row["call"] == pytest.approx(row["kept"] + row["tail"] + row["stages"])
        assert 1 < row["x render"] < row["x forward"] < row["x call"]


@pytest.mark.timeout(900)  # minutes, where other processes have the processors
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled_loops(arch: int, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    is_whole = pytestconfig.getoption("--all-tiles")
    if arch != USUAL_ARCHITECTURE and not is_whole:
        pytest.skip("compiles for a minute: make test-all")
    methods = list(METHODS) if is_whole else ["balanced"]
    command = [sys.executable, "-m", "rectified_spaattn.benchmarks.cards", "--arch", str(arch)]
    command += ["--method", *methods, "--json", str(tmp_path / "cards.json")]
    # A process of its own: the other tests turn Triton's interpreter on.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads((tmp_path / "cards.json").read_text(encoding="utf-8"))
    assert {loop["part"] for loop in found["loops"]} == {"main", "tail"}
    for loop in found["loops"]:
        assert loop["tensor"] <= MOST_TENSOR_CYCLES[loop["part"]], loop
        assert loop["issue"] <= MOST_INSTRUCTIONS[loop["part"]], loop
        assert loop["spills"] == 0, loop
    for card in found["cards"]:
        assert card.get("x Sol-Attn", 9.0) >= LEAST_GAIN.get(card["card"], 0.0), card
