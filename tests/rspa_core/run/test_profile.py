"""Sparsity profiles: values, words, and a file that holds all of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rectified_spaattn.rspa_core.config import (
    BLOCK_SIZES,
    MAX_SPARSITY,
    ORDERS,
    TAIL_KEYS,
    ConfigError,
)
from rectified_spaattn.rspa_core.run.profile import (
    ModelFingerprint,
    ProfileError,
    SparsityProfile,
    load_profile,
    save_profile,
)

from .profile_cases import HUNYUAN, PROFILE, WAN, WAN_PROFILE, parts, written


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "profile.safetensors"


def test_models_in_words() -> None:
    assert WAN.describe() == "Wan, 3 blocks, dimension 5120, 40 heads"
    assert (
        HUNYUAN.describe() == "HunyuanVideo, 2 double and 4 single blocks, dimension 3072, 24 heads"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", "two\nlines"),
        ("double_blocks", 0),
        ("double_blocks", 10**6),
        ("single_blocks", -1),
        ("hidden_dim", 0),
        ("hidden_dim", 5120.0),
        ("num_heads", True),
    ],
)
def test_fingerprint_is_checked(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(WAN, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("double", (0.5,)),
        ("double", (0.5, float("nan"))),
        ("double", (0.5, -0.01)),
        ("double", (0.5, 0.99)),
        ("double", (0.5, True)),
        ("double", (0.5, "0.5")),
        ("single", ()),
        ("grid", (0, 1, 1)),
        ("grid", (1, 1)),
        ("grid", (1, 1, 1.5)),
        ("wanted_error", float("inf")),
        ("wanted_error", 1.5),
        ("block_size", 32),
        ("rectification", "none at all"),
        ("order", "hilbert"),
        ("tail_keys", 3),
        ("rectification", "paper"),  # with 4 tail keys
        ("name", "two\nlines"),
        ("name", "\ud800"),
        ("name", "x" * 101),
        ("name", None),
    ],
)
def test_profile_is_checked(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="tail_keys" if value == "paper" else field):
        replace(PROFILE, **{field: value})


def test_sparsity_of_blocks() -> None:
    assert PROFILE.sparsity_of("double", 0) == 0.75
    assert PROFILE.sparsity_of("", 1) == 0.0
    assert PROFILE.sparsity_of(None, 1) == 0.0
    assert PROFILE.sparsity_of("single", 3) == 0.9
    unknown = [("double", 2), ("single", 4), ("double", -1), ("double", None), ("single", None)]
    assert [PROFILE.sparsity_of(*block) for block in unknown] == [None] * 5
    assert WAN_PROFILE.sparsity_of("single", 0) is None


def test_only_the_measured_model_is_accepted() -> None:
    PROFILE.check_model(ModelFingerprint("HunyuanVideo", 2, 4, 3072, 24))
    with pytest.raises(ConfigError) as caught:
        PROFILE.check_model(WAN)
    for part in ("profile", "night shots", HUNYUAN.describe(), WAN.describe()):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="this one is of no known family"):
        WAN_PROFILE.check_model(None)


@pytest.mark.parametrize("field", ["double_blocks", "single_blocks", "hidden_dim", "num_heads"])
def test_models_differ_in_any_size(field: str) -> None:
    with pytest.raises(ConfigError):
        PROFILE.check_model(replace(HUNYUAN, **{field: getattr(HUNYUAN, field) + 1}))


def test_description_has_what_a_person_asks_for() -> None:
    lines = PROFILE.describe().splitlines()
    assert lines[:2] == ["night shots", HUNYUAN.describe()]
    assert lines[2] == "sparsity 0.00 to 0.98, 0.54 on average, 1 of 6 blocks dense"
    assert "21 x 30 x 52 tokens" in lines[3]
    assert "precise, tail_keys 4, gilbert; wanted_error 0.05" in lines[3]
    assert "tail_keys" not in WAN_PROFILE.describe()


@pytest.mark.parametrize("profile", [PROFILE, WAN_PROFILE], ids=["hunyuan", "wan"])
def test_round_trip(profile: SparsityProfile, path: Path) -> None:
    save_profile(profile, path)
    assert load_profile(path) == profile
    assert load_profile(str(path)) == profile


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_round_trip_of_any_profile(data: st.DataObject, path: Path) -> None:
    sizes = st.integers(1, 10**6)
    counts = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 60))
    family = data.draw(st.sampled_from(["Wan", "HunyuanVideo"]))
    model = ModelFingerprint(family, *counts, data.draw(sizes), data.draw(sizes))
    values = [
        data.draw(st.lists(st.floats(0.0, MAX_SPARSITY), min_size=count, max_size=count))
        for count in counts
    ]
    tail_keys = data.draw(st.sampled_from(TAIL_KEYS))
    names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=100)
    profile = SparsityProfile(
        model,
        tuple(values[0]),
        tuple(values[1]),
        data.draw(st.tuples(sizes, sizes, sizes)),
        data.draw(st.floats(0.0, 1.0)),
        data.draw(st.sampled_from(BLOCK_SIZES)),
        "precise" if tail_keys > 1 else data.draw(st.sampled_from(["precise", "paper", "none"])),
        data.draw(st.sampled_from(ORDERS)),
        tail_keys,
        data.draw(names),
    )
    for kept, given_value in zip(
        profile.double + profile.single, [*values[0], *values[1]], strict=True
    ):
        assert abs(kept - given_value) <= 5e-7
    save_profile(profile, path)
    assert load_profile(path) == profile


def test_the_file_is_as_documented(path: Path) -> None:
    save_profile(PROFILE, path)
    tensors, metadata = parts(path)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "double.sparsity": (torch.float32, (2,)),
        "single.sparsity": (torch.float32, (4,)),
    }
    assert metadata.pop("pack_version").count(".") == 2
    assert metadata == {
        "format": "rectified_spaattn.sparsity_profile",
        "format_version": "1",
        "name": "night shots",
        "family": "HunyuanVideo",
        "double_blocks": "2",
        "single_blocks": "4",
        "hidden_dim": "3072",
        "num_heads": "24",
        "grid": "21,30,52",
        "wanted_error": "0.05",
        "block_size": "128",
        "rectification": "precise",
        "order": "gilbert",
        "tail_keys": "4",
    }
    save_profile(WAN_PROFILE, path)
    assert list(parts(path)[0]) == ["double.sparsity"]


def test_an_empty_tensor_of_single_blocks_is_fine(path: Path) -> None:
    save_profile(WAN_PROFILE, path)
    tensors, metadata = parts(path)
    save_file({**tensors, "single.sparsity": torch.zeros(0)}, path, metadata)
    assert load_profile(path) == WAN_PROFILE


def test_unknown_metadata_are_ignored(path: Path) -> None:
    save_profile(PROFILE, path)
    tensors, metadata = parts(path)
    save_file(tensors, path, {**metadata, "comment": "made on a Friday"})
    assert load_profile(path) == PROFILE


def test_saving_makes_folders_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "wan" / "fast" / "profile.safetensors"
    save_profile(PROFILE, path)
    save_profile(WAN_PROFILE, path)
    assert load_profile(path) == WAN_PROFILE
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_failed_rename_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(PROFILE, path)

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ProfileError, match=r"cannot be written .*No space left"):
        save_profile(WAN_PROFILE, path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "wan").write_text("no folder")
    with pytest.raises(ProfileError, match="cannot be written"):
        save_profile(WAN_PROFILE, tmp_path / "wan" / "profile.safetensors")
