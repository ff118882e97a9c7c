"""The probe: errors as an offline comparison gives them and bounded memory."""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rectified_spaattn.benchmarks.capture import capture, chosen_calls, tiny_wan
from rectified_spaattn.nodes.host import ProbeProgress
from rectified_spaattn.rspa_core import (
    SparseConfig,
    TokenLayout,
    dense_attention,
    rectified_attention,
)
from rectified_spaattn.rspa_core.reference import relative_l2
from rectified_spaattn.rspa_core.run import probe as probe_recorder
from rectified_spaattn.rspa_core.run.probe import (
    ProbeRecorder,
    ProbeSettings,
    ProbeSteps,
    ProbeTable,
    parse_probe_blocks,
)

CHECKPOINT = Path(__file__).parents[2] / "tools" / "tiny_wan" / "checkpoint"
SPARSITIES = (0.5, 0.75)
SETTINGS = ProbeSettings(ProbeSteps((0, 1)), sparsities=SPARSITIES)
LAYOUT = TokenLayout((3, 8, 11), 290, 9)  # 9 tokens before the video, 17 behind it
BLOCK = ("double", 0)
CONFIGS = {
    "precise": SparseConfig(q_block=64, kv_block=64, rectification="precise", tail_keys=4),
    "paper": SparseConfig(q_block=64, kv_block=64),
    "none": SparseConfig(q_block=128, kv_block=64, rectification="none", order="tile"),
}


