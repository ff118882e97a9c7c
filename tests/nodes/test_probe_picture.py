"""The picture of a probe: nothing cut off, and colours and bars that say what was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rectified_spaattn.nodes.pictures import BACKGROUND, BAR_HIGH, CompactCanvas
from rectified_spaattn.nodes.pictures import probe as picture
from rectified_spaattn.rspa_core import SparseConfig
from rectified_spaattn.rspa_core.run.probe import ProbeOutcome
from rectified_spaattn.rspa_core.run.profile import ModelFingerprint

from .probe_cases import HUNYUAN, TINY, WAN, WAN_SMALL, make

ERRORS_TOP = (
    picture.HEADER_HEIGHT + 2 * picture.TITLE_HEIGHT + picture.SECTION_GAP
    + picture.COURSE_HEIGHT + picture.COURSE_LABELS
)  # fmt: skip
HUNYUAN15 = ModelFingerprint("HunyuanVideo", 54, 0, 2048, 16)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def is_drawn(image: Image.Image) -> np.ndarray:
    """[H, W] bool, where something is."""
    return (np.abs(pixels(image) - np.array(BACKGROUND)) > 6).any(-1)


OUTCOMES = {
    "30 blocks": make(WAN_SMALL),
    "long name": make(WAN, name="x" * 100),
    "60 blocks": make(HUNYUAN),
    "far beyond": make(HUNYUAN15, wanted_error=0.001, scale=3.0),
    "tiny": make(TINY, steps=(0,)),
    "50 steps": make(WAN, steps=tuple(range(50))),
    "far within": make(WAN, wanted_error=1.0, scale=0.001),
    "awful": make(WAN, scale=1000.0),
    "one measured": make(WAN, unmeasured=tuple(("double", index) for index in range(1, 40))),
    "200 blocks": make(ModelFingerprint("Wan", 200, 0, 64, 2)),
    "not measured there": make(WAN, config=SparseConfig(0.98)),
}


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=list(OUTCOMES))
def test_nothing_is_cut_off(outcome: ProbeOutcome) -> None:
    image = picture.draw_probe(outcome)
    assert image.mode == "RGB"
    assert image.width == picture.WIDTH
    drawn = is_drawn(image)
    for edge in (drawn[:6], drawn[-6:], drawn[:, :6], drawn[:, -6:]):
        assert not edge.any()


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=list(OUTCOMES))
def test_the_compact_picture_is_legible_and_whole(outcome: ProbeOutcome) -> None:
    image = picture.draw_compact_probe(outcome)
    assert image.width == CompactCanvas.WIDTH
    # A node of 320 pixels has 220 for its picture.
    scale = min(320 / image.width, 220 / image.height)
    assert CompactCanvas.SIZE * scale >= 11
    drawn = is_drawn(image)
    for edge in (drawn[:6], drawn[-4:], drawn[:, :6], drawn[:, -6:]):
        assert not edge.any()


def test_the_compact_picture_marks_dense_blocks_at_0() -> None:
    outcome = make(WAN, wanted_error=0.03)
    assert 0.0 in outcome.profile.double
    image = pixels(picture.draw_compact_probe(outcome))
    index = outcome.profile.double.index(0.0)
    slot = (CompactCanvas.WIDTH - CompactCanvas.MARGIN - picture.COMPACT_LEFT) / len(outcome.blocks)
    bottom = image.shape[0] - CompactCanvas.MARGIN - CompactCanvas.SIZE // 2
    x = round(picture.COMPACT_LEFT + (index + 0.5) * slot)
    colored = [np.ptp(image[bottom - height, x - 2 : x + 3], axis=-1).max() for height in (5, 40)]
    assert colored[0] > 60, "a strip"
    assert colored[1] < 30, "and nothing above it"


def bar_heights(image: Image.Image, count: int, top: float, height: float) -> list[int]:
    """Drawn pixels in the middle of each column of a chart."""
    found = []
    slot = (picture.RIGHT - picture.LEFT) / count
    for index in range(count):
        x = round(picture.LEFT + (index + 0.5) * slot) - 6
        column = pixels(image)[round(top) : round(top + height), x]
        found.append(int((column.max(-1) - column.min(-1) > 60).sum()))
    return found


def test_worst_blocks_come_first() -> None:
    image = picture.draw_probe(make(WAN_SMALL))
    top = ERRORS_TOP
    heights = bar_heights(image, 30, top, picture.ERROR_HEIGHT - 2)
    assert heights == sorted(heights, reverse=True)
    assert heights[0] > 100
    assert heights[-1] > 5


def test_sparsities_are_in_the_order_of_the_model() -> None:
    outcome = make(WAN_SMALL, wanted_error=0.06)
    image = picture.draw_probe(outcome)
    top = ERRORS_TOP + picture.ERROR_HEIGHT + 24 + picture.SECTION_GAP + picture.TITLE_HEIGHT
    heights = bar_heights(image, 30, top, picture.SPARSITY_HEIGHT - 2)
    pairs = zip(heights, outcome.profile.double, strict=True)
    shown = [(height, each) for height, each in pairs if each > 0]
    assert len(shown) > 20
    for height, sparsity in shown:
        assert height == pytest.approx(sparsity * picture.SPARSITY_HEIGHT, abs=6)


def test_colours_tell_within_from_beyond() -> None:
    assert picture.error_color(0.05, 0.05) == BAR_HIGH
    red, _, blue = picture.error_color(0.0501, 0.05)
    assert red > blue + 60
    assert picture.error_color(9.0, 0.05) == picture.error_color(float("inf"), 0.05)
    assert picture.error_color(0.0, 0.05) == picture.LOW_ERROR
    within = [picture.error_color(e, 0.05) for e in (0.005, 0.02, 0.03, 0.049)]
    assert sorted(within, key=sum) == within, "brighter towards the wanted error"


def test_an_infinite_error_is_drawn() -> None:
    outcome = make(WAN_SMALL)
    errors = list(map(list, outcome.table.errors))
    errors[0][3] = (float("inf"),) * 5
    table = replace(outcome.table, errors=tuple(map(tuple, errors)))
    broken = replace(outcome, table=table)
    assert broken.worst_first()[0] == (("double", 3), float("inf"))
    assert picture.draw_probe(broken).width == picture.WIDTH


def test_the_picture_is_the_same_every_time() -> None:
    first, second = (pixels(picture.draw_probe(make())) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (0.0, "0"), (0.0004, "<.001"), (0.004, ".004"), (0.0521, ".052"), (0.0996, ".10"),
        (0.31, ".31"), (1.24, "1.2"), (25.0, "25"), (float("inf"), "99+"), (float("nan"), "99+"),
    ],
)  # fmt: skip
def test_short_numbers(error: float, text: str) -> None:
    assert picture.digits(error) == text


@pytest.mark.parametrize("highest", [0.0003, 0.01, 0.0277, 0.05, 0.12, 0.5, 1.0, 7.3, 40.0])
def test_axes_hold_their_values(highest: float) -> None:
    step, end = picture._axis(highest)
    assert highest <= end * 1.001
    assert end < 1.6 * highest
    assert 3 <= round(end / step) <= 6
    assert float(picture._tick(step, step)) == pytest.approx(step)
