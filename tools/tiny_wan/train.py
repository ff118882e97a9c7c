"""Training of the small video model on clips that are cut from footage while it trains.

A `Trainer` holds everything that a run consists of and writes it to a folder, from which another
one continues: weights for use (the moving average), the prompts, the state for resuming, and a log
with one JSON object a line. The autoencoder of the latents is there already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .autoencoder import Autoencoder
from .latents import latent_shape
from .model import LATENT_CHANNELS, SMALL, USUAL, WanConfig, WanModel
from .model_files import PROMPTS, VAE, WEIGHTS, Prompts, load_model, save_model, stored
from .model_flow import CPU_SIZE, FLOW_SHIFT, VIDEO_SIZE, flow_loss, shift_levels
from .pool import ClipPool, ClipSource
from .run import Run, RunConfig

STATE = "train_state.pt"
LOG = "train_log.jsonl"
VALIDATION_LEVELS = (0.15, 0.4, 0.65, 0.9)
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """What a run does.

    Attributes:
        model: widths.
        grids: frames, height and width in pixels, small ones first; the share of the run that
            belongs to each is in `shares`.
        shares: how much of the run each grid gets, summing to 1.
        revisit: probability of a step on an earlier grid instead.
        tokens: tokens of a step; the batch is as many clips as fit, at least one.
        dropout: probability of the empty prompt.
        shift: of the noise levels.
    """

    model: WanConfig = USUAL
    grids: tuple[Grid, ...] = ((17, 144, 240), CPU_SIZE, VIDEO_SIZE)
    shares: tuple[float, ...] = (0.3, 0.3, 0.4)
    revisit: float = 0.2
    tokens: int = 49152
    dropout: float = 0.1
    shift: float = FLOW_SHIFT
    minutes: float = 8.0
    learning_rate: float = 1.5e-3
    warmup: int = 300
    ema: float = 0.998
    checkpoint_minutes: float = 2.0

    def __post_init__(self) -> None:
        if len(self.grids) != len(self.shares) or not self.grids:
            raise ValueError("grids and shares differ in number, or there are none")
        if abs(sum(self.shares) - 1) > 1e-6 or min(self.shares) < 0:
            raise ValueError(f"shares are {self.shares}, allowed are shares of 1")

    def batch(self, grid: Grid) -> int:
        """Clips of a step on `grid`."""
        return max(1, self.tokens // token_count(grid))


SMALL_TRAINING = TrainConfig(
    model=SMALL,
    grids=((5, 32, 48), (9, 48, 64)),
    shares=(0.5, 0.5),
    tokens=256,
    warmup=2,
    log_steps=1,
)
"""A run that a CPU does in seconds, to see that everything works."""


def token_count(grid: Grid) -> int:
    """Tokens of a video of `grid` frames, rows and columns of pixels; `ValueError` if it has none.

    Rows and columns are multiples of 16: latents are 8 pixels wide and a token has 2 x 2.
    """
    t, h, w = latent_shape(*grid)
    if h % 2 or w % 2:
        raise ValueError(f"height and width are {grid[1:]}, allowed are multiples of 16")
    return t * (h // 2) * (w // 2)


class Trainer(Run):
    """A run: model, optimiser, moving average, sources of randomness and the folder of files."""

    state_name = STATE
    log_name = LOG

    def __init__(
        self,
        config: TrainConfig,
        source: ClipSource,
        folder: str | Path,
        device: str | torch.device,
        resume: bool = False,
        start: Path | None = None,
    ) -> None:
        """Start a run, or continue the one in `folder`.

        Args:
            config: what to do.
            source: of the clips, on `device`.
            folder: to write to. It holds an autoencoder already.
            device: to train on.
            resume: continue.
            start: weights of `config.model`'s shape to begin a new run with; random ones if None.

        Raises:
            FileNotFoundError: no autoencoder, or no run to continue.
        """
        torch.manual_seed(config.seed)
        self.config = config
        self.model = WanModel(config.model)
        if start is not None:
            self.model.load_state_dict(load_model(start).state_dict())
        super().__init__(config, folder, device, self.model)
        self.source = source
        # Grids are chosen on the CPU, which must know them; the rest never waits for the device.
        self.choices = torch.Generator().manual_seed(config.seed + 1)
        self.prompts = Prompts.make(self.source.names, config.model.text_dim).to(self.device)
        self.pools: dict[Grid, ClipPool] = {}
        self.turns: dict[Grid, int] = {}
        if not (self.folder / VAE).is_file():
            raise FileNotFoundError(f"{self.folder / VAE} is missing: train the autoencoder first")
        self.autoencoder = Autoencoder.load(self.folder / VAE).to(self.device)
        if resume:
            self.resume()
        else:
            self.prompts.save(self.folder / PROMPTS)
            (self.folder / LOG).unlink(missing_ok=True)
        if config.compile:
            for block in self.model.blocks:
                block.compile(dynamic=False)

    # --- Files -----------------------------------------------------------------------------------

    def export(self) -> None:
        """Write the averaged weights in Wan's native names."""
        metadata = {
            "architecture": "wan2.1 t2v",
            "flow_shift": str(self.config.shift),
            "steps": str(self.step),
            "training": json.dumps(asdict(self.config)),
        }
        save_model(self.average, self.config.model, self.folder / WEIGHTS, metadata)

    def sources(self) -> dict[str, Any]:
        """The place in every pool and the state of the choices."""
        turns = self.turns | {grid: pool.turn for grid, pool in self.pools.items()}
        return {"turns": turns, "choices": self.choices.get_state()}

    def continue_from(self, sources: Mapping[str, Any]) -> None:
        """Take up what `sources` gave."""
        self.turns = dict(sources["turns"])
        self.choices.set_state(sources["choices"].cpu())

    # --- Steps -----------------------------------------------------------------------------------

    def choose_grid(self) -> Grid:
        """The grid of the next step: that of the present part of the run, or an earlier one."""
        ends = torch.tensor(self.config.shares).cumsum(0)[:-1]
        current = int((ends <= self.progress).sum())
        revisit, which = torch.rand(2, generator=self.choices).tolist()
        if revisit < self.config.revisit:
            current = int(which * (current + 1))
        return self.config.grids[current]

    def draw(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """A batch of latents `[B, 16, T, H, W]` and the numbers of their prompts `[B]`."""
        if grid not in self.pools:
            batch, reuse, seed = self.config.batch(grid), self.config.reuse, self.config.seed
            turn = self.turns.get(grid, 0)
            self.pools[grid] = ClipPool(
                self.source, self.autoencoder.encode, grid, batch, reuse, seed, turn
            )
        latents, scenes = self.pools[grid].next_batch(self.noise)
        chance = torch.rand(len(scenes), generator=self.noise, device=self.device)
        return latents, scenes.masked_fill(chance < self.config.dropout, self.prompts.empty)

    def loss(self, latents: Tensor, labels: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """`flow_loss` of the model, in bf16 on CUDA."""
        context = self.prompts.embeddings[labels]
        kind = self.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            return flow_loss(self.model, latents, context, s, noise)

    def update(self, latents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step on a batch; returns its loss and the norm of the gradient, on the device."""
        count = len(latents)
        place = torch.rand(count, generator=self.noise, device=self.device)
        # Levels spread evenly over the batch make the loss, and the gradient, less noisy.
        place = (torch.arange(count, device=self.device) + place) / count
        noise = torch.randn(latents.shape, generator=self.noise, device=self.device)
        loss = self.loss(latents, labels, shift_levels(place, self.config.shift), noise)
        return loss.detach(), self.descend(loss)

    def take_step(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """A step on clips of some grid."""
        grid = self.choose_grid()
        latents, labels = self.draw(grid)
        loss, norm = self.update(latents, labels)
        about = {"grid": grid, "batch": len(latents), "tokens": len(latents) * token_count(grid)}
        return loss, norm, about

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of the averaged weights at fixed noise levels, on the last grid's clips.

        There is one clip of every scene, the same ones each time. Weights as they are stored, in
        8 bits, have losses of their own.
        """
        generator = torch.Generator().manual_seed(self.config.seed + 4)
        grid, count = self.config.grids[-1], self.prompts.empty
        clips = [self.source.draw(scene, 1, grid, generator) for scene in range(count)]
        latents = torch.cat([self.autoencoder.encode(clip) for clip in clips])
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        labels = torch.arange(count, device=self.device)
        present = {name: value.clone() for name, value in self.model.state_dict().items()}
        found = {}
        for suffix, weights in (("", self.average), (" in 8 bits", stored(self.average))):
            self.model.load_state_dict(weights)
            for level in VALIDATION_LEVELS:
                s = torch.full((count,), level, device=self.device)
                found[f"s={level}{suffix}"] = round(float(self.loss(latents, labels, s, noise)), 5)
        self.model.load_state_dict(present)
        return found

    def warm_up(self) -> None:
        """Compile for every grid, which takes a minute or so that is not the run's."""
        for grid in self.config.grids:
            shape = (self.config.batch(grid), LATENT_CHANNELS, *latent_shape(*grid))
            latents = torch.zeros(shape, device=self.device)
            labels = torch.zeros(len(latents), dtype=torch.long, device=self.device)
            self.loss(latents, labels, torch.ones_like(labels) / 2, latents).backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.validate()

    def run(self, until: int | None = None, piece: float | None = None) -> None:
        """As every run, compiled first."""
        if self.config.compile:
            self.warm_up()
        super().run(until, piece)
