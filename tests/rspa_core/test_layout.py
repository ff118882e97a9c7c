"""TokenLayout: where the video span is, and spans that do not fit."""

from __future__ import annotations

import dataclasses

import pytest

from rectified_spaattn.rspa_core import ConfigError, TokenLayout


def test_context_on_both_sides() -> None:
    layout = TokenLayout((2, 3, 4), length=40, video_start=5)
    assert layout.video_length == 24
    assert layout.video_end == 29
    assert layout.context_length == 16


def test_video_only() -> None:
    layout = TokenLayout((2, 3, 4), length=24)
    assert layout.video_start == 0
    assert layout.video_end == 24
    assert layout.context_length == 0


@pytest.mark.parametrize(
    "tokens,block,blocks", [(1, 64, 1), (64, 64, 1), (65, 64, 2), (300, 128, 3)]
)
def test_num_blocks_counts_the_ragged_one(tokens: int, block: int, blocks: int) -> None:
    assert TokenLayout((1, 1, tokens), tokens).num_blocks(block) == blocks


def test_is_a_hashable_value() -> None:
    layout = TokenLayout((2, 3, 4), 24)
    assert layout == TokenLayout((2, 3, 4), 24, 0)
    assert hash(layout) == hash(TokenLayout((2, 3, 4), 24, 0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.length = 25


@pytest.mark.parametrize(
    "grid",
    [(0, 3, 4), (2, 3), (2, 3, 4, 5), [2, 3, 4], (2, 3, -4), (2.0, 3, 4), (True, 3, 4), 24, None],
)
def test_bad_grids_are_refused(grid: object) -> None:
    with pytest.raises(ConfigError, match="grid") as caught:
        TokenLayout(grid, 24)
    assert caught.value.field == "grid"
    assert caught.value.value == grid


@pytest.mark.parametrize("length,start", [(23, 0), (28, 5), (24, 1)])
def test_spans_that_do_not_fit_are_refused(length: int, start: int) -> None:
    with pytest.raises(ConfigError) as caught:
        TokenLayout((2, 3, 4), length, start)
    assert caught.value.field == "length"
    assert caught.value.value == length
    assert f"{start} + 24" in str(caught.value)


@pytest.mark.parametrize("length", [0, -1, 24.0, "24", True])
def test_bad_lengths_are_refused(length: object) -> None:
    with pytest.raises(ConfigError, match="length"):
        TokenLayout((2, 3, 4), length)


@pytest.mark.parametrize("start", [-1, 0.0, None, False])
def test_bad_starts_are_refused(start: object) -> None:
    with pytest.raises(ConfigError, match="video_start"):
        TokenLayout((2, 3, 4), 40, start)
