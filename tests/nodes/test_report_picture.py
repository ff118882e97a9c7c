"""The report's picture: nothing cut off at any size, and colors that say what ran."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rectified_spaattn.nodes import pictures
from rectified_spaattn.nodes.pictures import BACKGROUND, BAR_HIGH, DENSE, CompactCanvas
from rectified_spaattn.nodes.pictures import report as report_charts
from rectified_spaattn.nodes.pictures.report import (
    WARNING,
    WARNING_FILL,
    draw_compact,
    draw_compact_no_run,
    draw_no_run,
    draw_report,
)
from rectified_spaattn.rspa_core.run.reasons import Reason, why
from rectified_spaattn.rspa_core.run.record import Cell, RunRecord, StepRecord
from rectified_spaattn.rspa_core.run.report_text import NOT_PATCHED_CAUSES, NOT_PATCHED_TITLE

from .run_records import run_record

LONG = "a reason that goes on and on, " * 12


def has_color(picture: Image.Image, color: tuple[int, int, int], tolerance: int = 12) -> bool:
    pixels = np.asarray(picture, dtype=np.int16)
    return bool((np.abs(pixels - np.array(color)).max(-1) <= tolerance).any())


def assert_has_a_margin(picture: Image.Image) -> None:
    """The outermost pixels are empty: nothing runs over an edge of the picture."""
    pixels = np.asarray(picture)
    edges = (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:])
    assert all((edge == np.array(BACKGROUND)).all() for edge in edges)


@pytest.mark.parametrize(
    ("steps", "double", "single"),
    [
        (1, 6, 0), (1, 20, 40), (4, 30, 0), (8, 40, 0), (20, 20, 40), (50, 6, 0), (50, 20, 40),
        (200, 40, 0), (200, 20, 40),
    ],
)  # fmt: skip
def test_nothing_is_cut_off(steps: int, double: int, single: int) -> None:
    picture = draw_report(run_record(steps, double, single, forwards=2, unknown_step=True))
    assert picture.width == 960
    assert 600 < picture.height < 1300
    assert_has_a_margin(picture)


@pytest.mark.parametrize(
    "record",
    [
        run_record(
            reasons={why(Reason.NO_BACKEND, f"{LONG}{number}"): 10**number for number in range(12)}
        ),
        run_record(warnings=tuple(f"{LONG}{number}" for number in range(12))),
        run_record(settings={"name": "W" * 300, **dict.fromkeys(map(str, range(60)), LONG)}),
        run_record(model="M" * 200),
        run_record(400, 3),
        run_record(3, 400),
    ],
    ids=["reasons", "warnings", "settings", "model", "steps", "blocks"],
)
def test_long_text_and_many_rows_fit(record: RunRecord) -> None:
    assert_has_a_margin(draw_report(record))


def test_no_run() -> None:
    assert_has_a_margin(draw_no_run())
    assert_has_a_margin(draw_no_run(NOT_PATCHED_TITLE, NOT_PATCHED_CAUSES))


def test_dense_runs_are_hatched_and_have_no_bright_cells() -> None:
    dense = draw_report(run_record(20, 30, dense_steps=20))
    assert has_color(dense, DENSE, 40)
    assert not has_color(dense, BAR_HIGH)
    sparse = draw_report(run_record(20, 30, dense_steps=0))
    assert has_color(sparse, BAR_HIGH)
    assert not has_color(sparse, DENSE, 40)


def test_warnings_are_in_a_color_of_their_own() -> None:
    assert not has_color(draw_report(run_record()), WARNING_FILL, 2)
    warned = draw_report(run_record(warnings=("something",)))
    assert has_color(warned, WARNING_FILL, 2)
    assert has_color(warned, WARNING, 2)
    never_called = replace(run_record(dense_steps=0), sparse=0, cells={})
    assert has_color(draw_report(never_called), WARNING_FILL, 2)


def cell_picture(cell: Cell | None) -> np.ndarray:
    canvas = pictures.Canvas.empty(40, 20)
    report_charts.draw_cell(canvas, (0, 0, 40, 20), cell, (0.0, 1.0))
    return np.asarray(canvas.finished(), dtype=np.int16)


def test_cells() -> None:
    sparse, dense = cell_picture(Cell(1, 0, None)), cell_picture(Cell(0, 1, None))
    mixed, missing = cell_picture(Cell(1, 1, None)), cell_picture(None)
    assert sparse[10, 3].tolist() == list(BAR_HIGH)
    is_orange = dense[..., 0] > dense[..., 2] + 50
    assert 0.05 < is_orange.mean() < 0.7
    assert np.array_equal(mixed[4:16, 2:9], sparse[4:16, 2:9])
    assert np.array_equal(mixed[4:16, 31:38], dense[4:16, 31:38])
    assert len(np.unique(missing[4:16].reshape(-1, 3), axis=0)) == 1


def test_rows_are_in_two_groups_and_columns_end_with_the_unknown_step() -> None:
    record = run_record(3, 2, 3, unknown_step=True)
    shuffled = replace(record, cells=dict(reversed(record.cells.items())))
    table = report_charts.Table(shuffled)
    assert table.steps == [0, 1, 2, None]
    assert table.groups() == [
        ("double block", [("double", 0), ("double", 1)]),
        ("single block", [("single", 0), ("single", 1), ("single", 2)]),
    ]
    assert report_charts.Table(run_record(3, 2)).groups()[0][0] == "block"


def test_blocks_without_a_number() -> None:
    cells = {(0, ("", None)): Cell(1, 0, 0.2), (0, ("", 3)): Cell(1, 0, 0.2)}
    record = replace(run_record(1), cells=cells)
    assert report_charts.Table(record).rows == [("", 3), ("", None)]
    assert_has_a_margin(draw_report(record))


@pytest.mark.parametrize(
    ("densities", "scale"),
    [
        ((0.21, 0.45), (0.2, 0.5)),
        ((0.25,), (0.1, 0.3)),
        ((0.03,), (0.0, 0.2)),
        ((1.0,), (0.8, 1.0)),
    ],
)
def test_color_scale_ends_at_tenths(
    densities: tuple[float, ...], scale: tuple[float, float]
) -> None:
    cells = {(0, ("", index)): Cell(1, 0, density) for index, density in enumerate(densities)}
    assert report_charts.Table(replace(run_record(1), cells=cells)).scale == scale


@pytest.mark.parametrize(
    ("seconds", "end", "ticks"),
    [
        ([2.0, 2.1, 3.9], 4.0, 5),
        ([0.021, 0.019], 0.025, 6),
        ([60.0, 2.0, 2.1, 1.9, 3.9], 4.0, 5),
        ([0.0], 1.0, 2),
        ([], 1.0, 2),
    ],
)
def test_time_axis(seconds: list[float], end: float, ticks: int) -> None:
    """Round numbers; one step that loads the model does not count."""
    found, marks = report_charts.time_axis(seconds)
    assert found == pytest.approx(end)
    assert len(marks) == ticks


def test_the_time_axis_holds_the_dense_steps() -> None:
    """Where most steps are sparse, what they gain is seen; a step that loads is not."""
    sparse = [0.03] * 8
    assert report_charts.time_axis([1.0, 0.11, *sparse], 0.11)[0] == pytest.approx(0.15)
    assert report_charts.time_axis([1.0, *sparse], 1.0)[0] == pytest.approx(0.03)


def test_a_step_without_attention_over_the_video() -> None:
    step = StepRecord(4, 1.0, 1, 0, 0, None, ())
    record = run_record(4)
    assert_has_a_margin(draw_report(replace(record, steps=(*record.steps, step))))


def test_characters_that_the_font_lacks() -> None:
    assert pictures.drawable("a 中 × · b") == "a ? ? · b"


def test_wrapped_lines_keep_settings_together() -> None:
    lines = pictures.wrapped("sparsity 0.75 · block_size 128 · top_p 0", 15, 130)
    assert lines == ["sparsity 0.75", "block_size 128", "top_p 0"]
    assert pictures.wrapped("W" * 100, 15, 100)[0].endswith("…")
    assert pictures.wrapped("", 15, 100) == [""]


def test_compact_is_legible_on_a_node_320_pixels_wide() -> None:
    assert CompactCanvas.SIZE * 320 / CompactCanvas.WIDTH >= 11


@pytest.mark.parametrize(
    "record",
    [
        run_record(1, 6),
        run_record(400, 30, forwards=2, unknown_step=True),
        run_record(20, 30, dense_steps=20),
        run_record(20, 30, dense_steps=0),
        run_record(reasons={why(Reason.NO_BACKEND, LONG): 1}),
        run_record(warnings=(LONG, LONG)),
        run_record(steps=0, dense_steps=0),
    ],
    ids=["step", "steps", "dense", "sparse", "reason", "warnings", "empty"],
)
def test_compact_fits(record: RunRecord) -> None:
    picture = draw_compact(record)
    assert picture.width == CompactCanvas.WIDTH
    assert picture.height <= 640
    assert_has_a_margin(picture)


def test_compact_shows_what_the_steps_were() -> None:
    dense = draw_compact(run_record(20, 30, dense_steps=20))
    sparse = draw_compact(run_record(20, 30, dense_steps=0))
    assert has_color(dense, DENSE)
    assert not has_color(dense, BAR_HIGH)
    assert has_color(sparse, BAR_HIGH)
    assert not has_color(sparse, DENSE)
    assert has_color(draw_compact(run_record(warnings=("slow",))), WARNING)


def test_compact_without_a_run_gives_causes() -> None:
    assert_has_a_margin(draw_compact_no_run())
    assert draw_compact_no_run().height > draw_compact_no_run(causes=("one",)).height
