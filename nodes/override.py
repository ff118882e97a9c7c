"""The arguments of ComfyUI's attention functions, and q, k, v in the form the core wants them.

The attention override of one forward: which calls become sparse, and the dense path of the rest.

ComfyUI calls `override(func, q, k, v, heads, ..., **kwargs)` instead of its attention function. A
call over the video tokens that nothing speaks against goes to `rectified_attention`; every other
call takes the dense path with its arguments untouched: the override that was installed before this
one, or else `func`. A call that fails takes the dense path too and is counted with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..rspa_core import BackendUnavailable, SparseConfig, backend_status, rectified_attention
from ..rspa_core.run.calls import ForwardPlan, RunFailures
from ..rspa_core.run.record import PROBED, Block, ForwardTally
from .host import core_attention, pause_allocation_recording

MASKED = "attention mask"

# Arguments of ComfyUI's attention functions that leave the mathematics alone.
HARMLESS = frozenset({"transformer_options", "_inside_attn_wrapper"})


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


def block_of(kwargs: Mapping[str, Any]) -> Block:
    options = kwargs.get("transformer_options") or {}
    return options.get("block_type", ""), options.get("block_index")


def total_blocks(call: CallArguments) -> int | None:
    return (call.extra.get("transformer_options") or {}).get("total_blocks")


def unsupported_argument(q: Tensor, call: CallArguments) -> str | None:
    """The argument of a call that asks for mathematics we do not do, as a reason, or None."""
    if call.mask is not None:
        return MASKED
    if call.attn_precision is not None:
        return f"attn_precision {call.attn_precision}"
    for name, value in call.extra.items():
        if not _is_neutral(name, value, head_dim_of(q, call)):
            return f"attention argument {name}"
    return None


def _is_neutral(name: str, value: Any, head_dim: int) -> bool:
    """Whether an optional argument leaves softmax(q k^T / sqrt(D)) v as it is."""
    if value is None or name in HARMLESS:
        return True
    if name == "scale":
        return math.isclose(value, head_dim**-0.5, rel_tol=1e-6)
    if name == "low_precision_attention":  # the one flag whose False asks for something
        return value is not False
    return value is False


def head_dim_of(q: Tensor, call: CallArguments) -> int:
    return q.shape[-1] if call.skip_reshape else q.shape[-1] // call.heads


def to_heads(tensor: Tensor, call: CallArguments) -> Tensor:
    """View `[B, N, H*D]` (or `[B, H, N, D]` as it is) as `[B, H, N, D]`; never a copy."""
    return tensor if call.skip_reshape else split_heads(tensor, call.heads)


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """View `[B, N, H*D]` as `[B, H, N, D]`."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def from_heads(out: Tensor, call: CallArguments) -> Tensor:
    """`[B, H, N, D]` to what the caller wants: that, or `[B, N, H*D]`."""
    if call.skip_output_reshape:
        return out
    return out.transpose(1, 2).flatten(2)


DENSE_BLOCK = "dense_blocks"
DENSE_IN_PROFILE = "dense in the profile"

REASON_LENGTH = 160
"""Longest part of an error message that becomes a reason, in characters."""


