"""The video transformers of diffusers that can be sparse: processors for their self-attention, and
one row each in `FAMILIES`.

A row is found by the name of a class among a model's bases, so that subclasses count and a
diffusers release without the class does no harm.

A call that cannot be sparse goes to the processor that was there before, arguments untouched. Under
context parallelism by Ulysses, every call that could be sparse is made here, also one that is not:
processes in which it fails must not leave the others waiting for their part of the all-to-alls.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..rspa_core import ConfigError, TokenLayout
from ..rspa_core.run.calls import Forward, ForwardPlan, SparseRun
from ..rspa_core.run.profile import ModelFingerprint
from ..rspa_core.run.reasons import DenseReason, Reason, why
from ..rspa_core.run.record import Block
from .ulysses import HeadExchange

QKV = tuple[Tensor, Tensor, Tensor]


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
            mask: None, or bool `[B, 1, 1, length]`, True for the tokens to attend to, or bool
                `[B, L]` for the last L of them.
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
        covered = mask.shape[-1]
        is_of_all = tuple(mask.shape) == (batch, 1, 1, length)
        is_of_text = tuple(mask.shape) == (batch, covered) and covered <= length
        if mask.dtype != torch.bool or not (is_of_all or is_of_text):
            return why(Reason.MASK_FORM, tuple(mask.shape), mask.dtype)
        flat = mask.view(batch, covered)
        rises = (flat[:, 1:] & ~flat[:, :-1]).sum(1)
        counts, number_of_rises = torch.stack([flat.sum(1), rises]).tolist()
        lengths = [length - covered + count for count in counts]
        if any(number_of_rises) or min(lengths) < self.forward.plan.layout.video_length:
            return why(Reason.MASK_NOT_AT_END)
        return lengths


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

    def attention(
        self,
        attn: Any,
        video: Tensor,
        text: Tensor | None,
        mask: Tensor | None,
        form: DenseReason | None,
        projected: Callable[[], QKV],
    ) -> Tensor | None:
        """What a call attends, `[B, H, N, D]`; None if it is left to the original processor.

        Args:
            attn: the module.
            video: hidden states of the video tokens and what shares their weights, `[B, n, C]`;
                under Ulysses those of this process.
            text: those of the text tokens, `[B, L, C]`, or None.
            mask: of the call.
            form: what its form has against it.
            projected: makes its q, k and v, `[B, H, n + L, D]`.
        """
        block, forward = self.place.block, self.current.forward
        if forward is None:
            self.current.note_outside(block, video.device)
            return None
        length = video.shape[1] + (0 if text is None else text.shape[1])
        exchange, against = self._exchange(attn, forward, text is not None)
        against = against or self._unsupported(attn, forward, video, exchange) or form
        lengths: Sequence[int] = [length if exchange is None else exchange.length] * len(video)
        if exchange is not None and mask is not None:
            against = against or why(Reason.MASK_PARALLEL)
        elif exchange is None and against is None and _may_be_sparse(forward):
            read = self.current.key_lengths(mask, len(video), length)
            lengths, against = (lengths, read) if isinstance(read, DenseReason) else (read, None)
        dtype, head_dim = video.dtype, attn.inner_dim // attn.heads
        decision = forward.decide(block, self.place.total, video.device, dtype, head_dim, against)
        if decision is None and (exchange is None or against is not None):
            return None
        q, k, v = projected()
        # As torch's attention under autocast: the norms may leave q and k in fp32.
        q, k = q.to(v.dtype), k.to(v.dtype)
        if exchange is None:
            assert decision is not None
            return forward.attend(decision, q, k, v, lambda: _dense(q, k, v, lengths), lengths)
        q, k, v = (exchange.to_heads(each) for each in (q, k, v))
        out = None
        if decision is not None:
            out = forward.attend(decision, q, k, v, lambda: self._backend(q, k, v), lengths)
        return exchange.to_tokens(self._backend(q, k, v) if out is None else out)

    def _exchange(
        self, attn: Any, forward: Forward, has_text: bool
    ) -> tuple[HeadExchange | None, DenseReason | None]:
        """The all-to-alls of a call under context parallelism, or why it is not sparse there."""
        config, layout = getattr(self.original, "_parallel_config", None), forward.plan.layout
        # A ContextParallelConfig alone, or with others in a ParallelConfig.
        config = getattr(config, "context_parallel_config", config)
        if config is None or layout is None:
            return None, None
        if config.ring_degree > 1:
            return None, why(Reason.RING)
        if has_text:  # each process has a part of the video and one of the text
            return None, why(Reason.PARALLEL_TEXT)
        return HeadExchange(layout.length, attn.heads, config._ulysses_mesh.get_group()), None

    def _backend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Dense attention of `[B, H, N, D]` by the backend that is set."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        backend = self.original._attention_backend
        return dispatch_attention_fn(q, k, v, backend=backend).transpose(1, 2)

    def _unsupported(
        self, attn: Any, forward: Forward, video: Tensor, exchange: HeadExchange | None
    ) -> DenseReason | None:
        """What the module and its tokens have against a sparse call."""
        if type(self.original).__name__ not in self.known:
            return why(Reason.PROCESSOR, type(self.original).__name__)
        if (layout := forward.plan.layout) is not None:
            own = layout.length if exchange is None else exchange.tokens[exchange.rank]
            if video.shape[1] != own:
                return why(Reason.OTHER_LENGTH, video.shape[1], own)
        if torch.is_grad_enabled():
            if video.requires_grad or any(each.requires_grad for each in attn.parameters()):
                return why(Reason.GRADIENTS)
        return None

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
            form = why(Reason.UNKNOWN_CALL)
        elif not _is_pair(rotary_emb):  # complex numbers before diffusers 0.35
            form = why(Reason.UNKNOWN_ROTARY)
        out = self.attention(
            attn,
            hidden_states,
            None,
            attention_mask,
            form,
            lambda: self._projected(attn, hidden_states, rotary_emb),
        )
        if out is not None:
            return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        return self.original(
            attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **kwargs
        )

    def _projected(self, attn: Any, video: Tensor, rotary: Any) -> QKV:
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
        form, text = None, encoder_hidden_states
        if text is None:
            form = why(Reason.UNKNOWN_CALL)
        elif not _is_pair(image_rotary_emb):
            form = why(Reason.UNKNOWN_ROTARY)
        out = self.attention(
            attn,
            hidden_states,
            text,
            attention_mask,
            form,
            lambda: self._projected(attn, hidden_states, text, image_rotary_emb),
        )
        if out is not None:
            return self._parted(attn, out, hidden_states.shape[1])
        return self.original(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            image_rotary_emb=image_rotary_emb,
        )

    def _projected(self, attn: Any, video: Tensor, text: Tensor | None, rotary: Any) -> QKV:
        """q, k, v `[B, H, N + L, D]` of `video [B, N, C]` and `text [B, L, C]`."""
        from diffusers.models.embeddings import apply_rotary_emb

        assert text is not None
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


class Hunyuan15SparseProcessor(HunyuanSparseProcessor):
    """Joint attention of a HunyuanVideo 1.5 block; its mask is that of the text alone."""

    known = ("HunyuanVideo15AttnProcessor2_0",)


class Ltx2SparseProcessor(SparseProcessor):
    """Self-attention of the video stream of an LTX 2 block: video tokens, then those of guides."""

    known = ("LTX2AudioVideoAttnProcessor", "LTX2PerturbedAttnProcessor")

    # The module drops arguments that this signature does not name.
    @torch.compiler.disable()
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Any = None,
        key_rotary_emb: Any = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: Any = None,
    ) -> Tensor:
        """As `LTX2PerturbedAttnProcessor`: `hidden_states [B, N, C]` to `[B, N, C]`."""
        form = None
        if encoder_hidden_states is not None or key_rotary_emb is not None:
            form = why(Reason.UNKNOWN_CALL)
        elif perturbation_mask is not None:
            form = why(Reason.ARGUMENT, "perturbation_mask")
        elif not _is_pair(query_rotary_emb):
            form = why(Reason.UNKNOWN_ROTARY)
        out = self.attention(
            attn,
            hidden_states,
            None,
            attention_mask,
            form,
            lambda: self._projected(attn, hidden_states, query_rotary_emb),
        )
        if out is None:
            perturbation = {}
            if perturbation_mask is not None or all_perturbed is not None:
                perturbation = {
                    "perturbation_mask": perturbation_mask,
                    "all_perturbed": all_perturbed,
                }
            return self.original(
                attn,
                hidden_states,
                encoder_hidden_states,
                attention_mask,
                query_rotary_emb,
                key_rotary_emb,
                **perturbation,
            )
        out = out.transpose(1, 2)
        if attn.to_gate_logits is not None:  # a gate of 0 to 2 for each head
            gates = 2.0 * torch.sigmoid(attn.to_gate_logits(hidden_states))
            out = out * gates.unsqueeze(-1)
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))

    def _projected(self, attn: Any, video: Tensor, rotary: Any) -> QKV:
        """q, k, v `[B, H, N, D]` of `video [B, N, C]`, rotary embedding applied."""
        from diffusers.models.transformers import transformer_ltx2

        rotate: Any = transformer_ltx2.apply_interleaved_rotary_emb
        if attn.rope_type == "split":
            rotate = transformer_ltx2.apply_split_rotary_emb
        # The norms span all heads.
        q, k = (
            rotate(x, rotary)
            for x in (attn.norm_q(attn.to_q(video)), attn.norm_k(attn.to_k(video)))
        )
        q, k, v = (
            x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, attn.to_v(video))
        )
        return q, k, v


def _may_be_sparse(forward: Forward) -> bool:
    """Whether sparse attention may look at a call: to compute it, or to be measured."""
    plan = forward.plan
    return plan.layout is not None and bool(plan.config or forward.run.recorder)


def _dense(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Full attention of `[B, H, N, D]` to the first tokens of each sample, as many as it has."""
    mask = None
    if min(lengths) < q.shape[-2]:
        ends = torch.tensor(lengths, device=q.device)
        mask = (torch.arange(q.shape[-2], device=q.device) < ends[:, None])[:, None, None]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


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


