"""Stand-ins for text encoders and VAEs, for a test server: the example workflows run unchanged.

Importing this replaces the load functions of ComfyUI's loader nodes. Text becomes one of the stored
prompts of the small trained model in `tools/tiny_wan`, latents become pictures by its autoencoder;
where no such thing exists, by fixed random numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import torch
import torch.nn.functional as F
from comfy_api.latest import io

import nodes

TOOLS = Path(__file__).resolve().parents[4] / "tools"
if str(TOOLS) not in sys.path:
    sys.path.append(str(TOOLS))

from tiny_wan.autoencoder import Autoencoder  # noqa: E402
from tiny_wan.model_files import PROMPTS, VAE, Prompts  # noqa: E402

CHECKPOINT = TOOLS / "tiny_wan" / "checkpoint"
# Widths of the tiny random checkpoints, see tests/integration/tiny_models.py.
HUNYUAN_TEXT = (1, 40, 64)
LTX_TEXT = (1, 40, 128)
HUNYUAN_POOLED = (1, 768)
VISION_TOKENS = (1, 257, 1280)
FRAMES_PER_LATENT = 4


def fixed_noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Normal numbers, the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class StoredPrompts:
    """In place of a text encoder for Wan: a text that names a scene becomes that scene's prompt."""

    def __init__(self) -> None:
        self.prompts = Prompts.load(CHECKPOINT / PROMPTS)

    def tokenize(self, text: str, **options: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **options: Any) -> list[Any]:
        # The templates' negative prompts are Chinese; whatever else names no scene gets the first.
        scene = 0 if tokens.strip() and tokens.isascii() else self.prompts.empty
        for number, name in enumerate(self.prompts.names):
            if name in tokens:
                scene = number
        return [[self.prompts.embeddings[scene : scene + 1].clone(), {}]]


class RandomPrompts:
    """In place of the text encoders of HunyuanVideo, H3 and LTX: fixed noise for every text."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def tokenize(self, text: str, **options: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **options: Any) -> list[Any]:
        seed = sum(tokens.encode())
        pooled = {"pooled_output": fixed_noise(HUNYUAN_POOLED, seed)}
        return [[fixed_noise(self.shape, seed), pooled]]


class LinearVAE:
    """In place of a VAE: a product with a matrix; `channels` and `stride` are the real one's."""

    def __init__(self, channels: int, stride: int) -> None:
        self.channels = channels
        self.stride = stride

    def decode(self, latent: torch.Tensor, **options: Any) -> torch.Tensor:
        """RGB `[B, F, H, W, 3]` in 0..1 of latents `[B, C, T, h, w]`."""
        matrix = fixed_noise((3, self.channels), 0) / self.channels**0.5
        video = torch.einsum("rc,bcthw->brthw", matrix, latent.float())
        video = (video / (3 * video.std() + 1e-6)).repeat_interleave(FRAMES_PER_LATENT, dim=2)
        video = F.interpolate(video[:, :, FRAMES_PER_LATENT - 1 :], scale_factor=(1, *self._scale))
        return as_images(video)

    def decode_tiled(self, latent: torch.Tensor, **options: Any) -> torch.Tensor:
        return self.decode(latent)

    @property
    def latent_channels(self) -> int:
        return self.channels

    def spacial_compression_encode(self) -> int:
        return self.stride

    def spacial_compression_decode(self) -> int:
        return self.stride

    def temporal_compression_decode(self) -> int:
        return FRAMES_PER_LATENT

    @property
    def _scale(self) -> tuple[int, int]:
        return self.stride, self.stride


