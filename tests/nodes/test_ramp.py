"""The ramp on the node: settings, what each step of a sampler keeps, the report, two samplers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rectified_spaattn.nodes.patching import SparseAttentionPatch, run_settings
from rectified_spaattn.nodes.pictures.report import draw_report
from rectified_spaattn.rspa_core import SparseConfig, rectified_attention
from rectified_spaattn.rspa_core.config import ConfigError
from rectified_spaattn.rspa_core.run.reasons import Reason, why
from rectified_spaattn.rspa_core.run.record import RunRecord
from rectified_spaattn.rspa_core.run.report_text import json_text, kept_words, summary_text
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule, parse_dense_blocks

from .patch_rig import BLOCKS, make_executor, make_patch, rows, run
from .run_records import run_record
from .test_profiles_and_probes import PROFILE

RAMP = SparsitySchedule(0.6, 0.6, "constant", ramp=1.0)
SIGMAS = [1.0, 0.9, 0.75, 0.5, 0.25, 0.0]
WHOLE_BLOCKS = 1 / 12
"""Shares are rounded down to whole blocks, of which the video has twelve."""
NO_COURSE = "the sampler does not say its steps: without a ramp, each keeps the same"


def exactly(q: Any, k: Any, v: Any, layout: Any, config: SparseConfig, **options: Any) -> Any:
    """Sparse attention without the neighbours, which are half of so small a video."""
    return rectified_attention(q, k, v, layout, replace(config, neighbours=False), **options)


def ramp_patch(schedule: SparsitySchedule = RAMP, **parts: Any) -> SparseAttentionPatch:
    return make_patch(schedule, **{"attend": exactly} | parts)


def sampled(patch: SparseAttentionPatch, sigmas: list[float]) -> RunRecord:
    """One sampling run, two model calls a step."""
    executor = make_executor()
    patch.on_pre_run(None)
    for sigma in sigmas[:-1]:
        for cond in (0, 1):
            listed = torch.tensor(sigmas)
            run(patch, executor, sigma, sample_sigmas=listed, cond_or_uncond=[cond])
    patch.on_cleanup(None)
    record = patch.last_run
    assert record is not None
    return record


def test_node_has_it_and_says_what_replaces_it() -> None:
    settings = run_settings({"preset": "custom", "sparsity": 0.5, "ramp": 0.8})
    assert settings.schedule is not None
    assert settings.schedule.ramp == settings.asked["ramp"] == 0.8
    by_preset = run_settings({"preset": "fast", "ramp": 0.8})
    assert by_preset.asked["overridden"]["ramp"] == "0.8 by preset"
    with_schedule = run_settings({"preset": "custom", "ramp": 0.8}, schedule=RAMP)
    assert with_schedule.schedule is RAMP
    assert "ramp" not in with_schedule.asked
    assert with_schedule.asked["overridden"]["ramp"] == "by schedule"
    assert with_schedule.asked["schedule"]["ramp"] == 1.0
    with pytest.raises(ConfigError, match=r"ramp = 1.5 is not allowed: a number from 0 to 1"):
        run_settings({"ramp": 1.5})


def test_graphs_without_it_run_as_before() -> None:
    schedule = run_settings({"preset": "custom"}).schedule
    assert schedule is not None
    assert not schedule.has_ramp


def test_noisy_steps_keep_more_and_the_mean_is_reached() -> None:
    record = sampled(ramp_patch(), SIGMAS)
    planned = [planned for planned, _ in record.kept]
    assert len(planned) == 5
    assert planned[0] == max(planned)
    assert planned[0] > 1.5 * planned[3]
    assert record.planned == pytest.approx(0.4, abs=1e-3)
    assert record.reached == pytest.approx(0.4, abs=WHOLE_BLOCKS)
    for step in record.steps:
        assert step.kept is not None
        assert step.density == pytest.approx(step.kept[1])
    densities = [step.density for step in record.steps]
    assert densities[0] == max(densities)


def test_step_that_keeps_nearly_all_is_dense_with_its_reason() -> None:
    record = sampled(ramp_patch(replace(RAMP, start_sparsity=0.25)), SIGMAS)
    assert record.reasons == {why(Reason.RAMP): 2 * BLOCKS}
    assert record.kept[0] == (1.0, 1.0)
    assert record.planned == pytest.approx(0.75, abs=1e-3)
    assert "schedule: ramp keeps all" in summary_text(record)


def test_summary_and_json_have_planned_and_reached() -> None:
    record = sampled(ramp_patch(replace(RAMP, start_percent=0.2)), SIGMAS)
    words = kept_words(record)
    assert words.startswith("0.40 planned on average over 4 steps, 0.")
    lines = summary_text(record).splitlines()
    assert f"Kept share: {words}" in lines
    (by_step,) = [line for line in lines if line.startswith("By step, planned / reached: 2: ")]
    assert by_step.count("/") == 5
    data = json.loads(json_text(record))
    assert data["planned"] == pytest.approx(0.4, abs=1e-3)
    assert data["reached"] == pytest.approx(record.reached)
    assert data["steps"][0]["planned"] is None
    assert [each["planned"] for each in data["steps"][1:]] == [each for each, _ in record.kept]
    assert [each["reached"] for each in data["steps"][1:]] == [each for _, each in record.kept]


def test_steps_alike_are_not_told_one_by_one() -> None:
    record = sampled(make_patch(SparsitySchedule(0.5, 0.5, "constant")), SIGMAS)
    assert record.planned == pytest.approx(0.5)
    assert kept_words(record) == ""
    assert "planned" not in summary_text(record)


def test_what_stays_dense_for_other_reasons_was_not_reached() -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("out of memory")

    record = sampled(make_patch(RAMP, attend=fail), SIGMAS)
    assert record.sparse == 0
    assert record.planned == pytest.approx(0.4, abs=1e-3)
    assert record.reached == 1.0


def test_a_forward_that_is_repeated_dense_has_not_reached_what_it_planned() -> None:
    calls = count()

    def attend(*args: Any, **options: Any) -> Any:
        out, stats = exactly(*args, **options)
        return out * (float("nan") if next(calls) == 0 else 1.0), stats

    record = sampled(make_patch(RAMP, attend=attend), SIGMAS)
    (step,) = (each for each in record.steps if each.sparse and each.dense)
    assert [reason.reason for reason, _ in step.reasons] == [Reason.NON_FINITE]
    assert (step.sparse, step.dense) == (BLOCKS, BLOCKS), "one of the step's two forwards"
    assert step.kept is not None
    assert step.density is not None
    assert step.kept[1] == pytest.approx((1.0 + step.density) / 2)


def test_dense_blocks_are_not_counted_as_planned() -> None:
    record = sampled(ramp_patch(dense_blocks=parse_dense_blocks("0")), SIGMAS)
    assert record.planned == pytest.approx(0.4, abs=1e-3)
    assert record.reached == pytest.approx(0.4, abs=WHOLE_BLOCKS)


def test_picture_says_it() -> None:
    plain = draw_report(run_record(steps=4))
    kept = ((0.5, 0.52), (0.3, 0.31), (0.2, 0.2))
    assert draw_report(run_record(steps=4, kept=kept)).height == plain.height + 24


def test_every_block_of_a_profile_has_its_own_mean() -> None:
    record = sampled(ramp_patch(profile=PROFILE), SIGMAS)
    wanted = {block: 1.0 - PROFILE.double[block] for block in range(BLOCKS)}
    of_block = {
        block: [cell for (_, (_, index)), cell in record.cells.items() if index == block]
        for block in wanted
    }
    for block, share in wanted.items():
        if share >= 1.0:
            assert all(cell.sparse == 0 for cell in of_block[block])
            continue
        densities = [1.0 if each.density is None else each.density for each in of_block[block]]
        assert densities[0] > densities[3] or share < 2 * WHOLE_BLOCKS
        assert sum(densities) / len(densities) == pytest.approx(share, abs=WHOLE_BLOCKS)
    sparse = [share for share in wanted.values() if share < 1.0]
    assert record.planned == pytest.approx(sum(sparse) / len(sparse), abs=2e-3)


def test_without_the_sampler_s_list_steps_are_alike_and_it_says_so() -> None:
    patch, executor = make_patch(RAMP), make_executor()
    run(patch, executor, 1.0, sample_sigmas=None)
    run(patch, executor, 0.25, sample_sigmas=None)
    record = patch.run.report.record()
    assert record.warnings == (NO_COURSE,)
    assert rows(patch) == {None: (2 * BLOCKS, 0)}
    assert record.planned == pytest.approx(0.4)


def test_two_samplers_reach_the_mean_together(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: dict[str, str] = {}
    server = SimpleNamespace(last_prompt_id="a", send_progress_text=lambda text, node: None)
    server.send_progress_text = lambda text, node: texts.update({node: text})
    module = ModuleType("server")
    module.PromptServer = SimpleNamespace(instance=server)
    monkeypatch.setitem(sys.modules, "server", module)
    levels = [1.0 - each / 8 for each in range(9)]
    high = sampled(make_patch(RAMP, node_id="7"), levels[:5])
    low = sampled(make_patch(RAMP, node_id="9"), levels[4:])
    assert high.planned is not None
    assert low.planned is not None
    assert high.planned > 0.45 > 0.35 > low.planned
    assert (high.planned + low.planned) / 2 == pytest.approx(0.4, abs=1e-3)
    assert texts["7"] == texts["9"]
    assert "kept 0.40 planned on average over 8 steps, " in texts["9"]
