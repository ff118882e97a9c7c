"""Sparse, rectified attention for the video transformers of diffusers.

    from rectified_spaattn.adapters import sparse_attention

    with sparse_attention(pipe.transformer, scheduler=pipe.scheduler) as sparse:
        video = pipe(prompt, num_frames=81, height=720, width=1280).frames
    print(sparse.report)        # sparse 4000 / dense 0 · density 0.25 · 412.0 s, 100 forwards

Wan 2.2 14B has a second transformer for the later steps, which takes its own:

    with sparse_attention(pipe.transformer, scheduler=pipe.scheduler) as early:
        with sparse_attention(pipe.transformer_2, scheduler=pipe.scheduler) as late:
            video = pipe(prompt).frames

Only the processors of the self-attention layers over the video are replaced, and only while it is
installed. Cross-attention, audio, text refiners and every call that cannot be sparse run as they
did before; the report counts the latter with the reasons. Compiled models work too; their graph
then breaks at every self-attention. Several threads may run pipelines over one transformer. Under
context parallelism by Ulysses each process installs it, with the same settings, and counts its own
calls. Needs diffusers 0.35 or newer. What is decided, computed and counted is in rspa_core/run.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..rspa_core import ConfigError, SparseConfig, release_tables
from ..rspa_core.attention import BACKENDS
from ..rspa_core.config import check_choice, check_integer
from ..rspa_core.run.calls import Forward, RunSettings, SparseRun
from ..rspa_core.run.probe import NothingMeasured, ProbeOutcome, ProbeSettings, make_outcome
from ..rspa_core.run.profile import SparsityProfile
from ..rspa_core.run.reasons import Reason, why
from ..rspa_core.run.record import RunRecord
from ..rspa_core.run.report_text import log_line, why_nothing_measured
from ..rspa_core.run.schedule import (
    Course,
    DenseBlocks,
    Position,
    SparsitySchedule,
    parse_dense_blocks,
)
from .processors import (
    BlockPlace,
    Current,
    Parts,
    SparseProcessor,
    parts_of,
    uncompiled,
    unsupported,
)

_Found = tuple[int | None, int | None, tuple[float, ...]]
"""Step, number of steps, and the noise level at which each of them begins; () if unknown."""


class StepCounter:
    """The current step of each thread, from the best source there is.

    1. What `set` was told last.
    2. The scheduler's timesteps: the step whose timestep the model is given. Several steps may have
       that timestep (rounded to bf16, or samplers of second order): `scheduler.step_index`, which
       schedulers of diffusers count up in `step`, is one of them, or else the first.
    3. Changes of the timestep from forward to forward: one in the direction of the run, falling or
       rising (inversion), is the next step, one against it the first step of a new run.

    Args:
        scheduler: a scheduler of diffusers, or None.
        num_steps: of a run, if it is known and there is no scheduler.
    """

    def __init__(self, scheduler: Any = None, num_steps: int | None = None) -> None:
        self.scheduler = scheduler
        self.num_steps = num_steps
        self._own = _Count()

    def set(
        self,
        step: int | None,
        num_steps: int | None = None,
        noise: Sequence[float] | None = None,
    ) -> None:
        """This thread's forwards from here on belong to `step`; None: to the other sources.

        `noise` has the level, 1 to 0, at which each of the steps begins.
        """
        count = num_steps or (len(noise) if noise else self.num_steps)
        self._own.told = None if step is None else (step, count, tuple(noise or ()))

    def current(self, timestep: Any) -> Position:
        """Where a forward is; the percent is the share of the steps that are done.

        Args:
            timestep: what the model gets: a tensor of any shape, a number, or None. Frames that
                are given have timestep 0 in some models: the largest entry counts.
        """
        step, num_steps, noise = self._own.told or self._found(timestep)
        percent = step / max(num_steps, 1) if step is not None and num_steps is not None else None
        count = len(noise)
        course = Course(tuple(i / count for i in range(count)), (*noise, 0.0)) if noise else None
        return Position(step, num_steps, percent, course)

    def _found(self, timestep: Any) -> _Found:
        timesteps = getattr(self.scheduler, "timesteps", None)
        if timesteps is not None and hasattr(self.scheduler, "step_index"):
            begin = getattr(self.scheduler, "begin_index", None) or 0
            index = self.scheduler.step_index
            index = begin if index is None else index
            if timestep is not None:
                given = torch.as_tensor(timestep)
                listed = torch.as_tensor(timesteps, device=given.device).to(given.dtype)
                same = (listed == given.max()).nonzero().flatten().tolist()
                if same and index not in same:
                    index = same[0]
            return index - begin, len(timesteps) - begin, self._noise(timesteps[begin:])
        if timestep is None:
            return None, self.num_steps, ()
        return self._own.next(float(torch.as_tensor(timestep).max())), self.num_steps, ()

    def _noise(self, timesteps: Any) -> tuple[float, ...]:
        """Noise levels of a flow model, whose timesteps they are but for a factor."""
        most = getattr(getattr(self.scheduler, "config", None), "num_train_timesteps", None)
        listed = torch.as_tensor(timesteps).tolist()
        return tuple(each / most for each in listed) if most else ()


class _Count(threading.local):
    """One thread's steps, counted by the changes of its timestep."""

    def __init__(self) -> None:
        self.told: _Found | None = None
        self._counted = 0
        self._last: float | None = None
        self._rises: bool | None = None

    def next(self, timestep: float) -> int:
        if self._last is not None and timestep != self._last:
            rises = timestep > self._last
            if self._rises in (None, rises):
                self._counted, self._rises = self._counted + 1, rises
            else:
                self._counted, self._rises = 0, None
        self._last = timestep
        return self._counted


