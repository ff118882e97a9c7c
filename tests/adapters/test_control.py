"""What runs dense and why, schedules, and that a model comes back as it was."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import nn

from rectified_spaattn.adapters import install, sparse_attention
from rectified_spaattn.rspa_core import BackendUnavailable, ConfigError
from rectified_spaattn.rspa_core.dispatch import ON_CPU
from rectified_spaattn.rspa_core.run.calls import FAILURE_LIMIT
from rectified_spaattn.rspa_core.run.probe import ProbeSettings, ProbeSteps
from rectified_spaattn.rspa_core.run.profile import ModelFingerprint, SparsityProfile
from rectified_spaattn.rspa_core.run.reasons import Reason
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule

from .models import (
    FULL,
    SPARSE,
    counts,
    hunyuan,
    hunyuan15,
    hunyuan15_inputs,
    hunyuan_inputs,
    velocity,
    wan,
    wan_inputs,
)


def state_of(model: nn.Module) -> dict[str, Any]:
    """What must be the same before and after: processors, hooks, attributes, numbers."""
    return {
        "processors": {name: id(each) for name, each in model.attn_processors.items()},
        "hooks": [
            (len(each._forward_pre_hooks), len(each._forward_hooks)) for each in model.modules()
        ],
        "attributes": [sorted(vars(each)) for each in model.modules()],
        "numbers": [id(each) for each in model.state_dict(keep_vars=True).values()],
    }


@pytest.mark.parametrize("make, inputs", [(wan, wan_inputs()), (hunyuan, hunyuan_inputs(6, 4))])
def test_removal_restores(make: Any, inputs: dict[str, Any]) -> None:
    model = make()
    dense, before = velocity(model, inputs), state_of(model)
    sparse = install(model, SPARSE, min_tokens=0, backend="reference")
    assert not torch.equal(velocity(model, inputs), dense)
    sparse.remove()
    sparse.remove()
    assert state_of(model) == before
    assert torch.equal(velocity(model, inputs), dense)
    with (
        pytest.raises(ZeroDivisionError),
        sparse_attention(model, SPARSE, min_tokens=0, backend="reference"),
    ):
        _ = 1 / 0
    assert state_of(model) == before


def test_only_self_attention_over_the_video_is_replaced() -> None:
    model = wan()
    before = model.attn_processors
    with sparse_attention(model, SPARSE):
        changed = {name for name, each in model.attn_processors.items() if each is not before[name]}
    assert changed == {"blocks.0.attn1.processor", "blocks.1.attn1.processor"}

    model = hunyuan()
    before = model.attn_processors
    with sparse_attention(model, SPARSE):
        changed = {name for name, each in model.attn_processors.items() if each is not before[name]}
    kinds = ("transformer_blocks", "single_transformer_blocks")
    assert changed == {f"{kind}.{index}.attn.processor" for kind in kinds for index in (0, 1)}


def test_a_processor_set_meanwhile_stays() -> None:
    model = wan()
    sparse = install(model, SPARSE, min_tokens=0, backend="reference")
    mine = type(model.blocks[1].attn1.get_processor().original)()
    model.blocks[0].attn1.set_processor(mine)
    velocity(model, wan_inputs())
    assert counts(sparse) == (
        1,
        {"attention processor WanAttnProcessor, set after the installation": 1},
    )
    sparse.remove()
    assert model.blocks[0].attn1.get_processor() is mine


def test_a_cpu_stays_dense_unless_the_reference_is_asked_for() -> None:
    model = wan()
    with sparse_attention(model, SPARSE, min_tokens=0) as sparse:
        velocity(model, wan_inputs())
    assert sparse.record.sparse == 0
    assert [each.text for each in sparse.record.reasons] == [ON_CPU]
    assert "faster on a CPU" in sparse.report


def test_processors_set_meanwhile_are_told() -> None:
    model, inputs = wan(), wan_inputs()
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        model.set_attn_processor(WanAttnProcessor())
        velocity(model, inputs)
        text = "attention processor WanAttnProcessor, set after the installation"
        assert counts(sparse) == (0, {text: 2})
        assert text in sparse.report


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("dense_blocks", None, "dense_blocks = None is not allowed: a text or DenseBlocks"),
        ("schedule", 0.5, "a SparsitySchedule or None"),
        ("dense_blocks", "7, single 0", "blocks of 0 to 1"),
        ("dense_blocks", "first", "a block number"),
        ("min_tokens", -1, "0 or more"),
        ("num_steps", 0, "1 or more"),
        ("backend", "cuda", "one of auto, reference, triton"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: Any, text: str) -> None:
    model = wan()
    with pytest.raises(ConfigError, match=text) as caught:
        install(model, SPARSE, **{name: value})
    assert caught.value.field.startswith(name)
    with pytest.raises(ConfigError, match="a SparseConfig"):
        install(model, 0.75)
    install(model, SPARSE).remove()  # nothing was left behind


def test_installing_twice_is_refused() -> None:
    model = wan()
    with sparse_attention(model, SPARSE), pytest.raises(RuntimeError, match="remove it first"):
        install(model, SPARSE)


def test_small_videos_stay_dense_to_the_bit() -> None:
    model, inputs = wan(), wan_inputs()
    with sparse_attention(model, SPARSE) as sparse:
        out = velocity(model, inputs)
    assert counts(sparse) == (0, {"288 video tokens, below min_tokens 8192": 2})
    assert torch.equal(out, velocity(model, inputs))


def test_dense_blocks() -> None:
    with sparse_attention(
        wan(), SPARSE, min_tokens=0, backend="reference", dense_blocks="-1"
    ) as sparse:
        velocity(sparse.transformer, wan_inputs())
    assert counts(sparse) == (1, {"dense_blocks": 1})
    with sparse_attention(
        hunyuan(), SPARSE, min_tokens=0, backend="reference", dense_blocks="single 0-1"
    ) as sparse:
        velocity(sparse.transformer, hunyuan_inputs(6))
    assert counts(sparse) == (2, {"dense_blocks": 2})


def test_other_processors_run_as_they_are() -> None:
    model, inputs = wan(), wan_inputs()

    class Doubling(type(model.blocks[0].attn1.get_processor())):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().__call__(*args, **kwargs)

    model.blocks[0].attn1.set_processor(Doubling())
    dense = velocity(model, inputs)
    with sparse_attention(model, FULL, min_tokens=0, backend="reference") as sparse:
        torch.testing.assert_close(velocity(model, inputs), dense, rtol=1e-5, atol=1e-5)
    assert counts(sparse) == (1, {"attention processor Doubling": 1})


def with_other_mask(
    call: Any, change: str, video: Any, text: Any, temb: Any, mask: Any, *rest: Any
) -> Any:
    """A block of HunyuanVideo, given a mask that is not a bool prefix."""
    if change == "hole":
        mask = mask.clone()
        mask[..., -8] = False
    else:
        mask = mask.float()
    return call(video, text, temb, mask, *rest)


@pytest.mark.parametrize("change", ["hole", "float"])
def test_masks_that_are_not_padding(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = hunyuan(), hunyuan_inputs(6)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        monkeypatch.setattr(block, "forward", partial(with_other_mask, block.forward, change))
    dense = velocity(model, inputs)
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        assert torch.equal(velocity(model, inputs), dense)
    ((reason, number),) = sparse.record.reasons.items()
    assert number == 4
    wanted = Reason.MASK_NOT_AT_END if change == "hole" else Reason.MASK_FORM
    assert reason.reason is wanted


def test_gradients_stay_dense() -> None:
    model, inputs = wan(), wan_inputs()
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        model(**inputs).sample.sum().backward()
        assert counts(sparse) == (0, {Reason.GRADIENTS.value: 2})
        model.requires_grad_(False)
        model(**inputs)
        assert counts(sparse) == (2, {Reason.GRADIENTS.value: 2})


def test_blocks_called_on_their_own_stay_dense() -> None:
    model, inputs = wan(), wan_inputs()
    tokens = torch.randn(1, 288, 48)
    with (
        sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse,
        torch.no_grad(),
    ):
        rotary = model.rope(inputs["hidden_states"])
        model.blocks[0].attn1(tokens, None, None, rotary)
        assert counts(sparse) == (0, {Reason.OUTSIDE.value: 1})
        velocity(model, inputs)
        # An error in a forward must not leave its plan behind.
        with pytest.raises((RuntimeError, ValueError)):
            velocity(model, inputs | {"encoder_hidden_states": torch.zeros(2, 3, 5)})
        model.blocks[0].attn1(tokens, None, None, rotary)
    assert counts(sparse) == (2, {Reason.OUTSIDE.value: 2})


@pytest.mark.parametrize(
    "error, tried, reason",
    [
        (BackendUnavailable("no kernels here"), 1, "no kernels here"),
        (RuntimeError("out of luck\nmore"), FAILURE_LIMIT, "RuntimeError: out of luck"),
    ],
)
def test_failures_go_on_dense(error: Exception, tried: int, reason: str) -> None:
    attempts = []

    def fail(*args: Any, **kwargs: Any) -> Any:
        attempts.append(1)
        raise error

    model, inputs = wan(), wan_inputs()
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        sparse.run.attention = fail
        outs = [velocity(model, inputs) for _ in range(3)]
    assert counts(sparse) == (0, {reason: 6})
    assert len(attempts) == tried
    assert torch.equal(outs[0], velocity(model, inputs))


def test_schedule_follows_the_scheduler() -> None:
    # As a pipeline does it: two forwards a step, timesteps rounded so that steps cannot be told.
    model, scheduler = wan(), FlowMatchEulerDiscreteScheduler(shift=7.0)
    schedule = SparsitySchedule(0.5, 0.8, end_percent=0.79, dense_steps=(0, 2))
    options = {
        "schedule": schedule,
        "scheduler": scheduler,
        "min_tokens": 0,
        "backend": "reference",
    }
    with sparse_attention(model, SPARSE, **options) as sparse:
        for _ in range(2):
            scheduler.set_timesteps(5)
            x = torch.zeros(2, 4, 3, 16, 24)
            for t in scheduler.timesteps:
                inputs = wan_inputs(timestep=float(t // 500 * 500))
                v = velocity(model, inputs)
                velocity(model, inputs)
                x = scheduler.step(v, t, x, return_dict=False)[0]
    # Steps 0 and 2 of five are dense by number, 4 (80 %) by share; two calls and forwards a step.
    assert counts(sparse) == (16, {"schedule: dense step": 16, "schedule: last 21 %": 8})
    assert sparse.record.forwards == 20


def test_ramp_follows_the_noise_of_the_scheduler() -> None:
    model, scheduler = wan(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = SparsitySchedule(0.5, 0.5, "constant", ramp=1.0)
    options = {"schedule": schedule, "min_tokens": 0, "backend": "reference"}
    with sparse_attention(model, SPARSE, scheduler=scheduler, **options) as sparse:
        scheduler.set_timesteps(8)
        x = torch.zeros(2, 4, 3, 16, 24)
        for t in scheduler.timesteps:
            v = velocity(model, wan_inputs(timestep=float(t)))
            x = scheduler.step(v, t, x, return_dict=False)[0]
        record = sparse.record
    planned = [planned for planned, _ in record.kept]
    assert len(planned) == 8
    assert sum(planned) / 8 == pytest.approx(0.5, abs=1e-3)
    assert planned[0] == max(planned) > 1.5 * min(planned)
    assert record.warnings == ()
    # Without a scheduler nothing says how noisy a step is.
    with sparse_attention(model, SPARSE, num_steps=8, **options) as sparse:
        velocity(model, wan_inputs(timestep=900.0))
        assert [planned for planned, _ in sparse.record.kept] == [0.5]
        (warning,) = sparse.record.warnings
    assert warning == "the sampler does not say its steps: without a ramp, each keeps the same"


def test_schedule_follows_the_timestep_or_what_it_is_told() -> None:
    model = wan()
    schedule = SparsitySchedule(0.75, 0.75, steps=(None, 0.75))
    with sparse_attention(
        model, SPARSE, schedule=schedule, min_tokens=0, backend="reference"
    ) as sparse:
        for timestep in (1000, 1000, 900, 500, 1000, 900):
            velocity(model, wan_inputs(timestep=timestep))
        assert counts(sparse) == (6, {"schedule: step is off": 6})
        sparse.reset()
        sparse.set_step(0)
        velocity(model, wan_inputs(timestep=3))
        sparse.set_step(1)
        velocity(model, wan_inputs(timestep=3))
    assert counts(sparse) == (2, {"schedule: step is off": 2})


def test_attention_backends_still_reach_the_dense_calls() -> None:
    model = wan()
    originals = [block.attn1.get_processor() for block in model.blocks]
    with sparse_attention(model, SPARSE):
        model.set_attention_backend("_native_math")
        velocity(model, wan_inputs())
    assert {each._attention_backend.value for each in originals} == {"_native_math"}
    # diffusers keeps it as everybody's default, and it switches flags of all threads.
    model.set_attention_backend("native")
    model.reset_attention_backend()


@pytest.mark.parametrize(
    ("way", "is_late"),
    [("around", False), ("around", True), ("in place", True), ("blocks", True)],
    ids=["around, after", "around, before", "in place, before", "blocks, before"],
)
def test_compiled_models(way: str, is_late: bool) -> None:
    torch.compiler.reset()
    model, inputs = wan(), wan_inputs()
    dense = velocity(model, inputs)
    compiled = model
    if way == "around":
        compiled = torch.compile(model, backend="eager")
    elif way == "in place":
        model.compile(backend="eager")
    else:
        model.compile_repeated_blocks(backend="eager")
    if is_late:
        velocity(compiled, inputs)
    schedule = SparsitySchedule(0.75, 0.75, steps=(None, 0.75))
    with sparse_attention(
        compiled, SPARSE, schedule=schedule, min_tokens=0, backend="reference"
    ) as sparse:
        for step in (0, 1, 0, 1):
            sparse.set_step(step)
            is_dense = torch.allclose(velocity(compiled, inputs), dense, rtol=1e-5, atol=1e-5)
            assert is_dense == (step == 0)
        assert counts(sparse) == (4, {"schedule: step is off": 4})
    torch.testing.assert_close(velocity(compiled, inputs), dense, rtol=1e-5, atol=1e-5)


def test_values_that_are_not_finite_are_repeated_dense() -> None:
    model, inputs = wan(), wan_inputs()
    dense = velocity(model, inputs)
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        attend, calls = sparse.run.attention, []

        def poisoned(*args: Any, **kwargs: Any) -> Any:
            out, stats = attend(*args, **kwargs)
            calls.append(1)
            if len(calls) == 2:
                out[..., 3, 5] = float("nan")
            return out, stats

        sparse.run.attention = poisoned
        assert torch.equal(velocity(model, inputs), dense)
        assert counts(sparse) == (0, {Reason.NON_FINITE.value: 2})
        assert not torch.equal(velocity(model, inputs), dense)
    assert counts(sparse) == (2, {Reason.NON_FINITE.value: 2})


def test_a_forward_is_not_repeated_while_diffusers_caches() -> None:
    """Its caches count the model's calls."""
    model, inputs = wan(), wan_inputs()
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        attend, calls = sparse.run.attention, []
        model.register_forward_pre_hook(lambda *_: calls.append(1))

        def poisoned(*args: Any, **kwargs: Any) -> Any:
            out, stats = attend(*args, **kwargs)
            out[..., 3, 5] = float("nan")
            return out, stats

        sparse.run.attention = poisoned
        model._cache_config = object()  # as `enable_cache` leaves it
        assert model.is_cache_enabled
        assert not torch.isfinite(velocity(model, inputs)).all()
        velocity(model, inputs)
    assert len(calls) == 2
    reason = next(iter(sparse.record.reasons))
    assert (reason.reason, sparse.record.sparse) == (Reason.NON_FINITE_KEPT, 2)


