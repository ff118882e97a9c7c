"""The comparison of one attention call, on a CPU: what is refused, printed and right."""

import argparse
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from rectified_spaattn.benchmarks.calls import __main__ as calls
from rectified_spaattn.benchmarks.calls import flex, ours, rivals
from rectified_spaattn.benchmarks.calls.comparison import (
    BASELINE,
    Candidate,
    Prepared,
    Row,
    Unavailable,
    break_even_lines,
    examine,
    first_line,
    lines_of,
    record_of,
    time_rows,
)
from rectified_spaattn.benchmarks.calls.flex import BLOCK, FlexInputs, prepare_flex
from rectified_spaattn.benchmarks.calls.ours import our_configs, tile_of
from rectified_spaattn.benchmarks.calls.problem import Problem, Shape, exact_rows
from rectified_spaattn.benchmarks.calls.rivals import sol_masks
from rectified_spaattn.benchmarks.synthetic import synthetic_qkv
from rectified_spaattn.rspa_core import (
    SparseConfig,
    TokenLayout,
    dense_attention,
    rectified_attention,
    relative_l2,
)

CPU = torch.device("cpu")
SMALL = Shape((3, 13, 17), 2, context=77)
NOT_HERE = ("dense cuDNN", "dense SageAttention", "dense comfy-kitchen INT8")


def problem_of(shape: Shape, dtype: torch.dtype = torch.float32, video_start: int = 0) -> Problem:
    layout = TokenLayout(shape.grid, shape.layout.length, video_start)
    qkv = []
    for x in synthetic_qkv("mixed", shape.grid, shape.heads, 128, shape.context, dtype):
        video, text = x.split([layout.video_length, layout.context_length], dim=2)
        qkv.append(torch.cat([text[:, :, :video_start], video, text[:, :, video_start:]], dim=2))
    return Problem(*qkv, layout)


def parsed(words: str) -> argparse.Namespace:
    return calls.parse(words.split())


def named(label: str) -> Candidate:
    return Candidate(label, lambda: pytest.fail("never made ready"))


def right(_: Tensor) -> str:
    return ""


def test_every_default_is_a_valid_configuration() -> None:
    for what in calls.DEFAULTS:
        arguments = parsed(f"--what {what}")
        per_method = len(arguments.blocks) * len(arguments.density) * len(arguments.precision)
        assert len(our_configs(arguments)) == 2 * per_method


def test_arguments_replace_the_defaults() -> None:
    words = "--rectification none precise --tail-keys 1 4 --blocks 64x64 --density 0.2"
    found = our_configs(parsed(f"{words} --precision auto"))
    expected = SparseConfig(0.8, 64, 64, rectification="none", precision="auto")
    assert found["ours none 64x64 auto 0.2"] == (expected, None)
    assert list(found)[1:] == [
        "ours precise 1 key 64x64 auto 0.2", "ours precise 4 keys 64x64 auto 0.2",
    ]  # fmt: skip


def test_tiles_replace_the_table_and_the_precision() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    assert tuple(tile_of("64,4,3,int8,128,specialised")) == (
        64,
        4,
        3,
        False,
        128,
        True,
        True,
        False,
    )
    assert tuple(tile_of("128,8,2,half_sums,int8")) == (128, 8, 2, False, 0, True, False, True)
    words = "--rectification paper --blocks 64x64 --density 0.2 --tiles 64,8,2 64,4,3,tma,int8"
    plain, int8 = our_configs(parsed(words)).values()
    assert (plain[0].precision, int8[0].precision) == ("16-bit", "int8")
    assert (plain[1].num_warps, int8[1].tma) == (8, True)


def test_a_candidate_that_cannot_be_timed_says_why() -> None:
    exact = torch.ones(1, 1, 4, 16)

    def missing() -> Prepared:
        raise Unavailable("not installed: pip install thing")

    def broken() -> Prepared:
        raise RuntimeError("\nno kernel for this GPU\nmore")

    def breaks_later() -> Tensor:
        raise AssertionError

    rows = examine(
        [
            Candidate("missing", missing),
            Candidate("broken", broken),
            Candidate("breaks later", lambda: Prepared(breaks_later, right)),
            Candidate("wrong", lambda: Prepared(lambda: 2 * exact, rivals.against(exact, 0.1))),
            Candidate("nan", lambda: Prepared(lambda: exact / 0 * 0, rivals.against(exact, 0.1))),
            Candidate("fine", lambda: Prepared(lambda: exact * 1.01, right, 0.5)),
        ],
        exact,
    )
    assert [row.refused for row in rows] == [
        "not installed: pip install thing",
        "RuntimeError: no kernel for this GPU",
        "AssertionError",
        "WRONG: 1.0e+00 from dense attention, allowed is 0.1",
        "WRONG: output is not finite",
        "",
    ]
    assert rows[-1].error == pytest.approx(0.01, rel=1e-3)
    time_rows(rows, CPU, 2)
    assert [row.ms is None for row in rows] == [True] * 5 + [False]
    assert first_line(ValueError("")) == "ValueError"


