"""SparseConfig: defaults, limits, the budget rule, and errors that say what is allowed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from rectified_spaattn.rspa_core import ConfigError, SparseConfig


def test_defaults() -> None:
    assert dataclasses.asdict(SparseConfig()) == {
        "sparsity": 0.75,
        "q_block": 128,
        "kv_block": 128,
        "top_p": 0.0,
        "rectification": "precise",
        "order": "gilbert",
        "neighbours": True,
        "min_blocks": 1,
        "precision": "auto",
        "tail_keys": 4,
    }


def test_is_a_hashable_value() -> None:
    assert SparseConfig(sparsity=0.5) == SparseConfig(sparsity=0.5)
    assert len({SparseConfig(), SparseConfig(), SparseConfig(top_p=0.3)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        SparseConfig().sparsity = 0.5


@pytest.mark.parametrize("rectification", ["paper", "none"])
def test_tail_keys_mean_nothing_without_a_tail(rectification: str) -> None:
    """Equal calls are equal configurations, whatever is given for a field without a meaning."""
    configs = {SparseConfig(rectification=rectification, tail_keys=keys) for keys in (1, 2, 4, 8)}
    assert configs == {SparseConfig(rectification=rectification)}
    assert configs.pop().tail_keys == 1
    with pytest.raises(ConfigError, match="tail_keys = 3 is not allowed: one of 1, 2, 4, 8"):
        SparseConfig(rectification=rectification, tail_keys=3)


@pytest.mark.parametrize(
    "config",
    [
        SparseConfig(),
        SparseConfig(0.123456789012345678, 128, 64, 0.1, "paper", "tile", False, 7, "int8"),
        SparseConfig(sparsity=0, top_p=1, order="raster", precision="16-bit", tail_keys=8),
    ],
)
def test_text_and_back(config: SparseConfig) -> None:
    assert SparseConfig.from_text(config.to_text()) == config


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity": 0.0},
        {"sparsity": 0},
        {"sparsity": 0.98},
        {"top_p": 1.0},
        {"q_block": 128, "kv_block": 64},
        {"q_block": 64, "kv_block": 64},
        {"rectification": "precise"},
        {"rectification": "none"},
        {"order": "tile"},
        {"order": "raster"},
        {"neighbours": False},
        {"min_blocks": 100},
    ],
)
def test_allowed_values(change: dict[str, object]) -> None:
    config = SparseConfig(**change)
    assert all(getattr(config, name) == value for name, value in change.items())


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity": -0.01},
        {"sparsity": 0.981},
        {"sparsity": 1.5},
        {"sparsity": math.nan},
        {"sparsity": math.inf},
        {"sparsity": "0.75"},
        {"sparsity": None},
        {"sparsity": True},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"q_block": 32},
        {"q_block": 64.0},
        {"q_block": "128"},
        {"kv_block": 256},
        {"kv_block": 0},
        {"rectification": "Paper"},
        {"rectification": None},
        {"order": "hilbert"},
        {"order": ""},
        {"neighbours": 1},
        {"neighbours": "yes"},
        {"min_blocks": 0},
        {"min_blocks": 1.0},
        {"min_blocks": True},
    ],
)
def test_other_values_are_refused(change: dict[str, object]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ConfigError) as caught:
        SparseConfig(**change)
    assert caught.value.field == name
    assert caught.value.value is value
    assert str(caught.value) == f"{name} = {value!r} is not allowed: {caught.value.allowed}"


def test_kv_blocks_are_not_larger_than_q_blocks() -> None:
    with pytest.raises(ConfigError, match="kv_block = 128 is not allowed: not above q_block = 64"):
        SparseConfig(q_block=64, kv_block=128)


def test_errors_are_value_errors_with_a_whole_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"^sparsity = 1\.5 is not allowed: a number from 0 to 0\.98$"
    ):
        SparseConfig(sparsity=1.5)


@pytest.mark.parametrize(
    "sparsity,min_blocks,blocks,kept",
    [
        (0.75, 1, 591, 147),
        (0.9, 1, 10, 1),  # (1 - 0.9) * 10 is below 1 in binary
        (0.8, 1, 5, 1),
        (0.7, 1, 10, 3),
        (0.9, 1, 30, 3),
        (0.98, 1, 50, 1),
        (0.98, 1, 49, 1),
        (0.98, 4, 49, 4),
        (0.98, 4, 3, 3),
        (0.0, 1, 17, 17),
        (0.5, 1, 1, 1),
    ],
)
def test_top_k(sparsity: float, min_blocks: int, blocks: int, kept: int) -> None:
    assert SparseConfig(sparsity=sparsity, min_blocks=min_blocks).top_k(blocks) == kept


def test_top_k_never_keeps_less_at_less_sparsity() -> None:
    for blocks in (1, 7, 100, 591, 1182):
        kept = [SparseConfig(sparsity=float(s)).top_k(blocks) for s in np.linspace(0.98, 0.0, 99)]
        assert kept == sorted(kept)
        assert kept[0] >= 1
        assert kept[-1] == blocks


def test_top_p_one_keeps_everything() -> None:
    """Not what rounding makes of a sum of probabilities: that may reach 1 early."""
    assert SparseConfig(sparsity=0.9, top_p=1.0).top_k(40) == 40
    assert SparseConfig(sparsity=0.9, top_p=1).top_k(40) == 40
    assert SparseConfig(sparsity=0.9, top_p=0.999).top_k(40) == 4
