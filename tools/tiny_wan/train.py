"""Training of the small video model on clips that are drawn while it trains.

A `Trainer` holds everything that a run consists of and writes it to a folder, from which another
one continues: weights for use (the moving average, bf16), the linear code, the prompts, the state
for resuming, and a log with one JSON object a line.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from .clips import SCENES, ClipPool, clips_of_every_scene
from .latents import LinearCode, SmoothDecoder, latent_shape
from .model import LATENT_CHANNELS, PRESETS, WanConfig, WanModel
from .model_files import CODE, DECODER, PROMPTS, WEIGHTS, Prompts, save_model
from .model_flow import FLOW_SHIFT, VIDEO_SIZE, flow_loss, shift_levels

STATE = "train_state.pt"
LOG = "train_log.jsonl"
VALIDATION_LEVELS = (0.15, 0.4, 0.65, 0.9)
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class TrainConfig:
    """What a run does.

    Attributes:
        model: widths.
        grids: frames, height and width in pixels, small ones first; the share of the run that
            belongs to each is in `shares`.
        shares: how much of the run each grid gets, summing to 1.
        revisit: probability of a step on an earlier grid instead.
        tokens: tokens of a step; the batch is as many clips as fit, at least one.
        minutes: length of the run, over all resumptions; the schedules follow the clock.
        steps: if given, the length of the run in steps instead; the clock plays no part then.
        learning_rate: peak; after `warmup` steps it falls along a cosine to a twentieth.
        weight_decay: of AdamW, on matrices only.
        clip: largest norm of the gradient.
        dropout: probability of the empty prompt.
        ema: decay of the moving average of weights, less in the first steps.
        shift: of the noise levels.
        reuse: how many steps a clip is part of, on average.
        fit_clips: clips per scene and grid that the linear code is fitted to.
        checkpoint_minutes: time between checkpoints.
        log_steps: steps between lines of the log.
        compile: whether blocks go through `torch.compile`, which costs a minute before the run.
        seed: of weights, clips and noise.
    """

    model: WanConfig = PRESETS["wan"]
    grids: tuple[Grid, ...] = ((17, 96, 160), (33, 192, 320), VIDEO_SIZE)
    shares: tuple[float, ...] = (0.25, 0.3, 0.45)
    revisit: float = 0.2
    tokens: int = 131072
    minutes: float = 7.0
    steps: int | None = None
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    dropout: float = 0.1
    ema: float = 0.999
    shift: float = FLOW_SHIFT
    reuse: int = 8
    fit_clips: int = 2
    checkpoint_minutes: float = 1.0
    log_steps: int = 20
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.grids) != len(self.shares) or not self.grids:
            raise ValueError("grids and shares differ in number, or there are none")
        if abs(sum(self.shares) - 1) > 1e-6 or min(self.shares) < 0:
            raise ValueError(f"shares are {self.shares}, allowed are shares of 1")

    def batch(self, grid: Grid) -> int:
        """Clips of a step on `grid`."""
        return max(1, self.tokens // token_count(grid))


SMALL = TrainConfig(
    model=PRESETS["small"],
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


class Trainer:
    """A run: model, optimiser, moving average, sources of randomness and the folder of files."""

    def __init__(
        self,
        config: TrainConfig,
        folder: str | Path,
        device: str | torch.device,
        resume: bool = False,
    ) -> None:
        """Start a run, or continue the one in `folder`; `FileNotFoundError` if there is none."""
        self.config = config
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(device)
        torch.manual_seed(config.seed)
        self.model = WanModel(config.model).to(self.device)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.optimizer = self._optimizer()
        # Grids are chosen on the CPU, which must know them; the rest never waits for the device.
        self.choices = torch.Generator().manual_seed(config.seed + 1)
        self.noise = torch.Generator(self.device).manual_seed(config.seed + 2)
        names = tuple(scene.name for scene in SCENES)
        self.prompts = Prompts.make(names, config.model.text_dim).to(self.device)
        self.pools: dict[Grid, ClipPool] = {}
        self.turns: dict[Grid, int] = {}
        self.step = 0
        self.seconds = 0.0
        if resume:
            self.code = self._resume()
        else:
            self.code = self._prepare()
        if config.compile:
            for block in self.model.blocks:
                block.compile(dynamic=False)

    def _optimizer(self) -> torch.optim.AdamW:
        """AdamW that shrinks matrices only."""
        weights = list(self.model.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [each for each in weights if each.dim() > 1]},
            {"params": [each for each in weights if each.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            groups,
            lr=self.config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=self.config.weight_decay,
            fused=self.device.type == "cuda",
        )

    # --- Files -----------------------------------------------------------------------------------

    def _prepare(self) -> LinearCode:
        """Fit the code to clips of all grids and write what does not change in training."""
        generator = torch.Generator().manual_seed(self.config.seed + 3)
        clips = [
            batch
            for grid in self.config.grids
            for batch in clips_of_every_scene(self.config.fit_clips, grid, generator, self.device)
        ]
        code = LinearCode.fit(clips)
        code.save(self.folder / CODE)
        SmoothDecoder.fit(code, clips).save(self.folder / DECODER)
        self.prompts.save(self.folder / PROMPTS)
        (self.folder / LOG).unlink(missing_ok=True)
        return code

    def _resume(self) -> LinearCode:
        """Load what `save` wrote last."""
        state = torch.load(self.folder / STATE, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.choices.set_state(state["choices"].cpu())
        self.noise.set_state(state["noise"].cpu())
        self.turns = state["turns"]
        self.step, self.seconds = state["step"], state["seconds"]
        return LinearCode.load(self.folder / CODE).to(self.device)

    def save(self) -> None:
        """Write the averaged weights and the state for another run to resume from."""
        metadata = {
            "architecture": "wan2.1 t2v",
            "flow_shift": str(self.config.shift),
            "steps": str(self.step),
            "training": json.dumps(asdict(self.config)),
        }
        save_model(self.average, self.config.model, self.folder / WEIGHTS, metadata)
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "choices": self.choices.get_state(),
            "noise": self.noise.get_state(),
            "turns": self.turns | {grid: pool.turn for grid, pool in self.pools.items()},
            "step": self.step,
            "seconds": self.seconds,
        }
        part = (self.folder / STATE).with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.folder / STATE)

    def log(self, **entries: object) -> None:
        """Append a line to the log."""
        with open(self.folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **entries}) + "\n")

    # --- Steps -----------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        if self.config.steps is not None:
            return min(1.0, self.step / max(1, self.config.steps))
        return min(1.0, self.seconds / max(1e-9, self.config.minutes * 60))

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        cosine = 0.5 + 0.5 * math.cos(math.pi * self.progress)
        return self.config.learning_rate * warm * (0.05 + 0.95 * cosine)

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
            self.pools[grid] = ClipPool(self.code, grid, batch, reuse, seed, self.device, turn)
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
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        values = [state[name].detach() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), values, 1 - decay)
        self.step += 1
        return loss.detach(), norm

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of the averaged weights at fixed noise levels, on the last grid's clips.

        There is one clip of every scene, the same ones each time.
        """
        generator = torch.Generator().manual_seed(self.config.seed + 4)
        grid, count = self.config.grids[-1], len(SCENES)
        clips = clips_of_every_scene(1, grid, generator, self.device)
        latents = torch.cat([self.code.encode(clip) for clip in clips])
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        labels = torch.arange(count, device=self.device)
        present = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        found = {}
        for level in VALIDATION_LEVELS:
            s = torch.full((count,), level, device=self.device)
            loss = self.loss(latents, labels, s, noise)
            found[f"s={level}"] = round(float(loss), 5)
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

    def run(self, until: int | None = None) -> None:
        """Train to the end of the run, or to step `until`; writes checkpoints on the way."""
        if self.config.compile:
            self.warm_up()
        start = time.monotonic() - self.seconds
        saved = logged = time.monotonic()
        losses: list[Tensor] = []
        tokens = 0
        while self.progress < 1 and (until is None or self.step < until):
            grid = self.choose_grid()
            latents, labels = self.draw(grid)
            loss, norm = self.update(latents, labels)
            losses.append(loss)
            tokens += len(latents) * token_count(grid)
            if self.step % self.config.log_steps == 0:
                mean = float(torch.stack(losses).mean())  # waits for the device
                if not math.isfinite(mean):
                    raise FloatingPointError(f"the loss is {mean} at step {self.step}")
                now = time.monotonic()
                self.log(
                    loss=round(mean, 5),
                    last=round(float(loss), 5),
                    grid=grid,
                    batch=len(latents),
                    learning_rate=self.optimizer.param_groups[0]["lr"],
                    gradient=round(float(norm), 4),
                    seconds=round(now - start, 2),
                    tokens_per_second=round(tokens / (now - logged)),
                )
                losses, tokens, logged = [], 0, now
            self.seconds = time.monotonic() - start
            if time.monotonic() - saved > self.config.checkpoint_minutes * 60:
                self.save()
                self.log(validation=self.validate())
                saved = logged = time.monotonic()
                self.seconds = saved - start
                tokens = 0
        self.save()
        self.log(validation=self.validate(), seconds=round(self.seconds, 2))
