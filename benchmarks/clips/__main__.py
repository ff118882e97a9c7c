"""Clips of a small trained video model, dense and with Rectified SpaAttn, and how far they differ.

    python -m rectified_spaattn.benchmarks.clips
    python -m rectified_spaattn.benchmarks.clips MODEL        # what tools/train_tiny_wan.py wrote
    python -m rectified_spaattn.benchmarks.clips --seeds 8 --steps 20 --kept 0.4 0.25 0.15 \\
        --dense-steps 2 6 --rectification none paper precise --blocks 64 128

Samples every seed and scene with full attention, then with every combination of the options, by
diffusers' Wan transformer; prints a table and writes to --out: `results.json` (a record for each
clip, and the table), and for the first clip of each setting a GIF side by side and a picture of the
differences. PSNR and SSIM are against the dense clip of the same seed, both decoded by the model's
autoencoder.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...rspa_core.config import BLOCK_SIZES, MAX_SPARSITY, PRECISIONS, TAIL_KEYS
from ..methods import METHODS, POOLED, methods
from ..output import command_line, device_name, table_lines, write_json
from ..trained_model import CHECKPOINT, tiny_wan
from .model import (
    DENSE,
    Checkpoint,
    Sampling,
    Variant,
    batches,
    decode,
    load_checkpoint,
    sample,
)
from .report import COLUMNS, Run, runs_of, save_differences, save_side_by_side, table_of

DTYPES = ("float32", "bfloat16", "float16")
MIN_KEPT = round(1.0 - MAX_SPARSITY, 6)


def variants_of(options: argparse.Namespace) -> list[Variant]:
    """All combinations that were asked for; tail keys are for "precise" alone."""
    settings = [
        Variant(None, block, kept, dense_steps, precision, ramp)
        for dense_steps, kept, block, precision, ramp in itertools.product(
            options.dense_steps, options.kept, options.blocks, options.precision, options.ramp
        )
    ]
    given = itertools.product(options.shares, options.blocks, options.precision)
    settings += [Variant(None, block, precision=each, shares=kept) for kept, block, each in given]
    chosen, near = methods(options.rectification, options.tail_keys), not options.no_neighbours
    return [replace(each, method=method, neighbours=near) for each in settings for method in chosen]


def measure(
    checkpoint: Checkpoint, sampling: Sampling, options: argparse.Namespace, about: dict[str, Any]
) -> tuple[list[Run], dict[Variant, Tensor]]:
    """Sample and compare everything.

    Returns:
        The records, and for each variant the latents `[16, T, h, w]` of the first clip, on the CPU.
    """
    variants = [DENSE, *variants_of(options)]
    groups = list(itertools.product(options.scenes, batches(range(options.seeds), options.batch)))
    backend = "auto" if torch.device(options.device).type == "cuda" else "reference"
    runs: list[Run] = []
    shown: dict[Variant, Tensor] = {}
    with tqdm(total=len(groups) * len(variants) * sampling.steps, unit="step") as bar:
        for scene, group in groups:
            dense = torch.empty(0)
            for variant in variants:
                bar.set_description(f"scene {scene}, seeds {group[0]}-{group[-1]}, {variant.label}")
                sampled = sample(checkpoint, scene, group, sampling, variant, backend, bar.update)
                videos = decode(checkpoint.autoencoder, sampled.latents)
                if variant == DENSE:
                    dense = videos
                runs += runs_of(variant, scene, group, sampled, videos, dense)
                shown.setdefault(variant, sampled.latents[0].cpu())
                results = {"table": table_of(runs), "runs": [run.as_dict() for run in runs]}
                write_json(about | results, options.out / "results.json")
    return runs, shown


def save_pictures(
    checkpoint: Checkpoint, shown: dict[Variant, Tensor], what: str, options: argparse.Namespace
) -> list[Path]:
    """A GIF and a picture of differences for every setting but the method."""
    settings: dict[Variant, list[Variant]] = {}
    for variant in shown:
        if variant != DENSE:
            settings.setdefault(replace(variant, method=None), []).append(variant)
    paths = []
    for each, variants in settings.items():
        clips = {
            variant.name: decode(checkpoint.autoencoder, shown[variant][None])[0]
            for variant in (DENSE, *variants)
        }
        stem = f"kept{each.kept:g}_dense{each.dense_steps}_block{each.block}"
        stem += "" if each.precision == "auto" else f"_{each.precision}"
        stem += f"_ramp{each.ramp:g}" if each.ramp else ""
        title = f"kept {each.kept:g}, first {each.dense_steps} steps dense"
        title += f", ramp {each.ramp:g}" if each.ramp else ""
        if each.shares:
            listed = [f"{share:g}" for share in each.shares]
            stem = f"shares{'-'.join(listed[:8])}_block{each.block}"
            title = "kept " + ", ".join(listed)
        title = f"{what}, {title}, blocks of {each.block}"
        paths += [options.out / f"{stem}.gif", options.out / f"{stem}.png"]
        save_side_by_side(clips, paths[-2])
        save_differences(clips, title, paths[-1])
    return paths


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    on_gpu = torch.cuda.is_available()
    parser = command_line(__doc__)
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=CHECKPOINT,
        help="what tools/train_tiny_wan.py wrote (default: the repository's model)")  # fmt: skip
    add("--out", type=Path, default=Path("demo_output/clips"), help="default: %(default)s")
    add("--scenes", type=int, nargs="+", default=[5], help="default: 5")
    add("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    add("--kept", type=float, nargs="+",
        help="share of the blocks (default: 0.25 and 0.15 on a GPU, 0.25 on a CPU)")  # fmt: skip
    add("--dense-steps", type=int, nargs="+", default=[2], help="first steps")
    add("--ramp", type=float, nargs="+", default=[0.0], help="0 to 1 (default: 0)")
    add("--shares", type=_shares, nargs="+", default=[], metavar="S,S,...",
        help="also these: kept share of each step, 1 for a dense one")  # fmt: skip
    add("--rectification", choices=METHODS, nargs="+",
        default=["none", "paper", "precise"],
        help=f'"{POOLED}": means of left-out blocks, as in ComfyUI\'s Sol-Attn')  # fmt: skip
    add("--blocks", type=int, choices=BLOCK_SIZES, nargs="+", default=[64])
    add("--no-neighbours", action="store_true",
        help="as for a large video: of a small one they are a large part")  # fmt: skip
    add("--tail-keys", type=int, choices=TAIL_KEYS, nargs="+", default=[4], help='for "precise"')
    add("--precision", choices=PRECISIONS, nargs="+", default=["auto"])
    add("--steps", type=int, help="of the sampler (default: 20 on a GPU, 12 on a CPU)")
    add("--cfg", type=float, default=2.0, help="guidance, 1 for none (default: %(default)s)")
    add("--shift", type=float, default=tiny_wan("model_flow").FLOW_SHIFT)
    add("--size", type=int, nargs=3, metavar=("FRAMES", "HEIGHT", "WIDTH"),
        help="default: the model's on a GPU, its smaller one on a CPU")  # fmt: skip
    add("--batch", type=int, help="clips at once (default: 4 on a GPU, 1 on a CPU)")
    add("--device", default="cuda" if on_gpu else "cpu", help="default: %(default)s")
    add("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--no-pictures", action="store_true", help="numbers only")
    options = parser.parse_args(words)
    for name, least in (("seeds", 1), ("dense_steps", 0), ("scenes", 0), ("kept", MIN_KEPT)):
        given = np.ravel(getattr(options, name) or least)
        if min(given) < least or (name == "kept" and max(given) > 1):
            parser.error(f"--{name.replace('_', '-')}: {min(given)} is not allowed")
    if wrong := [each for each in options.ramp if not 0.0 <= each <= 1.0]:
        parser.error(f"--ramp: {wrong[0]} is not allowed, a number from 0 to 1 is")
    is_gpu = torch.device(options.device).type == "cuda"
    options.kept = options.kept or ([0.25, 0.15] if is_gpu else [0.25])
    options.steps = options.steps or (20 if is_gpu else 12)
    options.batch = options.batch or (4 if is_gpu else 1)
    flow = tiny_wan("model_flow")
    options.size = options.size or list(flow.VIDEO_SIZE if is_gpu else flow.CPU_SIZE)
    options.dtype = options.dtype or ("bfloat16" if is_gpu else "float32")
    return options


def _shares(text: str) -> tuple[float, ...]:
    """ "1,0.5,0.25" """
    shares = tuple(float(each) for each in text.split(","))
    if not all(MIN_KEPT <= each <= 1.0 for each in shares):
        raise argparse.ArgumentTypeError(f"{text}: numbers from {MIN_KEPT:g} to 1 are allowed")
    return shares


def main(words: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    import diffusers

    options = parse(words)
    started = time.perf_counter()
    device = torch.device(options.device)
    sampling = Sampling(tuple(options.size), options.steps, options.cfg, options.shift)
    checkpoint = load_checkpoint(options.folder, device, getattr(torch, options.dtype))
    options.out.mkdir(parents=True, exist_ok=True)
    about = {
        "device": device_name(device), "torch": torch.__version__,
        "diffusers": diffusers.__version__, "tokens": sampling.tokens, "options": vars(options),
    }  # fmt: skip
    frames, height, width = sampling.size
    what = f"{width} x {height}, {frames} frames, {sampling.tokens:,} tokens"
    print(f"Clips of {options.folder}: {what}, {options.steps} steps, {options.dtype}")
    print(f"{about['device']}, torch {about['torch']}, diffusers {about['diffusers']}")
    if device.type == "cpu":
        print("Sparse steps run the plain torch reference: its time says nothing of the kernels.")
    runs, shown = measure(checkpoint, sampling, options, about)
    print("\n" + "\n".join(table_lines(table_of(runs), "variant", COLUMNS)))
    print(
        "\nMeans over clips, ± standard deviation. kept: asked for; density: counted in sparse"
        "\ncalls; mean kept: in all calls. s: sampling of a clip. sparse, dense: calls of a"
        "\nbatch. PSNR, SSIM: to the dense clip; worst scene: the lowest mean of a scene."
    )
    if not options.no_pictures:
        for path in save_pictures(checkpoint, shown, what, options):
            print(f"picture   {path}")
    print(f"numbers   {options.out / 'results.json'}")
    print(f"total     {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
