"""Presets: one dictionary, valid values, the same names for every family."""

from __future__ import annotations

import pytest

from rectified_spaattn.rspa_core import SparseConfig
from rectified_spaattn.rspa_core.config import ConfigError
from rectified_spaattn.rspa_core.run.presets import CUSTOM, FAMILIES, PRESET_NAMES, PRESETS, preset
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule

EVERY = [(family, name) for family in PRESETS for name in PRESETS[family]]


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_values_are_valid(family: str, name: str) -> None:
    chosen = PRESETS[family][name]
    SparseConfig(
        chosen.sparsity,
        chosen.block_size,
        chosen.block_size,
        rectification=chosen.rectification,
        tail_keys=chosen.tail_keys,
    )
    SparsitySchedule(
        chosen.sparsity, chosen.sparsity, "constant", chosen.start_percent, chosen.end_percent
    )


def test_every_family_has_every_preset() -> None:
    assert set(PRESETS) == set(FAMILIES)
    for family in FAMILIES:
        assert (CUSTOM, *PRESETS[family]) == PRESET_NAMES


def test_faster_presets_keep_less() -> None:
    for presets in PRESETS.values():
        kept = [presets[name].sparsity for name in ("quality", "balanced", "fast")]
        assert kept == sorted(kept)


@pytest.mark.parametrize("num_steps", [4, 8, 20, 50])
@pytest.mark.parametrize(("family", "name"), EVERY)
def test_most_steps_are_sparse_and_the_first_is_not(family: str, name: str, num_steps: int) -> None:
    """Evenly spaced steps: the first one decides the composition."""
    start = PRESETS[family][name].start_percent
    dense = sum(step / num_steps < start - 1e-9 for step in range(num_steps))
    assert 1 <= dense <= num_steps // 4


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["wan"]["fast"] = PRESETS["wan"]["quality"]


def test_names() -> None:
    assert preset(CUSTOM, "wan") is None
    assert preset("fast", None) == PRESETS["wan"]["fast"]
    with pytest.raises(ConfigError, match="preset = 'turbo' is not allowed: one of custom"):
        preset("turbo", "wan")
    with pytest.raises(ConfigError, match="model family = 'flux'"):
        preset("fast", "flux")
