"""An attention call in ComfyUI's form.

ComfyUI calls `override(func, q, k, v, heads, ..., **kwargs)` instead of its attention function,
newer cores also `override.container_function(box, box, box, heads, ...)` with one-slot containers.
A call over the video tokens goes through the engine's `Forward`; whatever that leaves alone takes
the dense path with its arguments untouched: the override that was there before, or else `func`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..rspa_core.run.calls import Forward
from ..rspa_core.run.reasons import DenseReason, Reason, why
from ..rspa_core.run.record import Block
from .host import core_attention

# Arguments of ComfyUI's attention functions that leave the mathematics alone.
HARMLESS = frozenset({"transformer_options", "_inside_attn_wrapper"})
LOW_PRECISION = "low_precision_attention"
"""False asks for none; with a mask over some rows only because of attention that takes no mask."""


def make_override(
    forward: Forward,
    previous: Callable[..., Any] | None = None,
    other_lengths: Collection[int] = (),
) -> Callable[..., Any]:
    """The function to put into `transformer_options["optimized_attention_override"]`.

    It is opaque to torch.compile: ComfyUI's compile node drops the guards on transformer_options,
    so a traced override would keep the first step's decision for the whole run.

    Args:
        forward: the model call that it serves.
        previous: the override that was installed before, or None.
        other_lengths: token counts of calls that are known to be over something else.
    """

    def dense_call(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if previous is not None:
            return previous(func, *args, **kwargs)
        return func(*args, **kwargs)

    def dense_containers(*args: Any, **kwargs: Any) -> Any:
        if previous is None:
            return core_attention()(*args, **kwargs)
        take_over = getattr(previous, "container_function", None)
        if take_over is not None:
            return take_over(*args, **kwargs)
        tensors = tuple(box.take() for box in args[:3])
        return previous(core_attention(), *tensors, *args[3:], **kwargs)

    @torch.compiler.disable()
    def override(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = None
        if len(args) >= 3:
            dense = partial(dense_call, func, *args, **kwargs)
            out = _attend(forward, args[:3], args[3:], kwargs, dense, other_lengths)
        return dense_call(func, *args, **kwargs) if out is None else out

    @torch.compiler.disable()
    def container_function(*args: Any, **kwargs: Any) -> Any:
        boxes, was_dense = args[:3], False

        def dense() -> Any:
            nonlocal was_dense
            was_dense = True
            return dense_containers(*args, **kwargs)

        # No name for the tensors here: the dense path frees each as soon as it is taken out.
        tensors = (box.peek() for box in boxes)
        out = _attend(forward, tuple(tensors), args[3:], kwargs, dense, other_lengths)
        if out is None:
            return dense_containers(*args, **kwargs)
        if not was_dense:
            for box in boxes:
                box.take()
        return out

    override.container_function = container_function
    return override


def make_join(forward: Forward) -> Callable[[dict[str, Any]], Any]:
    """The first function of `transformer_options["patches"]["attn1_patch"]` of a model that asks
    for its attention frame by frame: called with what all frames of a block have got.
    """

    @torch.compiler.disable()
    def join(args: dict[str, Any]) -> Any:
        q, x = args["q"], args["x"]  # [B, N, H, D], [B, N, H*D]
        if (frames := forward.frames) is None:  # of a forward that is over
            return x
        out = frames.join(q.transpose(1, 2), split_heads(x, q.shape[-2]))
        return x if out is None else out.transpose(1, 2).flatten(2)

    return join


def _attend(
    forward: Forward,
    tensors: tuple[Tensor, ...],
    rest: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dense: Callable[[], Tensor],
    other_lengths: Collection[int],
) -> Tensor | None:
    """The output of a call that the engine computes or measures, None for one it leaves alone.

    Args:
        forward: the model call.
        tensors: q, k, v.
        rest, kwargs: the other arguments of the call.
        dense: runs the dense path.
        other_lengths: token counts of calls over something else.
    """
    q, k, v = tensors
    options = kwargs.get("transformer_options") or {}
    block: Block = options.get("block_type", ""), options.get("block_index")
    if forward.frames is not None and forward.frames.is_call(q.shape, k.shape, v.shape):
        return _attend_frame(forward, tensors, rest, kwargs)
    in_model = bool(block[0]) and q.shape[-2] not in other_lengths
    is_whole = forward.is_over_video(q.shape, k.shape, v.shape, block, in_model)
    if not is_whole and not (in_model and forward.is_part_of_video(q.shape, k.shape, v.shape)):
        return None
    try:
        call = read_arguments(*rest, **kwargs)
    except TypeError:
        if is_whole:
            forward.count_dense(block, why(Reason.UNKNOWN_CALL))
        return None
    if not is_whole and call.mask is None:  # cross-attention of another stream to the video
        return None
    if not is_whole and forward.is_rest_of_context(q.shape, block):
        return None
    unsupported = unsupported_argument(q, call, () if is_whole else (LOW_PRECISION,))
    groups, weights = None, None
    if is_whole:
        groups = forward.groups_of(call.mask, len(q))
    else:
        weights = forward.weights_of(call.mask, q.shape, block)
    for of_mask in (groups, weights):
        if unsupported is None and isinstance(of_mask, DenseReason):
            unsupported = of_mask
    decision = forward.decide(
        block,
        options.get("total_blocks"),
        q.device,
        q.dtype,
        head_dim_of(q, call),
        unsupported,
    )
    if decision is None:
        return None

    def dense_heads() -> Tensor:
        out = dense()
        return out if call.skip_output_reshape else split_heads(out, call.heads)

    q, k, v = (x if call.skip_reshape else split_heads(x, call.heads) for x in tensors)
    assert not isinstance(groups, DenseReason)
    assert not isinstance(weights, DenseReason)
    out = forward.attend(decision, q, k, v, dense_heads, groups=groups, weights=weights)
    if out is None or call.skip_output_reshape:
        return out
    return out.transpose(1, 2).flatten(2)


def _attend_frame(
    forward: Forward, tensors: tuple[Tensor, ...], rest: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """The same for a call of one frame, whose output `make_join` completes."""
    frames = forward.frames
    assert frames is not None
    q, k, v = tensors
    options = kwargs.get("transformer_options") or {}
    block: Block = options.get("block_type", ""), options.get("block_index")
    is_first = frames.is_first(k.shape)
    config = None
    try:
        call = read_arguments(*rest, **kwargs)
    except TypeError:
        if is_first:
            forward.count_dense(block, why(Reason.UNKNOWN_CALL))
            frames.begin(block, None, q, k, v)
        return None
    unsupported = unsupported_argument(q, call)
    if call.mask is not None:
        shape = tuple(getattr(call.mask, "shape", ())) or "unknown"
        unsupported = why(Reason.MASK_FORM, shape, "for single frames")
    if is_first:
        decision = forward.decide(
            block,
            options.get("total_blocks"),
            q.device,
            q.dtype,
            head_dim_of(q, call),
            unsupported,
        )
        if decision is not None and decision.is_probed:
            forward.count_dense(block, why(Reason.FRAMES_NOT_PROBED))
        elif decision is not None:
            config = decision.config
    elif unsupported is not None:
        return None  # the frame is then missing where all are joined
    q, k, v = (x if call.skip_reshape else split_heads(x, call.heads) for x in tensors)
    out = frames.begin(block, config, q, k, v) if is_first else frames.attend(block, q, k, v)
    if out is None or call.skip_output_reshape:
        return out
    return out.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class CallArguments:
    """What follows q, k, v in a call of ComfyUI's attention functions."""

    heads: int
    mask: Tensor | None
    skip_reshape: bool
    skip_output_reshape: bool
    attn_precision: torch.dtype | None
    extra: Mapping[str, Any]


