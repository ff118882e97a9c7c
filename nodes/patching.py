"""Installs sparse attention on a model clone: the APPLY_MODEL wrapper and its run callbacks.

The wrapper runs once per model call ("forward"). It decides from this call's sigma and shapes what
is to happen, puts a fresh attention override into a shallow copy of transformer_options and calls
on. Everything is read at run time, because nodes placed after ours may change the sampling, and
context windows change the video's size from call to call.

Non-finite values: looking at every attention output would cost a pass over it and a wait. Instead
the forward's result is looked at once, together with the densities, and a forward that went wrong
is run again dense (in fp16 the attention outputs are summed too, since HunyuanVideo's blocks hide
NaNs there). Its sparse calls are not counted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..rspa_core import SparseConfig, backend_status, rectified_attention, release_tables
from ..rspa_core.config import ConfigError, check_number
from ..rspa_core.run.calls import ForwardPlan, RunFailures
from ..rspa_core.run.probe import (
    NothingMeasured,
    ProbeOutcome,
    ProbeRecorder,
    ProbeSettings,
    make_outcome,
    parse_probe_blocks,
    parse_probe_steps,
    parse_sparsities,
    why_nothing,
)
from ..rspa_core.run.profile import SparsityProfile
from ..rspa_core.run.record import Block, ForwardTally, RunRecord, RunReport, logger
from ..rspa_core.run.schedule import DenseBlocks, SparsitySchedule, percent_of_sigma, step_of_sigma
from .host import ProbeProgress, send_status
from .models import fingerprint_of_patcher, token_layout
from .override import DENSE_BLOCK, AttentionCalls, make_override

KEY = "rectified_spaattn"
"""Names our wrapper and callbacks on a model, so that a second node replaces the first."""

OVERRIDE = "optimized_attention_override"
COMPILE_KEY = "torch.compile"
"""Names the wrapper of ComfyUI's compile node."""
NON_FINITE = "non-finite values, forward repeated dense"


@dataclass(frozen=True)
class PatchSettings:
    """What the user chose on the node.

    Attributes:
        config: blocks, token order and rectification; its sparsity is replaced per forward.
        schedule: sparsity over the run.
        dense_blocks: blocks that stay dense.
        min_tokens: below this many video tokens a forward is dense.
        verbose: log every forward.
        node_id: node that shows the status line.
        profile: sparsity by block in place of the schedule's; the schedule says when.
        probe: what is measured while sampling, or None.
        probe_node_id: node that shows how far the probe is.
        asked: the values on the node, plain JSON data, for the report.
    """

    config: SparseConfig
    schedule: SparsitySchedule
    dense_blocks: DenseBlocks = field(default_factory=DenseBlocks)
    min_tokens: int = 0
    verbose: bool = False
    node_id: str | None = None
    profile: SparsityProfile | None = None
    probe: ProbeSettings | None = None
    probe_node_id: str | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)


def find_patch(model: Any) -> SparseAttentionPatch | None:
    """Our patch on a ComfyUI model patcher, also one that other nodes have cloned since."""
    options = getattr(model, "model_options", {}).get("transformer_options", {})
    found = options.get("wrappers", {}).get("apply_model", {}).get(KEY, [])
    own = getattr(model, "wrappers", {}).get("apply_model", {}).get(KEY, [])
    return next((each for each in (*own, *found) if isinstance(each, SparseAttentionPatch)), None)


def install(model: Any, settings: PatchSettings) -> Any:
    """A clone of a ComfyUI model patcher with sparse attention; replaces an earlier one of ours."""
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    patched = model.clone()
    patch = SparseAttentionPatch(settings)
    patched.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, patch)
    # Reset before a run too: an error in ComfyUI's own loading can skip the cleanup.
    for moment, callback in (
        (CallbacksMP.ON_PRE_RUN, patch.on_pre_run),
        (CallbacksMP.ON_CLEANUP, patch.on_cleanup),
    ):
        patched.remove_callbacks_with_key(moment, KEY)
        patched.add_callback_with_key(moment, KEY, callback)
    return patched