def test_a_profile_sets_the_sparsity_of_every_block() -> None:
    model, inputs = wan(), wan_inputs()
    mine = ModelFingerprint("Wan", 2, 0, 48, 2)
    profile = SparsityProfile(mine, (0.0, 0.6), (), (3, 8, 12), 0.05, 64, "paper", "gilbert", 1)
    seen: list[float] = []
    with sparse_attention(
        model, SPARSE, min_tokens=0, backend="reference", profile=profile
    ) as sparse:
        attend = sparse.run.attention

        def spy(q: Any, k: Any, v: Any, layout: Any, config: Any, **kwargs: Any) -> Any:
            seen.append(config.sparsity)
            return attend(q, k, v, layout, config, **kwargs)

        sparse.run.attention = spy
        velocity(model, inputs)
    assert seen == [0.6]
    assert counts(sparse) == (1, {Reason.DENSE_IN_PROFILE.value: 1})
    with pytest.raises(ConfigError, match="it belongs to another model"):
        install(hunyuan(), SPARSE, profile=profile)


@pytest.mark.parametrize("make, inputs", [(wan, wan_inputs()), (hunyuan, hunyuan_inputs(6))])
def test_a_probe_measures_and_leaves_the_output_dense(make: Any, inputs: dict[str, Any]) -> None:
    model, probe = make(), ProbeSettings(ProbeSteps((0,)), sparsities=(0.5, 0.9))
    dense = velocity(model, inputs)
    with sparse_attention(
        model, SPARSE, min_tokens=0, backend="reference", num_steps=1, probe=probe
    ) as sparse:
        torch.testing.assert_close(velocity(model, inputs), dense, rtol=1e-5, atol=1e-5)
        outcome = sparse.probe_result(0.5, "mine")
    assert outcome.profile.name == "mine"
    assert len(outcome.measured) == len(outcome.blocks) == (2 if make is wan else 4)
    low, high = (max(row) for row in zip(*outcome.table.errors[0], strict=True))
    assert 0.0 < low < high


