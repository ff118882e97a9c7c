"""The benchmark of one's own card: what is chosen, measured, said, and what a file is held to."""

from __future__ import annotations

import json
import re
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from rectified_spaattn.benchmarks.calls.comparison import Prepared
from rectified_spaattn.benchmarks.calls.ours import tile_of, tile_text
from rectified_spaattn.benchmarks.calls.problem import SHAPES, Shape, make_problem
from rectified_spaattn.benchmarks.my_card import __main__ as program
from rectified_spaattn.benchmarks.my_card import measure, record, table
from rectified_spaattn.benchmarks.my_card.measure import LEAST_BYTES, Refused, choose
from rectified_spaattn.benchmarks.my_card.picture import draw_benchmark
from rectified_spaattn.benchmarks.my_card.record import DEFAULT
from rectified_spaattn.nodes.inputs import BENCHMARK
from rectified_spaattn.rspa_core import ConfigError
from rectified_spaattn.rspa_core.run.presets import PRESETS

from .small_card import GIB, small_card

CPU = torch.device("cpu")
FAST, SLOW = 2e-12, 3e-11
"""Seconds for a query and a key of one head: a data centre's GPU, a small graphics card."""


def quiet(*_: Any) -> None:
    pass


def row(name: str, ms: float | None, **values: Any) -> dict[str, Any]:
    fields = dict.fromkeys(("density", "relative_l2", "extra_mib", "first_s", "tile", "reason"))
    if ms is None:
        return fields | {"name": name, "ms": None, "reason": "out of memory"} | values
    return fields | {"name": name, "ms": ms, "relative_l2": 0.01, "first_s": 2.0} | values


def card(name: str = "NVIDIA GeForce RTX 4090", **times: float | None) -> dict[str, Any]:
    """A made-up record of a graphics card."""
    made = record.machine(CPU)
    made["device"] = {"name": name, "capability": "8.9", "memory_gib": 24.0, "driver": "580.82.07"}
    shape = SHAPES["wan-720p"]
    made["call"] = {
        "name": "wan-720p", "grid": list(shape.grid), "tokens": shape.layout.length, "heads": 12,
        "model_heads": 40, "head_dim": 128, "dtype": "bfloat16",
    }  # fmt: skip
    names = {"default": DEFAULT, "sage": "dense SageAttention"}
    given = {"default": 100.0, "quality": 80.0, "balanced": 40.0, "fast": 25.0} | times
    made["rows"] = [
        row(names.get(key, record.OURS + key), ms) for key, ms in given.items() if ms != 0
    ]
    made["break_even"] = {"preset": "balanced", "tokens": 6084, "sizes": [[6084, 2.0, 1.0]]}
    made["seconds"] = 90.0
    return record.check(made)


def test_choices_of_the_node_are_those_of_the_command() -> None:
    assert BENCHMARK.input("call").choices == measure.CALLS
    assert set(measure.CALLS[1:]) <= set(SHAPES)


@pytest.mark.parametrize(
    ("gib", "pair_s", "name", "heads"),
    [
        (130, FAST, "wan-720p", 40),
        (5.0, FAST, "wan-720p", range(8, 24)),  # a card of 6 GB: memory decides
        (20.0, SLOW, "wan-480p", range(20, 40)),  # a slow one: time does
        (20.0, 30 * SLOW, "wan-480p", 5),  # not fewer than one head of each kind
        (2.0, FAST, "wan-480p", range(5, 15)),
    ],
)
def test_call_fits_memory_and_time(gib: float, pair_s: float, name: str, heads: Any) -> None:
    found, shape = choose(int(gib * GIB), pair_s, measure.AUTO_CALLS)
    assert found == name
    assert shape.grid == SHAPES[name].grid
    assert shape.heads in heads if isinstance(heads, range) else shape.heads == heads
    assert measure.needed_bytes(shape, shape.heads) <= gib * GIB


def test_memory_that_is_too_small_is_a_reason() -> None:
    with pytest.raises(Refused, match=r"1\.0 GiB of GPU memory are free, 1\.\d are needed"):
        choose(GIB, FAST, measure.AUTO_CALLS)
    assert choose(LEAST_BYTES, FAST, measure.AUTO_CALLS)[1].heads == measure.MIN_HEADS


