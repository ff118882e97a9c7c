"""The engine of a sampling run, for any host: plans model calls, decides, computes and counts.

A host patches a model and makes one `SparseRun` for it. For each model call ("forward") it says
which tokens are the video and where in the sampling the call is, and opens a `Forward`; each
self-attention call of the model goes through that. What cannot be sparse takes the host's dense
path and is counted with its reason; a call that fails takes it, too.

    forward = run.open(run.plan(layout, position), device)
    decision = forward.decide(...)                        # None: it is dense
    out = forward.attend(decision, q, k, v, dense)        # None: it failed, take the dense path
    again = run.close(forward, output)                    # not None: call the model once more

Non-finite values: looking at every attention output would cost a pass over it and a wait. Instead
the forward's output is looked at once, together with the densities, and a forward that went wrong
is asked for again, dense. Its sparse calls are not counted. There is no other repeat, and a host
rules it out for a forward that may change anything besides its output, a cache of keys or of steps:
then the output stands, and the rest of the run is dense.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attention import rectified_attention
from ..config import SparseConfig
from ..dispatch import (
    BackendUnavailable,
    backend_status,
    compile_progress,
    prepare,
    release_tables,
)
from ..layout import TokenLayout
from .frames import FrameCalls
from .key_masks import (
    Group,
    attend_groups,
    attend_weighted,
    padded,
    read_mask,
    read_weights,
)
from .probe import ProbeRecorder, ProbeSettings
from .profile import SparsityProfile
from .reasons import DenseReason, Reason, why
from .record import Block, Ending
from .report import ForwardTally, RunReport
from .schedule import DenseBlocks, Position, SparsitySchedule

FAILURE_LIMIT = 3
"""After this many failed calls the rest of the run is dense."""
NO_COURSE = "the sampler does not say its steps: without a ramp, each keeps the same"
MESSAGE_LENGTH = 160
"""Longest part of an error message that becomes a reason, in characters."""


@dataclass(frozen=True)
class RunSettings:
    """What the user chose.

    Attributes:
        config: of the sparse calls.
        schedule: sparsity over the run in place of the config's, or None.
        dense_blocks: blocks that stay dense.
        min_tokens: below this many video tokens a forward is dense.
        profile: sparsity by block in place of the schedule's, which still says when; or None.
        probe: what is measured while sampling, or None.
        backend: "auto" (the kernels; dense where there are none), "triton" or "reference".
        asked: the values as the user knows them, plain JSON data, for the report.
    """

    config: SparseConfig = field(default_factory=SparseConfig)
    schedule: SparsitySchedule | None = None
    dense_blocks: DenseBlocks = field(default_factory=DenseBlocks)
    min_tokens: int = 0
    profile: SparsityProfile | None = None
    probe: ProbeSettings | None = None
    backend: str = "auto"
    asked: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ForwardPlan:
    """What one forward is to do, decided before the model runs.

    Attributes:
        layout: the video tokens, None if they are not known.
        config: how sparse calls are made, None for a dense forward.
        reason: why the forward is dense, None for one that is not.
        position: where in the sampling it is.
        is_repeat: whether it is called again after values that were not finite.
        by_frame: whether the model asks for its attention frame by frame, see `FrameCalls`.
    """

    layout: TokenLayout | None
    config: SparseConfig | None
    reason: DenseReason | None = None
    position: Position = field(default_factory=Position)
    is_repeat: bool = False
    by_frame: bool = False


@dataclass(frozen=True)
class Decision:
    """What is to become of one attention call.

    Attributes:
        block: that makes it.
        config: how it is made sparse; None if it is only measured.
        is_probed: whether the probe compares it with dense attention.
    """

    block: Block
    config: SparseConfig | None
    is_probed: bool


class RunFailures:
    """Failed sparse calls of one run, shared by its forwards."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0
        self.final_reason: DenseReason | None = None

    def add(self, reason: DenseReason, is_final: bool = False) -> None:
        """Note a failure; `final_reason` is set once the rest of the run is to be dense."""
        with self._lock:
            self.count += 1
            if is_final or self.count >= FAILURE_LIMIT:
                self.final_reason = reason


