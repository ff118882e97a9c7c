"""Procedural video clips: eight kinds of scenes, each clip with colours and motion of its own.

The clips are training data for the small video model of this folder. They are computed from
formulas, all pixels of a batch at once, so that a GPU makes thousands of them a minute and no data
set is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .clips_draw import Stage
from .clips_scenes import (
    bouncing_balls,
    coloured_rain,
    crossing_shapes,
    hill_pan,
    orbiting_moons,
    pendulums,
    ring_tunnel,
    spinning_tile,
)

# Pixels that are drawn at once, which bounds memory: drawing takes some 80 bytes a pixel.
PIXELS_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class Scene:
    """A kind of clip: a short name, a sentence that says what is seen, and what draws it.

    `draw` takes an empty stage and returns pictures in [0, 1], give or take highlights.
    """

    name: str
    description: str
    draw: Callable[[Stage], Tensor]


SCENES = (
    Scene("bouncing balls", "Three beach balls bounce on a chequered floor.", bouncing_balls),
    Scene("spinning tile", "A patterned tile turns above drifting colours.", spinning_tile),
    Scene("crossing shapes", "A striped disc and a star cross behind pillars.", crossing_shapes),
    Scene("hill pan", "The camera travels along hills and trees under the sun.", hill_pan),
    Scene("ring tunnel", "The camera flies through a winding tunnel of rings.", ring_tunnel),
    Scene("orbiting moons", "Moons circle a banded planet and cast shadows.", orbiting_moons),
    Scene("coloured rain", "Coloured streaks fall before a chequered wall.", coloured_rain),
    Scene("pendulums", "Two pendulums swing before moving stripes.", pendulums),
)
"""The scenes; a scene's place in this tuple is its number, the "prompt" of the model."""


def generate_clips(
    scene: int,
    count: int,
    frames: int,
    height: int,
    width: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> Tensor:
    """Draw `count` clips of a scene.

    Args:
        scene: number of the scene.
        count: clips, 1 or more.
        frames, height, width: of each clip, each 1 or more. Frames are 1/24 s apart.
        generator: source of all randomness. A CPU generator makes the same clips on every device,
            up to rounding; one on `device` draws without waiting for it.
        device: where to draw.

    Returns:
        `[count, 3, frames, height, width]` float32 RGB in [-1, 1].

    Raises:
        ValueError: a size below 1, or a scene that does not exist.
    """
    for name, size in (("count", count), ("frames", frames), ("height", height), ("width", width)):
        if size < 1:
            raise ValueError(f"{name} is {size}, allowed are whole numbers from 1")
    if not 0 <= scene < len(SCENES):
        raise ValueError(f"scene is {scene}, allowed are 0 to {len(SCENES) - 1}")
    device = torch.device(device)
    clips = torch.empty((count, 3, frames, height, width), device=device)
    for part in clips.split(max(1, PIXELS_AT_ONCE // (frames * height * width))):
        stage = Stage.empty(len(part), frames, height, width, generator, device)
        # In [0, 1] to [-1, 1]; highlights and glows that add light are cut off.
        part.copy_(SCENES[scene].draw(stage).clamp(0, 1) * 2 - 1)
    return clips


def clips_of_every_scene(
    per_scene: int,
    size: tuple[int, int, int],
    generator: torch.Generator,
    device: torch.device | str,
) -> Iterator[Tensor]:
    """For each scene in turn `per_scene` clips of frames, height and width `size`."""
    for scene in range(len(SCENES)):
        yield generate_clips(scene, per_scene, *size, generator, device)


@dataclass(frozen=True)
class Painted:
    """The scenes as a source of training clips, drawn on `device`."""

    device: torch.device

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scenes, by number."""
        return tuple(scene.name for scene in SCENES)

    def draw(
        self, scene: int, count: int, size: tuple[int, int, int], generator: torch.Generator
    ) -> Tensor:
        """`generate_clips` on the device."""
        return generate_clips(scene, count, *size, generator, self.device)
