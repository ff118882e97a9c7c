"""The attention override: what becomes sparse, what stays dense and why."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from rectified_spaattn.rspa_core import (
    BackendStatus,
    BackendUnavailable,
    TokenLayout,
    rectified_attention,
)
from rectified_spaattn.rspa_core.dispatch import ON_CPU
from rectified_spaattn.rspa_core.run.calls import (
    FAILURE_LIMIT,
    ForwardPlan,
    RunSettings,
    SparseRun,
)
from rectified_spaattn.rspa_core.run.probe import ProbeSettings, parse_probe_steps
from rectified_spaattn.rspa_core.run.reasons import Reason, why
from rectified_spaattn.rspa_core.run.schedule import Position, parse_dense_blocks

from .rig import BLOCK, CONFIG, LAYOUT, OPTIONS, Rig, raising, wan_tensors
from .stand_ins import GRID, HEAD_DIM, HEADS, TOKENS, dense, tensors


def split(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: TokenLayout = LAYOUT):
    return rectified_attention(q, k, v, layout, CONFIG)


def test_wan_call_runs_sparse() -> None:
    rig = Rig()
    q, k, v = wan_tensors()
    out = rig.wan(q, k, v)
    expected = reference(split(q), split(k), split(v)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected)
    assert out.shape == q.shape
    assert out.is_contiguous()
    assert not torch.allclose(out, dense(q, k, v, HEADS), atol=1e-3)
    assert dict(rig.tally.sparse) == {BLOCK: 1}
    assert rig.dense_reasons == {}


@pytest.mark.parametrize("skip_output_reshape", [False, True])
def test_hunyuan_call_runs_sparse_on_views(skip_output_reshape: bool) -> None:
    layout = TokenLayout(GRID, TOKENS + 7, video_start=7)
    seen: list[torch.Tensor] = []

    def attend(q, k, v, *args, **kwargs):
        seen.extend((q, k, v))
        return rectified_attention(q, k, v, *args, **kwargs)

    rig = Rig(ForwardPlan(layout, CONFIG), attend=attend)
    q, k, _ = tensors(1, HEADS, TOKENS + 7, HEAD_DIM)
    v = tensors(1, TOKENS + 7, HEADS, HEAD_DIM)[0].transpose(1, 2)  # as in the single blocks
    out = rig.hunyuan(q, k, v, skip_output_reshape=skip_output_reshape)
    expected = reference(q, k, v, layout)
    if not skip_output_reshape:
        expected = expected.transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected)
    for passed, given in zip(seen, (q, k, v), strict=True):
        assert passed.data_ptr() == given.data_ptr(), "q, k, v must be views, not copies"


def test_wan_tensors_are_not_copied() -> None:
    seen: list[torch.Tensor] = []

    def attend(q, k, v, *args, **kwargs):
        seen.extend((q, k, v))
        return rectified_attention(q, k, v, *args, **kwargs)

    given = wan_tensors()
    Rig(attend=attend).wan(*given)
    assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in given]


def test_cross_attention_passes_by_uncounted() -> None:
    rig = Rig()
    q, k, v = wan_tensors()
    out = rig.wan(q, k[:, :20], v[:, :20])
    torch.testing.assert_close(out, dense(q, k[:, :20], v[:, :20], HEADS))
    assert not rig.tally.seen
    assert rig.tally.other_lengths == {(TOKENS, 20)}


def test_text_refiner_passes_by_uncounted() -> None:
    """HunyuanVideo's refiner attends within the text, before any block: one shape, other length."""
    rig = Rig()
    rig.hunyuan(*tensors(1, HEADS, 20, HEAD_DIM), transformer_options={})
    rig.hunyuan(*tensors(1, HEADS, TOKENS + 50, HEAD_DIM), transformer_options={})
    assert not rig.tally.seen


def test_block_over_an_unforeseen_sequence_is_dense_with_both_lengths() -> None:
    rig = Rig()
    q, k, v = wan_tensors(TOKENS + 32)
    torch.testing.assert_close(rig.wan(q, k, v), dense(q, k, v, HEADS))
    assert rig.dense_reasons == {f"{TOKENS + 32} tokens where {TOKENS} were expected": 1}