class Preparation:
    """What a first sparse call needs, made in a thread while the run is still dense.

    Args:
        work: compiles and checks the kernels. What it raises, the call that needs them will, too.
        clock: seconds, rising.

    Attributes:
        ended: when, by the clock; infinite before.
    """

    def __init__(self, work: Callable[[], None], clock: Callable[[], float]) -> None:
        self._work = work
        self._clock = clock
        self.ended = math.inf
        self._compiled: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._run, name="prepare", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(Exception), compile_progress(self._hear):
            self._work()
        self.ended = self._clock()

    def _hear(self, done: int, total: int) -> None:
        self._compiled = done, total

    def wait(self, say: Callable[[int, int], None]) -> None:
        """Wait until it has ended; `say` hears how many kernels are compiled, and of how many."""
        said = None
        while self._thread.is_alive():
            if (compiled := self._compiled) != said and compiled is not None:
                said = compiled
                say(*compiled)
            self._thread.join(0.1)


class SparseRun:
    """The sampling runs of one patched model, one after the other.

    Several threads may call the model at once. A deep copy of whatever holds this object reports to
    the same run.

    Args:
        settings: what the user chose.
        report: counts; one without a place for its status line if None.
        attend, status, prepare: the sparse attention, its backend query, and what compiles its
            kernels ahead; injected for tests.
        guard: makes the context in which sparse attention runs.
        progress, say: told how far the probe is, see `ProbeRecorder`.

    Attributes:
        recorder: of the probe, None without one.
        unavailable: why no back end computes calls of a device, dtype and head size, None where
            one does; of those that were asked for in this run.
    """

    def __init__(
        self,
        settings: RunSettings,
        report: RunReport | None = None,
        attend: Callable[..., Any] = rectified_attention,
        status: Callable[..., Any] = backend_status,
        prepare: Callable[..., None] = prepare,
        guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
        progress: Callable[[int, int], None] | None = None,
        say: Callable[[str, bool], None] | None = None,
    ) -> None:
        self.settings = settings
        self.report = report or RunReport(settings=settings.asked)
        self.recorder: ProbeRecorder | None = None
        if settings.probe is not None:
            measured = partial(attend, backend=settings.backend)
            self.recorder = ProbeRecorder(settings.probe, measured, progress, say)
        self.attention = attend
        self.backend_status = status
        self._prepare = prepare
        self._preparations: dict[torch.device, Preparation] = {}
        self.guard = guard
        self.failures = RunFailures()
        self.unavailable: dict[tuple[torch.device, torch.dtype, int], DenseReason | None] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseRun:
        return self

    def begin(self) -> None:
        """A new sampling run begins; what an earlier one left is forgotten."""
        self.failures = RunFailures()
        self.unavailable = {}
        self._preparations = {}
        self.report.reset()
        self.report.announce()
        if self.recorder is not None:
            self.recorder.reset()
        for difference in _differences(self.settings):
            self.report.warn_once(difference)

    def finish(
        self,
        model_name: str,
        ending: Ending = Ending.COMPLETE,
        sigmas: tuple[float, float] | None = None,
    ) -> None:
        """The sampling run is over.

        Args:
            model_name: class of the model.
            ending: how it has ended.
            sigmas: first and last noise level of the sampler's list, None if unknown.
        """
        record = self.report.record()
        if self.settings.dense_blocks.ranges and record.sparse:
            if not any(each.reason is Reason.DENSE_BLOCK for each in record.reasons):
                self.report.warn_once("dense_blocks matches no block of this model")
        self.report.finish_run(model_name, ending, sigmas)
        if self.recorder is not None:
            self.recorder.finish()
        self.failures = RunFailures()
        release_tables()

    def plan(
        self, layout: TokenLayout | DenseReason, position: Position, by_frame: bool = False
    ) -> ForwardPlan:
        """What a forward is to do.

        Args:
            layout: its tokens, or why they are not known.
            position: where in the sampling it is.
            by_frame: whether the model asks for its attention frame by frame.
        """
        settings = self.settings
        if isinstance(layout, DenseReason):
            return ForwardPlan(None, None, layout, position)
        tokens = layout.video_length
        decided: float | DenseReason = settings.config.sparsity
        if tokens < settings.min_tokens:
            decided = why(Reason.MIN_TOKENS, tokens, settings.min_tokens)
        elif (schedule := settings.schedule) is not None:
            if schedule.has_ramp and settings.profile is not None:
                # Each block has a ramp of its own, and another may keep less than all.
                schedule = replace(schedule, ramp=0.0)
            decided = schedule.sparsity_at(position)
            if schedule.has_ramp and position.place is None:
                self.report.warn_once(NO_COURSE)
        if isinstance(decided, DenseReason):
            return ForwardPlan(layout, None, decided, position, by_frame=by_frame)
        config = replace(settings.config, sparsity=decided)
        return ForwardPlan(layout, config, None, position, by_frame=by_frame)

    def prepare(
        self,
        device: torch.device,
        dtype: torch.dtype,
        head_dim: int,
        has_context: bool,
        with_lse: bool = False,
    ) -> None:
        """Begin, once in a run and on each GPU, to compile what its sparse calls will need."""
        if device not in self._preparations:
            config = self.settings.config
            call = partial(self._prepare, device, dtype, head_dim, config, has_context, with_lse)
            self._preparations[device] = Preparation(call, self.report.clock)

    def preparation(self, device: torch.device) -> Preparation | None:
        """What `prepare` has begun there."""
        return self._preparations.get(device)

    def attempt(
        self, compute: Callable[[Callable[..., Any]], Any], q: Tensor
    ) -> tuple[Any, DenseReason | None]:
        """What `compute` makes of the run's sparse attention, or None and why it failed.

        Args:
            compute: gets `rectified_attention` with the run's back end, which returns statistics.
            q: of the call.
        """
        attention = partial(self.attention, backend=self.settings.backend, return_stats=True)
        try:
            with self.guard(), self.report.compiling(self.preparation(q.device)):
                return compute(attention), None
        except Exception as error:  # out of memory, a kernel that fails: the run goes on, dense
            reason = failure(error)
        # Outside the except clause: there the traceback would keep the failed call's tensors alive
        # while the dense path needs the memory.
        self.fail(reason, q)
        return None, reason

    def fail(self, reason: DenseReason, q: Tensor) -> None:
        """Note that an attention call has failed: later ones of its kind, or all, are dense."""
        if reason.reason is Reason.NO_BACKEND:
            self.lack((q.device, q.dtype, q.shape[-1]), reason)
            return
        self.failures.add(reason)
        self._warn_of_failure(reason)

    def lack(self, kind: tuple[torch.device, torch.dtype, int], reason: DenseReason) -> None:
        """No back end computes calls of this kind."""
        self.unavailable[kind] = reason
        self.report.warn_once(f"attention calls on {kind[0]} take the dense path: {reason.text}")

    def give_up(self, reason: DenseReason) -> None:
        """The rest of the run is dense."""
        self.failures.add(reason, is_final=True)
        self._warn_of_failure(reason)

    def _warn_of_failure(self, reason: DenseReason) -> None:
        rest = ", and so does the rest of this run" if self.failures.final_reason else ""
        self.report.warn_once(f"an attention call takes the dense path{rest}: {reason.text}")

    def open(self, plan: ForwardPlan, device: torch.device) -> Forward:
        """A model call begins."""
        return Forward(self, plan, device, self.report.start_forward())

    def close(self, forward: Forward, output: Any, effects: str = "") -> Forward | None:
        """A model call is over: count it, unless it has to be made again.

        Args:
            forward: what `open` gave.
            output: the model's, a tensor.
            effects: what may remember the forward, so that it must not be repeated; "" for none.

        Returns:
            None; or, if sparse attention may have made values that are not finite, a dense forward
            to call the model again with, and to close in turn.
        """
        tally, plan = forward.tally, forward.plan
        density_sums: dict[Block, float] = {}
        # A repeat needs the memory of what was never joined.
        frames, forward.frames = forward.frames, None
        if frames is not None and frames.is_unfinished:
            self.failures.add(why(Reason.NOT_JOINED), is_final=True)
            self.report.warn_once(f"{why(Reason.NOT_JOINED).text}: the forward is repeated dense")
            return self._repeat(forward, why(Reason.NOT_JOINED))
        if tally.seen:  # dense ones are waited for, too: their time is what sparse is compared with
            density_sums, is_finite = tally.finish(output)
            if tally.sparse and not is_finite and effects:
                self.failures.add(why(Reason.NON_FINITE_KEPT, effects), is_final=True)
                self.report.warn_once(
                    "sparse attention gave values that are not finite; the forward is not "
                    f"repeated ({effects}), the rest of this run is dense"
                )
            elif tally.sparse and not is_finite:
                self.failures.add(why(Reason.NON_FINITE))
                self.report.warn_once(
                    "sparse attention gave values that are not finite: the forward is repeated "
                    "dense"
                )
                return self._repeat(forward, why(Reason.NON_FINITE))
            elif plan.is_repeat and not is_finite:
                # The model itself does it: sparse attention would be blamed again and again.
                self.failures.add(why(Reason.NON_FINITE_ANYWAY), is_final=True)
                self.report.warn_once(
                    "the model gives values that are not finite with dense attention too"
                )
        forward.density_sums = density_sums
        has_company = any(each.ended > forward.started for each in self._preparations.values())
        self.report.add_forward(
            tally, density_sums, forward.started, plan.layout, plan.position.num_steps, has_company
        )
        return None

    def _repeat(self, forward: Forward, reason: DenseReason) -> Forward:
        """The dense forward in place of one that went wrong; what that had planned counts."""
        plan = replace(forward.plan, config=None, reason=reason, is_repeat=True)
        again = Forward(self, plan, forward.tally.device, forward.started)
        again.tally.planned += forward.tally.planned
        return again