def test_columns() -> None:
    q = torch.zeros(1, 4, 1000, 128)
    problem = Problem(q, q, q, TokenLayout((10, 10, 10), 1000))
    rows = [
        Row(named(BASELINE), density=1.0, error=0.0, mib=3.0, ms=10.0),
        Row(named("half"), density=0.5, error=0.25, ms=8.0),
        Row(named("gone"), refused="not installed"),
    ]
    records = [record_of(row, rows, problem) for row in rows]
    half = records[1]
    assert half["x_cudnn"] == 1.25
    assert half["over_ideal"] == pytest.approx(8.0 / 5.0)
    assert half["tflops"] == pytest.approx(4 * 1000**2 * 128 * 4 * 0.5 / 8e-3 / 1e12)
    lines = lines_of(records)
    assert lines[3].split() == ["half", "8.00", "0.500", "1.25", "1.60", "0", "0.2500"]
    assert lines[4] == "gone: not installed"
    # Without a baseline there is still a table.
    assert lines_of(records[1:2])[2].split()[:2] == ["half", "8.00"]
    assert record_of(rows[1], rows[1:], problem)["x_cudnn"] is None


def test_context_counts_as_exact() -> None:
    problem = problem_of(SMALL)
    video, length = 3 * 13 * 17, 3 * 13 * 17 + 77
    assert problem.pair_density(1.0) == 1.0
    assert problem.pair_density(0.0) == pytest.approx(1 - (video / length) ** 2)


def attend_lists(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask) -> Tensor:
    """What compiled flex_attention does: full blocks as they are, partial ones masked."""
    length = k.shape[-2]
    allowed = torch.zeros(*q.shape[:2], q.shape[-2], length, dtype=torch.bool)
    key = torch.arange(length)
    is_token = block_mask.mask_mod(key, key, key, key)
    lists = {
        "partial": (block_mask.kv_num_blocks, block_mask.kv_indices),
        "full": (block_mask.full_kv_num_blocks, block_mask.full_kv_indices),
    }
    for kind, (counts, indices) in lists.items():
        for b, h, row in itertools.product(*map(range, counts.shape)):
            for block in indices[b, h, row, : counts[b, h, row]].tolist():
                keys = slice(block * BLOCK, (block + 1) * BLOCK)
                rows = slice(row * BLOCK, (row + 1) * BLOCK)
                allowed[b, h, rows, keys] = is_token[keys] if kind == "partial" else True
    return exact_rows(q, k, v, allowed)


@pytest.mark.parametrize(
    "shape", [SMALL, Shape((8, 16, 16), 1), Shape((5, 9, 19), 2, context=128)], ids=str
)
@pytest.mark.parametrize("video_start", [0, 5])
def test_flex_attends_the_blocks_that_ours_selects(
    shape: Shape, video_start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "compiled_flex", lambda: attend_lists)
    problem = problem_of(shape, video_start=min(video_start, shape.context))
    config = SparseConfig(0.6, BLOCK, BLOCK, rectification="none")
    prepared = prepare_flex(problem, FlexInputs(problem), config, 2)
    out = prepared.call()
    assert prepared.wrong(out) == ""
    assert "masked attention" in prepared.wrong(1.1 * out)
    expected, stats = rectified_attention(*problem.qkv, problem.layout, config, return_stats=True)
    assert relative_l2(prepared.in_order(out), expected) < 1e-5
    assert prepared.density < 1
    assert prepared.density == problem.pair_density(float(stats.density))


def test_exact_rows() -> None:
    problem = problem_of(SMALL)
    expected = dense_attention(*problem.qkv)
    assert relative_l2(exact_rows(*problem.qkv), expected) < 1e-5
    assert rivals.exact_reason(expected, problem, 2) == ""
    assert "rows from 0" in rivals.exact_reason(expected * 1.1, problem, 2)


def sol_density(q: Tensor, k: Tensor, **options: float) -> float:
    return float(sol_masks(q, k, **options).float().mean())


def test_sol_density() -> None:
    q, k, _ = problem_of(Shape((5, 16, 20), 2)).qkv
    blocks = 25
    assert sol_density(q, k, tau=-1e9) == 1.0
    band = (3 * blocks - 2) / blocks**2
    assert sol_density(q, k, tau=1e9) == pytest.approx(band)
    kept = sol_density(q, k, topk_ratio=0.2)
    assert 5 / blocks <= kept <= 5 / blocks + band
    ragged = sol_density(q[..., :1550, :], k[..., :1550, :], topk_ratio=0.2)
    assert ragged == pytest.approx(kept, abs=0.02)


def fake_kitchen(**functions: object) -> ModuleType:
    module = ModuleType("comfy_kitchen")
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def refusals(candidates: list[Candidate], exact: Tensor) -> list[str]:
    return [row.refused for row in examine(candidates, exact)]


def test_missing_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(SMALL)
    exact = dense_attention(*problem.qkv)
    for name in ("sageattention", "comfy_kitchen"):
        monkeypatch.setitem(sys.modules, name, None)
    for reason in refusals(rivals.dense_int8_candidates(problem, exact), exact):
        assert reason.startswith("not installed: pip install ")
    assert len(set(refusals(rivals.sol_candidates(problem, exact), exact))) == 1