def test_call_of_another_stream_is_no_unforeseen_sequence() -> None:
    """Audio of more tokens than the video: known to be none of the video's."""
    rig = Rig(other_lengths={TOKENS + 32})
    q, k, v = wan_tensors(TOKENS + 32)
    torch.testing.assert_close(rig.wan(q, k, v), dense(q, k, v, HEADS))
    assert not rig.tally.seen
    assert rig.tally.other_lengths == {(TOKENS + 32, TOKENS + 32)}


def test_rows_with_a_mask_of_their_own_are_dense_with_that_reason() -> None:
    """LTX splits the calls of a video whose guides have a strength."""
    rig = Rig()
    q, k, v = wan_tensors()
    mask = torch.zeros(1, 1, 1, TOKENS)
    mask[..., -20:] = -1.0
    rows = q[:, : TOKENS - 20]
    torch.testing.assert_close(rig.wan(rows, k, v, mask=mask), dense(rows, k, v, HEADS, mask))
    reason = why(Reason.SPLIT_ROWS, TOKENS - 20, TOKENS)
    assert rig.dense_reasons == {reason.text: 1}
    rig.wan(rows, k, v)  # without a mask: another stream that attends to the video
    assert rig.dense_reasons == {reason.text: 1}


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"mask": torch.ones(1, 1, TOKENS)}, "attention mask that weighs keys"),
        ({"attn_precision": torch.float32}, "attn_precision torch.float32"),
        ({"scale": 0.5}, "attention argument scale"),
        ({"enable_gqa": True}, "attention argument enable_gqa"),
        ({"low_precision_attention": False}, "attention argument low_precision_attention"),
        ({"is_causal": True}, "attention argument is_causal"),
        ({"window": (4, 4)}, "attention argument window"),
    ],
)
def test_mathematics_we_do_not_do_is_dense(kwargs: dict[str, Any], reason: str) -> None:
    rig = Rig()
    q, k, v = wan_tensors()
    seen: dict[str, Any] = {}

    def func(q, k, v, **received):
        seen.update(received)
        return q

    options = {"transformer_options": OPTIONS, "_inside_attn_wrapper": True}
    rig.override(func, q, k, v, heads=HEADS, **options, **kwargs)
    assert rig.dense_reasons == {reason: 1}
    assert seen == {"heads": HEADS, **options, **kwargs}, "the dense path gets them untouched"


@pytest.mark.parametrize(
    "kwargs",
    [
        {"mask": None},
        {"mask": torch.zeros(1, 1, TOKENS)},
        {"scale": HEAD_DIM**-0.5},
        {"scale": None},
        {"enable_gqa": False},
        {"low_precision_attention": True},
        {"attn_precision": None, "some_later_flag": False},
    ],
)
def test_arguments_that_change_nothing_stay_sparse(kwargs: dict[str, Any]) -> None:
    rig = Rig()
    rig.wan(*wan_tensors(), **kwargs)
    assert dict(rig.tally.sparse) == {BLOCK: 1}


def test_mask_as_a_positional_is_seen() -> None:
    rig = Rig()
    q, k, v = wan_tensors()
    mask = torch.ones(1, 1, 1, TOKENS)
    out = rig.override(dense, q, k, v, HEADS, mask, transformer_options=OPTIONS)
    torch.testing.assert_close(out, dense(q, k, v, HEADS))
    assert rig.dense_reasons == {"attention mask that weighs keys": 1}


def test_call_of_an_unknown_form_is_dense() -> None:
    rig = Rig()
    q, k, v = wan_tensors()
    rig.override(lambda q, k, v, **kwargs: q, q, k, v, transformer_options=OPTIONS)
    assert rig.dense_reasons == {"unknown form of attention call": 1}


def test_dense_plan_counts_with_its_reason() -> None:
    rig = Rig(ForwardPlan(LAYOUT, None, why(Reason.STEP_OFF)))
    q, k, v = wan_tensors()
    torch.testing.assert_close(rig.wan(q, k, v), dense(q, k, v, HEADS))
    assert rig.dense_reasons == {"schedule: step is off": 1}


def test_unknown_model_counts_self_attention_only() -> None:
    rig = Rig(ForwardPlan(None, None, why(Reason.NO_TEXT)))
    q, k, v = wan_tensors(33)
    rig.wan(q, k, v)
    rig.wan(q, k[:, :5], v[:, :5])
    assert rig.dense_reasons == {"no text condition": 1}


