"""Test-only nodes: conditioning and latents without text encoders or VAEs, latents to disk.

ComfyUI loads this folder as a node pack of its own. Written in the classic node form, which every
supported ComfyUI accepts.
"""

from __future__ import annotations

import copy
import json
import os
from types import SimpleNamespace

import folder_paths
import torch
from safetensors.torch import load_file, save_file

from .inputs import RSPATestInput
from .tiny_wan import RSPATestClip, RSPATestVae

CONDITION_KEYS = (
    "concat_latent_image",
    "concat_mask",
    "time_dim_concat",
    "ref_latent",
    "conditioning_byt5small",
    "reference_motion",
    "pose_video_latent",
    "driving_mask_28ch",
    "ref_mask_28ch",
)
H3_KEYS = ("minimax_keyframes", "minimax_refs")
H3_LATENTS = ("latent", "audio_latent")
CONDITION_LIST_KEYS = ("reference_latents", "context_latents", "vace_frames", "vace_mask")


def _random(shape: list[int], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _h3_condition(spec: dict, seed: int) -> dict:
    return {
        key: _random(value, seed) if key in H3_LATENTS else value for key, value in spec.items()
    }


def extra_conditions(spec: dict, seed: int) -> dict:
    """Random values for the conditioning keys named in `spec` (tensor keys map to shapes)."""
    values: dict = {}
    for index, (key, value) in enumerate(sorted(spec.items())):
        if key in CONDITION_KEYS:
            values[key] = _random(value, seed + index + 1)
        elif key in CONDITION_LIST_KEYS:
            values[key] = [_random(shape, seed + index + 1) for shape in value]
        elif key in H3_KEYS:
            values[key] = [
                _h3_condition(each, seed + 10 * index + i) for i, each in enumerate(value)
            ]
        elif key == "clip_vision":
            states = _random(value, seed + index + 1)
            values["clip_vision_output"] = SimpleNamespace(
                last_hidden_state=states, penultimate_hidden_states=states
            )
        elif key == "attention_mask":  # [tokens, masked tokens at the end]
            mask = torch.ones(1, value[0], dtype=torch.long)
            mask[:, value[0] - value[1] :] = 0
            values[key] = mask
        else:
            values[key] = value
    return values


def conditioning(tokens: int, width: int, seed: int, spec: dict) -> list:
    """ComfyUI conditioning: one entry of text states [1, tokens, width] and a dictionary."""
    values = {"pooled_output": _random([1, 768], seed), **extra_conditions(spec, seed)}
    return [[_random([1, tokens, width], seed), values]]


class RSPATestConditioning:
    """Random text conditioning; `extras` is JSON with further conditioning keys."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "tokens": ("INT", {"default": 33, "min": 1, "max": 4096}),
                "width": ("INT", {"default": 64, "min": 1, "max": 8192}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**31}),
                "extras": ("STRING", {"default": "{}"}),
            }
        }

    def make(self, tokens, width, seed, extras):
        return (conditioning(tokens, width, seed, json.loads(extras)),)


class RSPATestPrompt:
    """A prompt of the small trained model: a tensor of a safetensors file."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"path": ("STRING", {}), "key": ("STRING", {})}}

    def make(self, path, key):
        return ([[load_file(path)[key].float(), {}]],)


class RSPATestModelSpace:
    """Latents in the scale that the model works in, in place of the VAE's."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "latent": ("LATENT",)}}

    def make(self, model, latent):
        return ({"samples": model.model.process_latent_in(latent["samples"].float())},)


class RSPATestLatent:
    """Latent of the given shape, zeros; with audio frames the pair of it and an audio latent.

    `nonce` changes nothing but the cache key, so that a repeated graph is really sampled again.
    """

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "channels": ("INT", {"default": 16, "min": 1, "max": 256}),
                "frames": ("INT", {"default": 5, "min": 1, "max": 256}),
                "height": ("INT", {"default": 22, "min": 1, "max": 256}),
                "width": ("INT", {"default": 26, "min": 1, "max": 256}),
                "batch": ("INT", {"default": 1, "min": 1, "max": 8}),
                "nonce": ("INT", {"default": 0, "min": 0, "max": 2**31}),
            },
            "optional": {"audio": ("INT", {"default": 0, "min": 0, "max": 4096})},
        }

    def make(self, channels, frames, height, width, batch, nonce, audio=0):
        video = torch.zeros(batch, channels, frames, height, width)
        if not audio:
            return ({"samples": video},)
        from comfy.nested_tensor import NestedTensor

        return ({"samples": NestedTensor((video, torch.zeros(batch, 32, 2, audio)))},)


class RSPATestAudioLatent:
    """Empty audio latent of LTX: 8 channels of 16 bins."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "frames": ("INT", {"default": 9, "min": 1, "max": 4096}),
                "batch": ("INT", {"default": 1, "min": 1, "max": 8}),
            }
        }

    def make(self, frames, batch):
        return ({"samples": torch.zeros(batch, 8, frames, 16), "type": "audio"},)


