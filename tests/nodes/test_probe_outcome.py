"""From a model's probe to a profile, its text, and what is said when there is nothing."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any

import pytest

from rectified_spaattn.nodes.patching import KEY, attach_probe, read_probe
from rectified_spaattn.rspa_core import ConfigError, SparseConfig
from rectified_spaattn.rspa_core.run.probe import (
    AS_THE_NODE,
    NothingMeasured,
    ProbeSettings,
    ProbeSteps,
    ProbeTable,
    computed_share,
    error_at_place,
    make_outcome,
    parse_probe_blocks,
    propose,
)
from rectified_spaattn.rspa_core.run.profile import ModelFingerprint
from rectified_spaattn.rspa_core.run.report_text import block_name, probe_summary_text

from .patch_rig import SAMPLE_SIGMAS, make_executor, make_patch, run
from .probe_cases import CONFIG, GRID, HUNYUAN, TINY, WAN, WAN_SMALL, make, make_table

SPARSITIES = (0.5, 0.75)
SETTINGS = ProbeSettings(ProbeSteps((0, 1)), sparsities=SPARSITIES)


def patcher(patch: Any) -> Any:
    """What the nodes see of a ComfyUI model that has our patch."""
    model = make_executor().class_obj
    model.diffusion_model.dim, model.diffusion_model.num_heads = 32, 2
    return SimpleNamespace(wrappers={"apply_model": {KEY: [patch]}}, model=model)


def test_a_run_gives_a_profile() -> None:
    patch = make_patch(probe=replace(SETTINGS, steps=ProbeSteps((1,), (1.0,))))
    patch.on_pre_run(None)
    for sigma in SAMPLE_SIGMAS[:-1].tolist():
        run(patch, make_executor(), sigma)
    patch.on_cleanup(None)
    outcome = read_probe(patcher(patch), AS_THE_NODE, "mine")
    assert outcome.table.steps == (1, 3)
    assert outcome.profile.model.describe() == "Wan, 4 blocks, dimension 32, 2 heads"
    assert (outcome.profile.name, outcome.profile.grid) == ("mine", (4, 12, 16))
    assert (outcome.profile.block_size, outcome.profile.rectification) == (64, "paper")
    assert len(outcome.measured) == 4
    # A closer profile needs no new run.
    closest = read_probe(patcher(patch), 0.0, "").profile
    assert 0.5 <= fmean(closest.double) < fmean(outcome.profile.double)


@pytest.mark.parametrize(
    ("probe", "sigmas", "message"),
    [
        (SETTINGS, [], "no sampler has used this model yet. Give the sampler the model"),
        (replace(SETTINGS, steps=ProbeSteps((7,))), [1.0], "the sampler took 4 steps and none"),
        (replace(SETTINGS, blocks=parse_probe_blocks("9")), [1.0], "none of the model's blocks"),
    ],
)
def test_why_nothing_was_measured(probe: ProbeSettings, sigmas: list[float], message: str) -> None:
    patch = make_patch(probe=probe)
    for sigma in sigmas:
        run(patch, make_executor(), sigma)
    patch.on_cleanup(None)
    with pytest.raises(NothingMeasured, match=re.escape(message)):
        read_probe(patcher(patch), 0.05, "")


def test_a_model_whose_video_is_not_known() -> None:
    patch = make_patch(probe=SETTINGS)
    run(patch, make_executor(model=SimpleNamespace()))
    patch.on_cleanup(None)
    with pytest.raises(NothingMeasured, match=r"are not known.* model class Simple"):
        read_probe(patcher(patch), 0.05, "")


def test_attempts_that_all_fail() -> None:
    def attend(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no luck")

    patch = make_patch(attend=attend, probe=SETTINGS)
    run(patch, make_executor())
    patch.on_cleanup(None)
    with pytest.raises(NothingMeasured, match="every attempt failed"):
        read_probe(patcher(patch), 0.05, "")


def test_other_models_are_refused() -> None:
    plain = SimpleNamespace(wrappers={}, model_options={})
    with pytest.raises(ConfigError, match=r"model = .*place the probe after it"):
        attach_probe(plain, "1", "", "0.5", None)
    for model in (plain, patcher(make_patch())):
        with pytest.raises(ConfigError, match=r"model = .*out of a Rectified SpaAttn Probe node"):
            read_probe(model, 0.05, "")
    with pytest.raises(ConfigError, match="closest_to_fastest = 2"):
        read_probe(plain, 2.0, "")


@pytest.mark.parametrize(
    ("values", "field"),
    [(("x", "", "0.5"), "steps"), (("1", "x", "0.5"), "blocks"), (("1", "", "x"), "sparsities")],
)
def test_texts_name_their_field(values: tuple[str, str, str], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}, entry 1"):
        attach_probe(SimpleNamespace(), *values, None)


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
def test_wanted_error_0_spends_the_sparsity_of_the_node(scale: float) -> None:
    """By default nothing is slower than without a profile, whatever the errors of the model."""
    outcome = make(WAN, wanted_error=0.0, scale=scale)
    sparsities = [outcome.sparsity(block) for block in outcome.blocks]
    assert fmean(sparsities) == pytest.approx(outcome.configured, abs=0.01)
    assert max(sparsities) > outcome.configured > min(sparsities)
    wanted = outcome.profile.wanted_error
    assert 0.0 < wanted < 1.0
    fewer = make(WAN, wanted_error=wanted - 0.001, scale=scale)
    assert fmean(map(fewer.sparsity, fewer.blocks)) < outcome.configured


@pytest.mark.parametrize("sparsity", [0.3, 0.75, 0.98])
@pytest.mark.parametrize("model", [WAN, HUNYUAN, TINY], ids=["wan", "hunyuan", "tiny"])
def test_the_slider_goes_from_the_closest_to_the_fastest(
    model: ModelFingerprint, sparsity: float
) -> None:
    table = make_table(model)
    errors = [error_at_place(table, sparsity, place / 10) for place in range(11)]
    assert errors == sorted(errors)
    shares = [computed_share(table, propose(table, error)) for error in errors]
    assert shares == sorted(shares, reverse=True)
    alike = [
        computed_share(table, dict.fromkeys(table.blocks, min(max(each, 0.5), 0.92)))
        for each in (0.5, sparsity, 0.92)
    ]
    for share, same in zip((shares[0], shares[5], shares[10]), alike, strict=True):
        # Between dense and the lowest measured sparsity a block has nothing.
        assert same - 0.5 / len(table.blocks) < share <= same + 1e-5
    assert min(propose(table, errors[10]).values()) == pytest.approx(0.92, abs=1e-3)


def test_no_error_is_named_that_no_block_comes_to() -> None:
    """A block without finite values at any sparsity stays dense: no profile is as fast as asked."""
    table = make_table(WAN)
    broken = tuple(((math.inf,) * len(table.sparsities), *blocks[1:]) for blocks in table.errors)
    table = replace(table, errors=broken)
    fastest = error_at_place(table, CONFIG.sparsity, 1.0)
    highest = propose(table, 1.0)
    worst = max(table.worst_error_at(block, highest[block]) or 0.0 for block in table.blocks[1:])
    assert fastest == pytest.approx(worst, abs=1e-4)
    assert propose(table, fastest) == pytest.approx(highest, abs=1e-4)


def test_the_profile_lies_on_its_course_below_the_same_sparsity_everywhere() -> None:
    table = make_table(WAN)
    error = error_at_place(table, CONFIG.sparsity, AS_THE_NODE)
    outcome = make_outcome(table, WAN, CONFIG, GRID, error)
    course = outcome.course
    assert outcome.chosen in course
    assert course == sorted(course, key=lambda point: (-point[0], point[1]))
    assert outcome.alike is not None
    assert outcome.alike[0] == pytest.approx(outcome.chosen[0], abs=1e-3)
    assert outcome.alike[1] > 2 * outcome.chosen[1]


def test_wanted_error_0_stays_within_what_was_measured() -> None:
    outcome = make(WAN, wanted_error=0.0, config=replace(CONFIG, sparsity=0.95))
    assert fmean(map(outcome.sparsity, outcome.blocks)) == pytest.approx(0.92)


def test_blocks_that_were_not_measured_get_the_median_of_their_kind() -> None:
    unmeasured = (("double", 3), ("double", 4), ("double", 9))
    outcome = make(WAN_SMALL, unmeasured=unmeasured, wanted_error=0.09)
    known = [s for index, s in enumerate(outcome.profile.double) if index not in (3, 4, 9)]
    assert len(set(known)) > 5
    for index in (3, 4, 9):
        assert outcome.profile.double[index] == pytest.approx(median(known), abs=1e-5)
    assert "Not measured, the median of the others" in probe_summary_text(outcome)
    assert "blocks 3-4, 9" in probe_summary_text(outcome)


def test_a_kind_without_any_measurement_keeps_the_sparsity_of_the_node() -> None:
    singles = tuple(("single", index) for index in range(40))
    outcome = make(HUNYUAN, unmeasured=singles)
    assert outcome.profile.single == (0.75,) * 40
    assert "Not measured, the node's sparsity 0.75: single blocks 0-39" in probe_summary_text(
        outcome
    )


def test_blocks_by_any_name() -> None:
    """Cores name main blocks "double" or not at all; of two names the lower sparsity counts."""
    curves = (((0.04, 0.06), (0.01, 0.04), (0.01, 0.02)),)
    densities = (((0.5, 0.25),) * 3,)
    blocks = (("", 0), ("double", 0), ("", 1))
    table = ProbeTable((1,), blocks, SPARSITIES, curves, densities)
    outcome = make_outcome(table, TINY, CONFIG, GRID, 0.04)
    assert outcome.profile.double == (0.5, 0.75)
    assert outcome.measured == {("double", 0): ("", 0), ("double", 1): ("", 1)}
    assert outcome.density() == pytest.approx(0.375)
    nowhere = replace(table, blocks=(("", 7), ("", 8), ("", 9)))
    with pytest.raises(ConfigError, match="whose blocks were measured"):
        make_outcome(nowhere, TINY, CONFIG, GRID, 0.04)


def test_summary() -> None:
    text = probe_summary_text(make(HUNYUAN))
    lines = text.splitlines()
    assert lines[0].endswith(
        "HunyuanVideo, 20 double and 40 single blocks, dimension 3072, 24 heads"
    )
    assert "60 of 60 blocks in steps 2, 11, 20" in lines[1]
    assert "For an error of at most 0.05: sparsity 0." in lines[2]
    assert "of the attention is computed" in lines[2]
    head = lines.index("Error at sparsity 0.75, worst first") + 1
    assert re.split(r"\s{2,}", lines[head]) == ["block", "step 2", "step 11", "step 20", "proposed"]
    worst = [float(line.split()[2]) for line in lines[head + 1 : -1]]
    assert worst == sorted(worst, reverse=True)
    assert len({len(line) for line in lines[head:-1]}) == 1
    assert lines[-1] == "and 45 more"
    assert "{" not in text


def test_summary_of_many_steps_and_a_sparsity_outside() -> None:
    config = SparseConfig(0.97)
    text = probe_summary_text(make(WAN, config=config, steps=tuple(range(20))))
    assert "in steps 1-20" in text
    assert "block  worst  proposed" in text
    assert "sparsity 0.92 everywhere (measured nearest to the node's 0.97)" in text


def test_names_of_blocks() -> None:
    assert block_name(("double", 3), WAN) == "3"
    assert block_name(("single", 3), HUNYUAN) == "single 3"
    assert make_table(WAN).blocks[0] == ("double", 0)