def test_small_run_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "CPU_SHAPE", Shape((3, 9, 9), 5))
    program.main(["--device", "cpu", "--out", str(tmp_path)])
    made = record.read(tmp_path / "card_cpu.json")
    names = [each["name"] for each in made["rows"]]
    assert names == [DEFAULT, "ours quality", "ours balanced", "ours fast"]
    assert made["rows"][0]["relative_l2"] < 1e-5
    assert all(0 < each["relative_l2"] < 0.5 for each in made["rows"][1:])
    assert (tmp_path / "card_cpu.png").stat().st_size > 1000
    assert "nothing about graphics cards" in capsys.readouterr().out
    text = (tmp_path / "card_cpu.json").read_text()
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text


def test_what_is_missing_has_a_reason_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA, no SageAttention, no comfy-kitchen, and one candidate that runs out of memory."""
    for name in ("sageattention", "comfy_kitchen"):
        monkeypatch.setitem(sys.modules, name, None)
    prepare = measure.prepare_ours

    def full(problem: Any, config: Any) -> Prepared:
        if config.q_block == 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return prepare(problem, config)

    monkeypatch.setattr(measure, "prepare_ours", full)
    said: list[str] = []
    done: list[float] = []
    problem = make_problem(Shape((2, 9, 9), 5), torch.float32, CPU)
    rows = measure.compare(problem, said.append, done.append, rivals=True)
    reasons = {each["name"]: each["reason"] for each in rows}
    assert reasons[DEFAULT] is None
    assert "dense cuDNN" in reasons
    for name in ("dense SageAttention", "dense comfy-kitchen INT8", "Sol-Attn top-k 0.25"):
        assert reasons[name].startswith("not installed: pip install ")
    assert reasons["ours quality"] == "out of memory"
    assert reasons["ours balanced"] is None
    assert done == sorted(done)
    assert 0 < done[0] < done[-1] <= 0.85
    assert f"{DEFAULT}: timing" in said


def test_memory_that_runs_out_while_timing_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = measure.prepare_ours

    def once(problem: Any, config: Any) -> Prepared:
        ready, calls = prepare(problem, config), []

        def call() -> torch.Tensor:
            calls.append(1)
            if len(calls) > 2:
                raise torch.OutOfMemoryError
            return ready.call()

        return Prepared(call, ready.wrong)

    monkeypatch.setattr(measure, "prepare_ours", once)
    problem = make_problem(Shape((2, 9, 9), 5), torch.float32, CPU)
    dense, *ours = measure.compare(problem, quiet, quiet)
    assert dense["ms"] > 0
    assert {(each["ms"], each["reason"]) for each in ours} == {(None, "out of memory")}


def test_without_triton_the_reason_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    from rectified_spaattn.rspa_core import dispatch

    def missing(problem: Any, config: Any) -> Prepared:
        raise dispatch.BackendUnavailable(
            r"Triton is not installed: 'pip install triton' (portable: python_embeded\python.exe)"
        )

    monkeypatch.setattr(measure, "prepare_ours", missing)
    problem = make_problem(Shape((2, 9, 9), 5), torch.float32, CPU)
    reason = measure.compare(problem, quiet, quiet)[-1]["reason"]
    assert reason.startswith("Triton is not installed: 'pip install triton'")
    made = card(quality=None, balanced=None, fast=None)
    assert "does not run here" in record.advice(made)[0]


def test_record_of_a_small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = small_card(monkeypatch)
    shares: list[float] = []
    made = record.check(measure.measure(torch.device("cuda"), quiet, shares.append))
    assert made["device"]["name"] == "NVIDIA GeForce RTX 3060"
    assert made["device"]["capability"] == "8.6"
    assert made["call"]["name"] == "wan-720p"
    assert made["call"]["heads"] == asked[0].heads < made["call"]["model_heads"] == 40
    assert [shape.grid for shape in asked[1:]] == [(2, 9, 9)], "the second does not fit"
    assert [size[0] for size in made["break_even"]["sizes"]] == [162]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert "NVIDIA GeForce RTX 3060 |" in table.row_of(made)


def test_an_interruption_ends_it_at_once() -> None:
    class Interrupted(Exception):
        pass

    def advance(share: float) -> None:
        if share > 0.6:
            raise Interrupted

    problem = make_problem(Shape((2, 9, 9), 5), torch.float32, CPU)
    with pytest.raises(Interrupted):
        measure.compare(problem, quiet, advance)


def test_other_devices_are_refused() -> None:
    with pytest.raises(Refused, match="'meta'"):
        measure.measure(torch.device("meta"), quiet, quiet)


@pytest.mark.parametrize(
    ("dense", "ours", "tokens"),
    [([1, 2, 4], [2, 1, 1], 243), ([1, 2, 4], [0.5, 3, 1], 324), ([1, 2, 4], [2, 3, 5], None)],
)
def test_break_even(
    dense: list[float], ours: list[float], tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest size from which on ours is faster at every one."""
    times = iter(zip(dense, ours, strict=True))

    def timed(calls: dict[str, Any], *_: Any, **__: Any) -> dict[str, float]:
        for call in calls.values():
            call()
        return dict(zip(calls, next(times), strict=True))

    monkeypatch.setattr(measure, "measure_interleaved", timed)
    shapes = [Shape((frames, 9, 9), 1) for frames in (2, 3, 4)]
    found = measure.break_even(shapes, torch.float32, CPU, quiet, quiet)
    assert found["tokens"] == tokens
    assert [size[0] for size in found["sizes"]] == [162, 243, 324]


