"""Tiny random transformers of diffusers and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
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


@torch.no_grad()
def velocity(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Output of a model."""
    return model(**inputs, return_dict=False)[0]


def counts(sparse: SparseAttention) -> tuple[int, dict[str, int]]:
    """Sparse calls, and dense calls by reason."""
    record = sparse.record
    return record.sparse, {reason.text: count for reason, count in record.reasons.items()}