class Forward:
    """One model call and the thread that makes it: its attention calls are decided and counted.

    Attributes:
        plan: what it is to do.
        tally: its calls.
        started: when, by the report's clock.
        density_sums: of its sparse calls by block, once it is closed.
        frames: its calls that are of one frame each, None where the model makes none.
    """

    def __init__(
        self, run: SparseRun, plan: ForwardPlan, device: torch.device, started: float
    ) -> None:
        self.run = run
        self.plan = plan
        self.started = started
        self.tally = ForwardTally(device, plan.position.step)
        self.density_sums: dict[Block, float] = {}
        self.frames: FrameCalls | None = None
        if plan.by_frame and plan.layout is not None and plan.layout.grid[0] > 1:
            self.frames = FrameCalls(plan.layout, self.tally, run.attempt)
        self._mask: Tensor | None = None
        self._groups: tuple[Group, ...] | DenseReason | None = None
        self._weighing: Tensor | None = None
        self._weights: Tensor | DenseReason | None = None
        self._split_block: Block | None = None

    def is_over_video(
        self, q: torch.Size, k: torch.Size, v: torch.Size, block: Block, in_model: bool
    ) -> bool:
        """Whether an attention call of these shapes is over the video's sequence.

        Args:
            q, k, v: `[..., N, C]`.
            block: that makes the call.
            in_model: whether it comes from a block of the transformer, not from a refiner.
        """
        lengths = q[-2], k[-2]
        layout = self.plan.layout
        if q != k or q != v:
            self.tally.other_lengths.add(lengths)
            return False
        if layout is None:
            return True
        expected = layout.length if self.frames is None else self.frames.pose_length
        if lengths[0] == expected and self.frames is None:
            return True
        self.tally.other_lengths.add(lengths)
        if lengths[0] == expected:
            self.count_dense(block, why(Reason.POSE_BRANCH))
        elif in_model and lengths[0] >= layout.video_length:
            # A transformer block over a sequence that was not foreseen: a new model variant.
            self.count_dense(block, why(Reason.OTHER_LENGTH, lengths[0], expected))
        return False

    def is_part_of_video(self, q: torch.Size, k: torch.Size, v: torch.Size) -> bool:
        """Whether an attention call of these shapes is of some rows over all of the video's keys.

        Args:
            q, k, v: `[..., N, C]`.
        """
        layout = self.plan.layout
        if layout is None or k != v or (*q[:-2], q[-1]) != (*k[:-2], k[-1]):
            return False
        return q[-2] < k[-2] == layout.length

    def is_rest_of_context(self, q: torch.Size, block: Block) -> bool:
        """Whether a call of some rows is of those behind the video, which had a call before it.

        Like all rows of the context they are exact: the host computes them, and they are no calls
        over the video to be counted.
        """
        layout = self.plan.layout
        return layout is not None and block == self._split_block and q[-2] <= layout.context_length

    def count_dense(self, block: Block, reason: DenseReason) -> None:
        """Count a call that the host computes by itself."""
        self.tally.add_dense(block, reason)

    def groups_of(self, mask: object, batch: int) -> tuple[Group, ...] | DenseReason | None:
        """`read_mask` of a call over the video; a mask that serves all blocks is read once.

        None without a layout, and while calls are recorded: those are dense, and must not wait.
        """
        layout = self.plan.layout
        if mask is None or layout is None:
            return None
        if not isinstance(mask, Tensor):  # of another attention, which may know its own kinds
            return why(Reason.MASK_FORM, "unknown", type(mask).__name__)
        if _is_recording(mask.device):
            return None
        if mask is not self._mask:
            with self.run.guard():  # what is made of it outlives the block of this call
                self._mask, self._groups = mask, read_mask(mask, batch, layout)
        return self._groups

    def weights_of(self, mask: object, q: torch.Size, block: Block) -> Tensor | DenseReason | None:
        """`read_weights` of a call of some rows, `q [B, ..., N, C]`; as `groups_of`."""
        layout = self.plan.layout
        assert layout is not None
        if not isinstance(mask, Tensor):
            return why(Reason.MASK_FORM, "unknown", type(mask).__name__)
        if _is_recording(mask.device):
            return None
        if mask is not self._weighing:
            with self.run.guard():
                weights = read_weights(mask, q[0], q[-2], layout)
                self._weighing, self._weights = mask, weights
        if isinstance(self._weights, Tensor):
            self._split_block = block
        return self._weights

    def decide(
        self,
        block: Block,
        total: int | None,
        device: torch.device,
        dtype: torch.dtype,
        head_dim: int,
        unsupported: DenseReason | None = None,
    ) -> Decision | None:
        """Whether a call over the video is sparse; a dense one is counted.

        Args:
            block: that makes the call.
            total: blocks of its kind, None if unknown.
            device, dtype, head_dim: of its q, k and v.
            unsupported: what the host knows to speak against it.

        Returns:
            None for a call that is to take the dense path.
        """
        config = planned = self._config_or_reason(block, total)
        if _is_recording(device):
            unsupported = unsupported or why(Reason.GRAPH)
        # Asked once it matters, since it may import Triton.
        if not isinstance(config, DenseReason):
            config = unsupported or self._backend_reason(device, dtype, head_dim) or config
        if self._is_probed(block, total):
            if unsupported is None and self._backend_reason(device, dtype, head_dim) is None:
                sparse = None if isinstance(config, DenseReason) else config
                return Decision(block, sparse, is_probed=True)
        self.tally.add_planned(planned)
        if isinstance(config, DenseReason):
            if config.reason.is_before_sparse_steps and unsupported is None:
                self._prepare(device, dtype, head_dim)
            self.count_dense(block, config)
            return None
        return Decision(block, config, is_probed=False)

    def attend(
        self,
        decision: Decision,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Callable[[], Tensor],
        lengths: Sequence[int] | None = None,
        groups: Sequence[Group] | None = None,
        weights: Tensor | None = None,
    ) -> Tensor | None:
        """Compute a call as decided.

        Args:
            decision: about this call.
            q, k, v: `[B, H, N, D]`, any strides; with `weights` q has the rows of the video alone.
            dense: full attention of the same call, `[B, H, N, D]`; called for the probe only.
            lengths: tokens of each sample that take part, the rest is padding; None: all.
            groups: which tokens take part, by a mask; None: all.
            weights: of `weights_of`, of the keys behind the video; None: all weigh the same.

        Returns:
            As q, zero in the padding; of a call that the probe measures, what `dense`
            gave. None if sparse attention failed, which is counted: take the dense path.
        """
        if lengths is not None and set(lengths) != {q.shape[-2]}:
            assert self.plan.layout is not None
            groups = padded(lengths, self.plan.layout)
        if decision.is_probed and (reason := _not_probed(groups, weights)) is not None:
            self.count_dense(decision.block, reason)
            return dense()
        if decision.is_probed:
            self.count_dense(decision.block, why(Reason.PROBED))
            return self._measure(decision.block, q, k, v, dense(), groups)
        config = decision.config
        assert config is not None

        def sparse(attention: Callable[..., Any]) -> Tensor:
            if weights is None:
                out, density = self._sparse(attention, q, k, v, config, groups)
            else:
                assert self.plan.layout is not None
                layout = self.plan.layout
                out, density = attend_weighted(attention, q, k, v, layout, config, weights)
            self.tally.add_sparse(decision.block, out, density)
            return out

        out, reason = self.run.attempt(sparse, q)
        if reason is not None:
            self.count_dense(decision.block, reason)
        return out

    def _prepare(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
        layout = self.plan.layout
        if layout is None or device.type != "cuda" or self.run.settings.backend == "reference":
            return
        if self._backend_reason(device, dtype, head_dim) is None:
            is_weighed = isinstance(self._weights, Tensor)
            has_context = layout.context_length > 0 and not is_weighed
            with_lse = is_weighed or self.frames is not None
            self.run.prepare(device, dtype, head_dim, has_context, with_lse)

    def _config_or_reason(self, block: Block, total: int | None) -> SparseConfig | DenseReason:
        plan, settings = self.plan, self.run.settings
        if plan.layout is None or plan.config is None:
            assert plan.reason is not None
            return plan.reason
        if settings.dense_blocks.contains(*block, total):
            return why(Reason.DENSE_BLOCK)
        if settings.profile is None:
            return plan.config
        sparsity = settings.profile.sparsity_of(*block)
        if sparsity is not None and sparsity <= 0.0:
            return why(Reason.DENSE_IN_PROFILE)
        if settings.schedule is not None and settings.schedule.has_ramp:
            decided = settings.schedule.sparsity_at(plan.position, sparsity)
            if isinstance(decided, DenseReason):
                return decided
            sparsity = decided
        return plan.config if sparsity is None else replace(plan.config, sparsity=sparsity)

    def _backend_reason(
        self, device: torch.device, dtype: torch.dtype, head_dim: int
    ) -> DenseReason | None:
        """Why no backend computes such calls, or why the rest of the run is dense."""
        run = self.run
        if run.failures.final_reason is not None:
            return run.failures.final_reason
        kind = device, dtype, head_dim
        if kind not in run.unavailable:
            try:
                status = run.backend_status(*kind, run.settings.backend)
            except Exception as error:  # a broken Triton install fails when it is imported
                run.give_up(failure(error))
                return run.failures.final_reason
            run.unavailable[kind] = None
            if status.name is None:
                run.lack(kind, why(Reason.NO_BACKEND, status.reason))
        return run.unavailable[kind]

    def _is_probed(self, block: Block, total: int | None) -> bool:
        recorder, position = self.run.recorder, self.plan.position
        if recorder is None or self.plan.layout is None or self.plan.is_repeat:
            return False
        return recorder.wants(position.step, position.num_steps, *block, total)

    def _measure(
        self,
        block: Block,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Tensor,
        groups: Sequence[Group] | None,
    ) -> Tensor:
        """Let the probe compare sparse with dense attention; returns the dense output."""
        recorder, layout = self.run.recorder, self.plan.layout
        assert recorder is not None
        assert layout is not None
        tokens: slice | Tensor = slice(None)
        layout = replace(layout, length=q.shape[-2])
        if groups is not None:
            (group,) = groups  # of several, what is measured would be no one call
            tokens, layout = group.kept, group.layout
        try:
            with self.run.guard(), self.run.report.compiling():
                recorder.measure(
                    q[:, :, tokens],
                    k[:, :, tokens],
                    v[:, :, tokens],
                    dense[:, :, tokens],
                    layout,
                    self.run.settings.config,
                    self.plan.position.step,
                    block,
                )
        except Exception as error:  # out of memory, a kernel that fails: the render goes on
            reason = failure(error)
        else:
            return dense
        # Outside the except clause, as in `attend`.
        self.run.fail(reason, q)
        return dense

    def _sparse(
        self,
        attention: Callable[..., Any],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        config: SparseConfig,
        groups: Sequence[Group] | None,
    ) -> tuple[Tensor, Tensor]:
        """Output and density, one `rectified_attention` for each group of samples."""
        layout = self.plan.layout
        assert layout is not None

        def call(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
            out, stats = attention(q, k, v, layout, config)
            return out, stats.density

        if groups is None:
            return call(q, k, v, replace(layout, length=q.shape[-2]))
        return attend_groups(call, q, k, v, groups)


def _not_probed(groups: Sequence[Group] | None, weights: Tensor | None) -> DenseReason | None:
    """Why the probe cannot compare a call with dense attention."""
    if weights is not None:
        return why(Reason.WEIGHTS_NOT_PROBED)
    if groups is not None and len(groups) > 1:
        return why(Reason.MASKS_NOT_PROBED)
    return None


def _is_recording(device: torch.device) -> bool:
    """Whether the calls on a device are being recorded; torch without CUDA cannot tell."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.is_current_stream_capturing()


def failure(error: Exception) -> DenseReason:
    """An exception as a reason: its type and first line; of a missing back end all it says."""
    if isinstance(error, BackendUnavailable):
        return why(Reason.NO_BACKEND, str(error))
    lines = str(error).strip().splitlines() or [""]
    kind = type(error).__name__
    return why(Reason.FAILED, kind, lines[0][: MESSAGE_LENGTH - len(kind) - 2])


def _differences(settings: RunSettings) -> list[str]:
    """What the profile was measured with and the run does otherwise: its errors may be off."""
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
