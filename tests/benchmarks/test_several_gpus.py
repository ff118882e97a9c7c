"""One forward on one process and on two, in miniature: the program that measures two GPUs."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rectified_spaattn.benchmarks.forward import several_gpus
from rectified_spaattn.benchmarks.forward.__main__ import parse
from rectified_spaattn.benchmarks.forward.comfy_models import wan_case

needs_diffusers = pytest.mark.skipif(
    not importlib.util.find_spec("diffusers"), reason="diffusers is not installed (make venv)"
)


@needs_diffusers
def test_two_processes_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpus", "2", "--device", "cpu", "--small", "--layers", "1", "--repeats", "1"]
    words += ["--density", "0.5", "--rectification", "none", "--json", str(tmp_path / "out.json")]
    assert several_gpus.main(parse(words)) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    assert (results["gpus"], results["tokens"], results["blocks"]) == (2, 1120, 1)
    dense, sparse = results["rows"]
    assert (dense["density"], dense["refused"], sparse["refused"]) == (1.0, "", "")
    assert 0.5 <= sparse["density"] < 0.9
    assert max(dense["difference"], sparse["difference"]) < 1e-5
    assert min(each[name] for each in (dense, sparse) for name in ("one", "several")) > 0.0
    assert f"{sparse['one'] / sparse['several']:.2f}x" in capsys.readouterr().out


@needs_diffusers
def test_the_model_keeps_its_rotary_embedding() -> None:
    model = several_gpus.build(wan_case(1, "small"), torch.device("cpu"), torch.float32)
    first, last = model.rope.freqs_cos[0], model.rope.freqs_cos[1]
    assert torch.equal(first, torch.ones_like(first))  # of place 0
    assert last.min() < first.min()
    assert model.num_parameters() > 0
    assert all(each.isfinite().all() for each in model.parameters())


def test_a_pair_that_differs_is_refused() -> None:
    alone = several_gpus.Timed([2.0, 3.0, 1.0], torch.ones(4), 1001)
    shared = several_gpus.Timed([1.0], torch.ones(4), 501, 0.25)
    good = several_gpus.row("mine", alone, shared, ["", ""], 2)
    assert (good["one"], good["several"], good["refused"]) == (2.0, 1.0, "")
    assert any("2.00x" in line for line in several_gpus.table([good], 2))
    other = replace(shared, output=torch.tensor([1.0, 1.0, 1.0, 2.0]))
    bad = several_gpus.row("mine", alone, other, ["", "1 dense call"], 2)
    assert bad["refused"] == "process 1: 1 dense call; the outputs differ by 0.5 of their norm"
    assert "mine: refused: process 1: 1 dense call" in several_gpus.table([bad], 2)[-1]
    whole = several_gpus.row("mine", alone, replace(shared, tokens=1001), ["", ""], 2)
    assert whole["refused"] == "1001 of 1001 tokens in each process: not shared"


@pytest.mark.parametrize("words", [[], ["--gpus", "1"], ["--gpus", "2", "--model", "hunyuan"]])
def test_what_is_missing_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(words)
    assert "--gpus" in capsys.readouterr().err