class EncodingVAE(LinearVAE):
    """The same with fixed random latents for pictures."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents `[1, C, 1, h, w]` of RGB `[1, H, W, 3]`."""
        height, width = images.shape[1:3]
        return fixed_noise((1, self.channels, 1, height // self.stride, width // self.stride), 3)


class SoundVAE:
    """In place of MiniMax H3's audio VAE: the first two channels of the latents, as stereo."""

    audio_sample_rate = 16_000

    def decode(self, latent: torch.Tensor, **options: Any) -> torch.Tensor:
        """Samples `[B, L, 2]` in -1..1 of latents `[B, C, 2, T]`, 40 frames a second."""
        frames = latent[:, 0].float().clamp(-1, 1)
        return frames.repeat_interleave(self.audio_sample_rate // 40, dim=-1).movedim(1, -1)


class LtxVAE(LinearVAE):
    """In place of LTX's VAE; a picture becomes fixed noise."""

    downscale_index_formula = (8, 32, 32)
    first_stage_model = SimpleNamespace(
        per_channel_statistics=SimpleNamespace(normalize=lambda x: x, un_normalize=lambda x: x)
    )

    def __init__(self) -> None:
        super().__init__(128, 32)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        frames, height, width, _ = images.shape
        return fixed_noise((1, 128, (frames - 1) // 8 + 1, height // 32, width // 32), 2)


class LtxAudioVAE:
    """In place of LTX's audio VAE: silence."""

    latent_channels = 8
    first_stage_model = SimpleNamespace(
        latent_frequency_bins=16,
        num_of_latents_from_frames=lambda frames, rate: round(frames / rate * 25),
        output_sample_rate=16000,
    )

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, latent.shape[2] * 640, 2)


class TwiceAsLarge(torch.nn.Module):
    """In place of LTX's latent upscaler: every voxel four times."""

    def get_dtype(self) -> torch.dtype:
        return torch.float32

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return latent.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


class TinyWanVAE(LinearVAE):
    """In place of Wan 2.1's VAE: the autoencoder of the small model."""

    def __init__(self) -> None:
        super().__init__(16, 8)
        self.format = comfy.latent_formats.Wan21()
        self.autoencoder = Autoencoder.load(CHECKPOINT / VAE)

    def decode(self, latent: torch.Tensor, **options: Any) -> torch.Tensor:
        return as_images(self.autoencoder.decode(self.format.process_in(latent.float())))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents `[1, 16, T, h, w]` of RGB `[F, H, W, 3]` in 0..1."""
        video = images[..., :3].float().movedim(-1, 0)[None] * 2 - 1
        return self.format.process_out(self.autoencoder.encode(video))


class NoVision:
    """In place of a CLIP vision model: fixed noise for every picture."""

    def encode_image(self, image: torch.Tensor, **options: Any) -> comfy.clip_vision.Output:
        output = comfy.clip_vision.Output()
        output.penultimate_hidden_states = fixed_noise(VISION_TOKENS, 1)
        return output


def as_images(video: torch.Tensor) -> torch.Tensor:
    """RGB `[B, F, H, W, 3]` in 0..1 of a video `[B, 3, F, H, W]` in -1..1."""
    return ((video.clamp(-1, 1) + 1) / 2).movedim(1, -1)


def load_clip(self: Any, *names: str, type: str = "", **options: Any) -> tuple[Any]:
    if type == "wan":
        return (StoredPrompts(),)
    return (RandomPrompts(LTX_TEXT if type == "ltxv" else HUNYUAN_TEXT),)


def load_vae(self: Any, vae_name: str, **options: Any) -> tuple[Any]:
    if vae_name.startswith("minimax_h3_audio"):
        return (SoundVAE(),)
    if vae_name.startswith("minimax_h3"):
        return (EncodingVAE(24, 16),)
    if vae_name.startswith("ltx"):
        return (LtxAudioVAE() if "audio" in vae_name else LtxVAE(),)
    other = {"wan2.2_vae.safetensors": (48, 16), "hunyuanvideo15_vae_fp16.safetensors": (32, 16)}
    if vae_name in other:
        return (LinearVAE(*other[vae_name]),)
    return (LinearVAE(16, 8) if "hunyuan" in vae_name else TinyWanVAE(),)


def load_vision(self: Any, *names: str, **options: Any) -> tuple[NoVision]:
    return (NoVision(),)


def load_upscaler(cls: Any, model_name: str) -> tuple[Any]:
    device = comfy.model_management.get_torch_device()
    return (comfy.model_patcher.ModelPatcher(TwiceAsLarge(), device, device),)


def load_checkpoint(self: Any, ckpt_name: str, **options: Any) -> tuple[Any, ...]:
    """In place of SAM 3: no model, and any text encoder."""
    return (None, RandomPrompts(HUNYUAN_TEXT), None)


def track_nothing(cls: Any, images: torch.Tensor, model: Any, **options: Any) -> io.NodeOutput:
    """In place of SAM 3's tracker: it finds nobody."""
    frames, height, width, _ = images.shape
    found = {"packed_masks": None, "orig_size": (height, width), "n_frames": frames}
    return io.NodeOutput(found)


# ComfyUI's own nodes are there before any pack's; this one came with SAM 3.
if tracker := nodes.NODE_CLASS_MAPPINGS.get("SAM3_VideoTrack"):
    tracker.execute = classmethod(track_nothing)
nodes.CheckpointLoaderSimple.load_checkpoint = load_checkpoint
nodes.CLIPLoader.load_clip = load_clip
nodes.DualCLIPLoader.load_clip = load_clip
nodes.VAELoader.load_vae = load_vae
nodes.CLIPVisionLoader.load_clip = load_vision
nodes.NODE_CLASS_MAPPINGS["LatentUpscaleModelLoader"].execute = classmethod(load_upscaler)

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
