"""A pool of training clips, so that each is used several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class ClipSource(Protocol):
    """Where clips come from.

    Attributes:
        names: of the scenes; a scene's place is its number.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def draw(
        self, scene: int, count: int, size: tuple[int, int, int], generator: torch.Generator
    ) -> Tensor:
        """`[count, 3, *size]` float32 RGB in [-1, 1]; `generator` is on the CPU."""
        ...


# New clips stay this long, in turns: a multiple of the number of scenes keeps scenes balanced.
TURNS_PER_SCENE = 4


class ClipPool:
    """Clips, coded, and the numbers of their scenes; every batch replaces the oldest few.

    Drawing a batch costs a GPU as much time as a training step. Latents are small: a pool in the
    device's memory gives each clip several times, with other noise and among other clips.

    A turn draws clips of one scene from a seed of its own. So a pool is a function of `turn` alone
    and a run that continues at a turn sees the same clips.

    Attributes:
        turn: batches given so far.
    """

    def __init__(
        self,
        source: ClipSource,
        encode: Callable[[Tensor], Tensor],
        size: tuple[int, int, int],
        batch: int,
        reuse: int,
        seed: int,
        turn: int = 0,
    ) -> None:
        """Fill a pool.

        Args:
            source: of the clips.
            encode: makes of `[B, 3, F, H, W]` what the pool keeps.
            size: frames, height and width of clips.
            batch: clips of a batch.
            reuse: how many times a clip is given on average, from 1 to four times the scenes.
            seed: of the clips.
            turn: where to continue.

        Raises:
            ValueError: another `reuse`, or a size that `encode` does not take.
        """
        self.turns = TURNS_PER_SCENE * len(source.names)
        if not 1 <= reuse <= self.turns:
            raise ValueError(f"reuse is {reuse}, allowed are 1 to {self.turns}")
        self.source, self.encode, self.size = source, encode, size
        self.batch, self.seed, self.turn = batch, seed, turn
        self.fresh = -(-batch // reuse)
        # By slot; a turn's slot is its remainder, and so is its scene.
        first = self._draw(turn)
        self.clips = first.new_empty((self.turns, *first.shape))
        self.clips[turn % self.turns] = first
        for later in range(turn + 1, turn + self.turns):
            self.clips[later % self.turns] = self._draw(later)
        self.scenes = torch.arange(self.turns, device=first.device) % len(source.names)

    def _draw(self, turn: int) -> Tensor:
        """The coded clips `[fresh, ...]` of a turn."""
        generator = torch.Generator().manual_seed((self.seed + 1 << 32) + turn)
        scene = turn % len(self.source.names)
        with torch.no_grad():
            return self.encode(self.source.draw(scene, self.fresh, self.size, generator))

    def next_batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Different clips of the pool.

        Args:
            generator: picks them; on the clips' device.

        Returns:
            Coded clips `[batch, ...]` and the numbers of their scenes `[batch]` int64.
        """
        slots = self.turns * self.fresh
        picks = torch.randperm(slots, generator=generator, device=self.clips.device)[: self.batch]
        chosen = self.clips.flatten(0, 1)[picks], self.scenes[picks // self.fresh]
        self.clips[self.turn % self.turns] = self._draw(self.turn + self.turns)
        self.turn += 1
        return chosen
