"""The fidelity benchmark on a CPU: oracle, metrics, formulas, orderings, and a whole run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from rectified_spaattn.benchmarks.calls.rivals import sol_kept, sol_rows
from rectified_spaattn.benchmarks.capture import CapturedCall, Recorder, save_calls
from rectified_spaattn.benchmarks.fidelity import __main__ as fidelity
from rectified_spaattn.benchmarks.fidelity.inputs import (
    Inputs,
    Oracle,
    captured_inputs,
    head_metrics,
    synthetic_inputs,
)
from rectified_spaattn.benchmarks.fidelity.report import INTERPOLATED, KERNEL
from rectified_spaattn.benchmarks.fidelity.variants import (
    RUNNERS,
    Variant,
    our_variants,
    rival_variants,
)
from rectified_spaattn.benchmarks.methods import METHODS
from rectified_spaattn.rspa_core import dense_attention, relative_l2

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ragged() -> tuple[Inputs, Oracle]:
    """Two heads, 315 tokens, 40 rows."""
    inputs = synthetic_inputs((5, 7, 9), 2, torch.float32, CPU, head_dim=32)
    return inputs, Oracle(inputs, 40)


def test_metrics_of_one_head_by_hand() -> None:
    exact = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    out = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]])
    found = head_metrics(out, exact)
    assert found["relative_l2"] == pytest.approx([4 / 5, 1 / 2])
    assert found["gain"] == pytest.approx([9 / 25, 1 / 2])
    with pytest.raises(ValueError, match="shape of out"):
        head_metrics(out[:1], exact)


def test_oracle_is_full_attention(ragged: tuple[Inputs, Oracle]) -> None:
    inputs, oracle = ragged
    exact = dense_attention(*inputs.qkv)[0]
    assert oracle.out.shape == (2, 40, 32)
    assert relative_l2(oracle.out, exact[:, oracle.rows]) < 1e-5
    assert torch.equal(oracle.rows, Oracle(inputs, 40).rows)
    assert len(oracle.rows.unique()) == 40
    with pytest.raises(ValueError, match="rows = -1 is not allowed"):
        Oracle(inputs, -1)


def test_formula_of_sol_attn_by_brute_force(ragged: tuple[Inputs, Oracle]) -> None:
    inputs, oracle = ragged
    block = torch.arange(315) // 64
    size = torch.bincount(block).float()
    for head in range(2):
        q, k, v = (x[0, head] for x in inputs.qkv)
        kept = sol_kept(q, k, topk_ratio=0.4)
        means = [torch.stack([x[block == j].mean(0) for j in range(5)]) for x in (k, v)]
        exact = (q @ k.mT * 32**-0.5).masked_fill(~kept[block][:, block], -torch.inf)
        pooled = (q @ means[0].mT * 32**-0.5 + size.log()).masked_fill(kept[block], -torch.inf)
        expected = torch.cat([exact, pooled], -1).softmax(-1) @ torch.cat([v, means[1]])
        found, mask = sol_rows(q, k, v, oracle.rows, 0.4)
        assert torch.equal(mask, kept)
        assert relative_l2(found, expected[oracle.rows]) < 1e-5


@pytest.mark.parametrize("kind", METHODS)
def test_measured_error_is_that_of_the_method(ragged: tuple[Inputs, Oracle], kind: str) -> None:
    inputs, oracle = ragged
    variant = Variant(kind, kind, order="gilbert")
    record, _ = fidelity.measure(variant, inputs, oracle, 1.0)
    assert record["refused"] == ""
    assert max(record["relative_l2"]) < 1e-5
    assert record["density"] == [1.0, 1.0]
    record, call = fidelity.measure(variant, inputs, oracle, 0.4)
    assert call is None  # no kernel here
    assert record["ms_source"] == "fp32 reference on the CPU"
    assert min(record["relative_l2"]) > 1e-4
    assert max(record["density"]) < 1.0


def test_variants() -> None:
    words = "--rectification paper precise none --blocks 128x128 64x64 --orders tile raster"
    words += " --precision 16-bit int8 --tail-keys 1 4"
    found = our_variants(fidelity.parse(words.split()))
    first = [each for each in found if each.order == "tile" and each.precision == "16-bit"]
    assert found[: len(first)] == first
    names = ["paper", "precise 1 key", "precise 4 keys", "none"]
    assert [each.name for each in first[::2]] == names
    assert {each.name for each in found if each.precision == "int8"} == set(names[:3])
    assert {each.order for each in found} == {"tile", "raster"}
    labels = [each.label for each in [*found, *rival_variants()]]
    assert len(labels) == len(set(labels))
    for each in found:
        config = each.config(0.3)
        assert config.sparsity == 0.7
        assert config.tail_keys == (4 if each.name == "precise 4 keys" else 1)
    assert RUNNERS.keys() == {each.kind for each in rival_variants()}


def test_sol_attn_says_why_it_cannot_run(
    ragged: tuple[Inputs, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    record, call = fidelity.measure(rival_variants()[0], *ragged, 0.3)
    assert record["refused"].startswith("not installed: pip install comfy-kitchen")
    assert call is None


def test_sol_attn_that_is_there(
    ragged: tuple[Inputs, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen = ModuleType("comfy_kitchen")
    seen = []

    def sol_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: float):
        seen.append(options)
        return dense_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    kitchen.sol_attn = sol_attn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_kitchen", kitchen)
    for variant in rival_variants()[:3]:
        record, call = fidelity.measure(variant, *ragged, None if variant.tau else 0.4)
        assert max(record["relative_l2"]) < 1e-5
        assert all(0 < value <= 1 for value in record["density"])
        assert call is not None
    assert seen == [{"topk_ratio": 0.4}, {"tau": 1.0}, {"tau": 1.3}]


def test_captured_heads_are_stacked_by_grid_and_named_by_layer(tmp_path: Path) -> None:
    recorders = []
    for grid, layers in (((2, 3, 4), (1, 0)), ((1, 3, 4), (0,))):
        calls = [CapturedCall(0, 0, 5, "cond", layer, 0.5, grid) for layer in layers]
        recorder = Recorder([], grid)
        recorder.calls = calls
        length = grid[0] * 12
        recorder.tensors = [
            tuple(torch.randn(3, 2, length, 16).unbind(0))  # type: ignore[misc]
            for _ in calls
        ]
        path = tmp_path / f"{length}.safetensors"
        save_calls(recorder, path)
        recorders.append((path, recorder))
    (first, recorder), (second, _) = recorders
    inputs, other = captured_inputs([first, second], torch.float32, CPU)
    assert (inputs.name, other.name) == ("captured 2x3x4", "captured 1x3x4")
    assert inputs.kinds == ("layer 0", "layer 0", "layer 1", "layer 1")
    assert inputs.heads[3] == "layer 1 step 5 cond scene 0 seed 0 head 1"
    assert torch.equal(inputs.k[0, 3], recorder.tensors[0][1][1])
    assert captured_inputs([first], torch.bfloat16, CPU)[0].q.shape == (1, 4, 24, 16)


WORDS = "--device cpu --grid 4 12 16 --heads 5 --rows 64 --blocks 64x64 --precision 16-bit"
WORDS += " --tail-keys 1 --shares .3 .5"


def test_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "new" / "f.json", tmp_path / "again.png"
    fidelity.main([*WORDS.split(), "--json", str(file)])
    printed = capsys.readouterr().out
    document = json.loads(file.read_text())
    ran = [each for each in document["records"] if not each["refused"]]
    assert {each["share"] for each in ran} == {0.3, 0.5}
    assert {each["name"] for each in ran} == {
        "none", "paper", "pooled", "precise 1 key", "Sol-Attn in fp32",
    }  # fmt: skip
    assert all(len(each["relative_l2"]) == 5 for each in ran)
    ours = [each for each in ran if each["kind"] in METHODS]
    assert {each["ms_source"] for each in ours} == {"fp32 reference on the CPU"}
    assert any(each["axis"] == "density" for each in document["ratios"])
    assert not any(each["axis"] == "ms" for each in document["ratios"])
    assert "precise 1 key 64x64 gilbert 16-bit / paper 64x64 gilbert 16-bit" in printed

    fidelity.main(["--draw", str(file), "--figure", str(picture)])
    for path in (picture, file.with_suffix(".png")):
        with Image.open(path) as image:
            assert len(image.convert("RGB").resize((64, 48)).getcolors(4096) or []) > 10
    assert "at equal density" in capsys.readouterr().out


def test_what_was_measured_survives_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seen = tmp_path / "f.json", []

    measure = fidelity.measure

    def interrupted(variant: Variant, *rest: Any) -> Any:
        seen.append(variant.label)
        if len(set(seen)) == 2:
            raise KeyboardInterrupt
        return measure(variant, *rest)

    monkeypatch.setattr(fidelity, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fidelity.main([*WORDS.split(), "--json", str(file)])
    records = json.loads(file.read_text())["records"]
    assert [each["variant"] for each in records] == [seen[0]] * 2


def test_kernels_take_turns_at_the_timed_shares(
    ragged: tuple[Inputs, Oracle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "sdpa", lambda backend: dense_attention)
    words = f"--device cpu --timed-shares .1 .3 --rounds 1 --json {tmp_path / 'f.json'}"
    benchmark = fidelity.Benchmark(fidelity.parse(words.split()))
    called = []
    calls = {}
    for variant, share in (("a", 0.1), ("a", 0.2), ("a", 0.3), ("tau", None)):
        record, _ = fidelity.measure(Variant("none", "none"), *ragged, 0.5)
        record |= {"variant": variant, "share": share, "timing_key": variant, "ms_source": ""}
        record |= {"ms": None, "density": [share or 0.4]}
        benchmark.document["records"].append(record)
        calls[variant, share] = record, lambda share=share: called.append(share)
    benchmark._times(ragged[0], calls)
    assert called == [0.1, 0.1, 0.3, None, None, 0.3]  # warm-up, then one round backwards
    sources = [each["ms_source"] for each in benchmark.document["records"]]
    assert sources == [KERNEL, INTERPOLATED, KERNEL, KERNEL]
    assert benchmark.document["dense_ms"]["cuDNN"] > 0


def test_nothing_to_measure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fidelity.parse(["--no-synthetic"])
    assert "--captured" in capsys.readouterr().err