def read_arguments(
    heads: int,
    mask: Tensor | None = None,
    attn_precision: torch.dtype | None = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **extra: Any,
) -> CallArguments:
    """Bind the arguments after q, k, v by the order all of ComfyUI's attention functions share."""
    return CallArguments(heads, mask, skip_reshape, skip_output_reshape, attn_precision, extra)


def unsupported_argument(
    q: Tensor, call: CallArguments, but: Collection[str] = ()
) -> DenseReason | None:
    """The argument that asks for mathematics we do not do, as a reason; not the mask nor `but`."""
    if call.attn_precision is not None:
        return why(Reason.ATTN_PRECISION, call.attn_precision)
    for name, value in call.extra.items():
        if name not in but and not _is_neutral(name, value, head_dim_of(q, call)):
            return why(Reason.ARGUMENT, name)
    return None


def _is_neutral(name: str, value: Any, head_dim: int) -> bool:
    """Whether an optional argument leaves softmax(q k^T / sqrt(D)) v as it is."""
    if value is None or name in HARMLESS:
        return True
    if name == "scale":
        return math.isclose(value, head_dim**-0.5, rel_tol=1e-6)
    if name == LOW_PRECISION:  # the one flag whose False asks for something
        return value is not False
    return value is False


def head_dim_of(q: Tensor, call: CallArguments) -> int:
    """Channels of a head of `q [B, N, H*D]` or, with `skip_reshape`, `[B, H, N, D]`."""
    return q.shape[-1] if call.skip_reshape else q.shape[-1] // call.heads


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """View `[B, N, H*D]` as `[B, H, N, D]`; never a copy."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)
