"""Runs ComfyUI's own Wan model on stored inputs; a program for ComfyUI's Python, not a test.

    python comfy_probe.py COMFYUI WEIGHTS INPUTS OUTPUTS

WEIGHTS is loaded like UNETLoader does, in float32. INPUTS holds `x`, `t` and `context`, OUTPUTS
gets `velocity`; the metadata entry "config" of OUTPUTS is what detection said, as JSON.
"""

import json
import sys

comfyui, weights, inputs, outputs = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_detection  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

state, metadata = comfy.utils.load_torch_file(weights, return_metadata=True)
detected = comfy.model_detection.detect_unet_config(dict(state), "", metadata=metadata)
patcher = comfy.sd.load_diffusion_model(weights, model_options={"dtype": torch.float32})
missing = set(patcher.model.diffusion_model.state_dict()) ^ set(state)
detected["mismatched"] = sorted(missing)
detected["class"] = type(patcher.model).__name__
model = patcher.model.diffusion_model.float()
given = load_file(inputs)
with torch.no_grad():
    velocity = model(given["x"], given["t"], given["context"])
save_file(
    {"velocity": velocity.float().contiguous()}, outputs, metadata={"config": json.dumps(detected)}
)