class SparseAttentionPatch:
    """The APPLY_MODEL wrapper of one model clone, with the state of its current sampling run.

    Args:
        settings: what the user chose.
        attend, status: the sparse attention and its backend query; injected for tests.
    """

    def __init__(
        self,
        settings: PatchSettings,
        attend: Callable[..., Any] = rectified_attention,
        status: Callable[..., Any] = backend_status,
    ) -> None:
        self.settings = settings
        self.report = RunReport(
            settings.node_id, settings.verbose, send_status, settings=settings.asked
        )
        self.recorder: ProbeRecorder | None = None
        if settings.probe is not None:
            shown = ProbeProgress(settings.probe_node_id)
            self.recorder = ProbeRecorder(settings.probe, attend, shown.update, shown.say)
        self._attend = attend
        self._status = status
        self._model_name = ""
        self._has_recompiled = False
        self._reset()

    @property
    def last_run(self) -> RunRecord | None:
        """The last finished sampling run, None before one."""
        return self.report.last_run

    def _reset(self) -> None:
        self._failures = RunFailures()
        self._override_was_called = False
        self._sample_sigmas: tuple[Any, list[float]] = (None, [])

    def on_pre_run(self, patcher: Any) -> None:
        """ON_PRE_RUN: a new sampling run begins."""
        self._reset()
        self.report.reset()
        self.report.announce()
        if self.recorder is not None:
            self.recorder.reset()
        for difference in _differences(self.settings):
            self.report.warn_once(difference)

    def on_cleanup(self, patcher: Any) -> None:
        """ON_CLEANUP: the sampling run is over, also after an error or an interruption."""
        if self.settings.dense_blocks.ranges and self.report.sparse:
            if DENSE_BLOCK not in self.report.reasons:
                self.report.warn_once("dense_blocks matches no block of this model")
        self.report.finish_run(self._model_name)
        if self.recorder is not None:
            self.recorder.finish()
        self._reset()
        release_tables()

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **conds: Any,
    ) -> Any:
        """APPLY_MODEL: one model call, with the positional arguments ComfyUI has had since 0.3."""
        started = self.report.start_forward()
        options = dict(transformer_options or {})
        plan, note = self._plan(executor.class_obj, x, t, c_crossattn, options, conds)

        def run(plan: ForwardPlan) -> tuple[Any, ForwardTally]:
            tally = ForwardTally(x.device, plan.step)
            calls = AttentionCalls(
                plan,
                tally,
                self._failures,
                self.report.warn_once,
                options.get(OVERRIDE),
                self._attend,
                self._status,
            )
            inner = {**options, OVERRIDE: make_override(calls)}
            return executor(x, t, c_concat, c_crossattn, control, inner, **conds), tally

        output, tally = run(plan)
        if self._is_bypassed_by_compiled_code(plan, tally, executor.class_obj, options):
            self.report.warn_once(
                "no attention call came from the compiled model, which may have been compiled "
                "without this node: compiling it again"
            )
            torch.compiler.reset()
            output, tally = run(plan)
        density_sums: dict[Block, float] = {}
        if tally.seen:  # dense ones are waited for, too: their time is what sparse is compared with
            density_sums, is_finite = tally.finish(output)
            if tally.sparse and not is_finite:
                output, tally = self._repeat_dense(run, plan)
                density_sums = {}
        self.report.add_forward(tally, density_sums, started, plan.layout)
        self._log_forward(plan, tally, density_sums, note)
        return output

    def _plan(
        self,
        base_model: Any,
        x: Tensor,
        t: Tensor,
        text: Any,
        options: Mapping[str, Any],
        conds: Mapping[str, Any],
    ) -> tuple[ForwardPlan, str]:
        """What this forward is to do, and a note about where in the run it is for the log."""
        settings = self.settings
        self._model_name = type(base_model).__name__
        # The one wait for the device before the model runs.
        sigma = float(options.get("sigmas", t).flatten()[0])
        sample_sigmas = self._read_sample_sigmas(options.get("sample_sigmas"))
        step = step_of_sigma(sigma, sample_sigmas) if len(sample_sigmas) > 1 else None
        num_steps = None if step is None else len(sample_sigmas) - 1
        note = f"sigma {sigma:.4f}, step {step} of {num_steps}"

        layout, reason = token_layout(base_model.diffusion_model, x, text, conds)
        if layout is None:
            return ForwardPlan(None, None, reason, step=step), note
        probe = None if self.recorder is None else (self.recorder, settings.config)
        dense = functools.partial(
            ForwardPlan, layout, None, step=step, num_steps=num_steps, probe=probe
        )
        note += f", grid {layout.grid}, {layout.length} tokens from {layout.video_start}"
        if layout.video_length < settings.min_tokens:
            reason = f"{layout.video_length} video tokens, below min_tokens {settings.min_tokens}"
            return dense(reason), note
        percent = percent_of_sigma(sigma, base_model.model_sampling.percent_to_sigma)
        sparsity, reason = settings.schedule.sparsity_at(percent, step, num_steps)
        note += f", percent {percent:.3f}, sparsity {sparsity}"
        if sparsity is None:
            return dense(reason), note
        config = dataclasses.replace(settings.config, sparsity=sparsity)
        plan = ForwardPlan(
            layout,
            config,
            "",
            settings.dense_blocks,
            step,
            num_steps,
            settings.profile,
            probe,
        )
        return plan, note

    def _read_sample_sigmas(self, sigmas: Any) -> Sequence[float]:
        """The sampler's sigmas as floats, read from the device once per run."""
        seen, values = self._sample_sigmas
        if sigmas is not seen:
            values = [] if sigmas is None else sigmas.tolist()
            self._sample_sigmas = (sigmas, values)
        return values

    def _is_bypassed_by_compiled_code(
        self, plan: ForwardPlan, tally: ForwardTally, base_model: Any, options: Mapping[str, Any]
    ) -> bool:
        """Whether code compiled without this node has run instead of the model's present graph.

        ComfyUI's compile node drops the guards on transformer_options, so code that was compiled
        before this node was added is used again and never looks for an override. Answers yes once:
        if compiling again does not help, something else bypasses the override.
        """
        self._override_was_called |= tally.seen or bool(tally.other_lengths)
        if plan.config is None or self._override_was_called or self._has_recompiled:
            return False
        wrappers = options.get("wrappers", {}).get("apply_model", {})
        modules = getattr(base_model.diffusion_model, "modules", tuple)
        if COMPILE_KEY in wrappers or any(hasattr(part, "_orig_mod") for part in modules()):
            self._has_recompiled = True
        return self._has_recompiled

    def _repeat_dense(
        self, run: Callable[[ForwardPlan], tuple[Any, ForwardTally]], plan: ForwardPlan
    ) -> tuple[Any, ForwardTally]:
        """Run a forward again without sparse calls, after values that are not finite."""
        self._failures.add(NON_FINITE)
        self.report.warn_once(
            "sparse attention gave values that are not finite: the forward is repeated dense"
        )
        output, tally = run(ForwardPlan(plan.layout, None, NON_FINITE, step=plan.step))
        if not tally.finish(output)[1]:
            # The model itself does it: sparse attention would only be blamed again and again.
            self._failures.add("non-finite values with dense attention too", is_final=True)
            self.report.warn_once(
                "the model gives values that are not finite with dense attention too"
            )
        return output, tally

    def _log_forward(
        self, plan: ForwardPlan, tally: ForwardTally, density_sums: Mapping[Block, float], note: str
    ) -> None:
        if self.settings.verbose:
            sparse, dense = tally.sparse.total(), tally.dense.total()
            density = f", density {sum(density_sums.values()) / sparse:.3f}" if sparse else ""
            logger.info(
                "Rectified SpaAttn: %s: sparse %d / dense %d%s", note, sparse, dense, density
            )
        if not self.report.sparse and not self.report.dense:
            self.report.warn_once(_never_called(plan, tally))


