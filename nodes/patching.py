"""The wrapper of a model call in ComfyUI, and putting it and a probe on a model clone.

The APPLY_MODEL wrapper runs once per model call ("forward"). It says where this call is in the
sampling and which tokens are the video, puts a fresh attention override into a shallow copy of
transformer_options and calls on; the engine in rspa_core/run does the rest. Everything is read at
run time, because nodes placed after ours may change the sampling, and context windows change the
video's size from call to call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..rspa_core import SparseConfig, TokenLayout
from ..rspa_core.config import ConfigError, check_number
from ..rspa_core.run.calls import Forward, RunSettings, SparseRun
from ..rspa_core.run.presets import CUSTOM, PRESETS, Preset
from ..rspa_core.run.presets import preset as preset_of
from ..rspa_core.run.probe import (
    NothingMeasured,
    ProbeOutcome,
    ProbeSettings,
    error_at_place,
    make_outcome,
    parse_probe_blocks,
    parse_probe_steps,
    parse_sparsities,
)
from ..rspa_core.run.profile import ModelFingerprint, SparsityProfile
from ..rspa_core.run.reasons import DenseReason, Reason, why
from ..rspa_core.run.record import RunRecord, joined
from ..rspa_core.run.report import RunReport, logger
from ..rspa_core.run.report_text import last_status, log_line, why_nothing_measured
from ..rspa_core.run.schedule import (
    Position,
    SigmaSteps,
    SparsitySchedule,
    parse_dense_blocks,
    step_name,
)
from .host import (
    ProbeProgress,
    ending_since,
    handled_exception,
    pause_allocation_recording,
    runs_of_this_prompt,
    send_status,
)
from .inputs import AUTO, MAIN, OPTIONS_NODE
from .models import (
    family_names,
    family_of,
    fingerprint_of_patcher,
    label_blocks,
    other_lengths,
    token_layout,
)
from .override import make_join, make_override

KEY = "rectified_spaattn"
"""Names our wrapper and callbacks on a model, so that a second node replaces the first."""

OVERRIDE = "optimized_attention_override"
COMPILE_KEY = "torch.compile"
"""Names the wrapper of ComfyUI's compile node."""
FORWARDS = ("forward", "_forward", "forward_orig")
"""Methods of transformers that step caches of other packs replace on the object."""
FRAME_CACHE = "ar_state"
"""Among transformer_options: the caches of ComfyUI's autoregressive sampler."""
PATCHED_MODEL = (
    "a model that comes from a Rectified SpaAttn node, switched on: place the probe after it"
)
PROBED_MODEL = "the model that comes out of a Rectified SpaAttn Probe node"


@dataclass(frozen=True)
class Options:
    """What the Options node says; "auto" leaves a value to the preset.

    Attributes: those of the node's inputs, see `inputs.OPTIONS_NODE`.
    """

    rectification: str
    tail_keys: str
    precision: str
    token_order: str
    top_p: float
    dense_blocks: str
    min_tokens: int
    verbose: bool
    backend: str

    @staticmethod
    def of(values: Mapping[str, Any]) -> Options:
        """From values of the node's widgets; those not given have their defaults.

        Raises:
            ConfigError: a value is not allowed.
        """
        return Options(**OPTIONS_NODE.checked({**OPTIONS_NODE.defaults, **values}))


