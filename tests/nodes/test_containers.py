"""Calls of newer cores that pass q, k, v in one-slot boxes and no function."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rectified_spaattn.nodes import override as override_module
from rectified_spaattn.rspa_core.run.calls import ForwardPlan
from rectified_spaattn.rspa_core.run.reasons import Reason, why

from .rig import BLOCK, LAYOUT, OPTIONS, Rig, raising, wan_tensors
from .stand_ins import HEADS, Box, dense


def call(rig: Rig, boxes: list[Box]) -> Any:
    return rig.override.container_function(
        *boxes, HEADS, transformer_options=OPTIONS, _inside_attn_wrapper=True
    )


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's attention function: takes tensors or boxes."""

    def attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert kwargs["_inside_attn_wrapper"] is True
        q, k, v = (x.take() if isinstance(x, Box) else x for x in (q, k, v))
        return dense(q, k, v, *args, **kwargs)

    monkeypatch.setattr(override_module, "core_attention", lambda: attention)


def test_sparse_call_empties_the_boxes() -> None:
    rig = Rig()
    given = wan_tensors()
    boxes = [Box(x) for x in given]
    out = call(rig, boxes)
    torch.testing.assert_close(out, rig.wan(*given))
    assert all(box.tensor is None for box in boxes)
    assert dict(rig.tally.sparse) == {BLOCK: 2}


@pytest.mark.usefixtures("core")
def test_dense_call_goes_to_core() -> None:
    rig = Rig(ForwardPlan(LAYOUT, None, why(Reason.STEP_OFF)))
    q, k, v = wan_tensors()
    boxes = [Box(q), Box(k), Box(v)]
    torch.testing.assert_close(call(rig, boxes), dense(q, k, v, HEADS))
    assert all(box.tensor is None for box in boxes)


@pytest.mark.usefixtures("core")
def test_failed_call_goes_to_core_with_full_boxes() -> None:
    rig = Rig(attend=raising(RuntimeError("no")))
    q, k, v = wan_tensors()
    out = call(rig, [Box(q), Box(k), Box(v)])
    torch.testing.assert_close(out, dense(q, k, v, HEADS))
    assert rig.dense_reasons == {"RuntimeError: no": 1}


def test_previous_override_gets_the_full_boxes_if_it_takes_boxes() -> None:
    def previous(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the boxes were meant for container_function")

    previous.container_function = lambda *args, **kwargs: [box.take() for box in args[:3]]
    rig = Rig(ForwardPlan(LAYOUT, None, why(Reason.STEP_OFF)), previous=previous)
    given = wan_tensors()
    assert call(rig, [Box(x) for x in given]) == given


@pytest.mark.usefixtures("core")
def test_previous_override_without_boxes_gets_tensors_and_a_function() -> None:
    rig = Rig(
        ForwardPlan(LAYOUT, None, why(Reason.STEP_OFF)),
        previous=lambda func, *args, **kwargs: func(*args, **kwargs),
    )
    q, k, v = wan_tensors()
    out = call(rig, [Box(q), Box(k), Box(v)])
    torch.testing.assert_close(out, dense(q, k, v, HEADS))