@pytest.mark.parametrize(
    "make, inputs", [(hunyuan, hunyuan_inputs(6, 6)), (hunyuan15, hunyuan15_inputs((6, 6), (1, 1)))]
)
def test_a_probe_leaves_padding_out_of_dense_steps_too(make: Any, inputs: dict[str, Any]) -> None:
    probe = ProbeSettings(ProbeSteps((0,)), sparsities=(0.5,))
    errors = []
    for steps in ((0.75,), (None,)):  # a sparse step, and one that the schedule has dense
        model = make()
        schedule = SparsitySchedule(0.75, 0.75, steps=steps)
        with sparse_attention(
            model, SPARSE, min_tokens=0, backend="reference", num_steps=1, probe=probe,
            schedule=schedule,
        ) as sparse:  # fmt: skip
            velocity(model, inputs)
            assert sparse.run.recorder is not None
            errors.append(sparse.run.recorder.table().errors)
    assert errors[0] == errors[1]


@pytest.mark.parametrize("make", [wan, hunyuan])
def test_two_threads_over_one_transformer(make: Any) -> None:
    """Two pipelines, each with its own sizes and steps: what each gives alone, it gives beside."""
    model, rounds = make(), 6
    schedule = SparsitySchedule(0.75, 0.75, steps=(None, 0.75, 0.5))
    grids = ((3, 8, 12), (2, 10, 9))

    def inputs(grid: tuple[int, int, int], timestep: float) -> dict[str, Any]:
        if make is wan:
            return wan_inputs(grid, timestep)
        return hunyuan_inputs(6, 4, grid=grid) | {"timestep": torch.full((2,), timestep)}

    def pipeline(grid: tuple[int, int, int]) -> list[torch.Tensor]:
        times = (1000.0, 700.0, 300.0)
        return [velocity(model, inputs(grid, t)) for _ in range(rounds // 3) for t in times]

    def in_threads(numbers: tuple[int, ...]) -> dict[int, list[torch.Tensor]]:
        outs: dict[int, list[torch.Tensor]] = {}
        start = threading.Barrier(len(numbers))

        def work(number: int) -> None:
            start.wait()
            outs[number] = pipeline(grids[number])

        threads = [threading.Thread(target=work, args=(number,)) for number in numbers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outs

    options = {"schedule": schedule, "num_steps": 3, "min_tokens": 0, "backend": "reference"}
    with sparse_attention(model, SPARSE, **options) as sparse:
        # Alone in a thread, too: the number of processors of one differs from the main thread's.
        alone = in_threads((0,)) | in_threads((1,))
        expected = counts(sparse)
        sparse.reset()
        beside = in_threads((0, 1))
        assert counts(sparse) == expected
    pairs = [pair for n in (0, 1) for pair in zip(alone[n], beside[n], strict=True)]
    assert [torch.equal(*pair) for pair in pairs] == [True] * 2 * rounds