@pytest.mark.parametrize(
    ("options", "is_dense"),
    [
        ({"block_type": "double", "block_index": 0, "total_blocks": 4}, True),
        ({"block_type": "double", "block_index": 1, "total_blocks": 4}, False),
        ({"block_type": "double", "block_index": 3, "total_blocks": 4}, True),
        ({"block_type": "single", "block_index": 0, "total_blocks": 9}, False),
        ({"block_type": "single", "block_index": 2, "total_blocks": 9}, True),
    ],
)
def test_dense_blocks(options: dict[str, Any], is_dense: bool) -> None:
    blocks = parse_dense_blocks("0, -1, single 2")
    rig = Rig(dense_blocks=blocks)
    rig.wan(*wan_tensors(), transformer_options=options)
    assert rig.dense_reasons == ({"dense_blocks": 1} if is_dense else {})


def test_previous_override_is_the_dense_path_and_is_not_called_for_sparse_calls() -> None:
    received: list[tuple] = []

    def previous(func, *args, **kwargs):
        received.append((func, kwargs))
        return func(*args, **kwargs)

    rig = Rig(previous=previous)
    q, k, v = wan_tensors()
    rig.wan(q, k, v)
    assert received == []
    out = rig.wan(q, k[:, :9], v[:, :9])
    torch.testing.assert_close(out, dense(q, k[:, :9], v[:, :9], HEADS))
    func, kwargs = received[0]
    assert func is dense
    # Without this mark ComfyUI's attention would call the override again, for ever.
    assert kwargs["_inside_attn_wrapper"] is True


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "OutOfMemoryError: CUDA out of"),
        (RuntimeError("Triton Error [CUDA]: bad"), "RuntimeError: Triton Error [CUDA]: bad"),
        (ValueError(""), "ValueError: "),
    ],
)
def test_failed_call_is_dense_with_its_reason(error: Exception, reason: str) -> None:
    rig = Rig(attend=raising(error))
    q, k, v = wan_tensors()
    torch.testing.assert_close(rig.wan(q, k, v), dense(q, k, v, HEADS))
    (stated,) = rig.dense_reasons
    assert stated.startswith(reason)
    assert "\n" not in stated
    assert stated in rig.warnings[0]


def test_calls_that_keep_failing_end_sparse_attention_for_the_run() -> None:
    attempts: list[int] = []

    def attend(*args: Any, **kwargs: Any) -> Any:
        attempts.append(1)
        raise RuntimeError("no")

    run = Rig(attend=attend).run
    for _ in range(2):  # two forwards of one run
        rig = Rig(run=run)
        for _ in range(FAILURE_LIMIT):
            rig.wan(*wan_tensors())
    assert len(attempts) == FAILURE_LIMIT
    assert rig.dense_reasons == {"RuntimeError: no": FAILURE_LIMIT}


def test_missing_backend_is_not_tried_again() -> None:
    attempts: list[int] = []

    def attend(*args: Any, **kwargs: Any) -> Any:
        attempts.append(1)
        raise BackendUnavailable("no tile fits this GPU")

    run = Rig(attend=attend).run
    for _ in range(2):
        rig = Rig(run=run)
        rig.wan(*wan_tensors())
        rig.wan(*wan_tensors())
        assert rig.dense_reasons == {"no tile fits this GPU": 2}
    assert len(attempts) == 1