class AttentionCalls:
    """Handles every attention call of one forward.

    Args:
        plan: what this forward is to do.
        tally: counts the calls.
        failures: of the whole run.
        warn: logs a warning once per run.
        previous: the override that was installed before, or None.
        attend, status: the sparse attention and its backend query; injected for tests.
    """

    def __init__(
        self,
        plan: ForwardPlan,
        tally: ForwardTally,
        failures: RunFailures,
        warn: Callable[[str], None],
        previous: Callable[..., Any] | None = None,
        attend: Callable[..., Any] = rectified_attention,
        status: Callable[..., Any] = backend_status,
    ) -> None:
        self.plan = plan
        self.tally = tally
        self.failures = failures
        self.warn = warn
        self.previous = previous
        self._attend = attend
        self._status = status
        self._status_asked = False

    def on_tensors(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call with plain tensors."""
        if len(args) >= 3:
            out = self._try_sparse(
                args[:3], args[:3], args[3:], kwargs, lambda: self._dense(func, *args, **kwargs)
            )
            if out is not None:
                return out
        return self._dense(func, *args, **kwargs)

    def on_containers(self, *args: Any, **kwargs: Any) -> Any:
        """A call with one-slot tensor containers, which newer cores pass without a `func`."""
        boxes = args[:3]
        # No name for the tensors here: the dense path frees each as soon as it is taken out.
        out = self._try_sparse(
            tuple(box.peek() for box in boxes),
            boxes,
            args[3:],
            kwargs,
            lambda: self._dense_containers(boxes, *args, **kwargs),
        )
        if out is not None:
            return out
        return self._dense_containers(boxes, *args, **kwargs)

    def _dense_containers(self, boxes: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        if self.previous is None:
            return core_attention()(*args, **kwargs)
        take_over = getattr(self.previous, "container_function", None)
        if take_over is not None:
            return take_over(*args, **kwargs)
        tensors = tuple(box.take() for box in boxes)
        return self.previous(core_attention(), *tensors, *args[3:], **kwargs)

    def _dense(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.previous is not None:
            return self.previous(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _try_sparse(
        self,
        tensors: tuple[Any, ...],
        owners: tuple[Any, ...],
        rest: tuple[Any, ...],
        kwargs: dict[str, Any],
        dense: Callable[[], Tensor],
    ) -> Tensor | None:
        """Run the call sparse, or return None after counting why it is dense.

        Args:
            tensors: q, k, v.
            owners: the containers that hold them, emptied on success; or the tensors again.
            rest, kwargs: the other arguments of the call.
            dense: runs the dense path.

        Returns:
            The output; of a call that the probe measures, the dense one.
        """
        q, k, v = tensors
        block = block_of(kwargs)
        if not self._is_video_attention(q, k, v, block):
            return None
        try:
            call = read_arguments(*rest, **kwargs)
        except TypeError:
            self.tally.add_dense(block, "unknown form of attention call")
            return None
        config, reason = self._config_or_reason(q, call, block)
        if self._is_probed(q, call, block):
            self.tally.add_dense(block, PROBED)
            return self._measure(q, k, v, dense(), call, block)
        if config is not None:
            out, reason = self._run_sparse(q, k, v, call, block, config)
            if out is not None:
                for owner in owners:
                    if not isinstance(owner, Tensor):
                        owner.take()
                return out
        self.tally.add_dense(block, reason)
        return None

    def _is_video_attention(self, q: Tensor, k: Tensor, v: Tensor, block: Block) -> bool:
        """Whether q, k and v are all of the video's sequence; counts what is not."""
        lengths = q.shape[-2], k.shape[-2]
        layout = self.plan.layout
        if q.shape != k.shape or q.shape != v.shape:
            self.tally.other_lengths.add(lengths)
            return False
        if layout is None or lengths[0] == layout.length:
            return True
        self.tally.other_lengths.add(lengths)
        if block[0] and lengths[0] >= layout.video_length:
            # A transformer block over a sequence that was not foreseen: a new model variant.
            reason = f"{lengths[0]} tokens where {layout.length} were expected"
            self.tally.add_dense(block, reason)
        return False

    def _config_or_reason(
        self, q: Tensor, call: CallArguments, block: Block
    ) -> tuple[SparseConfig | None, str]:
        """(how the call is made sparse, "") or (None, why it is dense)."""
        plan = self.plan
        if plan.layout is None or plan.config is None:
            return None, plan.reason
        if plan.dense_blocks.contains(*block, total_blocks(call)):
            return None, DENSE_BLOCK
        config = plan.config_of(block)
        if config is None:
            return None, DENSE_IN_PROFILE
        reason = self._reason_for_no_backend(q, call, config)
        return (config, "") if reason is None else (None, reason)

    def _reason_for_no_backend(
        self, q: Tensor, call: CallArguments, config: SparseConfig
    ) -> str | None:
        """Why sparse attention cannot compute this call, or None."""
        reason = unsupported_argument(q, call)
        if reason is not None:
            return reason
        if self.failures.final_reason is None and not self._status_asked:
            self._status_asked = True
            self._ask_backend(q, call, config)
        return self.failures.final_reason

    def _is_probed(self, q: Tensor, call: CallArguments, block: Block) -> bool:
        """Whether the probe measures this call, which the schedule may have made dense."""
        plan = self.plan
        if plan.probe is None or plan.layout is None:
            return False
        recorder, config = plan.probe
        return (
            recorder.wants(plan.step, plan.num_steps, *block, total_blocks(call))
            and self._reason_for_no_backend(q, call, config) is None
        )

    def _measure(
        self, q: Tensor, k: Tensor, v: Tensor, dense: Tensor, call: CallArguments, block: Block
    ) -> Tensor:
        """Let the probe compare sparse with dense attention; returns the dense output."""
        layout = self.plan.layout
        assert layout is not None
        assert self.plan.probe is not None
        recorder, config = self.plan.probe
        heads = dense if call.skip_output_reshape else split_heads(dense, call.heads)
        q, k, v = (to_heads(tensor, call) for tensor in (q, k, v))
        try:
            with pause_allocation_recording():
                recorder.measure(q, k, v, heads, layout, config, self.plan.step, block)
        except Exception as error:  # out of memory, a kernel that fails: the render goes on
            reason = _short_reason(error)
        else:
            return dense
        # Outside the except clause, as in `_run_sparse`.
        self._fail(reason, is_final=False)
        return dense

    def _ask_backend(self, q: Tensor, call: CallArguments, config: SparseConfig) -> None:
        """Note as a failure of the run that no backend can run such calls here."""
        try:
            status = self._status(q.device, q.dtype, head_dim_of(q, call), config)
        except Exception as error:  # a broken Triton install fails when it is imported
            self._fail(_short_reason(error), is_final=True)
            return
        if status.name is None:
            self._fail(status.reason, is_final=True)

    def _run_sparse(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        call: CallArguments,
        block: Block,
        config: SparseConfig,
    ) -> tuple[Tensor | None, str]:
        """(output, ""), or (None, why the call failed)."""
        try:
            with pause_allocation_recording():
                out, stats = self._attend(
                    *(to_heads(tensor, call) for tensor in (q, k, v)),
                    self.plan.layout,
                    config,
                    return_stats=True,
                )
                out = from_heads(out, call)
                self.tally.add_sparse(block, out, stats.density)
            return out, ""
        except BackendUnavailable as error:
            reason = str(error)
            is_final = True
        except Exception as error:  # out of memory, a kernel that fails: the run goes on, dense
            reason = _short_reason(error)
            is_final = False
        # Outside the except clause: there the traceback would keep the failed call's tensors alive
        # while the dense path needs the memory.
        self._fail(reason, is_final)
        return None, reason

    def _fail(self, reason: str, is_final: bool) -> None:
        self.failures.add(reason, is_final)
        rest = ", and so does the rest of this run" if self.failures.final_reason else ""
        self.warn(f"an attention call takes the dense path{rest}: {reason}")


def make_override(calls: AttentionCalls) -> Callable[..., Any]:
    """The function to put into `transformer_options["optimized_attention_override"]`.

    It is opaque to torch.compile: ComfyUI's compile node drops the guards on transformer_options,
    so a traced override would keep the first step's decision for the whole run.
    """

    @torch.compiler.disable()
    def override(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return calls.on_tensors(func, *args, **kwargs)

    @torch.compiler.disable()
    def container_function(*args: Any, **kwargs: Any) -> Any:
        return calls.on_containers(*args, **kwargs)

    override.container_function = container_function
    return override


def _short_reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:REASON_LENGTH]
