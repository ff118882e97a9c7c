"""Sampling of the small video model, and pictures of what it makes.

    PYTHONPATH=tools python -m tiny_wan.sample FOLDER --scene 0 --out PICTURES

reads the files that training left in FOLDER and writes a GIF of each scene and a contact sheet.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .autoencoder import Autoencoder
from .latents import latent_shape
from .model import LATENT_CHANNELS, Attend, WanModel
from .model_files import PROMPTS, VAE, WEIGHTS, Prompts, load_model
from .model_flow import FLOW_SHIFT, VIDEO_SIZE, sampling_levels
from .pictures import contact_sheet, save_gif


@torch.no_grad()
def sample_latents(
    model: WanModel,
    prompts: Prompts,
    scene: int,
    grid: tuple[int, int, int],
    steps: int = 30,
    seed: int = 0,
    cfg: float = 3.0,
    shift: float = FLOW_SHIFT,
    attend: Attend | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Tensor:
    """Latents of a video, by Euler's method from noise.

    Args:
        model: on any device, of any dtype; latents stay float32.
        prompts: with the embedding of the scene and the empty one.
        scene: number of the scene.
        grid: latent frames, rows and columns; the last two even.
        steps: forwards of the model.
        seed: of the noise, which is drawn on the CPU and so the same on every device.
        cfg: guidance, 1 for none. With guidance each forward has a batch of two: the scene's
            prompt, then the empty one.
        shift: of the noise levels.
        attend: self-attention to use.
        on_step: called before each step with its number, from 0, and its noise level.

    Returns:
        `[1, 16, T, H, W]` float32 on the model's device.

    Raises:
        ValueError: no such scene, or `steps` below 1.
    """
    if not 0 <= scene < prompts.empty:
        raise ValueError(f"scene is {scene}, allowed are 0 to {prompts.empty - 1}")
    device = model.patch_embedding.weight.device
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((1, LATENT_CHANNELS, *grid), generator=generator).to(device)
    chosen = [scene] if cfg == 1 else [scene, prompts.empty]
    context = prompts.embeddings[chosen].to(device)
    levels = sampling_levels(steps, shift).tolist()
    for step, (level, following) in enumerate(itertools.pairwise(levels)):
        if on_step is not None:
            on_step(step, level)
        t = torch.full((len(chosen),), level * 1000, device=device)
        velocity = model(x.expand(len(chosen), -1, -1, -1, -1), t, context, attend)
        guided = velocity[:1]
        if cfg != 1:
            guided = velocity[1:] + cfg * (velocity[:1] - velocity[1:])
        x = x + (following - level) * guided
    return x


def sample(
    model: WanModel,
    autoencoder: Autoencoder,
    prompts: Prompts,
    scene: int,
    size: tuple[int, int, int] = VIDEO_SIZE,
    steps: int = 30,
    seed: int = 0,
    cfg: float = 3.0,
    shift: float = FLOW_SHIFT,
    attend: Attend | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Tensor:
    """A video of a scene: `sample_latents`, decoded.

    `size` is frames, height and width in pixels: 4 n + 1, and multiples of 16.

    Returns:
        RGB `[3, frames, height, width]` float32 in [-1, 1] on the model's device.
    """
    grid = latent_shape(*size)
    latents = sample_latents(model, prompts, scene, grid, steps, seed, cfg, shift, attend, on_step)
    return autoencoder.decode(latents)[0].clamp(-1, 1)


def write_samples(
    folder: Path,
    out: Path,
    scenes: Sequence[int] | None,
    device: str,
    size: tuple[int, int, int] = VIDEO_SIZE,
    steps: int = 30,
    seed: int = 0,
    cfg: float = 3.0,
    shift: float = FLOW_SHIFT,
) -> None:
    """Sample from the files in `folder`; write `<scene>_<name>.gif` and `sheet.png` to `out`.

    Args:
        folder: what training wrote.
        out: folder to write to.
        scenes: numbers; all by default.
        device: for the model.
        size, steps, seed, cfg, shift: as for `sample`.
    """
    model = load_model(folder / WEIGHTS, device)
    autoencoder = Autoencoder.load(folder / VAE).to(device)
    prompts = Prompts.load(folder / PROMPTS)
    out.mkdir(parents=True, exist_ok=True)
    videos = []
    kind = torch.device(device).type
    for scene in scenes or range(prompts.empty):
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            video = sample(model, autoencoder, prompts, scene, size, steps, seed, cfg, shift)
        save_gif(video, out / f"{scene}_{prompts.names[scene].replace(' ', '_')}.gif")
        videos.append(video)
    contact_sheet(videos).save(out / "sheet.png")


def main() -> None:
    """Command line: write videos of the scenes given, or of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what training wrote")
    parser.add_argument("--out", type=Path, help="where to write (default: FOLDER/samples)")
    parser.add_argument("--scene", type=int, action="append", help="number; may be repeated")
    for name, size in zip(("frames", "height", "width"), VIDEO_SIZE, strict=True):
        parser.add_argument(f"--{name}", type=int, default=size, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--cfg", type=float, default=3.0, help="default: %(default)s")
    parser.add_argument("--shift", type=float, default=FLOW_SHIFT, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    write_samples(
        options.folder,
        options.out or options.folder / "samples",
        options.scene,
        options.device,
        size=(options.frames, options.height, options.width),
        steps=options.steps,
        seed=options.seed,
        cfg=options.cfg,
        shift=options.shift,
    )


if __name__ == "__main__":
    main()