def run_settings(
    values: Mapping[str, Any],
    schedule: SparsitySchedule | None = None,
    profile: SparsityProfile | None = None,
    options: Options | None = None,
    model: ModelFingerprint | None = None,
) -> RunSettings:
    """Settings of a run from the values on the RectifiedSpaAttn node.

    A preset replaces the values it names, but for what the options state; then a schedule replaces
    sparsity and percents, and a profile the sparsity of every block. `asked` of the result has the
    values that are live, and under "overridden" by what the others are.

    Args:
        values: of the node's widgets; those not given have their defaults.
        schedule, profile, options: what is connected.
        model: what is being patched, None if it is of no known family.

    Raises:
        ConfigError: a value is not allowed; names the input, the value and what is allowed.
    """
    given = MAIN.checked({**MAIN.defaults, **values})
    given["block_size"] = int(given["block_size"])
    options = Options.of({}) if options is None else options
    if not isinstance(options, Options):
        raise ConfigError("options", options, "the output of a Rectified SpaAttn Options node")
    if schedule is not None and not isinstance(schedule, SparsitySchedule):
        raise ConfigError("schedule", schedule, "the output of a Rectified SpaAttn Schedule node")
    if profile is not None:
        if not isinstance(profile, SparsityProfile):
            raise ConfigError("profile", profile, "the output of a Load Profile or Probe node")
        if model is not None:  # any other model stays dense, with that reason
            profile.check_model(model)
    of_preset = preset_of(given["preset"]) or Preset(
        given["sparsity"],
        given["block_size"],
        given["start_percent"],
        given["end_percent"],
        ramp=given["ramp"],
    )
    chosen = of_preset
    if options.rectification != AUTO:
        chosen = replace(chosen, rectification=options.rectification)
    if options.tail_keys != AUTO:
        chosen = replace(chosen, tail_keys=int(options.tail_keys))
    config = SparseConfig(
        sparsity=chosen.sparsity,
        q_block=chosen.block_size,
        kv_block=chosen.block_size,
        top_p=options.top_p,
        rectification=chosen.rectification,
        order=options.token_order,
        precision=options.precision,
        tail_keys=chosen.tail_keys,
    )
    # In the order in which a report lists them.
    asked = {"preset": _preset_words(given["preset"], chosen)} | asdict(chosen) | _rest(options)
    if chosen.rectification != "precise":
        del asked["tail_keys"]
    overridden = {
        name: f"{given[name]} by preset"
        for name in ("sparsity", "block_size", "start_percent", "end_percent", "ramp")
        if given[name] != asked[name]
    }
    for name in ("rectification", "tail_keys"):
        if getattr(of_preset, name) != getattr(chosen, name):
            overridden[name] = f"{getattr(of_preset, name)} by options"
    sockets = {} if profile is None else {"sparsity": "profile"}
    if profile is not None:
        asked["profile"] = profile.name or "unnamed"
    if schedule is not None:
        replaced = ("sparsity", "start_percent", "end_percent", "ramp")
        sockets |= dict.fromkeys(replaced, "schedule")
        # As on the node, where steps count from 1.
        dense_steps = ", ".join(map(step_name, schedule.dense_steps))
        asked["schedule"] = asdict(schedule) | {"dense_steps": dense_steps}
    for name, cause in sockets.items():
        del asked[name]
        overridden[name] = f"by {cause}"
    if overridden:
        asked["overridden"] = overridden
    if schedule is None:
        percents = (chosen.start_percent, chosen.end_percent)
        schedule = SparsitySchedule(
            chosen.sparsity, chosen.sparsity, "constant", *percents, ramp=chosen.ramp
        )
    return RunSettings(
        config,
        schedule,
        parse_dense_blocks(options.dense_blocks),
        options.min_tokens,
        profile,
        backend=options.backend,
        asked=asked,
    )


def _rest(options: Options) -> dict[str, Any]:
    """The options that no preset sets, and that change what is computed."""
    shown = ("precision", "token_order", "top_p", "dense_blocks", "min_tokens")
    rest = {name: getattr(options, name) for name in shown}
    if options.backend != AUTO:
        rest["backend"] = options.backend
    return rest


def _preset_words(name: str, chosen: Preset) -> str:
    """The preset's name; of "custom" also that of the preset that is the same."""
    same = [each for each, values in PRESETS.items() if values == chosen]
    return f"{name} (as {same[0]})" if name == CUSTOM and same else name


