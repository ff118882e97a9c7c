"""What model nodes of ComfyUI ask for beside the model, as small random stand-ins."""

from __future__ import annotations

from typing import Any

import folder_paths
import torch
from safetensors.torch import load_file

WIDTH = 256  # of the tiny models


class AnyType(str):
    """The type of a socket that fits every other one."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class TinyVAE:
    """Encodes pictures [T, H, W, 3] to random latents [1, 16, t, H / 8, W / 8], as Wan's does."""

    def temporal_compression_decode(self) -> int:
        return 4

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        frames, height, width, _ = pixels.shape
        shape = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(41))


class TinyLtxVAE:
    """Encodes pictures [T, H, W, 3] to random latents [1, 128, t, H / 32, W / 32], like LTX's."""

    downscale_index_formula = (8, 32, 32)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        frames, height, width, _ = pixels.shape
        shape = (1, 128, (frames - 1) // 8 + 1, height // 32, width // 32)
        return torch.randn(shape, generator=torch.Generator().manual_seed(43))


def uni3c_network() -> Any:
    """A patcher around a network that steers a Wan model by a video, with attention of its own."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.ops
    from comfy.ldm.wan.uni3c import WanUni3CControlnet

    network = WanUni3CControlnet(
        conv_out_dim=WIDTH, dim=WIDTH, ffn_dim=WIDTH, num_heads=2, num_layers=2,
        time_embed_dim=WIDTH, out_proj_dim=WIDTH, mid_channels=16,
        dtype=torch.float32, operations=comfy.ops.manual_cast,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(42)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise * (noise[0].numel() if noise.ndim > 1 else 100) ** -0.5
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(network, device, device)


def lora() -> dict[str, torch.Tensor]:
    """The LoRA among the server's files."""
    return load_file(folder_paths.get_full_path("loras", "tiny.safetensors"))


MAKERS = {"nothing": lambda: None, "lora": lora, "uni3c": uni3c_network}
MAKERS |= {"vae": TinyVAE, "ltx_vae": TinyLtxVAE}


class RSPATestInput:
    """One of the stand-ins."""

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": ("STRING", {"default": "nothing"})}}

    def make(self, kind):
        return (MAKERS[kind](),)
