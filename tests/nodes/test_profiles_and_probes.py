"""What a profile does to each block of a run, and what a probe does to the calls it measures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rectified_spaattn.nodes.patching import (
    KEY,
    Options,
    SparseAttentionPatch,
    find_patch,
    run_settings,
)
from rectified_spaattn.rspa_core import ConfigError, SparseConfig, rectified_attention, relative_l2
from rectified_spaattn.rspa_core.run.calls import ForwardPlan
from rectified_spaattn.rspa_core.run.presets import PRESETS
from rectified_spaattn.rspa_core.run.probe import ProbeRecorder, ProbeSettings, parse_probe_steps
from rectified_spaattn.rspa_core.run.profile import ModelFingerprint, SparsityProfile
from rectified_spaattn.rspa_core.run.reasons import Reason, why
from rectified_spaattn.rspa_core.run.report_text import settings_words
from rectified_spaattn.rspa_core.run.schedule import (
    Position,
    SparsitySchedule,
    parse_dense_blocks,
    parse_dense_steps,
)

from .patch_rig import BLOCKS, CONFIG, SAMPLE_SIGMAS, make_executor, make_patch, run
from .rig import LAYOUT, OPTIONS, Rig, wan_tensors
from .stand_ins import GRID, HEADS, Box, dense, optimized_attention

WAN = ModelFingerprint("Wan", BLOCKS, 0, 32, HEADS)
PROFILE = SparsityProfile(WAN, (0.0, 0.1, 0.3, 0.9), (), GRID, 0.05, 64, "paper", "gilbert", 1)
PROBE = ProbeSettings(parse_probe_steps("2"), sparsities=(0.5, 0.8))
CUSTOM = {"preset": "custom", "sparsity": 0.5, "block_size": "64", "start_percent": 0.0}


def recording_attend(seen: list[float]) -> Any:
    def attend(q: Any, k: Any, v: Any, layout: Any, config: Any, **kw: Any) -> Any:
        seen.append(config.sparsity)
        return rectified_attention(q, k, v, layout, config, **kw)

    return attend


def sigmas() -> list[float]:
    return SAMPLE_SIGMAS[:-1].tolist()


def test_a_profile_sets_the_sparsity_of_every_block() -> None:
    seen: list[Any] = []
    patch = make_patch(attend=recording_attend(seen), profile=PROFILE)
    run(patch, make_executor())
    assert seen == [0.1, 0.3, 0.9]
    patch.on_cleanup(None)
    record = patch.last_run
    assert record.reasons == {why(Reason.DENSE_IN_PROFILE): 1}
    density = [record.cells[0, ("double", index)].density for index in range(BLOCKS)]
    assert density[0] is None
    assert density[1] > density[2] > density[3] > 0.0


def test_the_schedule_still_says_when() -> None:
    patch = make_patch(SparsitySchedule(0.5, 0.5, "constant", 0.5), profile=PROFILE)
    for sigma in sigmas():
        run(patch, make_executor(), sigma)
    patch.on_cleanup(None)
    assert [step.sparse for step in patch.last_run.steps] == [0, 0, 3, 3]


def test_dense_blocks_win_over_a_profile() -> None:
    patch = make_patch(profile=PROFILE, dense_blocks=parse_dense_blocks("1, 2"))
    run(patch, make_executor())
    reasons = patch.run.report.record().reasons
    assert reasons == {why(Reason.DENSE_BLOCK): 2, why(Reason.DENSE_IN_PROFILE): 1}


def test_a_profile_of_another_model_is_refused() -> None:
    other = replace(WAN, hidden_dim=64)
    with pytest.raises(ConfigError, match=r"profile = .*dimension 32.*this one is .*dimension 64"):
        run_settings(CUSTOM, profile=PROFILE, model=other)
    assert run_settings(CUSTOM, profile=PROFILE, model=WAN).profile is PROFILE


def test_a_profile_measured_otherwise_is_told(caplog: pytest.LogCaptureFixture) -> None:
    settings = run_settings({**CUSTOM, "block_size": "128"}, profile=PROFILE, model=WAN)
    patch = SparseAttentionPatch(settings)
    patch.on_pre_run(None)
    assert "measured with block_size = 64, this run has 128" in caplog.text
    assert "measured with rectification = paper, this run has precise" in caplog.text
    assert "token_order" not in caplog.text


def test_preset_replaces_the_values_it_names() -> None:
    settings = run_settings({**CUSTOM, "preset": "fast"})
    fast = PRESETS["fast"]
    assert settings.config.sparsity == settings.schedule.start_sparsity == fast.sparsity
    assert settings.config.q_block == fast.block_size
    assert settings.schedule.start_percent == fast.start_percent
    assert settings.asked["preset"] == "fast"
    assert settings.asked["sparsity"] == fast.sparsity
    assert settings.asked["overridden"]["sparsity"] == "0.5 by preset"
    assert "end_percent" not in settings.asked["overridden"], "it is the same"


def test_custom_says_which_preset_it_is_the_same_as() -> None:
    balanced = {name: getattr(PRESETS["balanced"], name) for name in CUSTOM if name != "preset"}
    same = {"preset": "custom"} | balanced
    assert run_settings(same).asked["preset"] == "custom (as balanced)"
    assert run_settings(same | {"sparsity": 0.7}).asked["preset"] == "custom"
    options = Options.of({"tail_keys": "8"})
    assert run_settings(same, options=options).asked["preset"] == "custom"
    assert run_settings({"preset": "balanced"}).asked["preset"] == "balanced"


def test_options_win_over_a_preset() -> None:
    quality = run_settings({"preset": "quality"})
    assert quality.config.tail_keys == PRESETS["quality"].tail_keys == 8
    chosen = run_settings({"preset": "quality"}, options=Options.of({"tail_keys": "2"}))
    assert chosen.config.tail_keys == chosen.asked["tail_keys"] == 2
    assert chosen.asked["overridden"]["tail_keys"] == "8 by options"
    paper = run_settings({"preset": "quality"}, options=Options.of({"rectification": "paper"}))
    assert paper.config.rectification == "paper"
    assert "tail_keys" not in paper.asked


def test_a_preset_leaves_a_schedule_in_force() -> None:
    schedule = SparsitySchedule(0.1, 0.2)
    settings = run_settings({"preset": "fast"}, schedule=schedule)
    assert settings.schedule is schedule
    assert "sparsity" not in settings.asked, "it is not what the run used"
    assert settings.asked["overridden"]["sparsity"] == "by schedule"
    assert settings.asked["schedule"]["end_sparsity"] == 0.2


def test_a_report_names_dense_steps_as_the_node_does() -> None:
    schedule = SparsitySchedule(0.1, 0.2, dense_steps=parse_dense_steps("1, 3, -1"))
    settings = run_settings(CUSTOM, schedule=schedule)
    assert "schedule.dense_steps 1, 3, -1" in settings_words(settings.asked)


def test_a_new_node_is_the_default_of_the_library() -> None:
    assert run_settings({}).config == SparseConfig()


def test_options_choose_the_backend() -> None:
    assert run_settings({}).backend == "auto"
    assert "backend" not in run_settings({}).asked
    asked_for = run_settings({}, options=Options.of({"backend": "reference"}))
    assert asked_for.backend == asked_for.asked["backend"] == "reference"


def probing_rig(
    config: SparseConfig | None = CONFIG, step: int = 1, **parts: Any
) -> tuple[Rig, ProbeRecorder]:
    """A forward of step `step` of 4, dense if `config` is None, and the probe that measures it."""
    reason = why(Reason.BEFORE_START, 20.0) if config is None else None
    plan = ForwardPlan(LAYOUT, config, reason, Position(step, 4, 0.25))
    rig = Rig(plan, probe=PROBE, **parts)
    return rig, rig.run.recorder


def test_a_measured_call_returns_the_dense_output() -> None:
    rig, recorder = probing_rig()
    q, k, v = wan_tensors()
    assert torch.equal(rig.wan(q, k, v), dense(q, k, v, HEADS))
    assert rig.dense_reasons == {Reason.PROBED.value: 1}
    table = recorder.table()
    assert (table.steps, table.blocks) == ((1,), (("double", 1),))
    heads = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v)]
    exact = dense(*heads, HEADS, skip_reshape=True, skip_output_reshape=True)
    for sparsity, error in zip(PROBE.sparsities, table.errors[0][0], strict=True):
        out = rectified_attention(*heads, LAYOUT, replace(CONFIG, sparsity=sparsity))
        assert error == pytest.approx(float(relative_l2(out, exact)), rel=1e-4)


def test_a_measured_call_in_containers_returns_the_dense_output() -> None:
    q, k, v = wan_tensors()
    boxes = [Box(x.clone()) for x in (q, k, v)]
    taken: list[Any] = []

    def previous(func: Any, *args: Any, **kwargs: Any) -> Any:
        taken.append(args[:3])
        return dense(*args, **kwargs)

    # The core's own function needs ComfyUI: a previous override stands in for the dense path.
    previous.container_function = lambda *args, **kw: previous(
        None, *(box.take() for box in args[:3]), *args[3:], **kw
    )
    rig, recorder = probing_rig(previous=previous)
    out = rig.override.container_function(*boxes, heads=HEADS, transformer_options=OPTIONS)
    assert torch.equal(out, dense(q, k, v, HEADS))
    assert [box.tensor for box in boxes] == [None] * 3
    assert len(taken) == 1
    assert not recorder.is_empty


def test_other_calls_run_as_without_a_probe() -> None:
    rig, recorder = probing_rig(step=2)
    q, k, v = wan_tensors()
    plain = Rig(ForwardPlan(LAYOUT, CONFIG))
    assert torch.equal(rig.wan(q, k, v), plain.wan(q, k, v))
    assert recorder.is_empty
    assert rig.tally.sparse.total() == 1


def test_steps_that_the_schedule_keeps_dense_are_measured_too() -> None:
    rig, recorder = probing_rig(config=None)
    rig.wan(*wan_tensors())
    assert not recorder.is_empty


def test_a_measurement_that_fails_costs_nothing_but_itself() -> None:
    rig, recorder = probing_rig()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    recorder._attend = fail
    q, k, v = wan_tensors()
    assert torch.equal(rig.wan(q, k, v), dense(q, k, v, HEADS))
    assert recorder.is_empty
    assert "OutOfMemoryError: out of memory" in rig.warnings[0]


def test_calls_that_sparse_attention_cannot_do_are_not_measured() -> None:
    rig, recorder = probing_rig()
    mask = torch.ones(1, 1, LAYOUT.length)
    rig.wan(*wan_tensors(), mask=mask)
    assert rig.dense_reasons == {"attention mask that weighs keys": 1}
    assert recorder.is_empty


def test_a_run_with_a_probe() -> None:
    patch = make_patch(probe=PROBE)
    for _ in range(2):  # the second run begins anew
        patch.on_pre_run(None)
        for sigma in sigmas():
            run(patch, make_executor(), sigma)
        patch.on_cleanup(None)
    table = patch.run.recorder.table()
    assert table.steps == (1,)
    assert table.blocks == tuple(("double", index) for index in range(BLOCKS))
    assert patch.last_run.reasons == {why(Reason.PROBED): BLOCKS}
    assert patch.run.recorder.grid == GRID
    record = patch.last_run
    assert len(record.sparse_forward_seconds) == 3
    assert record.dense_forward_seconds == (), "a measured forward's time is the measurement's"


def test_find_patch() -> None:
    patch = make_patch()
    assert find_patch(SimpleNamespace(wrappers={"apply_model": {KEY: [patch]}})) is patch
    options = {"transformer_options": {"wrappers": {"apply_model": {KEY: [patch]}}}}
    assert find_patch(SimpleNamespace(model_options=options)) is patch
    assert find_patch(SimpleNamespace()) is None
    assert find_patch(SimpleNamespace(wrappers={"apply_model": {"other": [patch]}})) is None


def test_the_stand_in_hands_calls_to_the_override() -> None:
    """The rig of this file is only worth something if the models' calls arrive."""
    rig, recorder = probing_rig()
    options = {**OPTIONS, "optimized_attention_override": rig.override}
    optimized_attention(*wan_tensors(), heads=HEADS, transformer_options=options)
    assert not recorder.is_empty
