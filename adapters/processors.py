"""Attention processors for the self-attention of diffusers' Wan and HunyuanVideo transformers.

A call that cannot be sparse goes to the processor that was there before, arguments untouched.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..rspa_core.run.calls import Decision, Forward, ForwardPlan, SparseRun
from ..rspa_core.run.reasons import DenseReason, Reason, why
from ..rspa_core.run.record import Block


@dataclass(frozen=True)
class BlockPlace:
    """A transformer block: its kind and number, and how many of its kind there are."""

    block: Block
    total: int


class Current(threading.local):
    """What one thread is doing with a transformer.

    Args:
        run: of the transformer.

    Attributes:
        forward: the model call that it is in, None outside of one.
        is_repeating: whether that call is made by us, after values that were not finite.
    """

    def __init__(self, run: SparseRun) -> None:
        self.run = run
        self.forward: Forward | None = None
        self.is_repeating = False
        self._mask: tuple[Tensor | None, list[int] | DenseReason] = (None, [])

    def begin(self, forward: Forward | None) -> None:
        """A model call begins, or is over."""
        self.forward = forward
        self._mask = (None, [])

    def note_outside(self, block: Block, device: torch.device) -> None:
        """Count a call of an attention module that no forward of the transformer has made."""
        reason = why(Reason.OUTSIDE)
        forward = self.run.open(ForwardPlan(None, None, reason), device)
        forward.count_dense(block, reason)
        self.run.close(forward, None)

    def key_lengths(self, mask: Tensor | None, batch: int, length: int) -> list[int] | DenseReason:
        """How many of the `length` tokens each sample of the batch attends to, from its mask.

        Args:
            mask: None, or bool `[B, 1, 1, length]`, True for the tokens to attend to.
            batch: samples.
            length: tokens with all padding.

        Returns:
            Them, or a reason if the mask is more than padding at the end of the text.
        """
        if mask is None:
            return [length] * batch
        # One mask serves all blocks of a forward: look at its values once, that waits.
        if mask is not self._mask[0]:
            self._mask = (mask, self._read_mask(mask, batch, length))
        return self._mask[1]

    def _read_mask(self, mask: Tensor, batch: int, length: int) -> list[int] | DenseReason:
        assert self.forward is not None
        assert self.forward.plan.layout is not None
        if mask.dtype != torch.bool or tuple(mask.shape) != (batch, 1, 1, length):
            return why(Reason.MASK_FORM, tuple(mask.shape), mask.dtype)
        flat = mask.view(batch, length)
        rises = (flat[:, 1:] & ~flat[:, :-1]).sum(1)
        counts, number_of_rises = torch.stack([flat.sum(1), rises]).tolist()
        if any(number_of_rises) or min(counts) < self.forward.plan.layout.video_length:
            return why(Reason.MASK_NOT_AT_END)
        return counts


class SparseProcessor:
    """Stands in for the processor of one self-attention module.

    Args:
        original: the processor that was there.
        current: of the transformer.
        place: of the module.
    """

    known: tuple[str, ...] = ()
    """Names of the processor classes whose mathematics is ours."""

    def __init__(self, original: Any, current: Current, place: BlockPlace) -> None:
        self.original = original
        self.current = current
        self.place = place

    def decide(
        self, attn: Any, video: Tensor, mask: Tensor | None, length: int, form: Reason | None
    ) -> tuple[Decision, list[int]] | None:
        """What becomes of a call, and the tokens of each sample; None if it is dense, counted.

        Args:
            attn: the module.
            video: hidden states of the video tokens, `[B, N, C]`.
            mask: of the call.
            length: its tokens, with text and padding.
            form: what its form has against it.
        """
        block, forward = self.place.block, self.current.forward
        if forward is None:
            self.current.note_outside(block, video.device)
            return None
        plan, lengths = forward.plan, self.current.key_lengths(None, len(video), length)
        unsupported = None
        if plan.config is not None and plan.layout is not None:  # else it is dense anyway
            unsupported = self._unsupported(attn, video, plan.layout.video_length, form)
            if unsupported is None:
                read = self.current.key_lengths(mask, len(video), length)
                lengths, unsupported = (
                    (lengths, read) if isinstance(read, DenseReason) else (read, None)
                )
        dtype, head_dim = video.dtype, attn.inner_dim // attn.heads
        decision = forward.decide(
            block, self.place.total, video.device, dtype, head_dim, unsupported
        )
        if decision is None:
            return None
        assert isinstance(lengths, list)
        return decision, lengths

    def attend(
        self, decided: tuple[Decision, list[int]], q: Tensor, k: Tensor, v: Tensor, mask: Any
    ) -> Tensor | None:
        """`[B, H, N, D]` of such q, k and v; None if it failed, which is counted."""
        decision, lengths = decided
        # As torch's attention under autocast: the norms may leave q and k in fp32.
        q, k = q.to(v.dtype), k.to(v.dtype)

        def dense() -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        assert self.current.forward is not None
        return self.current.forward.attend(decision, q, k, v, dense, lengths)

    def _unsupported(
        self, attn: Any, video: Tensor, video_length: int, form: Reason | None
    ) -> DenseReason | None:
        if type(self.original).__name__ not in self.known:
            return why(Reason.PROCESSOR, type(self.original).__name__)
        if getattr(self.original, "_parallel_config", None) is not None:
            return why(Reason.PARALLEL)
        if video.shape[1] != video_length:
            return why(Reason.OTHER_LENGTH, video.shape[1], video_length)
        if torch.is_grad_enabled():
            if video.requires_grad or any(each.requires_grad for each in attn.parameters()):
                return why(Reason.GRADIENTS)
        return None if form is None else why(form)

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

    known = ("WanAttnProcessor", "WanAttnProcessor2_0")

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
        form = None
        if encoder_hidden_states is not None or kwargs:
            form = Reason.UNKNOWN_CALL
        elif not _is_pair(rotary_emb):  # complex numbers before diffusers 0.35
            form = Reason.UNKNOWN_ROTARY
        length = hidden_states.shape[1]
        decided = self.decide(attn, hidden_states, attention_mask, length, form)
        if decided is not None:
            q, k, v = self._projected(attn, hidden_states, rotary_emb)
            out = self.attend(decided, q, k, v, attention_mask)
            if out is not None:
                return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        return self.original(
            attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **kwargs
        )

    def _projected(self, attn: Any, video: Tensor, rotary: Any) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v `[B, H, N, D]` of `video [B, N, C]`, rotary embedding applied."""
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(video).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(video), attn.to_k(video), attn.to_v(video)
        # The norms span all heads.
        q, k = attn.norm_q(q), attn.norm_k(k)
        q, k, v = (each.unflatten(2, (attn.heads, -1)) for each in (q, k, v))
        q, k = _rotate(q, *rotary), _rotate(k, *rotary)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class HunyuanSparseProcessor(SparseProcessor):
    """Joint attention of a HunyuanVideo block: video tokens, then text with padding at its end."""

    known = ("HunyuanVideoAttnProcessor2_0",)

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
        form, length = None, hidden_states.shape[1]
        if encoder_hidden_states is None:
            form = Reason.UNKNOWN_CALL
        else:
            length += encoder_hidden_states.shape[1]
            if not _is_pair(image_rotary_emb):
                form = Reason.UNKNOWN_ROTARY
        decided = self.decide(attn, hidden_states, attention_mask, length, form)
        if decided is not None and encoder_hidden_states is not None:
            q, k, v = self._projected(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
            out = self.attend(decided, q, k, v, attention_mask)
            if out is not None:
                return self._parted(attn, out, hidden_states.shape[1])
        return self.original(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            image_rotary_emb=image_rotary_emb,
        )

    def _projected(
        self, attn: Any, video: Tensor, text: Tensor, rotary: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v `[B, H, N + L, D]` of `video [B, N, C]` and `text [B, L, C]`."""
        from diffusers.models.embeddings import apply_rotary_emb

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
        return q, k, v

    def _parted(self, attn: Any, out: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Video and text of `out [B, H, N + L, D]`, behind their output layers if there are any."""
        out = out.transpose(1, 2).flatten(2)
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
