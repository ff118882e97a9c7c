"""Attention processors for the self-attention of diffusers' Wan and HunyuanVideo transformers.

A call that cannot be sparse goes to the processor that was there before, arguments untouched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention_calls import AttentionCalls, Block, RunDense

WAN_PROCESSORS = ("WanAttnProcessor", "WanAttnProcessor2_0")
HUNYUAN_PROCESSORS = ("HunyuanVideoAttnProcessor2_0",)

UNKNOWN_CALL = "unknown form of attention call"
UNKNOWN_ROTARY = "unknown form of rotary embedding"


class SparseProcessor:
    """Stands in for the processor of one self-attention module.

    Args:
        original: the processor that was there.
        calls: of the model.
        block: that the module is in.
    """

    def __init__(self, original: Any, calls: AttentionCalls, block: Block) -> None:
        self.original = original
        self.calls = calls
        self.block = block

    # `set_attention_backend` and `enable_parallelism` write to the processors that they find:
    # they mean the dense calls.
    @property
    def _attention_backend(self) -> Any:
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, value: Any) -> None:
        self.original._attention_backend = value

    @property
    def _parallel_config(self) -> Any:
        return self.original._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, value: Any) -> None:
        self.original._parallel_config = value


class WanSparseProcessor(SparseProcessor):
    """Self-attention of a Wan block: all tokens are video."""

    # Opaque to torch.compile: a traced call would keep the first step's decision.
    @torch.compiler.disable()
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """As `WanAttnProcessor`: `hidden_states [B, N, C]` to `[B, N, C]`."""
        try:
            if encoder_hidden_states is not None or kwargs:
                raise RunDense(UNKNOWN_CALL)
            return self._sparse(attn, hidden_states, attention_mask, rotary_emb)
        except RunDense as reason:
            self.calls.report.add_dense(str(reason))
        return self.original(
            attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **kwargs
        )

    def _sparse(self, attn: Any, video: Tensor, mask: Tensor | None, rotary: Any) -> Tensor:
        self.calls.check(self.block, attn, video, self.original, WAN_PROCESSORS)
        if not _is_pair(rotary):  # complex numbers before diffusers 0.35
            raise RunDense(UNKNOWN_ROTARY)
        lengths = self.calls.key_lengths(mask, *video.shape[:2])
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(video).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(video), attn.to_k(video), attn.to_v(video)
        # The norms span all heads.
        q, k = attn.norm_q(q), attn.norm_k(k)
        q, k, v = (each.unflatten(2, (attn.heads, -1)) for each in (q, k, v))
        q, k = _rotate(q, *rotary), _rotate(k, *rotary)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        out = self.calls.attend(q, k, v, lengths)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


class HunyuanSparseProcessor(SparseProcessor):
    """Joint attention of a HunyuanVideo block: video tokens, then text with padding at its end."""

    @torch.compiler.disable()
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """As `HunyuanVideoAttnProcessor2_0`: video `[B, N, C]` and text `[B, L, C]` to the same.

        The output of padded text tokens differs: it comes from zeros. Nothing reads it, because
        no token attends to them.
        """
        try:
            if encoder_hidden_states is None:
                raise RunDense(UNKNOWN_CALL)
            return self._sparse(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        except RunDense as reason:
            self.calls.report.add_dense(str(reason))
        return self.original(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            image_rotary_emb=image_rotary_emb,
        )

    def _sparse(
        self, attn: Any, video: Tensor, text: Tensor, mask: Tensor | None, rotary: Any
    ) -> tuple[Tensor, Tensor]:
        from diffusers.models.embeddings import apply_rotary_emb

        self.calls.check(self.block, attn, video, self.original, HUNYUAN_PROCESSORS)
        if not _is_pair(rotary):
            raise RunDense(UNKNOWN_ROTARY)
        batch, tokens, _ = video.shape
        lengths = self.calls.key_lengths(mask, batch, tokens + text.shape[1])
        video_qkv = _heads(attn, "to_q", "to_k", "to_v", "norm_q", "norm_k", video)
        if attn.add_q_proj is None:  # a single-stream block: one set of weights for both
            text_qkv = _heads(attn, "to_q", "to_k", "to_v", "norm_q", "norm_k", text)
        else:
            names = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k")
            text_qkv = _heads(attn, *names, text)
        q, k, v = video_qkv
        rotate: Any = apply_rotary_emb  # its annotation promises a pair
        q, k = rotate(q, rotary), rotate(k, rotary)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip((q, k, v), text_qkv, strict=True))
        out = self.calls.attend(q, k, v, lengths).transpose(1, 2).flatten(2)
        video, text = out[:, :tokens], out[:, tokens:]
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return video, text


def _is_pair(rotary: Any) -> bool:
    """Whether a rotary embedding is a pair of cosines and sines."""
    if not isinstance(rotary, tuple) or len(rotary) != 2:
        return False
    return all(isinstance(each, Tensor) and each.is_floating_point() for each in rotary)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Wan's rotary embedding of `x [B, N, H, D]`; `cos`, `sin` `[1, N, 1, D]` hold all in pairs."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(x)


def _heads(
    attn: Any, to_q: str, to_k: str, to_v: str, norm_q: str, norm_k: str, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v `[B, H, N, D]` of `x [B, N, C]` by the layers of these names; norms may be None."""
    q, k, v = (
        getattr(attn, name)(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        for name in (to_q, to_k, to_v)
    )
    if getattr(attn, norm_q) is not None:
        q = getattr(attn, norm_q)(q)
    if getattr(attn, norm_k) is not None:
        k = getattr(attn, norm_k)(k)
    return q, k, v
