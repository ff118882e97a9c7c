"""First use in a real ComfyUI on a GPU: what compiling adds to a run, and what compiles again.

    python -m rectified_spaattn.tests.integration.first_use
    python -m rectified_spaattn.tests.integration.first_use --cpu    # small and dense: does it run?

Samples a Wan model of random weights (12 heads, 6 blocks) at 832x480, 81 frames, in 20 steps: with
full attention, with our node from an empty Triton cache, and with other settings; then, in a second
server from an empty cache again, without dense steps. ComfyUI is looked for in `COMFYUI_DIR`, else
in ~/comfy/ComfyUI. The status is 1 if a run compiled what those before it had compiled.

    s          from queueing the graph to its result; the model is loaded by the first run
    new files  in Triton's cache
    node       the last thing that the node said of compiling
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rectified_spaattn.benchmarks.output import table_lines

from .comfy_server import Checkout, ComfyServer, find_checkout, install_pack
from .graphs import SCENES, ModelPatch, rectified, sampled, scheduled, unpatched
from .status_listener import StatusListener
from .tiny_models import write_wide_wan

COMPILING = "compiling the kernels"
FIRST, SECOND, QUALITY = "first use", "second use", "preset quality: blocks of 64"
WITHOUT_DENSE = ", no dense steps"
LARGE = ((21, 60, 104), (21, 60, 80), 20)
SMALL = ((2, 8, 8), (2, 8, 12), 4)
"""Latents (T, H, W) of the runs, that of the run of another size, and steps."""
COLUMNS = {
    "seconds": ("s", "{:.2f}"),
    "new_files": ("new files", "{}"),
    "sparse": ("sparse", "{}"),
    "dense": ("dense", "{}"),
    "density": ("density", "{:.3f}"),
    "last_text": ("node", "{}"),
}


@dataclass(frozen=True)
class Step:
    """One run. compiles: whether it needs kernels that the runs before it do not."""

    name: str
    patch: ModelPatch
    compiles: bool = False
    is_other_size: bool = False


DEFAULTS: dict[str, Any] = {
    "preset": "balanced", "block_size": "128", "start_percent": 0.2, "rectification": "precise",
    "backend": "auto", "min_tokens": 8192,
}  # fmt: skip
ours = partial(rectified, **DEFAULTS)
from_the_start = ours(preset="custom", sparsity=0.8, start_percent=0.0)
DENSE = (Step("full attention", unpatched), Step("full attention again", unpatched))
SERIES = (
    (
        *DENSE,
        Step(FIRST, ours(), compiles=True),
        Step(SECOND, ours()),
        Step("sparsity 0.7", ours(preset="custom", sparsity=0.7)),
        Step("another size", ours(), is_other_size=True),
        Step("schedule", scheduled({}, **DEFAULTS)),
        Step("preset fast", ours(preset="fast")),
        Step(QUALITY, ours(preset="quality"), compiles=True),
        Step("preset quality again", ours(preset="quality")),
    ),
    (
        *DENSE,
        Step(FIRST + WITHOUT_DENSE, from_the_start, compiles=True),
        Step(SECOND + WITHOUT_DENSE, from_the_start),
    ),
)
"""The runs of one server and of the next, each of which begins with an empty cache."""


def run_step(server: ComfyServer, step: Step, size: tuple = SMALL) -> dict[str, Any]:
    """Sample once. `texts` is what the node said of compiling; counts are None without our node."""

    def files() -> int:
        return sum(path.is_file() for path in server.triton_cache.rglob("*"))

    nodes = sampled(SCENES["wan21_t2v"], step.patch, latent=size[step.is_other_size], steps=size[2])
    before = files()
    with StatusListener(server.url) as listener:
        run = server.run(nodes)
    report = run.reports[-1] if run.reports else {}
    texts = [text for _, text in listener.texts if text.startswith(COMPILING)]
    new_files = files() - before
    return {
        "name": step.name,
        "seconds": run.seconds,
        "new_files": new_files,
        "texts": texts,
        "last_text": texts[-1] if texts else None,
        "compiled_again": not step.compiles and bool(new_files or texts),
        **{key: report.get(key) for key in ("sparse", "dense", "density", "reasons")},
    }


def measure(checkout: Checkout, base: Path, on_gpu: bool) -> tuple[list[dict[str, Any]], dict]:
    """All runs, and what the server says of its machine."""
    install_pack(base / "custom_nodes")
    write_wide_wan(base / "models" / "diffusion_models")
    server, rows = ComfyServer(checkout, base, on_gpu), []
    for steps in SERIES:
        shutil.rmtree(server.triton_cache, ignore_errors=True)
        server.start()
        try:
            machine = server.get("/system_stats")
            rows += [run_step(server, step, LARGE if on_gpu else SMALL) for step in steps]
        finally:
            server.stop()
    return rows, machine


def main(words: list[str] | None = None) -> int:
    """Run everything and print; 0 if nothing was compiled again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="small and dense: does it run?")
    options = parser.parse_args(words)
    checkout = find_checkout("COMFYUI_DIR", "~/comfy/ComfyUI")
    if isinstance(checkout, str):
        print(f"first use needs ComfyUI: {checkout}")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        rows, machine = measure(checkout, Path(folder) / "comfy", not options.cpu)
    versions = {key: machine["system"][f"{key}_version"] for key in ("comfyui", "pytorch")}
    print(f"{machine['devices'][0]['name']}, {os.cpu_count()} processor cores, {versions}")
    print(*table_lines(rows, "name", COLUMNS), sep="\n")
    seconds = {row["name"]: row["seconds"] for row in rows}
    for more in ("", WITHOUT_DENSE):
        added = seconds[FIRST + more] - seconds[SECOND + more]
        print(f"{FIRST + more}: {added:.1f} s more than the run after it")
    again = [row["name"] for row in rows if row["compiled_again"]]
    print(f"compiled again: {', '.join(again) or 'nothing'}")
    return int(bool(again))


if __name__ == "__main__":
    sys.exit(main())
