"""The fuzz program: a few of its cases, its lines, and that it sees what it is there to see."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from . import __main__ as program
from . import judge as judges
from .cases import Case, draw_case, draw_cases, draw_variant

CPU = torch.device("cpu")
CASE = Case.parse(
    "dtype=float32 head_dim=40 q_block=64 kv_block=64 rectification=precise tail_keys=2 "
    "tile=64,4,1,0,0,0,0,0 grid=2x8x12 before=3 after=0 batch=1 heads=1 chunk=1 "
    "storage=tokens_first values=smooth sparsity=0.6 top_p=0.0 order=raster neighbours=False "
    "min_blocks=1 seed=5"
)


@pytest.mark.timeout(600)
def test_some_cases(capsys: pytest.CaptureFixture[str], device: torch.device) -> None:
    """None is a fault. On a GPU, where kernels are compiled, of one variant in four."""
    words = ["--cases", "4", "--per-variant", "4" if device.type == "cuda" else "1", "--seed", "7"]
    words += ["--jobs", "1"]
    status = program.main([*words, "--device", device.type])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "all                                         4" in printed


def test_a_case_is_one_line(device: torch.device) -> None:
    for case in chain(*draw_cases(40, 2, 3, device)):
        line = case.text()
        assert "\n" not in line
        assert '"' not in line
        assert Case.parse(line) == case
    with pytest.raises(ValueError, match="a case has the fields"):
        Case.parse("dtype=float32")


def test_cases_of_a_variant_share_what_is_compiled() -> None:
    draw = random.Random(0)
    variant = draw_variant(draw, CPU)
    cases = [draw_case(draw, variant, CPU) for _ in range(5)]
    assert len({case.seed for case in cases}) == 5
    for name, value in variant.items():
        assert {getattr(case, name) for case in cases} == {value}


def test_the_same_seed_draws_the_same_cases() -> None:
    first, second = (list(draw_cases(12, 3, 11, CPU)) for _ in range(2))
    assert first == second
    assert [len(cases) for cases in first] == [3, 3, 3, 3]
    assert len({case.tile + case.dtype + case.mode for case in chain(*first)}) > 1


def test_processes_share_the_variants(
    capsys: pytest.CaptureFixture[str], device: torch.device
) -> None:
    """Each case is judged once, by one of them; after the last minute none is begun."""
    small = dataclasses.replace(CASE, rectification="none", tail_keys=1, grid="1x2x33")
    variants = [[dataclasses.replace(small, seed=seed)] for seed in range(3)]
    in_one, in_two = (list(program.judged(variants, device, jobs, math.inf)) for jobs in (1, 2))
    assert [case for case, _, _ in in_one] == [case for cases in variants for case in cases]
    assert {case: outcome for case, outcome, _ in in_two} == {case: out for case, out, _ in in_one}
    assert list(program.judged(variants, device, 1, 0.0)) == []

    rows = program.tabulated(in_two)
    assert rows["float32", "none"].cases == 3
    program.print_table(rows, 0.5)
    assert "3 cases in 0.5 minutes, 6 a minute" in capsys.readouterr().out


def launched(change: Callable[[Tensor, Tensor, Tensor], Any]) -> Callable[..., Any]:
    """The reference in the kernels' place, with its output, counts and mask changed."""

    def launch(q: Any, k: Any, v: Any, layout: Any, config: Any, *rest: Any, **named: Any) -> Any:
        out, mask = judges.reference_attention(q, k, v, layout, config)
        mask = mask.to(torch.int8)
        return *change(out, mask.sum(-1, dtype=torch.int32), mask), out.new_empty(0)

    return launch


def one_row(out: Tensor, counts: Tensor, mask: Tensor) -> Any:
    out[0, 0, 17] *= 1.01
    return out, counts, mask


def not_written(out: Tensor, counts: Tensor, mask: Tensor) -> Any:
    out[0, 0, -1] = float("nan")
    return out, counts, mask


def another_block(out: Tensor, counts: Tensor, mask: Tensor) -> Any:
    row = mask[0, 0, 0]
    kept, left = int(row.argmax()), int(row.argmin())
    row[kept], row[left] = 0, 1
    return out, counts, mask


def wrong_counts(out: Tensor, counts: Tensor, mask: Tensor) -> Any:
    return out, counts + 1, mask


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (one_row, "error"),
        (not_written, "not finite"),
        (another_block, "blocks that are worse"),
        (wrong_counts, "counts"),
    ],
)
def test_faults_are_seen(
    change: Callable[..., Any],
    note: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert judge_with(lambda *whole: whole, monkeypatch).verdict == "close"
    outcome = judge_with(change, monkeypatch)
    assert outcome.verdict == "FAULT"
    assert note in outcome.note
    assert program.main(["--device", "cpu", "--case", CASE.text()]) == 1
    assert f'--case "{CASE.text()}"' in capsys.readouterr().out


def judge_with(change: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> judges.Outcome:
    monkeypatch.setattr(judges, "launch", launched(change))
    return judges.judge(CASE, CPU)


@pytest.mark.parametrize(("fits", "verdict"), [(True, "tie of blocks"), (False, "FAULT")])
def test_a_near_tie_is_told_from_a_fault(
    fits: bool, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that are alike: the other one serves as well, if what is computed fits it."""
    case = dataclasses.replace(
        CASE, rectification="none", tail_keys=1, grid="5x8x8", before=0, sparsity=0.5
    )
    q, k, v = case.tensors(CPU)
    k = k[:, :, :1].expand_as(k)
    monkeypatch.setattr(Case, "tensors", lambda self, device: (q, k, v))

    def other_choice(out: Tensor, counts: Tensor, mask: Tensor) -> Any:
        # Of two blocks of a row one is its own; of equals the first is kept: take the last.
        for row, kept in enumerate(mask[0, 0]):
            others = [j for j in range(len(kept)) if j != row]
            kept[others[0]], kept[others[-1]] = 0, 1
        if fits:
            out, _ = judges.reference_attention(q, k, v, case.layout, case.config, mask.bool())
        return out, counts, mask

    monkeypatch.setattr(judges, "launch", launched(other_choice))
    outcome = judges.judge(case, CPU)
    assert outcome.verdict == verdict
    assert fits or "error" in outcome.note
