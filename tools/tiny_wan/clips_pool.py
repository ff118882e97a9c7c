"""A pool of latents of one grid, so that training does not wait for every clip to be drawn.

Drawing a batch costs a GPU as much time as a training step. Latents are small: a pool in the
device's memory gives each clip several times, with other noise and among other clips, before a
new one takes its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .clips import SCENES, generate_clips
from .latents import LinearCode

# New clips stay this long, in turns: a multiple of the number of scenes keeps scenes balanced.
TURNS = 4 * len(SCENES)


class ClipPool:
    """Latents of clips and the numbers of their scenes; every batch replaces the oldest few.

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
