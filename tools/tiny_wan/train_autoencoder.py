"""Training of the autoencoder on footage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .autoencoder import SMALL, USUAL, Autoencoder, AutoencoderConfig
from .latents import LinearCode, latent_shape
from .model_files import VAE
from .pool import ClipPool, ClipSource
from .run import Run, RunConfig

STATE = "autoencoder_state.pt"
LOG = "autoencoder_log.jsonl"


@dataclass(frozen=True)
class AutoencoderTraining(RunConfig):
    """What a run does.

    Attributes:
        network: its sizes.
        size: frames, height and width of a clip.
        batch: clips of a step.
        edges: weight of the loss of differences between neighbours, which keeps detail.
        perturbation: standard deviation of what is added to half of the latents, whose own is one:
            the decoder then forgives what a diffusion model gets wrong.
    """

    network: AutoencoderConfig = USUAL
    size: tuple[int, int, int] = (17, 192, 192)
    batch: int = 8
    edges: float = 1.0
    perturbation: float = 0.1
    minutes: float = 3.0
    learning_rate: float = 7e-4
    warmup: int = 100
    ema: float = 0.998
    reuse: int = 4
    log_steps: int = 50


SMALL_TRAINING = AutoencoderTraining(
    network=SMALL, size=(5, 32, 32), batch=4, reuse=2, warmup=2, log_steps=1
)
"""A run that a CPU does in seconds."""


class AutoencoderTrainer(Run):
    """A run on footage."""

    state_name = STATE
    log_name = LOG

    def __init__(
        self,
        config: AutoencoderTraining,
        source: ClipSource,
        folder: str | Path,
        device: str | torch.device,
        resume: bool = False,
    ) -> None:
        """Start a run, or continue the one in `folder`; `FileNotFoundError` if there is none."""
        torch.manual_seed(config.seed)
        self.config, self.source = config, source
        generator = torch.Generator().manual_seed(config.seed + 4)
        scenes = range(len(source.names))
        self.judged = [source.draw(scene, 1, config.size, generator) for scene in scenes]
        self.autoencoder = Autoencoder(config.network).to(device)
        if not resume:
            fit = [source.draw(scene, 2, config.size, generator) for scene in scenes]
            self.autoencoder.start_from(LinearCode.fit(fit))
        super().__init__(config, folder, device, self.autoencoder)
        self.turn = 0
        if resume:
            self.resume()
        else:
            (self.folder / LOG).unlink(missing_ok=True)
        self.pool = ClipPool(
            source, _as_it_is, config.size, config.batch, config.reuse, config.seed, self.turn
        )
        if config.compile:
            self.autoencoder.encoder.compile(dynamic=False)
            self.autoencoder.decoder.compile(dynamic=False)

    def sources(self) -> dict[str, Any]:
        """The place in the pool."""
        return {"turn": self.pool.turn}

    def continue_from(self, sources: Mapping[str, Any]) -> None:
        """Take up what `sources` gave."""
        self.turn = int(sources["turn"])

    def update(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """One step on `clips [B, 3, F, H, W]`; its loss and the norm of the gradient."""
        kind = self.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            numbers = self.autoencoder.numbers(clips)
            spread = numbers.float().flatten(0, 3).std(0).clamp_min(1e-6)
            noise = torch.randn(numbers.shape, generator=self.noise, device=self.device)
            noise[::2] = 0
            pictures = self.autoencoder.pictures(
                numbers + self.config.perturbation * spread * noise
            )
        error = pictures - clips
        loss = error.abs().mean()
        for axis in (2, 3, 4):
            loss = loss + self.config.edges * error.diff(dim=axis).abs().mean() / 3
        return loss.detach(), self.descend(loss)

    def take_step(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """A step on clips of all scenes."""
        clips, _ = self.pool.next_batch(self.noise)
        loss, norm = self.update(clips)
        t, h, w = latent_shape(*self.config.size)
        return loss, norm, {"tokens": len(clips) * t * h * w}

    def averaged(self) -> Autoencoder:
        """The network with averaged weights and the footage's mean and variance."""
        network = Autoencoder(self.config.network).to(self.device)
        network.load_state_dict(self.average)
        network.calibrate(self.judged)
        return network.eval()

    def export(self) -> None:
        """Write the averaged weights in 8 bits."""
        self.averaged().save(self.folder / VAE)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR in dB of one clip of every scene, averaged; and with the weights of the file."""
        stored = Autoencoder.load(self.folder / VAE).to(self.device)
        found = {}
        for name, network in (("psnr", self.averaged()), ("psnr in 8 bits", stored)):
            values = [
                -10 * ((network.decode(network.encode(clip)) - clip) / 2).square().mean().log10()
                for clip in self.judged
            ]
            found[name] = round(float(torch.stack(values).mean()), 3)
        return found


def _as_it_is(clips: Tensor) -> Tensor:
    return clips