class SparseAttention:
    """Sparse attention that is installed on a transformer; made by `install`.

    Attributes:
        transformer: the model, as it was given.
        run: what is decided, computed and counted.
    """

    def __init__(
        self, transformer: nn.Module, run: SparseRun, steps: StepCounter, parts: Parts
    ) -> None:
        self.transformer = transformer
        self.run = run
        self._steps = steps
        self._parts = parts
        self._current = Current(run)
        self._processors = {}
        if parts.family is not None:
            make = parts.family.processor
            for place, module in parts.modules.items():
                self._processors[module] = make(module.get_processor(), self._current, place)
        for module, processor in self._processors.items():
            module.set_processor(processor)
        if parts.family is None:
            run.report.warn_once(f"this model stays dense: {unsupported(transformer).text}")
        model = uncompiled(transformer)
        self._parameters = tuple(inspect.signature(type(model).forward).parameters)[1:]
        # On the outermost module: compiled code may not look for hooks that are new inside it.
        self._hooks = [
            transformer.register_forward_pre_hook(self._before, with_kwargs=True),
            transformer.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    @property
    def record(self) -> RunRecord:
        """What was counted since the installation, or since `reset`."""
        return self.run.report.record(type(uncompiled(self.transformer)).__name__)

    @property
    def report(self) -> str:
        """The record in one line; `report_text.summary_text(sparse.record)` has all of it."""
        return log_line(self.record)

    def reset(self) -> None:
        """Begin a new run: forget counts, failures and measurements."""
        self.run.begin()

    def probe_result(self, wanted_error: float, name: str = "") -> ProbeOutcome:
        """A profile from what the probe has measured.

        Args:
            wanted_error: relative error of a block's attention output to stay within; 0: the one
                whose profile is as fast as the sparsity of the run in all blocks.
            name: of the profile.

        Raises:
            ConfigError: there is no probe, or a value is out of range.
            NothingMeasured: it has measured nothing; the message says why.
        """
        recorder = self.run.recorder
        if recorder is None:
            raise ConfigError("probe", None, "a ProbeSettings given to install")
        if recorder.is_empty or recorder.grid is None:
            cause = why_nothing_measured(recorder, self.record)
            raise NothingMeasured(f"the probe has measured nothing: {cause}")
        config, table = self.run.settings.config, recorder.table()
        fingerprint = self._parts.fingerprint
        assert fingerprint is not None  # else nothing is measured
        return make_outcome(table, fingerprint, config, recorder.grid, wanted_error, name)

    def set_step(
        self,
        step: int | None,
        num_steps: int | None = None,
        noise: Sequence[float] | None = None,
    ) -> None:
        """Say which step this thread's next forwards belong to, for samplers of your own.

        Args:
            step: from 0; None goes back to the scheduler or to counting.
            num_steps: of the run; None: as given to `install`.
            noise: level, 1 to 0, at which each step begins; only a schedule with a ramp needs it.
        """
        self._steps.set(step, num_steps, noise)

    def remove(self) -> None:
        """Put everything back; a second time, do nothing.

        A processor that somebody else has set since stays.
        """
        for hook in self._hooks:
            hook.remove()
        for module, processor in self._processors.items():
            if module.get_processor() is processor:
                module.set_processor(processor.original)
        if self._hooks:
            release_tables()
        self._hooks, self._processors = [], {}

    @torch.compiler.disable()
    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._current.is_repeating:
            return
        given = dict(zip(self._parameters, args, strict=False)) | kwargs
        family, model = self._parts.family, uncompiled(self.transformer)
        if family is None:
            plan = self.run.plan(unsupported(model), Position())
            self._current.begin(self.run.open(plan, torch.device("cpu")))
            return
        position = self._steps.current(given.get("timestep"))
        try:
            layout = family.layout(model.config, given)
        except Exception as error:  # arguments of a form that the model takes all the same
            layout = why(Reason.UNKNOWN_CONDITIONS, type(error).__name__, str(error))
        plan = self.run.plan(layout, position)
        self._current.begin(self.run.open(plan, given["hidden_states"].device))

    @torch.compiler.disable()
    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The output; after values that were not finite, that of a second, dense call."""
        current = self._current
        forward = current.forward
        if current.is_repeating or forward is None:
            return None
        current.begin(None)
        if output is None:  # the model has raised an error
            return None
        if self._parts.family is None:
            forward.count_dense(("", None), unsupported(self.transformer))
            self.run.close(forward, None)
            return None
        self._count_replaced(forward)
        again = self.run.close(forward, _sample(output), self._effects())
        if again is None:
            return None
        current.begin(again)
        current.is_repeating = True
        try:
            output = module(*args, **kwargs)
        finally:
            current.begin(None)
            current.is_repeating = False
        self.run.close(again, _sample(output))
        return output

    def _effects(self) -> str:
        """What speaks against repeating a forward, "" for nothing."""
        model = uncompiled(self.transformer)
        if getattr(model, "_parallel_config", None) is not None:
            return "other processes take part in it"
        # Caches of diffusers (`enable_cache`) count the model's calls.
        return "diffusers' cache is enabled" if getattr(model, "is_cache_enabled", False) else ""

    def _count_replaced(self, forward: Forward) -> None:
        """Count the blocks whose processors somebody has set since, and which did not call ours."""
        tally = forward.tally
        counted = {*tally.sparse, *(block for block, _ in tally.dense)}
        for place, module in self._parts.modules.items():
            ours, processor = self._processors.get(module), module.get_processor()
            if ours is not None and processor is not ours and place.block not in counted:
                name = type(processor).__name__
                forward.count_dense(place.block, why(Reason.PROCESSOR_REPLACED, name))


def _sample(output: Any) -> Tensor:
    """The latent in a transformer's output, an object or a tuple."""
    return output[0]


def install(
    transformer: nn.Module,
    config: SparseConfig | None = None,
    *,
    schedule: SparsitySchedule | None = None,
    dense_blocks: DenseBlocks | str = "",
    min_tokens: int = 8192,
    scheduler: Any = None,
    num_steps: int | None = None,
    backend: str = "auto",
    profile: SparsityProfile | None = None,
    probe: ProbeSettings | None = None,
) -> SparseAttention:
    """Make the self-attention of a transformer sparse until `remove` is called on the result.

    Args:
        transformer: of a class in `models.FAMILIES`, compiled or not; any other model of diffusers
            stays dense and is counted with that reason. The two models of Wan 2.2 14B are
            installed one by one, with the same scheduler.
        config: how calls are made sparse; None for `SparseConfig()`.
        schedule: sparsity over the run, instead of `config.sparsity` throughout.
        dense_blocks: blocks that stay dense, "0, 1, -1" or "single 0-2".
        min_tokens: below this many video tokens a forward stays dense.
        scheduler: the pipeline's, which knows the steps. Without it steps are counted by the
            changes of the timestep; see `StepCounter`. Only a schedule and a probe need either.
        num_steps: of a run, where there is no scheduler and the schedule depends on it.
        backend: "auto" (the kernels; on a CPU everything stays dense, which is faster there),
            "triton", or "reference" (plain torch on any device, many times slower than dense).
        profile: a sparsity for each block; the schedule still says when.
        probe: what is measured while sampling; `probe_result` then has the outcome.

    Raises:
        ConfigError: an argument is out of range, or the model is none of diffusers.
        RuntimeError: sparse attention is installed on this model already.
    """
    parts = parts_of(transformer)
    config = SparseConfig() if config is None else config
    if not isinstance(config, SparseConfig):
        raise ConfigError("config", config, "a SparseConfig")
    if schedule is not None and not isinstance(schedule, SparsitySchedule):
        raise ConfigError("schedule", schedule, "a SparsitySchedule or None")
    if profile is not None:
        if not isinstance(profile, SparsityProfile):
            raise ConfigError("profile", profile, "a SparsityProfile or None")
        if parts.fingerprint is not None:  # any other model stays dense, with that reason
            profile.check_model(parts.fingerprint)
    if probe is not None and not isinstance(probe, ProbeSettings):
        raise ConfigError("probe", probe, "a ProbeSettings or None")
    if isinstance(dense_blocks, str):
        dense_blocks = parse_dense_blocks(dense_blocks)
    if not isinstance(dense_blocks, DenseBlocks):
        raise ConfigError("dense_blocks", dense_blocks, "a text or DenseBlocks")
    places = parts.modules
    if dense_blocks.ranges and places:
        if not any(dense_blocks.contains(*each.block, each.total) for each in places):
            raise ConfigError("dense_blocks", dense_blocks.ranges, f"blocks of {_listed(places)}")
    check_integer("min_tokens", min_tokens, 0)
    if num_steps is not None:
        check_integer("num_steps", num_steps, 1)
    check_choice("backend", backend, BACKENDS)
    if any(isinstance(each.get_processor(), SparseProcessor) for each in places.values()):
        raise RuntimeError("sparse attention is installed on this model already: remove it first")
    settings = RunSettings(config, schedule, dense_blocks, min_tokens, profile, probe, backend)
    return SparseAttention(
        transformer, SparseRun(settings), StepCounter(scheduler, num_steps), parts
    )


@contextmanager
def sparse_attention(
    transformer: nn.Module, config: SparseConfig | None = None, **options: Any
) -> Iterator[SparseAttention]:
    """`install` for the duration of a with block; `options` are its keyword arguments."""
    sparse = install(transformer, config, **options)
    try:
        yield sparse
    finally:
        sparse.remove()


def _listed(places: dict[BlockPlace, Any]) -> str:
    """ "0 to 19, single 0 to 39": the blocks that there are."""
    kinds = {each.block[0]: each.total for each in places}
    prefix = {"double": "", "single": "single "}
    return ", ".join(f"{prefix[kind]}0 to {total - 1}" for kind, total in kinds.items())