def test_libraries_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(SMALL)
    exact = dense_attention(*problem.qkv)
    seen = []

    def sol_attn(q: Tensor, k: Tensor, v: Tensor, **options: float) -> Tensor:
        assert q.shape == (1, 3 * 13 * 17 + 77, 2, 128)
        seen.append(options)
        return dense_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    kitchen = fake_kitchen(
        int8_attention=lambda q, k, v: dense_attention(q, k, v),
        int8_attention_is_available=lambda device: True,
        sol_attn=sol_attn,
        sol_attn_is_available=lambda device: True,
    )
    sage = SimpleNamespace(sageattn=lambda q, k, v, **_: 1.2 * dense_attention(q, k, v))
    monkeypatch.setitem(sys.modules, "comfy_kitchen", kitchen)
    monkeypatch.setitem(sys.modules, "sageattention", sage)
    sage_reason, kitchen_reason = refusals(rivals.dense_int8_candidates(problem, exact), exact)
    assert sage_reason == "WRONG: 2.0e-01 from dense attention, allowed is 0.05"
    assert kitchen_reason == ""
    assert set(refusals(rivals.sol_candidates(problem, exact), exact)) == {""}
    assert seen == [{"topk_ratio": 0.25}, {"topk_ratio": 0.15}, {"topk_ratio": 0.1},
                    {"tau": 1.0}, {"tau": 1.3}]  # fmt: skip

    kitchen.sol_attn_is_available = lambda device: False
    reasons = set(refusals(rivals.sol_candidates(problem, exact), exact))
    assert reasons == {"this comfy-kitchen has no Sol-Attn for this GPU"}
    del kitchen.sol_attn
    reasons = set(refusals(rivals.sol_candidates(problem, exact), exact))
    assert reasons == {"needs a newer one: pip install --upgrade comfy-kitchen"}


def test_whole_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sageattention", "comfy_kitchen"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(flex, "compiled_flex", lambda: attend_lists)
    words = "--density 0.5 --blocks 128x64 --rounds 1"
    records = calls.measure("small", SMALL, parsed(words), CPU)
    by_name = {record["label"]: record for record in records}
    for label in NOT_HERE:
        assert by_name[label]["refused"]
    for method in ("paper", "precise 4 keys"):
        for precision in ("16-bit", "int8"):
            record = by_name[f"ours {method} 128x64 {precision} 0.5"]
            assert record["refused"] == ""
            assert record["ms"] > 0
            assert 0 < record["relative_l2"] < 0.9
    assert by_name["flex_attention 128x128 0.5"]["ms"] > 0
    assert json.loads(json.dumps(records)) == records
    printed = capsys.readouterr().out
    assert "shape small, tokens 740, heads 2, dtype bfloat16" in printed

    only = calls.measure("small", SMALL, parsed(f"{words} --only flex"), CPU)
    assert [record["label"] for record in only] == [BASELINE, "flex_attention 128x128 0.5"]


def test_wrong_output_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints no figure of ours that differs from the reference."""
    problem = problem_of(SMALL)
    exact = dense_attention(*problem.qkv)
    arguments = parsed("--rectification none --blocks 64x64 --density 0.5 --precision 16-bit")
    (candidate,) = ours.our_candidates(problem, arguments)
    attention = ours.rectified_attention

    def broken(*args: Any, backend: str = "auto", **options: Any) -> Any:
        out = attention(*args, backend=backend, **options)
        return out if backend == "reference" or options else 1.01 * out

    monkeypatch.setattr(ours, "rectified_attention", broken)
    (row,) = examine([candidate], exact)
    assert row.refused.startswith("WRONG: 1.0e-02 from the fp32 reference")
    time_rows([row], CPU, 1)
    assert row.ms is None


def test_break_even(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "BREAK_EVEN_GRIDS", ((2, 9, 9), (3, 9, 9)))
    monkeypatch.setattr(calls, "BREAK_EVEN_HEADS", 1)
    file = tmp_path / "times.json"
    words = "--what break-even --density 0.5 --rectification paper --rounds 1 --json"
    calls.main([*words.split(), str(file)], CPU)
    records = json.loads(file.read_text())
    assert [record["tokens"] for record in records] == [162] * 3 + [243] * 3
    assert "[2] ours paper 128x128 16-bit 0.5" in capsys.readouterr().out


def test_break_even_lines() -> None:
    records = [
        {"tokens": 1000, "label": BASELINE, "ms": 1.0},
        {"tokens": 1000, "label": "ours", "ms": 2.0},
        {"tokens": 2000, "label": BASELINE, "ms": 4.0},
    ]
    lines = break_even_lines(records)
    assert lines[:2] == [f"[0] {BASELINE}", "[1] ours"]
    assert [line.split() for line in (lines[2], *lines[4:])] == [
        ["tokens", "[0]", "[1]"], ["1000", "1.000", "2.000"], ["2000", "4.000"],
    ]  # fmt: skip
