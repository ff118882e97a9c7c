"""Draw the pictures of the help pages: schedules, the report and the probe of a real run.

python tools/draw_help.py               # all of them, into web/docs/images
python tools/draw_help.py --only report --gpu --block-size 128 --size 81 720 1280   # large
python tools/draw_help.py --only schedule_curve schedule_ramp     # these need no ComfyUI

Report and probe come from the nodes themselves: the small trained model is sampled on a ComfyUI
server (`COMFYUI_DIR`, else ~/comfy/ComfyUI), on the CPU in a few minutes unless --gpu is given.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from rectified_spaattn.nodes.pictures.schedule import draw_schedule, preview_steps
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule, parse_steps
from rectified_spaattn.tests.integration.comfy_server import (
    ComfyServer,
    find_checkout,
    install_pack,
)
from rectified_spaattn.tests.integration.graphs import Graph, Link, rectified

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "web" / "docs" / "images"
CHECKPOINT = ROOT / "tools" / "tiny_wan" / "checkpoint"
SCENE, SEED, SHIFT, CFG = 3, 0, 3.0, 2.0
COLORS = 256
"""The pictures have few; a palette makes the files a third as large."""

SCHEDULES = {
    "schedule_curve": (SparsitySchedule(0.6, 0.8, "linear", 0.1, 1.0), 20),
    "schedule_steps": (SparsitySchedule(0.0, 0.0, steps=parse_steps("off, 0.6, 0.8, 0.8")), 4),
    "schedule_ramp": (SparsitySchedule(0.75, 0.75, "constant", ramp=1.0), 20),
}
REPORT, PROBE = "report", "probe"
COPIES = {
    "schedule_curve": "RectifiedSpaAttnSchedule",
    "schedule_steps": "RectifiedSpaAttnSchedule",
    "schedule_ramp": "RectifiedSpaAttnSchedule",
    REPORT: "RectifiedSpaAttnReport",
    PROBE: "RectifiedSpaAttnProbeResult",
}
"""Folder of the page in Chinese, which has a copy: ComfyUI looks for a page's pictures from
web/docs on, GitHub from the page's own folder on."""


def save(picture: Image.Image, name: str) -> None:
    """Write a picture of the help pages and say how large it is."""
    path = FOLDER / f"{name}.png"
    few = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    copy = FOLDER.parent / COPIES[name] / FOLDER.name / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)
    print(f"{path.relative_to(ROOT)}: {picture.width} x {picture.height}, {path.stat().st_size:,}")


def run_graph(names: list[str], options: argparse.Namespace) -> dict:
    """The trained model sampled with a report, with a probe, or once with each."""
    frames, height, width = options.size
    graph = Graph()
    prompts = str(CHECKPOINT / "tiny_wan_prompts.safetensors")
    positive = graph.add("RSPATestPrompt", path=prompts, key=f"prompt.{SCENE}")
    negative = graph.add("RSPATestPrompt", path=prompts, key="empty")
    latent = graph.add(
        "EmptyHunyuanLatentVideo", width=width, height=height, length=frames, batch_size=1
    )
    loaded = graph.add("UNETLoader", unet_name="tiny_wan.safetensors", weight_dtype="default")
    shifted = graph.add("ModelSamplingSD3", model=loaded, shift=SHIFT)
    settings = {"preset": "custom", "block_size": options.block_size, "start_percent": 0.2}
    sparse = rectified(rectification="precise", verbose=False, **settings)(graph, shifted)

    def sampled(model: Link) -> Link:
        return graph.add(
            "KSampler", model=model, positive=positive, negative=negative, latent_image=latent,
            seed=SEED, steps=options.steps, cfg=CFG, sampler_name="euler", scheduler="simple",
            denoise=1.0,
        )  # fmt: skip

    if REPORT in names:
        report = graph.add("RectifiedSpaAttnReport", model=sparse, after=sampled(sparse))
        graph.add("SaveImage", images=report, filename_prefix=REPORT)
    if PROBE in names:
        probe = graph.add(
            "RectifiedSpaAttnProbe", model=sparse, steps="2, 50%, -1", blocks="",
            sparsities="0.5, 0.65, 0.75, 0.85, 0.92",
        )  # fmt: skip
        result = graph.add(
            "RectifiedSpaAttnProbeResult", model=probe, after=sampled(probe),
            closest_to_fastest=0.5, name="example",
        )  # fmt: skip
        graph.add("SaveImage", images=[result[0], 1], filename_prefix=PROBE)
    return graph.nodes


def draw_runs(names: list[str], options: argparse.Namespace) -> int:
    """Sample on a ComfyUI server and keep the pictures of these names; the exit status."""
    checkout = find_checkout("COMFYUI_DIR", "~/comfy/ComfyUI")
    if isinstance(checkout, str):
        print(f"report and probe need ComfyUI: {checkout}")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "comfy"
        install_pack(base / "custom_nodes")
        models = base / "models" / "diffusion_models"
        models.mkdir(parents=True)
        (models / "tiny_wan.safetensors").symlink_to(CHECKPOINT / "tiny_wan.safetensors")
        server = ComfyServer(checkout, base, on_gpu=options.gpu)
        server.start()
        try:
            server.run(run_graph(names, options))
        finally:
            server.stop()
        for name in names:
            (written,) = (base / "output").glob(f"{name}_*.png")
            with Image.open(written) as picture:
                save(picture, name)
    return 0


def main(words: list[str] | None = None) -> int:
    """Draw; 0 if everything asked for was drawn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*SCHEDULES, REPORT, PROBE]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--steps", type=int, default=10, help="default: %(default)s")
    parser.add_argument(
        "--size", type=int, nargs=3, default=[33, 256, 256], metavar=("F", "H", "W")
    )
    parser.add_argument("--block-size", default="64", help="of the node (default: %(default)s)")
    parser.add_argument("--gpu", action="store_true", help="ComfyUI on the GPU")
    options = parser.parse_args(words)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (schedule, steps) in SCHEDULES.items():
        if name in options.only:
            shift = SHIFT if schedule.has_ramp else None
            save(draw_schedule(preview_steps(schedule, steps, SHIFT), shift), name)
    runs = [name for name in options.only if name not in SCHEDULES]
    return draw_runs(runs, options) if runs else 0


if __name__ == "__main__":
    sys.exit(main())