def tensors(
    seed: int = 0, dtype: torch.dtype = torch.float32, layout: TokenLayout = LAYOUT
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, layout.length, 32)
    return [(1.5 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(3)]


def offline(
    calls: list[tuple[list[Tensor], Tensor]], config: SparseConfig, layout: TokenLayout = LAYOUT
) -> list[float]:
    """`relative_l2` over the video rows of all calls at once."""
    video = slice(layout.video_start, layout.video_end)
    return [
        relative_l2(
            torch.cat(
                [
                    rectified_attention(*qkv, layout, replace(config, sparsity=s))[:, :, video]
                    for qkv, _ in calls
                ]
            ),
            torch.cat([dense[:, :, video] for _, dense in calls]),
        )
        for s in SPARSITIES
    ]


def measured(
    calls: list[tuple[list[Tensor], Tensor]], config: SparseConfig, layout: TokenLayout = LAYOUT
) -> ProbeTable:
    recorder = ProbeRecorder(SETTINGS)
    for qkv, dense in calls:
        recorder.measure(*qkv, dense, layout, config, 1, BLOCK)
    return recorder.table()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errors_are_those_of_an_offline_comparison(
    config: SparseConfig, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_recorder, "SLICE_ELEMENTS", 5000)  # 26 rows of 192 values
    qkv = tensors(dtype=dtype)
    calls = [(qkv, dense_attention(*qkv))]
    table = measured(calls, config)
    assert (table.steps, table.blocks, table.sparsities) == ((1,), (BLOCK,), SPARSITIES)
    assert list(table.errors[0][0]) == pytest.approx(offline(calls, config), rel=1e-4)
    for sparsity, density in zip(SPARSITIES, table.densities[0][0], strict=True):
        changed = replace(config, sparsity=sparsity)
        _, stats = rectified_attention(*qkv, LAYOUT, changed, return_stats=True)
        assert density == pytest.approx(float(stats.density), rel=1e-6)


def test_context_rows_do_not_count() -> None:
    qkv = tensors()
    dense = dense_attention(*qkv)
    changed = dense.clone()
    changed[:, :, : LAYOUT.video_start] += 100.0
    changed[:, :, LAYOUT.video_end :] += 100.0
    config = CONFIGS["paper"]
    assert measured([(qkv, changed)], config) == measured([(qkv, dense)], config)


def test_squares_of_a_step_add_up() -> None:
    """Two calls of one block and step: one error over both, not a mean of two."""
    config = CONFIGS["precise"]
    first, second = tensors(1), tensors(2)
    second[0] *= 3.0
    second[2] *= 5.0
    calls = [(qkv, dense_attention(*qkv)) for qkv in (first, second)]
    both = list(measured(calls, config).errors[0][0])
    assert both == pytest.approx(offline(calls, config), rel=1e-4)
    mean = sum(offline([call], config)[0] for call in calls) / 2
    assert both[0] != pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize("view", ["merged heads", "every second row", "expanded"])
def test_any_strided_view_is_taken(view: str) -> None:
    config = CONFIGS["paper"]
    qkv = tensors(3)
    dense = dense_attention(*qkv)
    if view == "merged heads":  # as ComfyUI's attention gives them, [B, N, H*D]
        strided = dense.transpose(1, 2).flatten(2).unflatten(-1, (3, -1)).transpose(1, 2)
    elif view == "every second row":
        strided = torch.stack((dense, torch.zeros_like(dense)), dim=3).flatten(2, 3)[:, :, ::2]
    else:
        qkv = [x[:1].expand(2, -1, -1, -1) for x in qkv]
        strided = dense_attention(*(x[:1] for x in qkv)).expand(2, -1, -1, -1)
    assert not strided.is_contiguous()
    calls = [(qkv, strided)]
    assert list(measured(calls, config).errors[0][0]) == pytest.approx(
        offline([(qkv, strided.contiguous())], config), rel=1e-4
    )


def test_errors_of_the_trained_model() -> None:
    """On calls recorded while it samples: within 1 % of the offline comparison, and not trivial."""
    files = tiny_wan("model_files")
    model = files.load_model(CHECKPOINT / files.WEIGHTS, "cpu", torch.float32)
    prompts = files.Prompts.load(CHECKPOINT / files.PROMPTS)
    layers = range(0, model.config.layers, 4)
    wanted = chosen_calls(100, [3], [0], [0, 1], ["cond", "uncond"], layers)
    recorder = capture(model, prompts, (4, 24, 32), wanted, 2)
    layout = TokenLayout(recorder.grid, recorder.tensors[0][0].shape[1])
    probe = ProbeRecorder(SETTINGS)
    config = CONFIGS["precise"]
    cells: dict[Any, list[Any]] = {}
    for call, parts in zip(recorder.calls, recorder.tensors, strict=True):
        qkv = [part[None] for part in parts]
        dense = dense_attention(*qkv)
        probe.measure(*qkv, dense, layout, config, call.step, ("double", call.layer))
        cells.setdefault((call.step, ("double", call.layer)), []).append((qkv, dense))
    table = probe.table()
    assert table.steps == (0, 1)
    assert [index for _, index in table.blocks] == list(layers)
    assert probe.grid == recorder.grid
    errors = []
    for (step, block), calls in cells.items():
        assert len(calls) == 2, "with and without the prompt"
        found = [table.error_at(step, block, sparsity) for sparsity in SPARSITIES]
        assert found == pytest.approx(offline(calls, config, layout), rel=0.01)
        errors += found
    assert 0.0 < min(errors) < max(errors) < 1.0


class LargestFloat(TorchDispatchMode):
    """Elements of the largest fp32 result."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float32:
            self.elements = max(self.elements, out.numel())
        return out


def stand_in_attention(outputs: list[Any]) -> Any:
    """Sparse attention that gives halves and notes how many earlier outputs are alive."""

    def attend(q: Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs.append(sum(out() is not None for out in outputs if isinstance(out, weakref.ref)))
        out = torch.full_like(q, 0.5)
        outputs.append(weakref.ref(out))
        return out, SimpleNamespace(density=torch.tensor(0.25, dtype=torch.bfloat16))

    return attend


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_recorder, "SLICE_ELEMENTS", 4096)
    outputs: list[Any] = []
    settings = replace(SETTINGS, sparsities=(0.2, 0.4, 0.6, 0.8))
    recorder = ProbeRecorder(settings, stand_in_attention(outputs))
    qkv = tensors(dtype=torch.bfloat16)
    dense = torch.ones_like(qkv[0])
    with LargestFloat() as largest:
        recorder.measure(*qkv, dense, LAYOUT, CONFIGS["paper"], 0, BLOCK)
    assert largest.elements <= 4096
    assert [count for count in outputs if isinstance(count, int)] == [0, 0, 0, 0]
    kept = list(recorder._sums.values())
    assert [tuple(each.shape) for each in kept] == [(2 + 2 * 4,)]
    assert recorder.table().errors[0][0] == pytest.approx((0.5,) * 4)
    assert recorder.table().densities[0][0] == pytest.approx((0.25,) * 4)


def test_a_call_that_fails_leaves_no_trace() -> None:
    calls: list[float] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, layout: Any, config: Any, **kwargs: Any) -> Any:
        calls.append(config.sparsity)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("out of memory")
        return rectified_attention(q, k, v, layout, config, **kwargs)

    recorder = ProbeRecorder(SETTINGS, attend)
    qkv = tensors()
    arguments = (*qkv, dense_attention(*qkv), LAYOUT, CONFIGS["paper"])
    recorder.measure(*arguments, 0, BLOCK)
    before = recorder.table()
    with pytest.raises(torch.OutOfMemoryError):
        recorder.measure(*arguments, 0, BLOCK)
    assert recorder.table() == before


def test_outputs_that_are_not_finite_count_as_infinitely_wrong() -> None:
    def attend(q: Tensor, *args: Any, **kwargs: Any) -> Any:
        return torch.full_like(q, float("nan")), SimpleNamespace(density=torch.tensor(0.5))

    recorder = ProbeRecorder(SETTINGS, attend)
    qkv = tensors()
    recorder.measure(*qkv, dense_attention(*qkv), LAYOUT, CONFIGS["paper"], 0, BLOCK)
    assert recorder.table().errors == (((float("inf"),) * 2,),)


def test_a_table_in_the_order_of_the_model() -> None:
    recorder = ProbeRecorder(SETTINGS, stand_in_attention([]))
    qkv = tensors()
    places = [(1, ("single", 0)), (0, ("double", 10)), (0, ("double", 2)), (1, ("double", 2))]
    for step, block in places:
        recorder.measure(*qkv, qkv[0], LAYOUT, CONFIGS["paper"], step, block)
    table = recorder.table()
    assert table.steps == (0, 1)
    assert table.blocks == (("double", 2), ("double", 10), ("single", 0))
    assert table.errors[1][1] == (None, None)
    assert table.errors[0][1] == table.errors[0][0] != (None, None)
    recorder.reset()
    assert recorder.is_empty
    assert recorder.grid is None
    assert recorder.table().steps == ()


def test_progress() -> None:
    """Pairs of a step and a block, of as many as are expected so far."""
    seen: list[Any] = []
    settings = replace(SETTINGS, blocks=parse_probe_blocks("0-2, single 1"))
    recorder = ProbeRecorder(
        settings,
        stand_in_attention([]),
        lambda *pair: seen.append(pair),
        lambda text, is_last: seen.append((text, is_last)),
    )
    qkv = tensors()
    for block in (("double", 0), ("double", 0), ("single", 1)):
        assert recorder.wants(1, 20, *block, 20 if block[0] == "double" else 40)
        recorder.measure(*qkv, qkv[0], LAYOUT, CONFIGS["paper"], 1, block)
    assert seen == [
        (1, 6),
        ("probe: step 2 of 20, block 1 of 20", False),
        (1, 6),
        ("probe: step 2 of 20, block 1 of 20", False),
        (2, 8),
        ("probe: step 2 of 20, single block 2 of 40", False),
    ]


def test_progress_without_comfyui() -> None:
    for node_id in (None, "7"):
        shown = ProbeProgress(node_id)
        shown.update(1, 3)
        shown.say("probe: step 2 of 20, block 1 of 20", False)


def test_an_interruption_in_the_bar_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older cores raise it as an ordinary exception from the bar, and forget it then."""

    class InterruptProcessingException(Exception):
        pass

    class ProgressBar:
        def __init__(self, total: int, node_id: str | None = None) -> None:
            self.shown = (total, node_id)

        def update_absolute(self, value: int, total: int) -> None:
            raise InterruptProcessingException

    asked_again: list[bool] = []
    management = SimpleNamespace(
        InterruptProcessingException=InterruptProcessingException,
        interrupt_current_processing=asked_again.append,
    )
    utils = SimpleNamespace(ProgressBar=ProgressBar)
    comfy = SimpleNamespace(model_management=management, utils=utils)
    modules = {"comfy": comfy, "comfy.utils": utils, "comfy.model_management": management}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    ProbeProgress("7").update(1, 3)
    assert asked_again == [True]
