"""Render what the example workflows' thumbnails show, with the small trained model.

    python tools/render_thumbnails.py                # all
    python tools/render_thumbnails.py compare tune   # stems that contain one of these words
    python tools/render_thumbnails.py --device cpu   # smaller clips of fewer steps, a minute each

For every workflow one clip is sampled twice from the same noise: with full attention, and with the
sparsity, blocks and rectification of the workflow. A frame of both, side by side, is written to
`tools/workflow_builder/renders/<stem>.jpg`, and settings, density and PSNR to `renders.json`
there. For the workflow with the probe a third clip is sampled before, on which the probe measures,
and each layer gets the sparsity that it proposes. `tools/build_workflows.py` draws the thumbnails
from these files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tiny_wan.model_flow import CPU_SIZE, FLOW_SHIFT, VIDEO_SIZE
from tiny_wan.pictures import to_images
from workflow_builder.catalogue import SPECS, Spec
from workflow_builder.thumbnails import FOLDER, load_records, save_records

from rectified_spaattn.adapters import SparseAttention, sparse_attention
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
from rectified_spaattn.benchmarks.trained_model import CHECKPOINT
from rectified_spaattn.rspa_core.run.probe import ProbeSettings, parse_probe_steps
from rectified_spaattn.rspa_core.run.profile import SparsityProfile
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule

ON_GPU = Sampling(VIDEO_SIZE, steps=20, cfg=2.0, shift=FLOW_SHIFT)
# A frame from among the first is shown: the rest of the clip can be done without.
ON_CPU = Sampling((17, *CPU_SIZE[1:]), steps=8, cfg=2.0, shift=FLOW_SHIFT)
PROBE_STEPS = "2, 50%, -1"  # the probe node's default


@dataclass(frozen=True)
class WorkflowVariant(Variant):
    """Self-attention as a workflow has it.

    Attributes:
        sparsities: of each step; None is a dense step.
        profile: a sparsity for each layer.
        probe: what is measured while sampling.
        profiles: gets the probe's profile, as fast as the workflow without one.
    """

    sparsities: tuple[float | None, ...] = ()
    profile: SparsityProfile | None = None
    probe: ProbeSettings | None = None
    profiles: list[SparsityProfile] = field(default_factory=list, compare=False)

    @property
    def schedule(self) -> SparsitySchedule:
        return SparsitySchedule(0.0, 0.0, "constant", steps=self.sparsities)

    @contextmanager
    def installed(self, transformer: Any, backend: str) -> Iterator[SparseAttention | None]:
        assert self.method is not None
        with sparse_attention(
            transformer,
            self.method.config(self.kept, self.block, self.block, neighbours=self.neighbours),
            schedule=self.schedule, min_tokens=0, backend=backend,
            profile=self.profile, probe=self.probe,
        ) as sparse:  # fmt: skip
            yield sparse
            if self.probe is not None:
                self.profiles.append(sparse.probe_result(0).profile)


class Clips:
    """Samples clips; workflows that show the same one with the same settings share it."""

    def __init__(self, device: torch.device) -> None:
        self.is_on_gpu = device.type == "cuda"
        self.sampling = ON_GPU if self.is_on_gpu else ON_CPU
        dtype = torch.bfloat16 if self.is_on_gpu else torch.float32
        self.checkpoint = load_checkpoint(CHECKPOINT, device, dtype)
        self._sampled: dict[tuple[int, int, Variant], Sampled] = {}

    def sampled(self, scene: int, seed: int, variant: Variant) -> Sampled:
        """The clip of that scene, seed and variant, sampled when it is first asked for."""
        key = (scene, seed, variant)
        if key not in self._sampled:
            backend = "auto" if self.is_on_gpu else "reference"
            self._sampled[key] = sample(
                self.checkpoint, scene, [seed], self.sampling, variant, backend
            )
        return self._sampled[key]


def render(spec: Spec, clips: Clips) -> dict[str, Any]:
    """Sample dense and sparse, write the frames, return the record."""
    chosen, shown = spec.chosen, spec.picture
    tail_keys = chosen.tail_keys if chosen.rectification == "precise" else 1
    steps = spec.sparsity_of_steps(clips.sampling.steps)
    variant = WorkflowVariant(
        Method(chosen.rectification, tail_keys),
        chosen.block_size,
        kept=round(1.0 - chosen.sparsity, 6),
        neighbours=clips.is_on_gpu,  # of a smaller clip they are more than a workflow's share
        sparsities=tuple(steps),
    )
    if shown.is_tuned:
        probe = ProbeSettings(parse_probe_steps(PROBE_STEPS))
        probing = replace(variant, probe=probe, profiles=[])
        clips.sampled(shown.scene, shown.seed, probing)
        variant = replace(variant, profile=probing.profiles[0])
    both = [clips.sampled(shown.scene, shown.seed, each) for each in (DENSE, variant)]
    videos = [decode(clips.checkpoint.autoencoder, each.latents) for each in both]
    save_pair([to_images(video[0])[shown.frame] for video in videos], FOLDER / f"{spec.stem}.jpg")
    record = both[1].record
    assert record is not None
    return {
        "scene": shown.scene,
        "seed": shown.seed,
        "sampled_steps": clips.sampling.steps,
        "tokens": clips.sampling.tokens,
        "sparsity_of_steps": steps,
        "sparsity_of_layers": list(variant.profile.double) if variant.profile else [],
        "density": round(float(record.density or 1.0), 4),
        "psnr": round(float(psnr(*videos)[0]), 2),
        "block_size": chosen.block_size,
        "rectification": chosen.rectification,
        "tail_keys": tail_keys,
    }


def save_pair(frames: list[Image.Image], path: Path) -> None:
    """Two pictures of one size, side by side."""
    width, height = frames[0].size
    pair = Image.new("RGB", (2 * width, height))
    for index, frame in enumerate(frames):
        pair.paste(frame, (index * width, 0))
    pair.save(path, quality=92, optimize=True)


def main() -> None:
    """Command line: render every workflow, or those whose stem contains one of the words given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="only stems that contain one of these words")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    clips = Clips(torch.device(options.device))
    FOLDER.mkdir(exist_ok=True)
    for spec in SPECS:
        if options.only and not any(word in spec.stem for word in options.only):
            continue
        started = time.perf_counter()
        record = render(spec, clips)
        save_records(load_records() | {spec.stem: record})
        shown = f"PSNR {record['psnr']} dB, density {record['density']}"
        sys.stdout.write(f"{spec.stem}: {shown}, {time.perf_counter() - started:.0f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