def _never_called(plan: ForwardPlan, tally: ForwardTally) -> str:
    """What to tell a user whose model never asked for attention over its video tokens."""
    if plan.layout is None:
        return f"this model stays dense: {plan.reason}"
    if not tally.other_lengths:
        return (
            "installed, but no attention call reached it. Another node replaces the model's "
            "attention altogether (a SageAttention patch of the blocks, RadialAttn) or the model "
            "does not use ComfyUI's attention. Remove that node, or this one."
        )
    seen = ", ".join(f"{q}x{k}" for q, k in sorted(tally.other_lengths)[:6])
    return (
        f"installed, but no self-attention over {plan.layout.length} tokens was seen, only calls "
        f"of (queries x keys) {seen}. This model variant stays dense."
    )


def _differences(settings: PatchSettings) -> list[str]:
    """What the profile was measured with and the node does otherwise: its errors may be off."""
    profile, config = settings.profile, settings.config
    if profile is None:
        return []
    tail_keys = profile.tail_keys if config.rectification == profile.rectification else None
    pairs = (
        ("block_size", profile.block_size, config.kv_block),
        ("rectification", profile.rectification, config.rectification),
        ("token_order", profile.order, config.order),
        ("tail_keys", tail_keys, config.tail_keys if tail_keys is not None else None),
    )
    return [
        f"the profile was measured with {name} = {measured}, this run has {own}"
        for name, measured, own in pairs
        if measured != own
    ]


