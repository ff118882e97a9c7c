"""Models that are compiled: code from a run without the node must not hide the override."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule

from .patch_rig import BLOCKS, SAMPLE_SIGMAS, make_executor, make_patch, rows, run
from .stand_ins import wan_forward

COMPILED = {"apply_model": {"torch.compile": [object()]}}


def misses_the_override_once(blocks: int) -> Callable[..., Any]:
    """A model whose first forward runs code that was compiled without an override."""
    forward = wan_forward(blocks)
    calls = []

    def run_forward(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        calls.append(options)
        return x if len(calls) == 1 else forward(x, options)

    return run_forward


def bypassed(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """A forward without an attention call: a step cache answers it, or a pack replaced them."""
    return x


def test_code_compiled_without_the_node_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For the next forward: this one may have effects, as on a cache of keys."""
    resets: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    patch = make_patch()
    executor = make_executor(forward=misses_the_override_once(BLOCKS))
    for sigma in (1.0, 0.75):
        run(patch, executor, sigma, wrappers=COMPILED)
    assert len(executor.options) == 2
    assert len(resets) == 1
    assert rows(patch) == {1: (BLOCKS, 0)}


def test_a_model_with_a_cache_of_frames_is_not_compiled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ComfyUI's autoregressive sampler: no override is ever called, compiled or not."""
    resets: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    patch = make_patch()
    executor = make_executor(forward=bypassed)
    run(patch, executor, wrappers=COMPILED, ar_state={"kv_caches": []})
    assert len(executor.options) == 1
    assert not resets
    (warning,) = patch.run.report.record().warnings
    assert warning.startswith("this model stays dense: autoregressive sampling")


def test_a_model_that_is_not_compiled_is_not_run_again() -> None:
    patch = make_patch()
    executor = make_executor(forward=misses_the_override_once(BLOCKS))
    run(patch, executor)
    assert len(executor.options) == 1


@pytest.mark.parametrize("first", [1.0, 0.75])
def test_a_forward_that_a_step_cache_answers_is_not_run_again(first: float) -> None:
    """Once the override was called in a run, also by a dense forward, it is not bypassed."""
    patch = make_patch(SparsitySchedule(0.5, 0.5, "constant", start_percent=0.2))
    run(patch, make_executor(), first, wrappers=COMPILED)
    executor = make_executor(forward=bypassed)
    run(patch, executor, sigma=0.5, wrappers=COMPILED)
    assert len(executor.options) == 1


def test_a_pack_that_bypasses_attention_is_compiled_again_once_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resets: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    patch = make_patch()
    executor = make_executor(forward=bypassed)
    for _ in range(3):
        patch.on_pre_run(None)
        for sigma in SAMPLE_SIGMAS[:-1].tolist():
            run(patch, executor, sigma, wrappers=COMPILED)
        patch.on_cleanup(None)
    assert len(executor.options) == 3 * 4
    assert len(resets) == 1
