"""Samples the trained small Wan model like KSampler does; a program for ComfyUI's Python, no test.

    python tiny_wan_probe.py COMFYUI CHECKPOINT INPUTS OUTPUTS

CHECKPOINT is the folder with `tiny_wan.safetensors` and `tiny_wan_prompts.safetensors`; the model
is loaded like UNETLoader does, in float32. INPUTS holds one `noise.N [1, 16, T, h, w]` per scene N
and the metadata entry "settings": steps, cfg and shift as JSON. OUTPUTS gets `levels` and one
`latents.N` per scene, in the model's own scale; its metadata entry "model" is class and dtype.
"""

import json
import sys
from pathlib import Path

comfyui, checkpoint, inputs, outputs = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu", "--use-pytorch-cross-attention"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_model_advanced import ModelSamplingSD3  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

with safe_open(inputs, "pt") as file:
    settings = json.loads(file.metadata()["settings"])
steps, cfg = settings["steps"], settings["cfg"]
prompts = load_file(Path(checkpoint) / "tiny_wan_prompts.safetensors")
weights = str(Path(checkpoint) / "tiny_wan.safetensors")
loaded = comfy.sd.load_diffusion_model(weights, model_options={"dtype": torch.float32})
(model,) = ModelSamplingSD3().patch(loaded, settings["shift"])


def conditioning(key: str) -> list:
    return [[prompts[key].float(), {}]]


got = {}
for name, noise in load_file(inputs).items():
    scene = name.removeprefix("noise.")
    with torch.no_grad():
        sampled = comfy.sample.sample(
            model, noise, steps, cfg, "euler", "simple", conditioning(f"prompt.{scene}"),
            conditioning("empty"), torch.zeros_like(noise), disable_pbar=True, seed=0,
        )  # fmt: skip
    # The sampler returns latents in the VAE's scale.
    got[f"latents.{scene}"] = model.model.process_latent_in(sampled.float()).contiguous()
schedule = model.get_model_object("model_sampling")
got["levels"] = comfy.samplers.calculate_sigmas(schedule, "simple", steps).float()
dtypes = {str(weight.dtype) for weight in model.model.diffusion_model.parameters()}
described = {"class": type(model.model).__name__, "dtypes": sorted(dtypes)}
save_file(got, outputs, metadata={"model": json.dumps(described)})
