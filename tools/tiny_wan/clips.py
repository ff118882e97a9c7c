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
from .latents import LinearCode

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


# New clips stay this long, in turns: a multiple of the number of scenes keeps scenes balanced.
TURNS = 4 * len(SCENES)


class ClipPool:
    """Latents of clips and the numbers of their scenes; every batch replaces the oldest few.

    Drawing a batch costs a GPU as much time as a training step. Latents are small: a pool in the
    device's memory gives each clip several times, with other noise and among other clips.

    A turn draws clips of one scene from a seed of its own. So a pool is a function of `turn` alone
    and a run that continues at a turn sees the same clips.

    Attributes:
        turn: batches given so far.
    """

    def __init__(
        self,
        code: LinearCode,
        size: tuple[int, int, int],
        batch: int,
        reuse: int,
        seed: int,
        device: torch.device,
        turn: int = 0,
    ) -> None:
        """Fill a pool.

        Args:
            code: makes the latents.
            size: frames, height and width of clips.
            batch: clips of a batch.
            reuse: how many times a clip is given on average, 1 to 32.
            seed: of the clips.
            device: where clips are drawn and latents are kept.
            turn: where to continue.

        Raises:
            ValueError: another `reuse`, or a size that `code` does not take.
        """
        if not 1 <= reuse <= TURNS:
            raise ValueError(f"reuse is {reuse}, allowed are 1 to {TURNS}")
        self.code, self.size, self.batch, self.seed, self.device = code, size, batch, seed, device
        self.fresh = -(-batch // reuse)
        self.turn = turn
        # By slot; a turn's slot is its remainder, and so is its scene.
        first = self._draw(turn)
        self.latents = first.new_empty((TURNS, *first.shape))
        self.latents[turn % TURNS] = first
        for later in range(turn + 1, turn + TURNS):
            self.latents[later % TURNS] = self._draw(later)
        self.scenes = torch.arange(TURNS, device=device) % len(SCENES)

    def _draw(self, turn: int) -> Tensor:
        """Latents `[fresh, 16, T, H, W]` of the clips of a turn."""
        generator = torch.Generator(self.device).manual_seed((self.seed + 1 << 32) + turn)
        scene = turn % len(SCENES)
        return self.code.encode(
            generate_clips(scene, self.fresh, *self.size, generator, self.device)
        )

    def next_batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Different clips of the pool.

        Args:
            generator: picks them; on the pool's device.

        Returns:
            Latents `[batch, 16, T, H, W]` float32 and the numbers of their scenes `[batch]` int64,
            on the pool's device.
        """
        picks = torch.randperm(TURNS * self.fresh, generator=generator, device=self.device)
        picks = picks[: self.batch]
        chosen = self.latents.flatten(0, 1)[picks], self.scenes[picks // self.fresh]
        self.latents[self.turn % TURNS] = self._draw(self.turn + TURNS)
        self.turn += 1
        return chosen