def test_calls_whose_kernels_fail_their_check_leave_the_others_sparse() -> None:
    """As of one GPU of several; said once."""

    def attend(q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if q.dtype == torch.float16:
            raise BackendUnavailable("no tile passed its check")
        return rectified_attention(q, *args, **kwargs)

    rig = Rig(attend=attend)
    for _ in range(2):
        for dtype in (torch.float16, torch.float32):
            rig.wan(*(each.to(dtype) for each in wan_tensors()))
    assert rig.dense_reasons == {"no tile passed its check": 2}
    assert rig.tally.sparse.total() == 2
    (said,) = rig.warnings
    assert said == "attention calls on cpu take the dense path: no tile passed its check"


@pytest.mark.parametrize(
    "reason",
    [
        "Triton is not installed: pip install triton",
        "GPU of compute capability 7.5: 8.0 or newer is needed",
    ],
)
def test_backend_is_asked_once_and_its_reason_is_stated(reason: str) -> None:
    asked: list[tuple] = []

    def status(*args: Any) -> BackendStatus:
        asked.append(args)
        return BackendStatus(None, reason)

    rig = Rig(attend=raising(AssertionError("must not run")), status=status)
    for _ in range(3):
        q, k, v = wan_tensors()
        torch.testing.assert_close(rig.wan(q, k, v), dense(q, k, v, HEADS))
    assert asked == [(torch.device("cpu"), torch.float32, HEAD_DIM, "reference")]
    assert rig.dense_reasons == {reason: 3}
    assert len(rig.warnings) == 1


def test_what_no_backend_computes_is_dense_and_the_rest_of_the_run_is_not() -> None:
    def status(device: torch.device, dtype: torch.dtype, *_: Any) -> BackendStatus:
        known = dtype == torch.float32
        return BackendStatus("reference" if known else None, "" if known else "not in 16 bits")

    rig = Rig(status=status)
    for _ in range(2):
        for dtype in (torch.float16, torch.float32):
            rig.wan(*(each.to(dtype) for each in wan_tensors()))
    assert rig.dense_reasons == {"not in 16 bits": 2}
    assert rig.tally.sparse.total() == 2
    assert len(rig.warnings) == 1


def test_a_cpu_is_dense_with_a_reason_unless_the_reference_is_asked_for() -> None:
    """There sparse attention takes many times as long."""
    must_not = raising(AssertionError("must not run"))
    run = SparseRun(RunSettings(CONFIG), attend=must_not)
    rig = Rig(run=run)
    q, k, v = wan_tensors()
    torch.testing.assert_close(rig.wan(q, k, v), dense(q, k, v, HEADS))
    assert rig.dense_reasons == {ON_CPU: 1}
    assert run.failures.final_reason is None  # another device of this run may have one
    assert len(rig.warnings) == 1

    rig = Rig(run=SparseRun(RunSettings(CONFIG, backend="reference")))
    rig.wan(q, k, v)
    assert rig.dense_reasons == {}
    assert rig.tally.sparse.total() == 1


def test_the_probe_measures_with_the_backend_of_the_run() -> None:
    backends: list[str] = []

    def attend(*args: Any, backend: str, **kwargs: Any) -> Any:
        backends.append(backend)
        return rectified_attention(*args, backend=backend, **kwargs)

    probe = ProbeSettings(parse_probe_steps("1"), sparsities=(0.5,))
    plan = ForwardPlan(LAYOUT, None, why(Reason.DENSE_STEP), Position(0, 1))
    rig = Rig(plan, probe=probe, attend=attend)
    rig.wan(*wan_tensors())
    assert backends == ["reference"]


def test_backend_query_that_fails_is_dense_too() -> None:
    def status(*args: Any) -> BackendStatus:
        raise ImportError("DLL load failed while importing libtriton")

    rig = Rig(status=status)
    q, k, v = wan_tensors()
    torch.testing.assert_close(rig.wan(q, k, v), dense(q, k, v, HEADS))
    assert rig.dense_reasons == {"ImportError: DLL load failed while importing libtriton": 1}


def test_failed_call_does_not_keep_its_tensors_alive() -> None:
    """After running out of memory the dense path needs what the failed call held."""
    held: list[weakref.ref] = []

    def attend(*args: Any, **kwargs: Any) -> Any:
        workspace = torch.empty(8)
        held.append(weakref.ref(workspace))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def func(q, k, v, **kwargs):
        gc.collect()
        assert held[0]() is None
        return q

    rig = Rig(attend=attend)
    q, k, v = wan_tensors()
    rig.override(func, q, k, v, heads=HEADS, transformer_options=OPTIONS)
    assert len(held) == 1


def test_override_is_opaque_to_torch_compile() -> None:
    rig = Rig()
    q, k, v = wan_tensors()
    want = rig.wan(q, k, v)

    @torch.compile(backend="eager")
    def block(q, k, v, options):
        override = options["optimized_attention_override"]
        return override(dense, q * 1.0, k, v, heads=HEADS, transformer_options=OPTIONS) + 0.0

    torch.testing.assert_close(block(q, k, v, {"optimized_attention_override": rig.override}), want)
    # The second forward brings another override: a traced one would be the first for ever.
    other = Rig(ForwardPlan(LAYOUT, None, why(Reason.STEP_OFF)))
    got = block(q, k, v, {"optimized_attention_override": other.override})
    torch.testing.assert_close(got, dense(q, k, v, HEADS))
    assert other.dense_reasons == {"schedule: step is off": 1}
