"""Stand-ins for the parts of ComfyUI that the patching code meets: models, sampling, attention.

They have the names and shapes the code looks at and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

HEADS, HEAD_DIM = 2, 16
GRID = (4, 12, 16)
TOKENS = 4 * 12 * 16
LATENT = (1, 16, 4, 24, 32)
"""A Wan latent of GRID tokens: patches are 1 x 2 x 2."""


def wan_model(**parts: Any) -> SimpleNamespace:
    """A plain Wan transformer; `parts` adds what a variant has."""
    model = SimpleNamespace(
        patch_size=(1, 2, 2),
        patch_embedding=object(),
        text_embedding=object(),
        blocks=[object()] * 4,
        head=object(),
        ref_conv=None,
    )
    vars(model).update(parts)
    return model


def hunyuan_model(text_is_last: bool = False, **parts: Any) -> SimpleNamespace:
    """A HunyuanVideo transformer of a newer core, or of one up to 0.13 (`text_is_last`)."""
    block = SimpleNamespace(flipped_img_txt=True) if text_is_last else SimpleNamespace()
    model = SimpleNamespace(
        patch_size=[1, 2, 2],
        img_in=object(),
        txt_in=object(),
        double_blocks=[block] * 2,
        single_blocks=[object()] * 3,
        byt5_in=None,
    )
    vars(model).update(parts)
    return model


def h3_model(**parts: Any) -> SimpleNamespace:
    """A MiniMax H3 transformer; ComfyUI does not number its blocks."""
    attention = SimpleNamespace(heads=HEADS)
    model = SimpleNamespace(
        patch_size=(1, 2, 2),
        video_patch_proj=object(),
        audio_patch_proj=object(),
        token_refiner=object(),
        blocks=[SimpleNamespace(attn=attention)] * 4,
        hidden_size=HEADS * HEAD_DIM,
    )
    vars(model).update(parts)
    return model


class LtxPatchifier:
    """Tokens of one voxel: a latent `[B, C, T, H, W]` to `[B, T*H*W, C]`, and coordinates."""

    patch_size = (1, 1, 1)

    def patchify(self, latent: Tensor) -> tuple[Tensor, None]:
        return latent.flatten(2).transpose(1, 2), None


def ltx_model(**parts: Any) -> SimpleNamespace:
    """An LTX transformer; the audio-video one has the same parts and more."""
    model = SimpleNamespace(
        patchifier=LtxPatchifier(),
        patchify_proj=object(),
        adaln_single=object(),
        transformer_blocks=[object()] * 4,
        proj_out=object(),
    )
    vars(model).update(parts)
    return model


def base_model(diffusion_model: Any) -> SimpleNamespace:
    """A BaseModel with unshifted flow sampling: percent is 1 - sigma."""
    sampling = SimpleNamespace(percent_to_sigma=lambda percent: 1.0 - percent)
    return SimpleNamespace(diffusion_model=diffusion_model, model_sampling=sampling)


def tensors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v of one shape."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: torch.dtype | None = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Full attention with the arguments of ComfyUI's attention functions."""
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def optimized_attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """ComfyUI's entry: hands the call to the override unless it comes from inside one."""
    override = kwargs.get("transformer_options", {}).get("optimized_attention_override")
    if override is not None and "_inside_attn_wrapper" not in kwargs:
        return override(dense, q, k, v, *args, _inside_attn_wrapper=True, **kwargs)
    return dense(q, k, v, *args, **kwargs)


class Box:
    """A one-slot tensor container, as newer cores pass q, k and v."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor

    def peek(self) -> Tensor:
        assert self.tensor is not None, "the container is empty"
        return self.tensor

    def take(self) -> Tensor:
        tensor = self.peek()
        self.tensor = None
        return tensor


class Executor:
    """The rest of the wrapper chain: runs `forward(x, transformer_options)`, which may be a model.

    Attributes:
        options: transformer_options of each call that came through.
    """

    def __init__(self, base: Any, forward: Callable[[Tensor, dict[str, Any]], Tensor]) -> None:
        self.class_obj = base
        self.forward = forward
        self.options: list[dict[str, Any]] = []

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Any,
        c_crossattn: Any,
        control: Any,
        transformer_options: dict[str, Any],
        **conds: Any,
    ) -> Tensor:
        self.options.append(transformer_options)
        return self.forward(x, transformer_options)


def wan_forward(blocks: int = 4, dtype: torch.dtype = torch.float32) -> Callable[..., Tensor]:
    """A forward of `blocks` Wan blocks: self-attention and cross-attention each.

    Returns a latent-shaped mean of the attention outputs, so that a NaN shows.
    """

    def forward(x: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        total = torch.zeros(())
        for index in range(blocks):
            transformer_options.update(block_type="double", block_index=index, total_blocks=blocks)
            q, k, v = tensors(1, TOKENS, HEADS * HEAD_DIM, seed=index, dtype=dtype)
            own = optimized_attention(q, k, v, heads=HEADS, transformer_options=transformer_options)
            text = k[:, :20]
            optimized_attention(q, text, text, heads=HEADS, transformer_options=transformer_options)
            total = total + own.float().mean()
        return x + total

    return forward