def find_patch(model: Any) -> SparseAttentionPatch | None:
    """Our patch on a ComfyUI model patcher, also one that other nodes have cloned since."""
    options = getattr(model, "model_options", {}).get("transformer_options", {})
    found = options.get("wrappers", {}).get("apply_model", {}).get(KEY, [])
    own = getattr(model, "wrappers", {}).get("apply_model", {}).get(KEY, [])
    return next((each for each in (*own, *found) if isinstance(each, SparseAttentionPatch)), None)


def install(model: Any, patch: SparseAttentionPatch) -> Any:
    """A clone of a ComfyUI model patcher with `patch` on it; replaces an earlier one of ours.

    Raises:
        ConfigError: `model` is no model patcher.
    """
    if not hasattr(model, "add_wrapper_with_key"):
        raise ConfigError("model", model, "a model, as from a Load Diffusion Model node")
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    patched = model.clone()
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
    """The APPLY_MODEL wrapper of one model clone.

    A deep copy, as other nodes make of model options, reports to the same run.

    Args:
        settings: what the user chose.
        node_id: node that shows the status line, None for none.
        probe_node_id: node that shows how far the probe is.
        verbose: log every forward.
        parts: of `SparseRun`; injected for tests.
    """

    def __init__(
        self,
        settings: RunSettings,
        node_id: str | None = None,
        probe_node_id: str | None = None,
        verbose: bool = False,
        **parts: Any,
    ) -> None:
        self.node_id = node_id
        self.verbose = verbose
        shown = ProbeProgress(probe_node_id)
        report = RunReport(send_status, node_id, verbose, settings=settings.asked)
        guard = pause_allocation_recording
        self.run = SparseRun(
            settings, report, guard=guard, progress=shown.update, say=shown.say, **parts
        )
        self._model_name = ""
        self._has_recompiled = False
        self._handled_at_begin: int | None = None
        self._reset()

    @property
    def settings(self) -> RunSettings:
        """What the user chose."""
        return self.run.settings

    @property
    def last_run(self) -> RunRecord | None:
        """The last finished sampling run, None before one."""
        return self.run.report.last_run

    def _reset(self) -> None:
        self._override_was_called = False
        self._sample_sigmas: Any = None
        self._steps = SigmaSteps(())

    def on_pre_run(self, patcher: Any) -> None:
        """ON_PRE_RUN: a new sampling run begins."""
        self._reset()
        self._handled_at_begin = handled_exception()
        self.run.begin()

    def on_cleanup(self, patcher: Any) -> None:
        """ON_CLEANUP: the sampling run is over, also after an error or an interruption."""
        before = self.last_run
        sigmas = self._steps.sample_sigmas
        self.run.finish(
            self._model_name,
            ending_since(self._handled_at_begin),
            (sigmas[0], sigmas[-1]) if len(sigmas) > 1 else None,
        )
        self._handled_at_begin = None
        if self.last_run is not None and self.last_run is not before:
            self._join(self.last_run)
        self._reset()

    def _join(self, record: RunRecord) -> None:
        """Show one line for all samplers of a render, such as the two experts of Wan 2.2."""
        runs = runs_of_this_prompt()
        earlier = next((each for each in reversed(runs) if record.continues(each)), None)
        if earlier is None:
            runs.append(record)
            return
        both = joined(earlier, record)
        runs[runs.index(earlier)] = both
        for node_id in dict.fromkeys(both.nodes):
            send_status(last_status(both), node_id)
        logger.info("Rectified SpaAttn: %s", log_line(both))

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
        run, model = self.run, executor.class_obj
        options = dict(transformer_options or {})
        self._model_name = type(model).__name__
        if FRAME_CACHE in options:
            layout: TokenLayout | DenseReason = why(Reason.FRAME_CACHE)
        else:
            layout = token_layout(model.diffusion_model, x, c_crossattn, conds)
        others: set[int] = set()
        # The one wait for the device before the model runs.
        sigma = float(options.get("sigmas", t).flatten()[0])
        position = self._position(sigma, options, x.shape)
        if isinstance(layout, TokenLayout):  # of any other model the sampling may be, too
            others = other_lengths(model.diffusion_model, c_crossattn, conds)
            to_sigma = model.model_sampling.percent_to_sigma
            percent = self._steps.percent_at(sigma, position.step, to_sigma)
            position = replace(position, percent=percent, course=self._steps.course(to_sigma))
        family = family_of(model.diffusion_model)
        by_frame = family is not None and conds.get(family.by_frame) is not None
        plan = run.plan(layout, position, by_frame)

        def call(forward: Forward) -> Any:
            override = make_override(forward, options.get(OVERRIDE), others)
            inner = label_blocks(model.diffusion_model, {**options, OVERRIDE: override})
            if forward.frames is not None:
                patches = inner.get("patches", {})
                joined = [make_join(forward), *patches.get("attn1_patch", ())]
                inner["patches"] = {**patches, "attn1_patch": joined}
            return executor(x, t, c_concat, c_crossattn, control, inner, **conds)

        forward = run.open(plan, x.device)
        output = call(forward)
        if self._is_bypassed_by_compiled_code(forward, model, options):
            run.report.warn_once(
                "no attention call came from the compiled model, which may have been compiled "
                "without this node: it is compiled again for the next call"
            )
            # This output stands: a second forward would advance whatever the model remembers.
            torch.compiler.reset()
        if (again := run.close(forward, output, effects_of(model, options))) is not None:
            forward, output = again, call(again)
            run.close(forward, output)
        if self.verbose:
            _log_forward(forward, sigma)
        if not run.report.has_calls:
            run.report.warn_once(_never_called(forward, _has_own_forward(model)))
        return output

    def _position(self, sigma: float, options: Mapping[str, Any], shape: torch.Size) -> Position:
        """The step of a call at `sigma`; the sampler's list is read once per run."""
        sample_sigmas = options.get("sample_sigmas")
        if sample_sigmas is not self._sample_sigmas:
            values = () if sample_sigmas is None else tuple(sample_sigmas.tolist())
            # The same list on another device is no other sampling.
            if values != self._steps.sample_sigmas:
                self._steps = SigmaSteps(values)
            self._sample_sigmas = sample_sigmas
        steps = self._steps
        if not steps.num_steps:
            return Position()
        window = getattr(options.get("context_window"), "index_list", ())
        conds = (options.get("cond_or_uncond", ()), options.get("uuids", ()))
        part = (shape, tuple(window), *map(tuple, conds))
        return Position(steps.step_at(sigma, part), steps.num_steps)

    def _is_bypassed_by_compiled_code(
        self, forward: Forward, model: Any, options: Mapping[str, Any]
    ) -> bool:
        """Whether code compiled without this node has run instead of the model's present graph.

        ComfyUI's compile node drops the guards on transformer_options, so code that was compiled
        before this node was added is used again and never looks for an override. Answers yes once:
        if compiling again does not help, something else bypasses the override.
        """
        tally = forward.tally
        self._override_was_called |= tally.seen or bool(tally.other_lengths)
        if forward.plan.config is None or self._override_was_called or self._has_recompiled:
            return False
        wrappers = options.get("wrappers", {}).get("apply_model", {})
        modules = getattr(model.diffusion_model, "modules", tuple)
        if COMPILE_KEY in wrappers or any(hasattr(part, "_orig_mod") for part in modules()):
            self._has_recompiled = True
        return self._has_recompiled


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
    settings = replace(patch.settings, probe=probe)
    return install(model, SparseAttentionPatch(settings, patch.node_id, node_id, patch.verbose))


