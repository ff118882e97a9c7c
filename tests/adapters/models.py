"""Tiny random transformers of diffusers and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTX2VideoTransformer3DModel,
    WanTransformer3DModel,
)
from torch import Tensor

from rectified_spaattn.adapters import SparseAttention
from rectified_spaattn.rspa_core import SparseConfig

GRID = (3, 8, 12)
"""Tokens of `latent()`: 5 blocks of 64, the last one ragged."""
TEXT = 9

FULL = SparseConfig(sparsity=0.0, rectification="none", tail_keys=1, q_block=64, kv_block=64)
"""Keeps every block: what comes out is full attention."""
SPARSE = SparseConfig(
    sparsity=0.75, rectification="paper", tail_keys=1, q_block=64, kv_block=64, neighbours=False
)


def wan(**changes: Any) -> Any:
    """A Wan text-to-video transformer of two blocks; `image_dim` makes it an image-to-video one."""
    torch.manual_seed(0)
    widths = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "ffn_dim": 32}
    widths |= {"in_channels": 4, "out_channels": 4, "text_dim": 8, "freq_dim": 16}
    return WanTransformer3DModel(**(widths | changes)).eval()


def hunyuan(**changes: Any) -> Any:
    """A HunyuanVideo transformer of two double and two single blocks."""
    torch.manual_seed(0)
    widths = {"num_attention_heads": 2, "attention_head_dim": 16, "rope_axes_dim": (4, 6, 6)}
    widths |= {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1}
    widths |= {"in_channels": 4, "out_channels": 4}
    widths |= {"text_embed_dim": 8, "pooled_projection_dim": 8}
    return HunyuanVideoTransformer3DModel(**(widths | changes)).eval()


def hunyuan15(**changes: Any) -> Any:
    """A HunyuanVideo 1.5 transformer of two blocks, with patches of one latent pixel."""
    torch.manual_seed(0)
    widths = {"num_attention_heads": 2, "attention_head_dim": 16, "rope_axes_dim": (4, 6, 6)}
    widths |= {"num_layers": 2, "num_refiner_layers": 1, "in_channels": 4, "out_channels": 4}
    widths |= {"text_embed_dim": 8, "text_embed_2_dim": 8, "image_embed_dim": 8}
    return HunyuanVideo15Transformer3DModel(**(widths | changes)).eval()


def ltx2(**changes: Any) -> Any:
    """An LTX 2 transformer of two blocks, with a video and an audio stream."""
    torch.manual_seed(0)
    widths = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2}
    widths |= {"audio_num_attention_heads": 2, "audio_attention_head_dim": 12}
    widths |= {"in_channels": 4, "out_channels": 4, "audio_in_channels": 4, "caption_channels": 8}
    widths |= {"cross_attention_dim": 48, "audio_cross_attention_dim": 24}
    return LTX2VideoTransformer3DModel(**(widths | changes)).eval()


def latent(grid: tuple[int, int, int] = GRID, batch: int = 2) -> Tensor:
    """A latent `[B, 4, T, H, W]` with these tokens."""
    frames, height, width = grid
    generator = torch.Generator().manual_seed(1)
    return torch.randn((batch, 4, frames, 2 * height, 2 * width), generator=generator)


def wan_inputs(
    grid: tuple[int, int, int] = GRID, timestep: float = 500.0, batch: int = 2
) -> dict[str, Any]:
    text = torch.randn((batch, TEXT, 8), generator=torch.Generator().manual_seed(2))
    times = torch.full((batch,), timestep)
    return {"hidden_states": latent(grid, batch), "timestep": times, "encoder_hidden_states": text}


def hunyuan_inputs(*text_lengths: int, grid: tuple[int, int, int] = GRID) -> dict[str, Any]:
    """One sample for each number of text tokens, padded to `TEXT`."""
    batch = len(text_lengths)
    inputs = wan_inputs(grid, batch=batch)
    mask = torch.arange(TEXT).expand(batch, TEXT) < torch.tensor(text_lengths)[:, None]
    return inputs | {
        "encoder_attention_mask": mask.long(),
        "pooled_projections": torch.ones(batch, 8),
        "guidance": torch.full((batch,), 6000.0),
    }


def hunyuan15_inputs(
    text: tuple[int, ...] = (6, 4),
    glyphs: tuple[int, ...] = (2, 0),
    has_image: bool = True,
    grid: tuple[int, int, int] = GRID,
) -> dict[str, Any]:
    """As many samples as there are numbers of text and of glyph tokens, padded to 9 and 3."""
    batch, generator = len(text), torch.Generator().manual_seed(1)

    def tokens(length: int) -> Tensor:
        return torch.randn((batch, length, 8), generator=generator)

    def mask(counts: tuple[int, ...], length: int) -> Tensor:
        return (torch.arange(length).expand(batch, length) < torch.tensor(counts)[:, None]).long()

    return {
        "hidden_states": torch.randn((batch, 4, *grid), generator=generator),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": tokens(TEXT),
        "encoder_attention_mask": mask(text, TEXT),
        "encoder_hidden_states_2": tokens(3),
        "encoder_attention_mask_2": mask(glyphs, 3),
        "image_embeds": tokens(2) if has_image else torch.zeros(batch, 2, 8),
    }


def ltx2_inputs(
    grid: tuple[int, int, int] = GRID, guides: int = 0, batch: int = 2
) -> dict[str, Any]:
    """`guides`: tokens of keyframes behind the video's."""
    frames, height, width = grid
    tokens, generator = frames * height * width + guides, torch.Generator().manual_seed(1)

    def some(*shape: int) -> Tensor:
        return torch.randn((batch, *shape), generator=generator)

    inputs = {
        "hidden_states": some(tokens, 4),
        "audio_hidden_states": some(5, 4),
        "encoder_hidden_states": some(8, 8),
        "audio_encoder_hidden_states": some(8, 8),
        "timestep": torch.full((batch,), 500.0),
        "num_frames": frames,
        "height": height,
        "width": width,
        "audio_num_frames": 5,
    }
    if guides:
        inputs["video_coords"] = torch.arange(3 * tokens * 2.0).view(1, 3, tokens, 2) % 97
        inputs["video_coords"] = inputs["video_coords"].repeat(batch, 1, 1, 1)
    return inputs


@torch.no_grad()
def velocity(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Output of a model."""
    return model(**inputs, return_dict=False)[0]


def counts(sparse: SparseAttention) -> tuple[int, dict[str, int]]:
    """Sparse calls, and dense calls by reason."""
    record = sparse.record
    return record.sparse, {reason.text: count for reason, count in record.reasons.items()}
