"""Attention masks: those over keys outside the video are honoured exactly, others stay dense."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rectified_spaattn.rspa_core import TokenLayout, rectified_attention
from rectified_spaattn.rspa_core.run import calls
from rectified_spaattn.rspa_core.run.calls import ForwardPlan
from rectified_spaattn.rspa_core.run.key_masks import attend_groups, padded
from rectified_spaattn.rspa_core.run.probe import ProbeSettings, parse_probe_steps
from rectified_spaattn.rspa_core.run.reasons import Reason
from rectified_spaattn.rspa_core.run.schedule import Position

from .rig import BLOCK, CONFIG, Rig, raising
from .stand_ins import GRID, HEAD_DIM, HEADS, TOKENS, dense, tensors

BEFORE, AFTER = 20, 3
LENGTH = BEFORE + TOKENS + AFTER
LAYOUT = TokenLayout(GRID, LENGTH, BEFORE)
KEEP_ALL = replace(CONFIG, top_p=1.0)
PADDING = range(14, BEFORE)
NEVER = {
    "minus infinity": float("-inf"),
    "lowest of fp16": torch.finfo(torch.float16).min,
    "lowest of fp32": torch.finfo(torch.float32).min,
    "minus 10,000": -1e4,
}


def keys(*masked: range) -> Tensor:
    """One row for each sample, `[B, N]`: False where a range says so."""
    mask = torch.ones(len(masked), LENGTH, dtype=torch.bool)
    for row, left_out in zip(mask, masked, strict=True):
        row[list(left_out)] = False
    return mask


def added(mask: Tensor, value: float) -> Tensor:
    """The same as numbers to add to the scores."""
    return torch.zeros(mask.shape).masked_fill(~mask, value)


def masked_dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Full attention under a bool mask `[B, N]` over keys, `[B, H, N, D]`."""
    return dense(q, k, v, HEADS, mask[:, None, None], skip_reshape=True, skip_output_reshape=True)


def run(mask: Tensor, batch: int = 1, config=CONFIG) -> tuple[Tensor, Rig, list[Tensor]]:
    rig = Rig(ForwardPlan(LAYOUT, config))
    qkv = tensors(batch, HEADS, LENGTH, HEAD_DIM)
    return rig.hunyuan(*qkv, mask=mask, skip_output_reshape=True), rig, qkv


@pytest.mark.parametrize(
    "masked",
    [PADDING, range(0, 3), range(0, BEFORE), range(LENGTH - 2, LENGTH), range(7, 9)],
    ids=["behind the text", "first", "all before the video", "last", "in the text"],
)
def test_every_row_is_that_of_masked_attention(masked: range) -> None:
    out, rig, (q, k, v) = run(keys(masked), config=KEEP_ALL)
    torch.testing.assert_close(out, masked_dense(q, k, v, keys(masked)))
    assert dict(rig.tally.sparse) == {BLOCK: 1}
    assert not torch.allclose(out, masked_dense(q, k, v, keys(range(0))), atol=1e-4)


@pytest.mark.parametrize("value", NEVER.values(), ids=NEVER)
def test_masks_that_are_added(value: float) -> None:
    mask = keys(PADDING)
    expected, _, _ = run(mask)
    out, rig, _ = run(added(mask, value))
    assert torch.equal(out, expected)
    assert dict(rig.tally.sparse) == {BLOCK: 1}


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda mask: mask[:1], id="1 N"),
        pytest.param(lambda mask: mask, id="B N"),
        pytest.param(lambda mask: mask[:1, None], id="1 1 N"),
        pytest.param(lambda mask: mask[:, None], id="B 1 N"),
        pytest.param(lambda mask: mask[:1, None, None], id="1 1 1 N"),
        pytest.param(lambda mask: mask[:, None, None], id="B 1 1 N"),
        pytest.param(lambda mask: mask[:, None, None].expand(-1, HEADS, LENGTH, -1), id="expanded"),
    ],
)
def test_forms_of_a_mask_over_keys(form) -> None:
    mask = keys(PADDING, PADDING)
    out, rig, qkv = run(form(mask), batch=2, config=KEEP_ALL)
    torch.testing.assert_close(out, masked_dense(*qkv, mask))
    assert dict(rig.tally.sparse) == {BLOCK: 1}


