"""Queries, keys and values of a trained model: recorded while it samples.

    python -m rectified_spaattn.benchmarks.capture --out captured.safetensors
    python -m rectified_spaattn.benchmarks.capture FOLDER --out captured.safetensors \\
        --scenes 0 3 --seeds 0 1 --at 1 6 12 18 --layers 0 2 --calls 24

FOLDER is what `tools/train_tiny_wan.py` wrote, by default the repository's model. Recorded are the
inputs of self-attention, rotary embedding applied, at the steps, layers and branches asked for; the
model computes what it computes without a recorder, bit for bit. Of all calls that match, `--calls`
are kept, drawn at random.

The file holds `0000.q`, `0000.k`, `0000.v`, ... `[H, N, D]` in the model's dtype, tokens in raster
order, and the metadata entry `calls`: a JSON list with one `CapturedCall` each.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .trained_model import CHECKPOINT, tiny_wan

BRANCHES = ("cond", "uncond")


@dataclass(frozen=True)
class CapturedCall:
    """Where a recorded call comes from.

    Attributes:
        scene: number of the prompt.
        seed: of the noise.
        step: of the sampler, from 0.
        branch: "cond" (the prompt) or "uncond" (the empty one).
        layer: transformer block, from 0.
        sigma: noise level at that step, 1 (noise) to 0; 0 as long as it is not known.
        grid: (T, H, W) of the tokens; (0, 0, 0) as long as it is not known.
    """

    scene: int
    seed: int
    step: int
    branch: str
    layer: int
    sigma: float = 0.0
    grid: tuple[int, int, int] = (0, 0, 0)

    @property
    def key(self) -> tuple[int, int, int, str, int]:
        """What is known before sampling."""
        return self.scene, self.seed, self.step, self.branch, self.layer


class Recorder:
    """Self-attention for `sample_latents` that keeps the inputs of the calls it was asked for."""

    def __init__(self, wanted: Iterable[CapturedCall], grid: tuple[int, int, int]) -> None:
        """`grid` is (T, H, W) of the tokens."""
        self.wanted = {call.key for call in wanted}
        self.grid = grid
        self.calls: list[CapturedCall] = []
        self.tensors: list[tuple[Tensor, Tensor, Tensor]] = []
        self.sample = (0, 0)
        """Scene and seed of what is sampled next."""
        self._step = (0, 0.0)

    def on_step(self, step: int, sigma: float) -> None:
        """The sampler is at this step."""
        self._step = (step, sigma)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """The model's own attention of `q, k, v [B, H, N, D]`; B is the branches in order."""
        step, sigma = self._step
        for index, branch in enumerate(BRANCHES[: len(q)]):
            call = CapturedCall(*self.sample, step, branch, layer, sigma, self.grid)
            if call.key in self.wanted:
                self.calls.append(call)
                parts = [x[index].detach().to("cpu", copy=True).contiguous() for x in (q, k, v)]
                self.tensors.append((parts[0], parts[1], parts[2]))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def chosen_calls(limit: int, *choices: Sequence[Any]) -> list[CapturedCall]:
    """At most `limit` of all combinations of these scenes, seeds, steps, branches and layers, the
    same ones every time."""
    every = [CapturedCall(*each) for each in product(*choices)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    return [every[index] for index in sorted(order[:limit].tolist())]


def capture(
    model: Any,
    prompts: Any,
    latent_grid: tuple[int, int, int],
    wanted: Sequence[CapturedCall],
    steps: int,
    cfg: float = 3.0,
) -> Recorder:
    """Sample every scene and seed that `wanted` names and record the calls.

    Args:
        model: a `WanModel`, on any device.
        prompts: its `Prompts`.
        latent_grid: latent frames, rows and columns; the last two even.
        wanted: what to record.
        steps: of the sampler.
        cfg: guidance; with 1 there is no branch "uncond".

    Raises:
        ValueError: a call asks for a step, layer or branch that the sampling does not have.
    """
    branches = BRANCHES if cfg != 1 else BRANCHES[:1]
    for call in wanted:
        for name, count in (("step", steps), ("layer", model.config.layers)):
            if not 0 <= (value := getattr(call, name)) < count:
                raise ValueError(f"{name} = {value} is not allowed: from 0 to {count - 1}")
        if call.branch not in branches:
            allowed = ", ".join(branches)
            raise ValueError(f"branch = {call.branch!r} is not allowed: one of {allowed}")
    frames, height, width = latent_grid
    recorder = Recorder(wanted, (frames, height // 2, width // 2))
    for scene, seed in sorted({(call.scene, call.seed) for call in wanted}):
        recorder.sample = scene, seed
        tiny_wan("sample").sample_latents(
            model, prompts, scene, latent_grid, steps, seed, cfg,
            attend=recorder.attend, on_step=recorder.on_step,
        )  # fmt: skip
    return recorder


def save_calls(recorder: Recorder, path: Path) -> None:
    """Write what was recorded, in the format above."""
    from safetensors.torch import save_file

    tensors = {
        f"{index:04d}.{name}": tensor
        for index, qkv in enumerate(recorder.tensors)
        for name, tensor in zip("qkv", qkv, strict=True)
    }
    calls = json.dumps([asdict(call) for call in recorder.calls])
    save_file(tensors, str(path), metadata={"format": "pt", "calls": calls})


def load_calls(path: Path) -> list[tuple[CapturedCall, tuple[Tensor, Tensor, Tensor]]]:
    """Read a file that `save_calls` wrote: each call and its q, k, v `[H, N, D]` on the CPU.

    Raises:
        ValueError: the file lacks the metadata, or a grid does not fit the tokens.
    """
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        entry = (file.metadata() or {}).get("calls")
        if entry is None:
            raise ValueError(f"{path}: no metadata entry 'calls'; benchmarks.capture writes it")
        found = []
        for index, fields in enumerate(json.loads(entry)):
            call = CapturedCall(**fields | {"grid": tuple(fields["grid"])})
            q, k, v = (file.get_tensor(f"{index:04d}.{name}") for name in "qkv")
            if q.shape[-2] != math.prod(call.grid):
                raise ValueError(
                    f"{path}: call {index} has {q.shape[-2]} tokens, "
                    f"its grid {call.grid} has {math.prod(call.grid)}"
                )
            found.append((call, (q, k, v)))
    return found


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=CHECKPOINT)
    add("--out", type=Path, default=Path("captured.safetensors"))
    add("--scenes", type=int, nargs="+", default=[0, 3, 6])
    add("--seeds", type=int, nargs="+", default=[0, 1])
    add("--steps", type=int, default=20, help="of the sampler")
    add("--at", type=int, nargs="+", help="steps to record, from 0 (default: four over the run)")
    add("--layers", type=int, nargs="+", help="blocks, from 0 (default: all)")
    add("--branches", nargs="+", choices=BRANCHES, default=list(BRANCHES))
    add("--calls", type=int, default=36, help="calls to record at most")
    add("--cfg", type=float, default=3.0)
    add("--size", type=int, nargs=3, metavar=("FRAMES", "HEIGHT", "WIDTH"),
        help="of the video in pixels (default: that of the model)")  # fmt: skip
    add("--device", default="cuda" if cuda else "cpu")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16" if cuda else "float32")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Command line: sample, record, write."""
    options = parse(words)
    files, flow = tiny_wan("model_files"), tiny_wan("model_flow")
    model = files.load_model(
        options.folder / files.WEIGHTS, options.device, getattr(torch, options.dtype)
    )
    prompts = files.Prompts.load(options.folder / files.PROMPTS)
    last = options.steps - 1
    at = options.at or sorted({round(last * share) for share in (0.05, 0.35, 0.65, 0.95)})
    layers = options.layers or range(model.config.layers)
    choices = options.scenes, options.seeds, at, options.branches, layers
    wanted = chosen_calls(options.calls, *choices)
    grid = tiny_wan("latents").latent_shape(*(options.size or flow.VIDEO_SIZE))
    recorder = capture(model, prompts, grid, wanted, options.steps, options.cfg)
    save_calls(recorder, options.out)
    size = options.out.stat().st_size / 1e6
    print(f"{len(recorder.calls)} calls of {recorder.grid} tokens, {size:.0f} MB: {options.out}")


if __name__ == "__main__":
    main()