MIN_ERROR, MAX_ERROR = 0.001, 1.0


PATCHED_MODEL = (
    "a model that comes from a Rectified SpaAttn node, switched on: place the probe after it"
)


PROBED_MODEL = "the model that comes out of a Rectified SpaAttn Probe node"


def attach_probe(model: Any, steps: str, blocks: str, sparsities: str, node_id: str | None) -> Any:
    """A clone of a patched ComfyUI model patcher that measures while it samples.

    Args:
        model: patched by the RectifiedSpaAttn node, whose settings are measured.
        steps, blocks, sparsities: as on the node.
        node_id: node that shows how far the probe is.

    Raises:
        ConfigError: a text cannot be read, or the model is not patched.
    """
    probe = ProbeSettings(
        parse_probe_steps(steps), parse_probe_blocks(blocks), parse_sparsities(sparsities)
    )
    patch = find_patch(model)
    if patch is None:
        raise ConfigError("model", type(model).__name__, PATCHED_MODEL)
    settings = dataclasses.replace(patch.settings, probe=probe, probe_node_id=node_id)
    return install(model, settings)


def read_probe(model: Any, wanted_error: float, name: str) -> ProbeOutcome:
    """What the probe on a ComfyUI model patcher has measured.

    Raises:
        ConfigError: there is no probe on the model, or a value is wrong.
        NothingMeasured: it measured nothing; the message says why.
    """
    check_number("wanted_error", wanted_error, MIN_ERROR, MAX_ERROR)
    patch = find_patch(model)
    recorder = None if patch is None else patch.recorder
    if patch is None or recorder is None:
        raise ConfigError("model", type(model).__name__, PROBED_MODEL)
    if recorder.is_empty or recorder.grid is None:
        cause = why_nothing(recorder, patch.last_run)
        raise NothingMeasured(f"the probe has measured nothing: {cause}")
    fingerprint = fingerprint_of_patcher(model)
    if fingerprint is None:
        kind = type(model.model.diffusion_model).__name__
        raise ConfigError("model", kind, "a Wan or HunyuanVideo model")
    return make_outcome(
        recorder.table(), fingerprint, patch.settings.config, recorder.grid, wanted_error, name
    )
