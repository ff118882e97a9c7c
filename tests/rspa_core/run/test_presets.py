"""Presets: one dictionary, valid values."""

from __future__ import annotations

import pytest

from rectified_spaattn.rspa_core import SparseConfig
from rectified_spaattn.rspa_core.config import ConfigError
from rectified_spaattn.rspa_core.run.presets import CUSTOM, PRESET_NAMES, PRESETS, preset
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule


@pytest.mark.parametrize("name", PRESETS)
def test_values_are_valid(name: str) -> None:
    chosen = PRESETS[name]
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


def test_faster_presets_keep_less() -> None:
    kept = [PRESETS[name].sparsity for name in ("quality", "balanced", "fast")]
    assert kept == sorted(kept)


@pytest.mark.parametrize("num_steps", [4, 8, 20, 50])
@pytest.mark.parametrize("name", PRESETS)
def test_most_steps_are_sparse_and_the_first_is_not(name: str, num_steps: int) -> None:
    """Evenly spaced steps: the first one decides the composition."""
    start = PRESETS[name].start_percent
    dense = sum(step / num_steps < start - 1e-9 for step in range(num_steps))
    assert 1 <= dense <= num_steps // 4


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["fast"] = PRESETS["quality"]


def test_names() -> None:
    assert (CUSTOM, *PRESETS) == PRESET_NAMES
    assert preset(CUSTOM) is None
    assert preset("fast") == PRESETS["fast"]
    with pytest.raises(ConfigError, match="preset = 'turbo' is not allowed: one of custom"):
        preset("turbo")
