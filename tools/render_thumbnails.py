"""Render what the example workflows' thumbnails show, with the small trained model, on a CPU.

    python tools/render_thumbnails.py                # all, some 6 minutes on two idle cores
    python tools/render_thumbnails.py compare tune   # stems that contain one of these words

For every workflow one clip is sampled twice from the same noise: with full attention, and with the
sparsity, blocks and rectification of the workflow. A frame of both, side by side, is written to
`tools/workflow_builder/renders/<stem>.jpg`, and settings, density and PSNR to `renders.json`
there. For the workflow with the probe, the error of every layer is measured instead.
`tools/build_workflows.py` draws the thumbnails from these files.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tiny_wan.latents import latent_shape
from tiny_wan.model_files import PROMPTS, WEIGHTS, Prompts, load_model
from tiny_wan.model_flow import FLOW_SHIFT
from tiny_wan.pictures import to_images
from tiny_wan.sample import sample_latents
from torch import Tensor
from workflow_builder.catalogue import SPECS, Spec
from workflow_builder.thumbnails import FOLDER, load_records, save_records

from rectified_spaattn.benchmarks.clips.model import (
    DENSE,
    Sampled,
    Sampling,
    Variant,
    decode,
    load_checkpoint,
    sample,
)
from rectified_spaattn.benchmarks.clips.picture_metrics import psnr
from rectified_spaattn.benchmarks.methods import Method
from rectified_spaattn.rspa_core import SparseConfig, TokenLayout, rectified_attention
from rectified_spaattn.rspa_core.run.probe import ProbeSettings, ProbeTable, parse_probe_steps
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule

CHECKPOINT = Path(__file__).resolve().parent / "tiny_wan" / "checkpoint"
# The scene that the model draws best, and half of its clip: enough for a few different frames.
SCENE = 3
SIZE = (25, 384, 416)
STEPS, CFG = 8, 2.0
PROBE_STEPS = "2, 50%, -1"  # the probe node's default


@dataclass(frozen=True)
class StepwiseVariant(Variant):
    """Self-attention with a sparsity of its own in every step; None is a dense step."""

    sparsities: tuple[float | None, ...] = ()

    @property
    def schedule(self) -> SparsitySchedule:
        return SparsitySchedule(0.0, 0.0, "constant", steps=self.sparsities)


def sparse_config(spec: Spec) -> SparseConfig:
    """How the workflow's preset makes a call sparse."""
    chosen = spec.chosen
    return SparseConfig(
        sparsity=chosen.sparsity,
        q_block=chosen.block_size,
        kv_block=chosen.block_size,
        rectification=chosen.rectification,
        tail_keys=chosen.tail_keys if chosen.rectification == "precise" else 1,
    )


class Clips:
    """Samples clips; workflows with one seed and the same settings share theirs."""

    def __init__(self) -> None:
        cpu = torch.device("cpu")
        self.checkpoint = load_checkpoint(CHECKPOINT, cpu, torch.float32)
        self._sampled: dict[tuple[int, Variant], Sampled] = {}

    def sampled(self, seed: int, variant: Variant) -> Sampled:
        """The clip of that seed and variant, sampled when it is first asked for."""
        key = (seed, variant)
        if key not in self._sampled:
            sampling = Sampling(SIZE, STEPS, CFG, FLOW_SHIFT)
            self._sampled[key] = sample(
                self.checkpoint, SCENE, [seed], sampling, variant, backend="reference"
            )
        return self._sampled[key]