def test_samples_with_masks_of_their_own() -> None:
    mask = keys(PADDING, range(0), PADDING, range(2, 5))
    out, rig, qkv = run(mask, batch=4, config=KEEP_ALL)
    torch.testing.assert_close(out, masked_dense(*qkv, mask))
    assert dict(rig.tally.sparse) == {BLOCK: 1}, "one call of the model, whatever it is made of"


def test_the_rest_is_sparse_as_if_the_masked_tokens_were_not_there() -> None:
    mask = keys(PADDING)
    out, _, (q, k, v) = run(mask)
    kept = mask[0]
    layout = TokenLayout(GRID, LENGTH - len(PADDING), BEFORE - len(PADDING))
    expected = rectified_attention(*(x[:, :, kept] for x in (q, k, v)), layout, CONFIG)
    torch.testing.assert_close(out[:, :, kept], expected)
    exact = masked_dense(q, k, v, mask)
    torch.testing.assert_close(out[:, :, ~kept], exact[:, :, ~kept])
    assert not torch.allclose(out, exact, atol=1e-3)


@pytest.mark.parametrize("mask", [keys(range(0)), added(keys(range(0)), 0.0)], ids=["bool", "0"])
def test_a_mask_that_masks_nothing_is_none(mask: Tensor) -> None:
    out, rig, qkv = run(mask)
    assert torch.equal(
        out, Rig(ForwardPlan(LAYOUT, CONFIG)).hunyuan(*qkv, skip_output_reshape=True)
    )
    assert dict(rig.tally.sparse) == {BLOCK: 1}


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (keys(range(BEFORE, BEFORE + 1)), "attention mask over video tokens"),
        (keys(range(LENGTH)), "attention mask over video tokens"),
        (added(keys(PADDING), -2.0), "attention mask that weighs keys"),
        (added(keys(PADDING), float("nan")), "attention mask that weighs keys"),
        (keys(PADDING).long(), f"attention mask of shape (1, {LENGTH}), torch.int64"),
        (keys(PADDING, PADDING), f"attention mask of shape (2, {LENGTH}), torch.bool"),
        (keys(PADDING)[:, 1:], f"attention mask of shape (1, {LENGTH - 1}), torch.bool"),
        (
            torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool),
            f"attention mask of shape (1, 1, {LENGTH}, {LENGTH}), torch.bool",
        ),
        (
            torch.ones(1, HEADS, 1, LENGTH, dtype=torch.bool),
            f"attention mask of shape (1, {HEADS}, 1, {LENGTH}), torch.bool",
        ),
    ],
)
def test_other_masks_are_dense_with_a_reason(mask: Tensor, reason: str) -> None:
    rig = Rig(ForwardPlan(LAYOUT, CONFIG))
    seen: list[Tensor] = []

    def func(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor, **kwargs) -> Tensor:
        seen.append(mask)
        return q

    qkv = tensors(1, HEADS, LENGTH, HEAD_DIM)
    rig.override(func, *qkv, HEADS, mask, skip_reshape=True, transformer_options={})
    assert rig.dense_reasons == {reason: 1}
    assert seen[0] is mask