def _heads(attn: Any, to_q: str, to_k: str, to_v: str, norm_q: str, norm_k: str, x: Tensor) -> QKV:
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


@dataclass(frozen=True)
class Family:
    """What has to be known about a class of transformers.

    Attributes:
        name: of the family, as in profiles.
        lists: attributes that hold the blocks, by kind of block.
        attention: attribute of a block with the self-attention over the video tokens.
        processor: class that stands in for the processors of these modules.
        layout: (configuration, arguments of a forward by name) to where its video tokens are.
    """

    name: str
    lists: Mapping[str, str]
    attention: str
    processor: type[SparseProcessor]
    layout: Callable[[Any, Mapping[str, Any]], TokenLayout | DenseReason]


@dataclass(frozen=True)
class Parts:
    """What an installation has to know about one transformer.

    Attributes:
        family: None for a class that is not known.
        modules: the self-attention modules over the video tokens, by their block.
        fingerprint: tells whether a profile fits; None for a class that is not known.
    """

    family: Family | None
    modules: dict[BlockPlace, Any]
    fingerprint: ModelFingerprint | None


def uncompiled(transformer: nn.Module) -> Any:
    """A transformer without what torch.compile has put around it."""
    return getattr(transformer, "_orig_mod", transformer)


def parts_of(transformer: nn.Module) -> Parts:
    """The parts of a transformer of diffusers; of a class that is not known, none.

    Raises:
        ConfigError: it is no model of diffusers.
    """
    model = uncompiled(transformer)
    bases = [each.__name__ for each in type(model).__mro__]
    family = next((FAMILIES[name] for name in bases if name in FAMILIES), None)
    if family is None:
        if "ModelMixin" not in bases:
            raise ConfigError("transformer", type(model).__name__, "a model of diffusers")
        return Parts(None, {}, None)
    modules: dict[BlockPlace, Any] = {}
    totals = []
    for kind, name in family.lists.items():
        blocks = getattr(model, name)
        totals.append(len(blocks))
        for index, block in enumerate(blocks):
            place = BlockPlace((kind, index), len(blocks))
            modules[place] = getattr(block, family.attention)
    config: Any = model.config
    heads = config.num_attention_heads
    main, single = (*totals, 0)[:2]
    sizes = (main, single, heads * config.attention_head_dim, heads)
    return Parts(family, modules, ModelFingerprint(family.name, *sizes))