def render(spec: Spec, clips: Clips) -> dict[str, Any]:
    """Sample dense and sparse, write the frames, return the record."""
    config = sparse_config(spec)
    steps = spec.sparsity_of_steps(STEPS)
    method = Method(config.rectification, config.tail_keys)
    variant = StepwiseVariant(method, config.q_block, sparsities=tuple(steps))
    seed, frame = spec.picture.seed, spec.picture.frame
    both = [clips.sampled(seed, each) for each in (DENSE, variant)]
    videos = [decode(clips.checkpoint.autoencoder, each.latents) for each in both]
    likeness = psnr(*videos)
    frames = [to_images(video[0])[frame] for video in videos]
    save_pair(frames, FOLDER / f"{spec.stem}.jpg")
    record = both[1].record
    assert record is not None
    return {
        "seed": seed,
        "sampled_steps": STEPS,
        "sparsity_of_steps": steps,
        "density": round(float(record.density or 1.0), 4),
        "psnr": round(float(likeness[0]), 2),
        **_settings(config),
    }


def save_pair(frames: list[Image.Image], path: Path) -> None:
    """Two pictures of one size, side by side."""
    width, height = frames[0].size
    pair = Image.new("RGB", (2 * width, height))
    for index, frame in enumerate(frames):
        pair.paste(frame, (index * width, 0))
    pair.save(path, quality=90, optimize=True)


@torch.no_grad()
def probe(spec: Spec, seed: int) -> dict[str, Any]:
    """Errors of every layer at the probe's steps and sparsities, measured as the node does it."""
    model = load_model(CHECKPOINT / WEIGHTS)
    prompts = Prompts.load(CHECKPOINT / PROMPTS)
    frames, rows, columns = latent_shape(*SIZE)
    grid = (frames, rows // 2, columns // 2)
    settings = ProbeSettings(parse_probe_steps(PROBE_STEPS))
    wanted = sorted(settings.steps.indices(STEPS))
    config = sparse_config(spec)
    layers = len(model.blocks)
    current = [0]
    errors: list[Any] = [[None] * layers for _ in wanted]
    densities: list[Any] = [[None] * layers for _ in wanted]

    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        if current[0] in wanted:
            row = wanted.index(current[0])
            layout = TokenLayout(grid, q.shape[2])
            tried = [
                rectified_attention(
                    q, k, v, layout, replace(config, sparsity=each), return_stats=True
                )
                for each in settings.sparsities
            ]
            size = out.float().norm()
            errors[row][layer] = tuple(float((o - out).float().norm() / size) for o, _ in tried)
            densities[row][layer] = tuple(float(stats.density) for _, stats in tried)
        return out

    sample_latents(
        model,
        prompts,
        SCENE,
        (frames, rows, columns),
        STEPS,
        seed,
        CFG,
        attend=attend,
        on_step=lambda step, _: current.__setitem__(0, step),
    )
    blocks = tuple(("", layer) for layer in range(layers))
    table = ProbeTable(
        tuple(wanted),
        blocks,
        settings.sparsities,
        tuple(map(tuple, errors)),
        tuple(map(tuple, densities)),
    )
    return {
        "seed": seed,
        "sampled_steps": STEPS,
        "probed_steps": wanted,
        "sparsities": list(settings.sparsities),
        "worst_errors": [[round(e or 0.0, 5) for e in table.worst_errors(b)] for b in blocks],
        **_settings(config),
    }


def _settings(config: SparseConfig) -> dict[str, Any]:
    return {
        "tokens": Sampling(SIZE, STEPS, CFG, FLOW_SHIFT).tokens,
        "block_size": config.q_block,
        "rectification": config.rectification,
        "tail_keys": config.tail_keys,
    }


def main() -> None:
    """Command line: render every workflow, or those whose stem contains one of the words given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="only stems that contain one of these words")
    options = parser.parse_args()
    clips = Clips()
    FOLDER.mkdir(exist_ok=True)
    for spec in SPECS:
        if options.only and not any(word in spec.stem for word in options.only):
            continue
        started = time.perf_counter()
        is_probe = spec.picture.is_chart
        record = probe(spec, spec.picture.seed) if is_probe else render(spec, clips)
        save_records(load_records() | {spec.stem: record})
        shown = "" if is_probe else f"PSNR {record['psnr']} dB, density {record['density']}, "
        sys.stdout.write(f"{spec.stem}: {shown}{time.perf_counter() - started:.0f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