@pytest.mark.parametrize("by_frame", [False, True])
def test_a_mask_that_is_no_tensor_is_left_to_the_dense_path(by_frame: bool) -> None:
    """Another node's attention, which was there before, may have masks of its own."""
    layout = TokenLayout(GRID, TOKENS)
    mask = object()
    rig = Rig(ForwardPlan(layout, CONFIG, by_frame=by_frame), previous=lambda *args, **kwargs: args)
    q, k, v = tensors(1, HEADS, TOKENS, HEAD_DIM)
    q = q[:, :, : GRID[1] * GRID[2]] if by_frame else q
    assert rig.hunyuan(q, k, v, mask=mask)[1] is q
    (reason,) = rig.dense_reasons
    assert reason.startswith("attention mask of shape unknown")


def test_a_mask_that_all_blocks_share_is_read_once() -> None:
    forward, mask = Rig(ForwardPlan(LAYOUT, CONFIG)).forward, keys(PADDING)
    groups = forward.groups_of(mask, 1)
    assert groups is not None
    assert forward.groups_of(mask, 1) is groups
    other = forward.groups_of(keys(range(2)), 1)
    assert other is not groups


def test_a_mask_is_read_under_the_guard() -> None:
    """What is made of it outlives the block that reads it."""
    forward = Rig(ForwardPlan(LAYOUT, CONFIG), guard=guard_of(opened := [])).forward
    forward.groups_of(keys(PADDING), 1)
    assert opened == [True]


def test_a_mask_is_not_read_while_calls_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values are waited for, which ends the recording of a CUDA graph with an error."""
    monkeypatch.setattr(calls, "_is_recording", lambda device: True)
    monkeypatch.setattr(calls, "read_mask", raising(RuntimeError("stream is capturing")))
    mask = keys(PADDING)
    out, rig, qkv = run(mask[:, None, None])
    torch.testing.assert_close(out, masked_dense(*qkv, mask))
    assert rig.dense_reasons == {Reason.GRAPH.value: 1}


def test_samples_are_taken_without_an_index() -> None:
    """An index of a GPU is made on the CPU, and each call would wait for it."""

    class Ops(TorchDispatchMode):
        seen: ClassVar[set[str]] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    q, k, v = tensors(3, HEADS, LENGTH, HEAD_DIM)
    groups = padded([LENGTH, LENGTH - AFTER, LENGTH], LAYOUT)
    with Ops() as ops:
        attend_groups(lambda q, k, v, layout: (q, torch.ones(())), q, k, v, groups)
    assert "stack" in ops.seen or "cat" in ops.seen
    assert not ops.seen & {"index", "index_put_", "_to_copy"}


def guard_of(opened: list[bool]) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def guard() -> Iterator[None]:
        opened.append(True)
        yield

    return guard


def test_the_probe_measures_what_takes_part() -> None:
    plan = ForwardPlan(LAYOUT, CONFIG, position=Position(0, 1))
    probe = ProbeSettings(parse_probe_steps("1"), sparsities=(0.5,))
    rig = Rig(plan, probe=probe)
    q, k, v = tensors(1, HEADS, LENGTH, HEAD_DIM)
    out = rig.hunyuan(q, k, v, mask=keys(PADDING)[:, None, None], skip_output_reshape=True)
    torch.testing.assert_close(out, masked_dense(q, k, v, keys(PADDING)))
    recorder = rig.run.recorder
    assert recorder is not None
    assert not recorder.is_empty
    assert recorder.grid == GRID


def test_the_probe_says_that_it_does_not_measure_samples_with_masks_of_their_own() -> None:
    plan = ForwardPlan(LAYOUT, CONFIG, position=Position(0, 1))
    rig = Rig(plan, probe=ProbeSettings(parse_probe_steps("1")))
    qkv, mask = tensors(2, HEADS, LENGTH, HEAD_DIM), keys(PADDING, range(0))
    out = rig.hunyuan(*qkv, mask=mask[:, None, None], skip_output_reshape=True)
    torch.testing.assert_close(out, masked_dense(*qkv, mask))
    assert rig.dense_reasons == {Reason.MASKS_NOT_PROBED.value: 1}
    assert rig.run.recorder is not None
    assert rig.run.recorder.is_empty
