"""The preview picture: size, value range, and that it shows what the schedule does."""

from __future__ import annotations

import pytest
import torch

from rectified_spaattn.nodes.pictures import schedule as preview
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule

STRIP = slice(preview.BOTTOM - preview.DENSE_HEIGHT + 1, preview.BOTTOM - 2)


def test_text_is_legible_where_the_picture_is_205_pixels_wide() -> None:
    """As Preview Image shows it in Nodes 2.0, at its default size."""
    assert preview.SIZE * 205 / preview.WIDTH >= 11


def pixel(image: torch.Tensor, x: float, y: float) -> list[int]:
    return (image[0, round(y), round(x)] * 255).round().int().tolist()


def test_steps_are_spaced_evenly_in_percent() -> None:
    schedule = SparsitySchedule(0.2, 0.6, "linear", 0.25, 0.75, dense_steps=(-2,))
    assert preview.preview_steps(schedule, 8) == [
        None,
        None,
        pytest.approx(0.2),
        pytest.approx(0.3),
        pytest.approx(0.4),
        pytest.approx(0.5),
        None,
        None,
    ]


def test_ramp_is_that_of_the_shift() -> None:
    schedule = SparsitySchedule(0.4, 0.4, "constant", ramp=1.0, dense_steps=(-1,))
    shown = {shift: preview.preview_steps(schedule, 8, shift) for shift in (1.0, 8.0)}
    assert shown[1.0] != shown[8.0]
    assert shown[1.0][0] == 0.0, "it keeps all"
    for steps in shown.values():
        assert steps[-1] is None
        counted = [each for each in steps if each is not None]
        assert sum(counted) / len(counted) == pytest.approx(0.4, abs=1e-3)


def test_step_that_the_ramp_keeps_whole_is_hatched_and_counted() -> None:
    schedule = SparsitySchedule(0.4, 0.4, "constant", ramp=1.0)
    image = preview.preview_image(schedule, 8, 1.0)
    slot = (preview.RIGHT - preview.LEFT) // 8
    dense = image[0, STRIP, preview.LEFT + 8 : preview.LEFT + slot]
    assert (dense[..., 0] > dense[..., 2] + 0.2).float().mean() > 0.05, "orange lines"
    without = preview.preview_image(SparsitySchedule(0.4, 0.4, "constant"), 8, 1.0)
    assert not torch.equal(image[0, : preview.TOP - 40], without[0, : preview.TOP - 40]), (
        "the heading says so"
    )
    assert not torch.equal(image[0, preview.BOTTOM :], without[0, preview.BOTTOM :]), (
        "and the axis names the shift"
    )


@pytest.mark.parametrize("num_steps", [1, 4, 20, 200])
def test_is_a_comfyui_image(num_steps: int) -> None:
    image = preview.preview_image(SparsitySchedule(0.6, 0.8, "cosine", 0.1), num_steps)
    assert image.shape == (1, preview.HEIGHT, preview.WIDTH, 3)
    assert image.dtype == torch.float32
    assert 0.0 <= image.min() < image.max() <= 1.0


def test_bars_reach_the_sparsity_and_dense_steps_are_hatched() -> None:
    image = preview.preview_image(SparsitySchedule(0.5, 0.5, steps=(None, 0.5)), 2)
    middle = (preview.TOP + preview.BOTTOM) / 2
    sparse_x = preview.LEFT + 0.75 * (preview.RIGHT - preview.LEFT)
    assert pixel(image, sparse_x - 60, middle + 30)[1] > 120, "inside the bar"
    assert max(pixel(image, sparse_x + 60, middle - 60)) < 80, "above the bar"
    columns = slice(preview.LEFT + 20, preview.LEFT + 200)
    dense = image[0, STRIP, columns]
    assert (dense[..., 0] > dense[..., 2] + 0.2).float().mean() > 0.05, "orange lines"
    above = image[0, preview.TOP + 5 : preview.BOTTOM - preview.DENSE_HEIGHT - 5, columns]
    assert not (above[..., 0] > above[..., 2] + 0.2).any(), "a dense step has sparsity 0"
