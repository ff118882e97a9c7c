"""Procedural clips: the same again from the same seed, in range, moving, and of any size."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

SCENES = range(8)


@pytest.fixture(scope="module")
def clips(tiny: SimpleNamespace) -> ModuleType:
    return tiny.clips


def draw(
    clips: ModuleType, scene: int, count: int = 2, seed: int = 0,
    size: tuple[int, int, int] = (9, 48, 80),
) -> Tensor:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    return clips.generate_clips(scene, count, *size, generator, "cpu")


def test_there_are_eight_scenes_with_names(clips: ModuleType) -> None:
    assert len(clips.SCENES) == len(SCENES)
    assert len({scene.name for scene in clips.SCENES}) == len(SCENES)
    assert all(scene.description.endswith(".") for scene in clips.SCENES)


@pytest.mark.parametrize("scene", SCENES)
def test_range_contrast_and_seed(clips: ModuleType, scene: int) -> None:
    video = draw(clips, scene)
    assert video.shape == (2, 3, 9, 48, 80)
    assert video.dtype == torch.float32
    assert -1 <= video.min() < -0.3
    assert 0.3 < video.max() <= 1
    assert torch.equal(video, draw(clips, scene))
    assert (video - draw(clips, scene, seed=1)).abs().mean() > 0.05
    assert (video[0] - video[1]).abs().mean() > 0.05


@pytest.mark.parametrize("scene", SCENES)
def test_every_frame_moves_on(clips: ModuleType, scene: int) -> None:
    video = draw(clips, scene, count=4)
    steps = (video[:, :, 1:] - video[:, :, :-1]).abs().mean(dim=(1, 3, 4))
    assert steps.min() > 2e-3


def test_scenes_differ(clips: ModuleType) -> None:
    everything = [draw(clips, scene, count=1) for scene in SCENES]
    for first in SCENES:
        for second in range(first):
            assert (everything[first] - everything[second]).abs().mean() > 0.1


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 17, 50), (2, 90, 31), (5, 8, 8)])
def test_any_size(clips: ModuleType, scene: int, size: tuple[int, int, int]) -> None:
    video = draw(clips, scene, size=size)
    assert video.shape == (2, 3, *size)
    assert bool(video.isfinite().all())


def test_clips_of_every_scene_come_in_order(clips: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = list(clips.clips_of_every_scene(2, (9, 48, 80), generator, "cpu"))
    assert [batch.shape for batch in batches] == [(2, 3, 9, 48, 80)] * len(SCENES)
    assert torch.equal(batches[0], draw(clips, 0))


def test_more_pixels_than_are_drawn_at_once(
    clips: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "PIXELS_AT_ONCE", 2 * 2 * 16 * 16)
    video = draw(clips, 1, count=5, size=(2, 16, 16))
    assert len({tuple(clip.flatten()[:50].tolist()) for clip in video}) == 5


@pytest.mark.parametrize(
    ("scene", "count", "size", "message"),
    [
        (8, 1, (1, 8, 8), "scene is 8, allowed are 0 to 7"),
        (-1, 1, (1, 8, 8), "scene is -1"),
        (0, 0, (1, 8, 8), "count is 0"),
        (0, 1, (0, 8, 8), "frames is 0"),
        (0, 1, (1, 0, 8), "height is 0"),
        (0, 1, (1, 8, -8), "width is -8"),
    ],
)
def test_errors(
    clips: ModuleType, scene: int, count: int, size: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(clips, scene, count=count, size=size)
