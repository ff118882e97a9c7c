"""ComfyUI's own Wan, HunyuanVideo, MiniMax H3 and LTX 2 classes with random weights.

The classes come from a ComfyUI checkout (`import_comfyui`) and are built as its loader builds them,
minus the checkpoint. Speed depends on shapes, which are those of the released models.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

LATENTS = {
    "wan14b": {"720p": (16, 21, 90, 160), "480p": (16, 21, 60, 104), "small": (16, 7, 20, 32)},
    "animate2": {"720p": (16, 22, 90, 160), "480p": (16, 22, 60, 104), "small": (16, 8, 20, 32)},
    "hunyuan": {"720p": (16, 33, 90, 160), "480p": (16, 19, 60, 106), "small": (16, 7, 20, 32)},
    "h3": {"720p": (24, 22, 48, 84), "480p": (24, 37, 30, 54), "small": (24, 7, 20, 32)},
    "ltx2": {
        "1080p": (128, 16, 34, 60), "720p": (128, 16, 23, 40), "480p": (128, 16, 15, 26),
        "small": (128, 7, 10, 16),
    },
}  # fmt: skip
"""Channels, frames, height and width: Wan 1280x720x81 and 832x480x81, Wan Animate2 with a frame
more, the reference, HunyuanVideo 1280x720x129 and 848x480x73, H3 1344x768x73 and 864x480x124, LTX 2
1920x1088x121, 1280x736x121 and 832x480x121."""
H3_AUDIO = {"720p": 122, "480p": 207, "small": 20}
"""Frames of the sound, 40 a second of a video with 24."""
TEXT_WIDTH = 4096
LTX_CAPTION_WIDTH = 3840
LTX_AUDIO_FRAMES = 121
"""Of 121 video frames at 25 a second: the audio latent has as many frames a second."""


@dataclass(frozen=True)
class Case:
    """One model at one size.

    Attributes:
        title: for the table.
        config_class: name of the class in `comfy.supported_models`.
        unet_config: keyword arguments of the diffusion model, as ComfyUI's detection finds them.
        latent: channels, frames, height, width.
        text_tokens: length of the conditioning.
        joint_text: whether the text tokens take part in the video self-attention.
        audio_frames: of a sound that is sampled along, two tokens each; 0 without one.
        block_lists: attributes of the diffusion model that hold its blocks.
        blocks, released_blocks: how many there are, and how many the released model has.
        conditions: shapes of further conditions, by ComfyUI's names.
        dense_calls: of a forward that is sparse.
        patch: height and width of a token in the latent.
        text_width: channels of the conditioning.
        audio: shape of an audio latent that goes with the video's, () for none.
    """

    title: str
    config_class: str
    unet_config: dict[str, Any]
    latent: tuple[int, int, int, int]
    text_tokens: int
    joint_text: bool
    block_lists: tuple[str, ...]
    blocks: int
    released_blocks: int
    audio_frames: int = 0
    conditions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dense_calls: int = 0
    patch: int = 2
    text_width: int = TEXT_WIDTH
    audio: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Length of one self-attention."""
        _, frames, height, width = self.latent
        video = frames * math.ceil(height / self.patch) * math.ceil(width / self.patch)
        return video + self.joint_text * self.text_tokens + 2 * self.audio_frames


def wan_case(layers: int | None, size: str) -> Case:
    """Wan 2.1 14B text-to-video; `layers` blocks."""
    dim, ffn_dim = (256, 512) if size == "small" else (5120, 13824)
    layers = layers or 40
    config = {
        "image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "out_dim": 16,
        "dim": dim, "ffn_dim": ffn_dim, "num_heads": dim // 128, "num_layers": layers,
        "patch_size": (1, 2, 2), "freq_dim": 256, "text_dim": TEXT_WIDTH, "window_size": (-1, -1),
        "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
    }  # fmt: skip
    latent = LATENTS["wan14b"][size]
    return Case("Wan 2.1 14B", "WAN21_T2V", config, latent, 512, False, ("blocks",), layers, 40)


def animate2_case(layers: int | None, size: str) -> Case:
    """Wan Animate2 with a pose, which has a frame less than the video and a branch of its own."""
    wan = wan_case(layers, size)
    channels, frames, height, width = LATENTS["animate2"][size]
    return replace(
        wan,
        title="Wan Animate2 14B",
        config_class="WAN_Animate2",
        unet_config=wan.unet_config | {"model_type": "animate2", "in_dim": 36},
        latent=(channels, frames, height, width),
        conditions={
            "pose_video_latent": (1, channels, frames - 1, height, width),
            "concat_latent_image": (1, channels, frames, height, width),
            "concat_mask": (1, 1, frames, height, width),
        },
        dense_calls=wan.blocks,
    )


