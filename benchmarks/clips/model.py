"""The small Wan model of tools/tiny_wan inside diffusers, and the sampling of clips with it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...adapters import SparseAttention, install
from ...rspa_core.run.record import RunRecord
from ...rspa_core.run.schedule import SparsitySchedule
from ..methods import Method
from ..trained_model import tiny_wan

TIMESTEPS = 1000


@dataclass(frozen=True)
class Checkpoint:
    """What `tools/train_tiny_wan.py` wrote.

    Attributes:
        transformer: diffusers' `WanTransformer3DModel` with the weights.
        dtype: of most of them, and of what it is given.
        prompts: `tiny_wan.model_files.Prompts`.
        autoencoder: `tiny_wan.autoencoder.Autoencoder`, between latents and RGB.
    """

    transformer: Any
    dtype: torch.dtype
    prompts: Any
    autoencoder: Any


def load_checkpoint(folder: Path, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    """Read the files of a trained model.

    Args:
        folder: with `tiny_wan.safetensors` and the files beside it.
        device, dtype: of the transformer.

    Raises:
        FileNotFoundError: a file is missing; the message names it and what writes it.
    """
    from diffusers import WanTransformer3DModel

    files, coder = tiny_wan("model_files"), tiny_wan("autoencoder")
    writers = {files.WEIGHTS: "train_tiny_wan", files.PROMPTS: "train_tiny_wan"}
    for name, writer in (writers | {files.VAE: "train_autoencoder"}).items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: tools/{writer}.py writes it")
    native = files.load_model(folder / files.WEIGHTS)
    transformer: Any = WanTransformer3DModel(**files.diffusers_config(native.config))
    transformer.load_state_dict(files.to_diffusers(native.state_dict()))
    transformer.to(device).eval().requires_grad_(False)
    # As `from_pretrained` does it: some layers stay in fp32.
    kept = set(transformer._keep_in_fp32_modules or ())
    for name, weight in transformer.named_parameters():
        if not kept & set(name.split(".")):
            weight.data = weight.data.to(dtype)
    return Checkpoint(
        transformer,
        dtype,
        files.Prompts.load(folder / files.PROMPTS).to(device),
        coder.Autoencoder.load(folder / files.VAE).to(device),
    )


@dataclass(frozen=True)
class Sampling:
    """How clips are sampled, by Euler's method.

    Attributes:
        size: frames, height and width in pixels.
        steps: of the sampler.
        cfg: guidance, 1 for none.
        shift: of the noise levels.
    """

    size: tuple[int, int, int]
    steps: int
    cfg: float
    shift: float

    @property
    def latent_grid(self) -> tuple[int, int, int]:
        return tiny_wan("latents").latent_shape(*self.size)

    @property
    def tokens(self) -> int:
        """Tokens of a clip."""
        frames, height, width = self.latent_grid
        return frames * (height // 2) * (width // 2)

    @property
    def levels(self) -> list[float]:
        """Noise levels from 1 to 0, one more than steps."""
        return tiny_wan("model_flow").sampling_levels(self.steps, self.shift).tolist()


@dataclass(frozen=True)
class Variant:
    """One way to run self-attention.

    Attributes:
        method: of the sparse calls; None for full attention.
        block: tokens of a q-block and a kv-block.
        kept: share of the kv-blocks that is kept, asked for.
        dense_steps: first steps that stay dense.
        precision: of `SparseConfig`.
        ramp: of the schedule, over the steps that are not dense; `kept` stays the mean.
        shares: kept share of each step, 1 for a dense one; in place of `kept` and the rest.
        neighbours: of `SparseConfig`.
    """

    method: Method | None
    block: int = 64
    kept: float = 1.0
    dense_steps: int = 0
    precision: str = "auto"
    ramp: float = 0.0
    shares: tuple[float, ...] = ()
    neighbours: bool = True

    @property
    def name(self) -> str:
        """Of the method, "dense" for full attention."""
        return "dense" if self.method is None else self.method.name

    @property
    def label(self) -> str:
        """Such as "precise 4 keys, 64, ramp 1": parts that are as usual are left out."""
        if self.method is None:
            return self.name
        parts = [self.name, str(self.block)]
        if self.precision != "auto":
            parts.append(self.precision)
        if self.ramp:
            parts.append(f"ramp {self.ramp:g}")
        if self.shares:
            parts.append("shares " + "/".join(f"{each:g}" for each in self.shares))
        return ", ".join(parts)

    @property
    def schedule(self) -> SparsitySchedule:
        """Sparsity over the steps."""
        if self.shares:
            steps = tuple(None if each >= 1.0 else round(1.0 - each, 6) for each in self.shares)
            return SparsitySchedule(0.0, 0.0, "constant", steps=steps)
        dense_steps = tuple(range(self.dense_steps))
        sparsity = round(1.0 - self.kept, 6)
        return SparsitySchedule(
            sparsity, sparsity, "constant", dense_steps=dense_steps, ramp=self.ramp
        )

    @contextmanager
    def installed(self, transformer: Any, backend: str) -> Iterator[SparseAttention | None]:
        """While it is open the model runs this way; None for full attention, which is as it was."""
        if self.method is None:
            yield None
            return
        more: dict[str, Any] = {"precision": self.precision, "neighbours": self.neighbours}
        config = self.method.config(self.kept, self.block, self.block, **more)
        with self.method.arithmetic():
            sparse = install(
                transformer, config, schedule=self.schedule, min_tokens=0, backend=backend
            )
            try:
                yield sparse
            finally:
                sparse.remove()


DENSE = Variant(None)


@dataclass(frozen=True)
class Sampled:
    """Clips of one batch.

    Attributes:
        latents: `[S, 16, T, h, w]` fp32 on the model's device.
        step_seconds: of each step, for the whole batch.
        record: of the attention calls; None for full attention.
    """

    latents: Tensor
    step_seconds: list[float]
    record: RunRecord | None


@torch.no_grad()
def sample(
    checkpoint: Checkpoint,
    scene: int,
    seeds: Sequence[int],
    sampling: Sampling,
    variant: Variant,
    backend: str = "auto",
    on_step: Callable[[], None] | None = None,
) -> Sampled:
    """Sample a batch of clips that differ in their seeds.

    Args:
        checkpoint: the model.
        scene: number of the prompt.
        seeds: of the noise, drawn on the CPU: the same on every device and in every batch.
        sampling: sizes and steps.
        variant: of self-attention.
        backend: "auto" (dense on a CPU), "triton" or "reference".
        on_step: called after every step.

    Raises:
        ValueError: no such scene.
    """
    prompts = checkpoint.prompts
    if not 0 <= scene < prompts.empty:
        raise ValueError(f"scene is {scene}, allowed are 0 to {prompts.empty - 1}")
    device = prompts.embeddings.device
    x = _noise(seeds, sampling.latent_grid).to(device)
    branches = [scene] if sampling.cfg == 1 else [scene, prompts.empty]
    context = prompts.embeddings[branches].repeat_interleave(len(seeds), 0)
    levels = sampling.levels
    seconds = []
    with variant.installed(checkpoint.transformer, backend) as sparse:
        if device.type == "cuda":
            # Compiles what the sparse steps need; not timed, not counted.
            if sparse is not None:
                sparse.set_step(sampling.steps)
            _velocity(checkpoint, x, levels[0], context, sampling.cfg)
        if sparse is not None:
            sparse.reset()
        for step, (level, following) in enumerate(itertools.pairwise(levels)):
            _wait(device)
            start = time.perf_counter()
            if sparse is not None:
                sparse.set_step(step, sampling.steps, levels[:-1])
            velocity = _velocity(checkpoint, x, level, context, sampling.cfg)
            x = x + (following - level) * velocity
            _wait(device)
            seconds.append(time.perf_counter() - start)
            if on_step is not None:
                on_step()
    return Sampled(x, seconds, None if sparse is None else sparse.record)


def _noise(seeds: Sequence[int], grid: tuple[int, int, int]) -> Tensor:
    """`[S, 16, T, h, w]`, the noise that `tiny_wan.sample` draws for each seed."""
    shape = (tiny_wan("latents").CHANNELS, *grid)
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(shape, generator=each) for each in generators])


def _velocity(
    checkpoint: Checkpoint, x: Tensor, level: float, context: Tensor, cfg: float
) -> Tensor:
    """Guided velocity at `x [S, 16, T, h, w]`; `context` holds S prompts, then S empty ones."""
    dtype = checkpoint.dtype
    inputs = (x if cfg == 1 else torch.cat([x, x])).to(dtype)
    timestep = torch.full((len(inputs),), level * TIMESTEPS, device=x.device)
    velocity = checkpoint.transformer(inputs, timestep, context.to(dtype), return_dict=False)[0]
    out = velocity.float()
    if cfg == 1:
        return out
    prompt, empty = out.chunk(2)
    return empty + cfg * (prompt - empty)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decode(autoencoder: Any, latents: Tensor) -> Tensor:
    """RGB `[S, 3, F, H, W]` in [-1, 1] of `latents [S, 16, T, h, w]`, which may be on the CPU."""
    device = next(autoencoder.parameters()).device
    # One clip at a time: each needs gigabytes.
    clips = [autoencoder.decode(latent.to(device)) for latent in latents.split(1)]
    return torch.cat(clips).clamp(-1, 1)


def batches(seeds: Sequence[int], size: int) -> list[list[int]]:
    """`seeds` in groups of at most `size` that are as equal as they can be."""
    return [each.tolist() for each in np.array_split(seeds, math.ceil(len(seeds) / size))]