def read_probe(model: Any, closest_to_fastest: float, name: str) -> ProbeOutcome:
    """What the probe on a ComfyUI model patcher has measured.

    Args:
        model: that has sampled.
        closest_to_fastest: which profile, see `error_at_place`.
        name: of the profile.

    Raises:
        ConfigError: there is no probe on the model, or a value is wrong.
        NothingMeasured: it measured nothing; the message says why.
    """
    check_number("closest_to_fastest", closest_to_fastest, 0.0, 1.0)
    patch = find_patch(model)
    recorder = None if patch is None else patch.run.recorder
    if patch is None or recorder is None:
        raise ConfigError("model", type(model).__name__, PROBED_MODEL)
    if recorder.is_empty or recorder.grid is None:
        cause = why_nothing_measured(recorder, patch.last_run)
        raise NothingMeasured(f"the probe has measured nothing: {cause}")
    fingerprint = fingerprint_of_patcher(model)
    if fingerprint is None:
        kind = type(model.model.diffusion_model).__name__
        raise ConfigError("model", kind, f"a model of a known family ({family_names()})")
    table, config = recorder.table(), patch.settings.config
    wanted_error = error_at_place(table, config.sparsity, closest_to_fastest)
    return make_outcome(table, fingerprint, config, recorder.grid, wanted_error, name)