def test_tile_is_named_as_the_calls_benchmark_reads_it() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    for text in ("64,8,2", "64,4,3,tma", "128,8,2,int8,half_sums", "64,4,3,specialised,128"):
        assert tile_text(tile_of(text)) == text


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({}, "Preset balanced: one attention call is 2.50 times as fast"),
        ({"quality": 50.0}, "Preset quality: one attention call is 2.00 times"),
        ({"sage": 45.0}, "Preset fast: one attention call is 1.80 times as fast as with the "
         "fastest dense back end here, SageAttention"),
        ({"sage": 26.0}, "It does not pay on this card: fast, the fastest preset, is 1.04"),
        ({"default": None}, "No dense attention ran"),
    ],
)  # fmt: skip
def test_advice(times: dict[str, float], expected: str) -> None:
    words = record.advice(card(**times))
    assert words[0].startswith(expected)
    assert ("--use-sage-attention" in " ".join(words)) == ("sage" in times)


def test_advice_names_presets_that_exist() -> None:
    assert set(measure._configs()) == {"ours quality", "ours balanced", "ours fast"}
    assert record.BREAK_EVEN_PRESET in PRESETS
    assert set(table.PRESET_COLUMNS) <= set(PRESETS)


def test_picture_shows_times_and_reasons() -> None:
    made = card(sage=None)
    picture = draw_benchmark(made, record.call_words(made), record.advice(made))
    assert picture.width == 960
    more = draw_benchmark(made, "", [])
    assert more.height < picture.height
    bars = [picture.getpixel((300, y)) for y in range(picture.height)]
    assert {(222, 160, 74), (72, 202, 196)} <= set(bars)


@pytest.mark.parametrize(
    "text",
    [
        r"RuntimeError: cannot open C:\Users\Jane Doe\x.dll",
        "RuntimeError: cannot open /srv/jane doe/x.so",
        "RuntimeError: cannot open '/srv/jane/x y.so'",
        r"RuntimeError: cannot open D:\Jane Doe\python_embeded\python.exe -m pip",
        r"RuntimeError: cannot open 'D:\Jane Doe\python_embeded\python.exe\jane\x.dll'",
    ],
)
def test_reasons_name_no_folder(text: str) -> None:
    assert "jane" not in record.plain(text).lower()
    assert record.plain(text).startswith("RuntimeError: cannot open ")


def change(where: str, value: Any) -> Any:
    """A function that sets a field, such as "rows.0.ms"; a name with "-" is taken out."""

    def apply(made: dict[str, Any]) -> None:
        *path, last = where.split(".")
        place: Any = made
        for name in path:
            place = place[int(name) if name.isdigit() else name]
        if last.startswith("-"):
            del place[last[1:]]
        else:
            place[int(last) if last.isdigit() else last] = value

    return apply


