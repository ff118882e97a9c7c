"""Training in pieces: steps, the average of weights, the schedule, checkpoints and the log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

PAUSE_S = 20.0
"""Seconds of a step from which on it was a pause: compilation, or a process that was stopped."""


@dataclass(frozen=True)
class RunConfig:
    """What every run needs.

    Attributes:
        minutes: length of the run, over all resumptions; the schedules follow the clock.
        steps: if given, the length of the run in steps instead; the clock plays no part then.
        learning_rate: peak; after `warmup` steps it falls along a cosine to a twentieth.
        weight_decay: of AdamW, on matrices only.
        clip: largest norm of the gradient.
        ema: decay of the moving average of weights, less in the first steps.
        reuse: how many steps a clip is part of, on average.
        checkpoint_minutes: time between checkpoints.
        log_steps: steps between lines of the log.
        compile: whether the network goes through `torch.compile`, which costs a minute or so.
        seed: of weights, clips and noise.
    """

    minutes: float = 7.0
    steps: int | None = None
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    reuse: int = 8
    checkpoint_minutes: float = 1.0
    log_steps: int = 20
    compile: bool = False
    seed: int = 0


class Run:
    """A network in training, and the folder that it is written to and continued from.

    Attributes:
        average: the moving average of the network's state.
        step, seconds: done so far, over all resumptions.
        noise: source of randomness on the device.
    """

    state_name: str
    log_name: str

    def __init__(
        self, config: RunConfig, folder: str | Path, device: str | torch.device, network: nn.Module
    ) -> None:
        self.settings = config
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.average = {name: value.clone() for name, value in network.state_dict().items()}
        self.optimizer = self._optimizer()
        self.noise = torch.Generator(self.device).manual_seed(config.seed + 2)
        self.step = 0
        self.seconds = 0.0

    def _optimizer(self) -> torch.optim.AdamW:
        """AdamW that shrinks matrices only."""
        weights = list(self.network.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [each for each in weights if each.dim() > 1]},
            {"params": [each for each in weights if each.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            groups,
            lr=self.settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=self.settings.weight_decay,
            fused=self.device.type == "cuda",
        )

    # --- What a run supplies -----------------------------------------------------------------

    def take_step(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """One step: its loss, the gradient's norm and more for the log; "tokens" are summed up."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Losses of the averaged weights on clips that stay the same."""
        raise NotImplementedError

    def export(self) -> None:
        """Write the averaged weights for use."""
        raise NotImplementedError

    def sources(self) -> dict[str, Any]:
        """Where clips and choices have got to, for the checkpoint."""
        raise NotImplementedError

    def continue_from(self, sources: Mapping[str, Any]) -> None:
        """Take up what `sources` gave."""
        raise NotImplementedError

    # --- Files ---------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the averaged weights, and the state for another run to resume from."""
        self.export()
        state = {
            "model": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.get_state(),
            "sources": self.sources(),
            "step": self.step,
            "seconds": self.seconds,
        }
        part = (self.folder / self.state_name).with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.folder / self.state_name)

    def resume(self) -> None:
        """Load what `save` wrote last; `FileNotFoundError` if there is nothing."""
        path = self.folder / self.state_name
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]
        self.continue_from(state["sources"])

    def log(self, **entries: object) -> None:
        """Append a line to the log."""
        with open(self.folder / self.log_name, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **entries}) + "\n")

    # --- Steps ---------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        if self.settings.steps is not None:
            return min(1.0, self.step / max(1, self.settings.steps))
        return min(1.0, self.seconds / max(1e-9, self.settings.minutes * 60))

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        warm = min(1.0, (self.step + 1) / max(1, self.settings.warmup))
        cosine = 0.5 + 0.5 * math.cos(math.pi * self.progress)
        return self.settings.learning_rate * warm * (0.05 + 0.95 * cosine)

    def descend(self, loss: Tensor) -> Tensor:
        """One step of the optimiser and of the average; the gradient's norm, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = clip_grad_norm_(self.network.parameters(), self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        state = self.network.state_dict()
        values = [state[name].detach() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), values, 1 - decay)
        self.step += 1
        return norm

    def run(self, until: int | None = None, piece: float | None = None) -> None:
        """Train to the end of the run, writing checkpoints on the way.

        A step longer than `PAUSE_S` does not count as time of the run.

        Args:
            until: stop at this step.
            piece: stop after so many minutes.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        begin = time.monotonic()
        start = begin - self.seconds
        saved = logged = last = begin
        losses: list[Tensor] = []
        tokens = 0
        while self.progress < 1 and (until is None or self.step < until):
            if piece is not None and time.monotonic() - begin > piece * 60:
                break
            loss, norm, about = self.take_step()
            losses.append(loss)
            tokens += about.pop("tokens")
            if self.step % self.settings.log_steps == 0:
                mean = float(torch.stack(losses).mean())  # waits for the device
                if not math.isfinite(mean):
                    raise FloatingPointError(f"the loss is {mean} at step {self.step}")
                now = time.monotonic()
                self.log(
                    loss=round(mean, 5),
                    last=round(float(loss), 5),
                    **about,
                    learning_rate=self.optimizer.param_groups[0]["lr"],
                    gradient=round(float(norm), 4),
                    seconds=round(now - start, 2),
                    tokens_per_second=round(tokens / (now - logged)),
                )
                losses, tokens, logged = [], 0, now
            now = time.monotonic()
            if now - last > PAUSE_S:
                start += now - last
            last = now
            self.seconds = now - start
            if now - saved > self.settings.checkpoint_minutes * 60:
                self.save()
                self.log(validation=self.validate())
                saved = logged = last = time.monotonic()
                self.seconds = saved - start
                tokens = 0
        self.save()
        self.log(validation=self.validate(), seconds=round(self.seconds, 2))