def effects_of(model: Any, options: Mapping[str, Any]) -> str:
    """What may remember a forward of a BaseModel, so that it must not be repeated; "" for nothing.

    Other nodes' code inside the call may be a step cache, which takes a repeat for a next step.

    Args:
        model: the BaseModel.
        options: transformer_options of the forward.
    """
    if FRAME_CACHE in options:
        return "a cache of frames"
    wrappers = options.get("wrappers", {})
    inside = [*wrappers.get("diffusion_model", ()), *wrappers.get("apply_model", ())]
    foreign = [str(key) for key in inside if key not in (KEY, COMPILE_KEY)]
    if foreign:
        return f"another node runs inside it: {foreign[0]}"
    if _has_own_forward(model):
        return "another node has replaced the model's forward"
    return ""


def _has_own_forward(model: Any) -> bool:
    """Whether another node has replaced the forward of a BaseModel's transformer."""
    transformer = getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)
    return any(name in getattr(transformer, "__dict__", ()) for name in FORWARDS)


def _log_forward(forward: Forward, sigma: float) -> None:
    plan, tally = forward.plan, forward.tally
    position = plan.position
    note = f"sigma {sigma:.4f}, step {step_name(position.step)} of {position.num_steps}"
    if position.percent is not None:
        note += f", percent {position.percent:.3f}"
    if plan.layout is not None:
        layout = plan.layout
        note += f", grid {layout.grid}, {layout.length} tokens from {layout.video_start}"
    note += ", dense" if plan.config is None else f", sparsity {plan.config.sparsity}"
    sparse, dense = tally.sparse.total(), tally.dense.total()
    density = f", density {sum(forward.density_sums.values()) / sparse:.3f}" if sparse else ""
    logger.info("Rectified SpaAttn: %s: sparse %d / dense %d%s", note, sparse, dense, density)


def _never_called(forward: Forward, has_own_forward: bool) -> str:
    """What to tell a user whose model never asked for attention over its video tokens.

    Args:
        forward: the model call.
        has_own_forward: whether another node has replaced the model's forward.
    """
    plan, lengths = forward.plan, forward.tally.other_lengths
    if plan.layout is None:
        assert plan.reason is not None
        return f"this model stays dense: {plan.reason.text}"
    if not lengths and has_own_forward:
        return (
            "installed, but no attention call reached it: a step cache (TeaCache, MagCache) or "
            "another node has replaced the model's forward, and its copy does not tell the "
            "attention about this node. Remove that node, or this one; EasyCache works with it."
        )
    if not lengths:
        return (
            "installed, but no attention call reached it. Another node replaces the model's "
            "attention altogether (a SageAttention patch of the blocks, RadialAttn, on MiniMax H3 "
            "ComfyUI's sparse attention) or the model does not use ComfyUI's attention. Remove "
            "that node, or this one."
        )
    seen = ", ".join(f"{q}x{k}" for q, k in sorted(lengths)[:6])
    return (
        f"installed, but no self-attention over {plan.layout.length} tokens was seen, only calls "
        f"of (queries x keys) {seen}. This model variant stays dense."
    )