def unsupported(transformer: nn.Module) -> DenseReason:
    """Why a transformer of a class that is not known stays dense."""
    name = type(uncompiled(transformer)).__name__
    return why(Reason.UNSUPPORTED_MODEL, name, ", ".join(FAMILIES))


def _of_latent(patch: tuple[int, int, int], given: Mapping[str, Any]) -> TokenLayout:
    """Of a latent `[B, C, T, H, W]`, whose incomplete last patches are cut off."""
    sizes = given["hidden_states"].shape[-3:]
    frames, height, width = (size // step for size, step in zip(sizes, patch, strict=True))
    return TokenLayout((frames, height, width), frames * height * width)


def _cubic(config: Any, given: Mapping[str, Any]) -> TokenLayout:
    frames, height, width = config.patch_size
    return _of_latent((frames, height, width), given)


def _square(config: Any, given: Mapping[str, Any]) -> TokenLayout:
    return _of_latent((config.patch_size_t, config.patch_size, config.patch_size), given)


def _packed(config: Any, given: Mapping[str, Any]) -> TokenLayout | DenseReason:
    """Of tokens `[B, N, C]`: the video's, then those of keyframes and references."""
    sizes = [given.get(name) for name in ("num_frames", "height", "width")]
    if None in sizes:
        return why(Reason.UNKNOWN_CONDITIONS, "grid", "num_frames, height or width is not given")
    patch = (config.patch_size_t, config.patch_size, config.patch_size)
    frames, height, width = (size // step for size, step in zip(sizes, patch, strict=True))
    length = given["hidden_states"].shape[1]
    if length < math.prod((frames, height, width)):
        return why(Reason.OTHER_LENGTH, length, frames * height * width)
    return TokenLayout((frames, height, width), length)


FAMILIES = {
    "WanTransformer3DModel": Family(
        "Wan", {"double": "blocks"}, "attn1", WanSparseProcessor, _cubic
    ),
    "HunyuanVideoTransformer3DModel": Family(
        "HunyuanVideo",
        {"double": "transformer_blocks", "single": "single_transformer_blocks"},
        "attn",
        HunyuanSparseProcessor,
        _square,
    ),
    "HunyuanVideo15Transformer3DModel": Family(
        "HunyuanVideo",
        {"double": "transformer_blocks"},
        "attn",
        Hunyuan15SparseProcessor,
        _square,
    ),
    "LTX2VideoTransformer3DModel": Family(
        "LTX", {"double": "transformer_blocks"}, "attn1", Ltx2SparseProcessor, _packed
    ),
}
