"""Recording q, k, v of the small model: nothing changes, and they are what it attends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rectified_spaattn.benchmarks import capture
from rectified_spaattn.benchmarks.capture import CapturedCall, chosen_calls, load_calls
from rectified_spaattn.benchmarks.trained_model import tiny_wan
from rectified_spaattn.rspa_core import dense_attention

LATENTS = (3, 8, 12)
STEPS = 3


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    """A model of two layers with random weights, none of them zero, and its prompts."""
    torch.manual_seed(0)
    config = tiny_wan("model").SMALL
    model = tiny_wan("model").WanModel(config).eval()
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    names = tuple(f"scene {number}" for number in range(8))
    return model, tiny_wan("model_files").Prompts.make(names, config.text_dim)


def test_recording_changes_nothing_and_finds_what_the_model_attends_with(
    parts: tuple[Any, Any],
) -> None:
    model, prompts = parts
    wanted = chosen_calls(100, [0, 3], [1], [0, 2], ["cond", "uncond"], [0, 1])
    plain = tiny_wan("sample").sample_latents(model, prompts, 3, LATENTS, STEPS, 1)
    outputs: list[tuple[int, torch.Tensor]] = []
    hooks = [
        block.self_attn.o.register_forward_pre_hook(
            lambda _, inputs, layer=layer: outputs.append((layer, inputs[0].clone()))
        )
        for layer, block in enumerate(model.blocks)
    ]
    recorder = capture.capture(model, prompts, LATENTS, wanted, STEPS)
    for hook in hooks:
        hook.remove()
    again = capture.Recorder(wanted, (3, 4, 6))
    hooked = tiny_wan("sample").sample_latents(
        model, prompts, 3, LATENTS, STEPS, 1, attend=again.attend, on_step=again.on_step
    )
    assert torch.equal(hooked, plain)

    assert len(recorder.calls) == len(wanted) == 16
    assert {call.key for call in recorder.calls} == {call.key for call in wanted}
    assert {call.sigma for call in recorder.calls if call.step == 0} == {1.0}
    # Scene 0 comes first; every step has an output for every layer.
    for call, qkv in zip(recorder.calls, recorder.tensors, strict=True):
        q, k, v = (x[None] for x in qkv)
        assert q.shape == (1, 2, 72, 32)
        scene = [0, 3].index(call.scene)
        layer, output = outputs[(scene * STEPS + call.step) * 2 + call.layer]
        assert layer == call.layer
        own = output[capture.BRANCHES.index(call.branch)]
        expected = dense_attention(q, k, v)[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(expected, own, rtol=1e-4, atol=1e-5)


def test_files_keep_everything(parts: tuple[Any, Any], tmp_path: Path) -> None:
    wanted = chosen_calls(100, [2], [0], [1], ["cond"], [0, 1])
    recorder = capture.capture(*parts, LATENTS, wanted, STEPS, cfg=1.0)
    path = tmp_path / "calls.safetensors"
    capture.save_calls(recorder, path)
    found = load_calls(path)
    assert [call for call, _ in found] == recorder.calls
    assert found[0][0].grid == (3, 4, 6)
    for (_, loaded), kept in zip(found, recorder.tensors, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(loaded, kept, strict=True))


def test_calls_are_chosen_the_same_way_every_time() -> None:
    choice = chosen_calls(20, [0, 1], [0, 1], [0, 1, 2], ["cond", "uncond"], [0, 1, 2])
    assert choice == chosen_calls(20, [0, 1], [0, 1], [0, 1, 2], ["cond", "uncond"], [0, 1, 2])
    assert len(set(choice)) == 20
    for name, count in (("scene", 2), ("step", 3), ("layer", 3), ("branch", 2)):
        assert len({getattr(call, name) for call in choice}) == count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (CapturedCall(0, 0, 3, "cond", 0), "step = 3 is not allowed: from 0 to 2"),
        (CapturedCall(0, 0, 0, "cond", 2), "layer = 2 is not allowed: from 0 to 1"),
        (CapturedCall(0, 0, 0, "uncond", 0), "branch = 'uncond' is not allowed: one of cond"),
    ],
)
def test_calls_that_never_happen_are_refused(
    parts: tuple[Any, Any], call: CapturedCall, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        capture.capture(*parts, LATENTS, [call], STEPS, cfg=1.0)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no metadata entry 'calls'"):
        load_calls(path)
    call = CapturedCall(0, 0, 0, "cond", 0, 1.0, (2, 2, 2))
    recorder = capture.Recorder([], (2, 2, 2))
    recorder.calls, recorder.tensors = [call], [(torch.zeros(1, 7, 16),) * 3]  # type: ignore[list-item]
    recorder.tensors = [tuple(x.clone() for x in recorder.tensors[0])]  # type: ignore[misc]
    capture.save_calls(recorder, path)
    with pytest.raises(ValueError, match=r"has 7 tokens, its grid \(2, 2, 2\) has 8"):
        load_calls(path)


def test_command_line(parts: tuple[Any, Any], tmp_path: Path) -> None:
    model, prompts = parts
    files = tiny_wan("model_files")
    files.save_model(model.state_dict(), model.config, tmp_path / files.WEIGHTS)
    prompts.save(tmp_path / files.PROMPTS)
    out = tmp_path / "captured.safetensors"
    words = "--scenes 1 --seeds 0 --steps 2 --at 1 --calls 3 --device cpu --dtype float32"
    capture.main([str(tmp_path), "--out", str(out), *words.split(), "--size", "9", "32", "48"])
    found = load_calls(out)
    assert len(found) == 3
    assert {call.grid for call, _ in found} == {(3, 2, 3)}