def hunyuan_case(layers: int | None, size: str) -> Case:
    """HunyuanVideo text-to-video; `layers` double blocks and twice as many single ones."""
    hidden = 256 if size == "small" else 3072
    layers = layers or 20
    config = {
        "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16,
        "patch_size": [1, 2, 2], "vec_in_dim": 768, "axes_dim": [16, 56, 56],
        "context_in_dim": TEXT_WIDTH, "hidden_size": hidden, "num_heads": hidden // 128,
        "mlp_ratio": 4.0, "depth": layers, "depth_single_blocks": 2 * layers, "theta": 256,
        "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
        "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
    }  # fmt: skip
    latent = LATENTS["hunyuan"][size]
    lists = ("double_blocks", "single_blocks")
    return Case("HunyuanVideo", "HunyuanVideo", config, latent, 256, True, lists, 3 * layers, 60)


def h3_case(layers: int | None, size: str) -> Case:
    """MiniMax H3 text-to-video with sound, in the pruned form; `layers` blocks."""
    hidden, heads, ffn = (256, 2, 256) if size == "small" else (5376, 56, 14336)
    layers = layers or 50
    config = {
        "image_model": "minimax_h3", "hidden_size": hidden, "num_layers": layers,
        "num_attention_heads": heads, "attention_head_dim": 128, "ffn_hidden_size": ffn,
        "text_dim": TEXT_WIDTH, "adaln_curve_grid": 1024, "time_embed_dim": 16,
    }  # fmt: skip
    latent, audio = LATENTS["h3"][size], H3_AUDIO[size]
    return Case(
        "MiniMax H3", "MiniMaxH3", config, latent, 256, True, ("blocks",), layers, 50, audio,
        audio=(32, 2, audio),
    )  # fmt: skip


def ltx2_case(layers: int | None, size: str) -> Case:
    """LTX 2 19B with its audio; `layers` blocks. What is not named is the class's default."""
    layers = layers or 48
    config: dict[str, Any] = {
        "image_model": "ltxav", "num_layers": layers, "caption_channels": LTX_CAPTION_WIDTH,
        "rope_type": "split", "frequencies_precision": "float64",
        "use_middle_indices_grid": True, "causal_temporal_positioning": True,
    }  # fmt: skip
    if size == "small":
        config |= {
            "num_attention_heads": 2, "cross_attention_dim": 256, "caption_channels": 64,
            "audio_num_attention_heads": 2, "audio_cross_attention_dim": 128,
            "connector_num_attention_heads": 1, "connector_num_layers": 1,
        }  # fmt: skip
    return Case(
        "LTX 2 19B", "LTXAV", config, LATENTS["ltx2"][size], 1024, False, ("transformer_blocks",),
        layers, 48, patch=1, text_width=2 * config["caption_channels"],
        audio=(8, LTX_AUDIO_FRAMES, 16),
    )  # fmt: skip


CASES = {
    "wan14b": wan_case,
    "animate2": animate2_case,
    "hunyuan": hunyuan_case,
    "h3": h3_case,
    "ltx2": ltx2_case,
}


def import_comfyui(root: Path, device: torch.device) -> None:
    """Make `import comfy` find the checkout, set up for this device as `main.py` does it."""
    if not (root / "comfy" / "model_base.py").is_file():
        raise SystemExit(f"--comfyui {root}: no ComfyUI checkout (comfy/model_base.py is missing)")
    # First on the path: our own folder `nodes` must not be found in place of ComfyUI's modules.
    sys.path.insert(0, str(root.resolve()))
    from comfy.cli_args import args

    args.cpu = device.type == "cpu"


def materialise(model: nn.Module, device: torch.device) -> None:
    """Replace meta parameters by random ones that keep activations of order one.

    Matrices get N(0, 1 / fan_in), norms 1, biases 0, and Wan's modulation tables, which are
    parameters of no layer, N(0, 1 / width); tables that a checkpoint holds beside parameters are
    uniform from 0 to 1. Everything keeps its dtype.
    """
    generator = torch.Generator(device).manual_seed(0)
    stored = set(model.state_dict())
    for prefix, module in model.named_modules():
        for name, meta in module.named_parameters(recurse=False):
            value = torch.empty(meta.shape, dtype=meta.dtype, device=device)
            if meta.ndim >= 2:
                fan_in = meta[0].numel() if name == "weight" else meta.shape[-1]
                value.normal_(0.0, fan_in**-0.5, generator=generator)
            else:
                value.fill_(0.0 if name == "bias" else 1.0)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        for name, table in module.named_buffers(recurse=False):
            if f"{prefix}.{name}".lstrip(".") not in stored:  # a rotary embedding that is computed
                continue
            value = torch.empty(table.shape, dtype=table.dtype, device=device)
            module.register_buffer(name, value.uniform_(generator=generator))


def build_patcher(case: Case, device: torch.device, dtype: torch.dtype) -> Any:
    """ComfyUI's `ModelPatcher` around a model of random weights, loaded completely."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    if not hasattr(comfy.supported_models, case.config_class):
        raise SystemExit(f"this ComfyUI has no {case.title}")
    config = getattr(comfy.supported_models, case.config_class)(case.unet_config)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device=torch.device("meta"))
    materialise(model.diffusion_model, device)
    model.device = device
    # Offloading to the same device: the weights never move to the host and back.
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    return patcher