class RSPATestOption:
    """Set one of the model's transformer_options to a JSON value, as guidance nodes do."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "name": ("STRING", {}), "value": ("STRING", {})}}

    def patch(self, model, name, value):
        patched = model.clone()
        options = dict(patched.model_options.get("transformer_options", {}))
        patched.model_options["transformer_options"] = options | {name: json.loads(value)}
        return (patched,)


class RSPATestSaveLatent:
    """Write a latent to <output>/<name>.safetensors under the key "samples"."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    CATEGORY = "testing"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",), "name": ("STRING", {"default": "latent"})}}

    def save(self, latent, name):
        path = os.path.join(folder_paths.get_output_directory(), f"{name}.safetensors")
        save_file({"samples": latent["samples"].contiguous().cpu()}, path)
        return {"ui": {"text": [path]}}


class RSPATestAttentionOverride:
    """Install an attention override on the model, as other packs do.

    "zero" drops the result of every self-attention (does attention matter to the latents?);
    "pass" calls through and logs each call (is a previous override honoured as the dense path?).
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "mode": (["zero", "pass"],)}}

    def patch(self, model, mode):
        import logging

        def override(func, *args, **kwargs):
            out = func(*args, **kwargs)
            query, key = args[0], args[1]
            if mode == "pass":
                logging.info("RSPA_TEST_OVERRIDE %s %s", tuple(query.shape), tuple(key.shape))
                return out
            return torch.zeros_like(out) if query.shape == key.shape else out

        patched = model.clone()
        options = patched.model_options["transformer_options"] = dict(
            patched.model_options.get("transformer_options", {})
        )
        options["optimized_attention_override"] = override
        return (patched,)


class RSPATestAddedStream:
    """A model that nobody has seen: a subclass whose sequence has one more frame of tokens."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model):
        known = model.get_model_object("diffusion_model")

        class WithAddedStream(type(known)):
            def _forward(self, x, *args, **kwargs):
                video, *rest = x if isinstance(x, list) else [x]
                longer = torch.cat([video, video[:, :, :1]], dim=2)
                given = [longer, *rest] if rest else longer
                if (pose := kwargs.get("pose_latents")) is not None:  # a frame for each other one
                    kwargs["pose_latents"] = torch.cat([pose, pose[:, :, :1]], dim=2)
                out = super()._forward(given, *args, **kwargs)
                if not rest:
                    return out[:, :, :-1]
                return [out[0][:, :, :-1], *out[1:]]

        unknown = copy.copy(known)
        unknown.__class__ = WithAddedStream
        patched = model.clone()
        patched.add_object_patch("diffusion_model", unknown)
        return (patched,)


class RSPATestBypassAttention:
    """Replace Wan's self-attention modules, as packs do that bypass ComfyUI's attention."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model):
        patched = model.clone()
        for index in range(len(model.model.diffusion_model.blocks)):
            for name in ("self_attn", "cross_attn"):
                patched.add_object_patch(
                    f"diffusion_model.blocks.{index}.{name}.forward",
                    lambda x, *args, **kwargs: torch.zeros_like(x),
                )
        return (patched,)


class RSPATestTwoDevices:
    """ComfyUI's MultiGPU CFG Split over two devices that are both the CPU.

    Every model call logs its device and which copy of the model it runs.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model):
        import logging

        import comfy.model_management as management
        from comfy.patcher_extension import WrappersMP
        from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode

        def log(executor, *args, **conds):
            options = args[5]
            device = options.get("multigpu_thread_device")
            logging.info("RSPA_TEST_DEVICE %s %d", device, id(executor.class_obj.diffusion_model))
            return executor(*args, **conds)

        # ComfyUI's node fails where a model that it had loaded is gone from memory.
        loaded = management.current_loaded_models
        loaded[:] = [each for each in loaded if each.model is not None]
        # An index makes another device of the CPU for ComfyUI, not for torch.
        found = management.get_all_torch_devices
        management.get_all_torch_devices = lambda **_: [model.load_device, torch.device("cpu", 1)]
        try:
            split = MultiGPUCFGSplitNode.execute(model, 2).result[0]
        finally:
            management.get_all_torch_devices = found
        split.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "RSPA_TEST_DEVICE", log)
        return (split,)


NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        RSPATestClip,
        RSPATestConditioning,
        RSPATestInput,
        RSPATestAudioLatent,
        RSPATestLatent,
        RSPATestModelSpace,
        RSPATestOption,
        RSPATestPrompt,
        RSPATestSaveLatent,
        RSPATestAddedStream,
        RSPATestAttentionOverride,
        RSPATestBypassAttention,
        RSPATestVae,
        RSPATestTwoDevices,
    )
}
