"""The artist's server: a real ComfyUI with tiny models under the templates' names."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from check import model_files
from descriptions import video_files
from front_end import USER_SETTINGS
from safetensors.torch import save_file
from server import PACK_FOLDER

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "tests" / "integration"))

from comfy_server import Checkout, ComfyServer, find_checkout  # noqa: E402, F401
from tiny_models import MODELS, random_parameters  # noqa: E402

STUB_NODES = Path(__file__).parent / "session_nodes"
TRAINED = ROOT / "tools" / "tiny_wan" / "checkpoint" / "tiny_wan.safetensors"
# Which tiny checkpoint stands for a file of the templates; the first part of a name that fits.
STAND_INS = {
    "wan2.1_t2v": "trained",
    "wan2.2_t2v": "trained",
    "wan2.1_i2v": "wan21_i2v",
    "wan2.2_bernini_r_high": "wan22_t2v_high",
    "wan2.2_bernini_r_low": "wan22_t2v_low",
    "wan2.1_14B_SCAIL_2": "wan_scail2",
    "wan_animate_2": "wan_animate2",
    "wan2.2_i2v_high": "wan22_i2v_high",
    "wan2.2_i2v_low": "wan22_i2v_low",
    "wan2.2_ti2v_5B": "wan22_5b",
    "hunyuan_video_t2v": "hunyuan_t2v",
    "hunyuanvideo1.5": "hunyuan15",
    "minimax_h3": "minimax_h3",
    "ltx-2.5": "ltx_av",
}

Json = dict[str, Any]


@contextlib.contextmanager
def running(checkout: Checkout, base: Path, workflows: list[Json]) -> Iterator[ComfyServer]:
    """A server in the folder `base` that can run `workflows` on the CPU, stopped afterwards."""
    for name in ("custom_nodes", "input", "user/default"):
        (base / name).mkdir(parents=True)
    custom_nodes = base / "custom_nodes"
    (custom_nodes / PACK_FOLDER).symlink_to(ROOT, target_is_directory=True)
    (custom_nodes / "session_nodes").symlink_to(STUB_NODES, target_is_directory=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.write_text(json.dumps(USER_SETTINGS), encoding="utf-8")
    shutil.copy(checkout.folder / "input" / "example.png", base / "input")
    for workflow in workflows:
        for folder, name in model_files(workflow):
            add_model(base / "models" / folder, name)
    for name in video_files(workflows):
        write_video(base / "input" / name)
    server = ComfyServer(checkout, base)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def write_video(path: Path) -> None:
    """A second of grey, 17 frames of 448 x 256 pixels: as wide as the templates' videos."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=16)
        stream.width, stream.height = 448, 256
        stream.pix_fmt = "yuv420p"
        for shade in range(0, 255, 15):
            frame = av.VideoFrame.from_ndarray(np.full((256, 448, 3), shade, dtype=np.uint8))
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def add_model(folder: Path, name: str) -> None:
    """Put a stand-in for the model file `name` into `folder`.

    Video models are tiny ones, LoRAs change nothing, and of text encoders and VAEs only the name
    matters (see `session_nodes`).
    """
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    if folder.name == "loras":
        save_file({"nothing": torch.zeros(1)}, path)
        return
    chosen = next((model for part, model in STAND_INS.items() if name.startswith(part)), None)
    if folder.name != "diffusion_models" or chosen is None:
        path.touch()
    elif chosen == "trained":
        path.symlink_to(TRAINED)
    else:
        model = MODELS[chosen]
        metadata = {"config": model.config} if model.config else None
        save_file(random_parameters(model.shapes, model.seed), path, metadata)