HOSTILE = "RTX | 4090 | [x](https://bad.example) <script>"


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        ("device.name", HOSTILE, "device.name"),
        ("device.name", "www.bad.example", "device.name"),
        ("device.name", "NVIDIA\n| RTX", "device.name"),
        ("device.capability", "8.9 |", "device.capability"),
        ("pack", "0.1.0`", "pack"),
        ("pack", "\u0663.1.0", "pack"),
        ("software.torch", "2.9|", "software.torch"),
        ("call.name", "wan|720p", "call.name"),
        ("rows.0.name", "dense [x](y)", "rows[0].name"),
        ("rows.0.ms", float("nan"), "rows[0].ms"),
        ("rows.0.ms", "fast", "rows[0].ms"),
        ("rows.0.ms", True, "rows[0].ms"),
        ("rows.0.ms", -1, "rows[0].ms"),
        ("rows.0.ms", 10**400, "rows[0].ms"),
        ("rows.0.ms", None, "rows[0].ms"),
        ("rows.0.relative_l2", None, "rows[0].relative_l2"),
        ("rows.0.reason", "two\nlines", "rows[0].reason"),
        ("rows.0", 7, "rows[0]"),
        ("rows", [1] * 65, "rows"),
        ("break_even.tokens", "many", "break_even.tokens"),
        ("break_even.sizes", [[1, "2"]], "break_even.sizes[0][1]"),
        ("version", 2, "version"),
        ("version", True, "version"),
        ("format", "other", "format"),
        ("more", 1, "record"),
        ("-seconds", None, "record"),
        ("device", None, "device"),
    ],
)  # fmt: skip
def test_a_strangers_file_is_checked(where: str, value: Any, named: str, tmp_path: Path) -> None:
    made = deepcopy(card())
    change(where, value)(made)
    file = tmp_path / "card.json"
    file.write_text(json.dumps(made))
    with pytest.raises(ConfigError, match=re.escape(f"{named} = ")) as error:
        record.read(file)
    assert len(str(error.value)) < 700


def test_files_that_are_no_record(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    for data in (b"{", b"\xff\xfe", b"[" * 60_000, b"[]", b"null", b"1" * 60_000):
        file.write_bytes(data)
        with pytest.raises(ConfigError):
            record.read(file)
    file.write_bytes(b" " * (record.MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="up to 64 KiB"):
        record.read(file)


DOCUMENT = "\n".join(
    ["# Cards", "", table.missing_words([]), "", table.HEADER, "|---|", "", "More | text"]
)


def added(made: dict[str, Any], folder: Path) -> str:
    """What `--add` makes of the document in this folder."""
    document, file = folder / "page.md", folder / "card.json"
    if not document.exists():
        document.write_text(DOCUMENT)
    file.write_text(json.dumps(made))
    program.main(["--add", str(file), "--document", str(document)])
    return document.read_text()


def test_rows_are_added_and_replaced(tmp_path: Path) -> None:
    added(card(), tmp_path)
    added(card("NVIDIA GeForce RTX 3060", quality=None, sage=90.0), tmp_path)
    text = added(card(balanced=20.0), tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("| NVIDIA")]
    assert rows == [
        "| NVIDIA GeForce RTX 3060 | wan-720p, 12 heads | 100.0 | 90.0 (SageAttention) | - | "
        "40.0 (2.25x) | 25.0 (3.60x) | 4 s | 6,084 tokens | "
        f"{card()['pack']}, torch {torch.__version__} |",
        "| NVIDIA GeForce RTX 4090 | wan-720p, 12 heads | 100.0 | 100.0 (PyTorch) | "
        "80.0 (1.25x) | 20.0 (5.00x) | 25.0 (4.00x) | 6 s | 6,084 tokens | "
        f"{card()['pack']}, torch {torch.__version__} |",
    ]
    assert f"{table.MISSING}RTX 50." in text
    assert text.endswith("\n\nMore | text")
    for each in rows:
        assert each.count("|") == table.HEADER.count("|")


def test_refused_files_leave_the_table_alone(tmp_path: Path) -> None:
    before = added(card(), tmp_path)
    bad, cpu = card(), card()
    bad["device"]["name"] = HOSTILE
    cpu["device"]["capability"] = None
    slow = card(quality=None, balanced=None, fast=None)
    refused = ((bad, "device.name"), (cpu, "of a CPU has no place"), (slow, "without a time"))
    for made, words in refused:
        with pytest.raises(SystemExit, match=words):
            added(made, tmp_path)
        assert (tmp_path / "page.md").read_text() == before
    with pytest.raises(SystemExit, match="No such file"):
        program.main(["--add", str(tmp_path / "missing.json")])
    (tmp_path / "page.md").write_text("no table")
    with pytest.raises(SystemExit, match="no table with the header"):
        added(card(), tmp_path)


def test_the_pages_table_is_what_the_command_writes() -> None:
    """The header is found, and the line of missing series is that of the rows."""
    text = table.DOCUMENT.read_text(encoding="utf-8")
    updated = table.with_row(text, table.row_of(card("NVIDIA Test")))
    lines, after = text.splitlines(), updated.splitlines()
    assert len(after) == len(lines) + 1
    assert set(after) - set(lines) == {table.row_of(card("NVIDIA Test"))}
