"""Sparse, rectified attention for the Wan and HunyuanVideo transformers of diffusers.

    from rectified_spaattn.adapters import sparse_attention
    from rectified_spaattn.rspa_core import SparseConfig

    with sparse_attention(pipe.transformer, SparseConfig(), scheduler=pipe.scheduler) as sparse:
        video = pipe(prompt, num_frames=81, height=720, width=1280).frames
    print(sparse.report)        # sparse 3040 / dense 0 · density 0.25

Only the processors of the self-attention layers are replaced, and only while it is installed.
Cross-attention, text refiners and every call that cannot be sparse run as they did before; the
report counts the latter with the reasons. Compiled models work too; their graph then breaks at
every self-attention. Needs diffusers 0.35 or newer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..rspa_core import ConfigError, SparseConfig, release_tables
from ..rspa_core.attention import BACKENDS
from ..rspa_core.config import check_choice, check_integer
from ..rspa_core.run.schedule import DenseBlocks, SparsitySchedule, parse_dense_blocks
from .attention_calls import AttentionCalls, Block, Settings
from .call_report import CallReport
from .processors import HunyuanSparseProcessor, SparseProcessor, WanSparseProcessor
from .steps import StepCounter

MODELS = "WanTransformer3DModel or HunyuanVideoTransformer3DModel of diffusers"


@dataclass(frozen=True)
class _Parts:
    """What has to be known about a transformer.

    Attributes:
        patch: of the latent, in frames, rows and columns.
        modules: the self-attention modules over the video tokens, by their block.
        processor: class that stands in for their processors.
    """

    patch: tuple[int, int, int]
    modules: dict[Block, Any]
    processor: type[WanSparseProcessor | HunyuanSparseProcessor]


class SparseAttention:
    """Sparse attention that is installed on a transformer; made by `install`.

    Attributes:
        transformer: the model, as it was given.
        report: counts of its self-attention calls.
    """

    def __init__(self, transformer: nn.Module, calls: AttentionCalls, parts: _Parts) -> None:
        self.transformer = transformer
        self._calls = calls
        self._patch = parts.patch
        self._processors = {
            module: parts.processor(module.get_processor(), calls, block)
            for block, module in parts.modules.items()
        }
        for module, processor in self._processors.items():
            module.set_processor(processor)
        # On the outermost module: compiled code may not look for hooks that are new inside it.
        self._hooks = [
            transformer.register_forward_pre_hook(self._before, with_kwargs=True),
            transformer.register_forward_hook(self._after, always_call=True),
        ]

    @property
    def report(self) -> CallReport:
        return self._calls.report

    def set_step(self, step: int | None, num_steps: int | None = None) -> None:
        """Say which step the next forwards belong to, for samplers of your own.

        Args:
            step: from 0; None goes back to the scheduler or to counting.
            num_steps: of the run; None: as given to `install`.
        """
        self._calls.steps.set(step, num_steps)

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
        # Both families start with hidden_states and timestep.
        latent = args[0] if args else kwargs["hidden_states"]
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        frames, height, width = (
            size // step for size, step in zip(latent.shape[-3:], self._patch, strict=True)
        )
        self._calls.begin_forward((frames, height, width), timestep)

    @torch.compiler.disable()
    def _after(self, *_: Any) -> None:
        self._calls.end_forward()


def install(
    transformer: nn.Module,
    config: SparseConfig,
    *,
    schedule: SparsitySchedule | None = None,
    dense_blocks: DenseBlocks | str = "",
    min_tokens: int = 8192,
    scheduler: Any = None,
    num_steps: int | None = None,
    backend: str = "auto",
) -> SparseAttention:
    """Make the self-attention of a transformer sparse until `remove` is called on the result.

    Args:
        transformer: a WanTransformer3DModel (Wan 2.1 and 2.2, text and image to video) or a
            HunyuanVideoTransformer3DModel, compiled or not. The two models of Wan 2.2 14B are
            installed one by one, with the same scheduler.
        config: how calls are made sparse.
        schedule: sparsity over the run, instead of `config.sparsity` throughout.
        dense_blocks: blocks that stay dense, "0, 1, -1" or "single 0-2".
        min_tokens: below this many video tokens a forward stays dense.
        scheduler: the pipeline's, which knows the step. Without it steps are counted by the
            changes of the timestep; see `StepCounter`. Only a schedule needs either.
        num_steps: of a run, where there is no scheduler and the schedule depends on it.
        backend: "auto", "triton" or "reference".

    Raises:
        ConfigError: an argument is out of range, or the model is of another class.
        RuntimeError: sparse attention is installed on this model already.
    """
    parts = _parts_of(transformer)
    if not isinstance(config, SparseConfig):
        raise ConfigError("config", config, "a SparseConfig")
    if schedule is not None and not isinstance(schedule, SparsitySchedule):
        raise ConfigError("schedule", schedule, "a SparsitySchedule or None")
    if isinstance(dense_blocks, str):
        dense_blocks = parse_dense_blocks(dense_blocks)
    blocks = parts.modules
    if dense_blocks.ranges:
        if not any(dense_blocks.contains(each.kind, each.index, each.total) for each in blocks):
            raise ConfigError("dense_blocks", dense_blocks.ranges, f"blocks of {_listed(blocks)}")
    check_integer("min_tokens", min_tokens, 0)
    if num_steps is not None:
        check_integer("num_steps", num_steps, 1)
    check_choice("backend", backend, BACKENDS)
    if any(isinstance(each.get_processor(), SparseProcessor) for each in blocks.values()):
        raise RuntimeError("sparse attention is installed on this model already: remove it first")
    settings = Settings(config, schedule, dense_blocks, min_tokens, backend)
    calls = AttentionCalls(settings, StepCounter(scheduler, num_steps))
    return SparseAttention(transformer, calls, parts)


@contextmanager
def sparse_attention(
    transformer: nn.Module, config: SparseConfig, **options: Any
) -> Iterator[SparseAttention]:
    """`install` for the duration of a with block; `options` are its keyword arguments."""
    sparse = install(transformer, config, **options)
    try:
        yield sparse
    finally:
        sparse.remove()


def _parts_of(transformer: nn.Module) -> _Parts:
    from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel

    # torch.compile hides the model behind a module that holds it as `_orig_mod`.
    model: Any = getattr(transformer, "_orig_mod", transformer)
    if issubclass(type(model), WanTransformer3DModel):
        frames, height, width = model.config.patch_size
        modules = _numbered("double", [block.attn1 for block in model.blocks])
        return _Parts((frames, height, width), modules, WanSparseProcessor)
    if issubclass(type(model), HunyuanVideoTransformer3DModel):
        side = model.config.patch_size
        modules = _numbered("double", [block.attn for block in model.transformer_blocks])
        modules |= _numbered("single", [block.attn for block in model.single_transformer_blocks])
        return _Parts((model.config.patch_size_t, side, side), modules, HunyuanSparseProcessor)
    raise ConfigError("class of transformer", type(model).__name__, MODELS)


def _numbered(kind: str, modules: list[Any]) -> dict[Block, Any]:
    return {Block(kind, index, len(modules)): module for index, module in enumerate(modules)}


def _listed(blocks: dict[Block, Any]) -> str:
    """ "0 to 19, single 0 to 39": the blocks that there are."""
    kinds = {each.kind: each.total for each in blocks}
    prefix = {"double": "", "single": "single "}
    return ", ".join(f"{prefix[kind]}0 to {total - 1}" for kind, total in kinds.items())
