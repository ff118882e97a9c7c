"""`make demo-comfy`: the example workflow on a real ComfyUI server, beside diffusers.

Runs workflows/api/wan2.1_text_to_video.json with the small trained model, dense and with the node's
defaults, and samples the same by diffusers' transformer; prints how far the latents of both hosts
differ, and the node's own report. Text encoder and VAE, which the model has not, give way to stored
prompts and to saved latents. ComfyUI is looked for in `COMFYUI_DIR`, else in ~/comfy/ComfyUI.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from rectified_spaattn.benchmarks.clips import model as clips_model
from rectified_spaattn.benchmarks.methods import Method

from .comfy_server import PROJECT_ROOT, ComfyServer, Run, find_checkout, install_pack
from .expectations import relative_error

CHECKPOINT = PROJECT_ROOT / "tools" / "tiny_wan" / "checkpoint"
WORKFLOW = PROJECT_ROOT / "workflows" / "api" / "wan2.1_text_to_video.json"
SAME = 1e-3
"""Largest relative difference of dense latents that counts as agreement, fp32."""
SPARSITY = 0.75
UNUSED = ("CLIPLoader", "VAELoader", "VAEDecode", "CreateVideo", "SaveVideo")


def workflow(sampling: clips_model.Sampling, scene: int, seed: int, enabled: bool) -> dict:
    """The example workflow with the trained model's files, prompts and sampling."""
    nodes = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    frames, height, width = sampling.size
    prompts = str(CHECKPOINT / "tiny_wan_prompts.safetensors")
    changes = {
        "UNETLoader": {"unet_name": "tiny_wan.safetensors"},
        "EmptyHunyuanLatentVideo": {"width": width, "height": height, "length": frames},
        "ModelSamplingSD3": {"shift": sampling.shift},
        "KSampler": {
            "seed": seed, "steps": sampling.steps, "cfg": sampling.cfg, "sampler_name": "euler",
        },
        "RectifiedSpaAttn": {
            "enabled": enabled, "preset": "custom", "sparsity": SPARSITY, "block_size": "64",
            "start_percent": 0.0, "end_percent": 1.0,
        },
        "RectifiedSpaAttnOptions": {
            "dense_blocks": "", "min_tokens": 0, "verbose": True, "backend": "reference",
        },
    }  # fmt: skip
    nodes = {key: node for key, node in nodes.items() if node["class_type"] not in UNUSED}
    ids = {node["class_type"]: key for key, node in nodes.items()}
    sampler = nodes[ids["KSampler"]]["inputs"]
    for name, key in (("positive", f"prompt.{scene}"), ("negative", "empty")):
        inputs = {"path": prompts, "key": key}
        nodes[sampler[name][0]] = {"class_type": "RSPATestPrompt", "inputs": inputs}
    for class_type, inputs in changes.items():
        nodes[ids[class_type]]["inputs"].update(inputs)
    nodes[ids["RectifiedSpaAttn"]]["inputs"].pop("schedule", None)
    sampled = {"model": [ids["UNETLoader"], 0], "latent": [ids["KSampler"], 0]}
    nodes["model space"] = {"class_type": "RSPATestModelSpace", "inputs": sampled}
    saved = {"latent": ["model space", 0], "name": f"enabled_{enabled}"}
    nodes["save"] = {"class_type": "RSPATestSaveLatent", "inputs": saved}
    return nodes


def main(words: list[str] | None = None) -> int:
    """Run the demo; 0 if the dense latents agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scene", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--size", type=int, nargs=3, default=[33, 256, 256], help="F H W")
    options = parser.parse_args(words)
    checkout = find_checkout("COMFYUI_DIR", "~/comfy/ComfyUI")
    if isinstance(checkout, str):
        print(f"make demo-comfy needs ComfyUI: {checkout}")
        return 1
    sampling = clips_model.Sampling(tuple(options.size), options.steps, 2.0, 3.0)
    model = clips_model.load_checkpoint(CHECKPOINT, torch.device("cpu"), torch.float32)
    sparse = clips_model.Variant(Method("precise", 4), 64, 1 - SPARSITY)
    print(f"{sampling.tokens:,} tokens, {options.steps} steps, scene {options.scene}")
    print(f"ComfyUI: {checkout.folder.name}, {WORKFLOW.name}")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "comfy"
        install_pack(base / "custom_nodes")
        models = base / "models" / "diffusion_models"
        models.mkdir(parents=True)
        (models / "tiny_wan.safetensors").symlink_to(CHECKPOINT / "tiny_wan.safetensors")
        server = ComfyServer(checkout, base)
        server.start()
        try:
            runs: dict[bool, Run] = {
                enabled: server.run(workflow(sampling, options.scene, options.seed, enabled))
                for enabled in (False, True)
            }
        finally:
            server.stop()
    print(f"{'':10} {'ComfyUI s':>10} {'diffusers s':>12} {'relative difference':>20}")
    differences = []
    for name, variant in (("dense", clips_model.DENSE), ("precise", sparse)):
        start = time.perf_counter()
        latents = clips_model.sample(
            model, options.scene, [options.seed], sampling, variant, "reference"
        ).latents
        seconds = time.perf_counter() - start
        run = runs[variant != clips_model.DENSE]
        differences.append(relative_error(run.samples, latents))
        print(f"{name:10} {run.seconds:10.1f} {seconds:12.1f} {differences[-1]:20.1e}")
    change = relative_error(runs[True].samples, runs[False].samples)
    print(f"sparse against dense in ComfyUI: {change:.3f}")
    tables = ("calls", "densities", "steps", "settings")
    report = {key: value for key, value in runs[True].report.items() if key not in tables}
    print(f"node's report: {json.dumps(report)}")
    agree = differences[0] <= SAME
    print(f"both hosts {'agree' if agree else 'DIFFER'}: dense latents within {SAME:g}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
