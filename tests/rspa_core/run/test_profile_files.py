"""Files that are no usable profile: damaged, tampered with, of another kind or a newer version."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rectified_spaattn.rspa_core.config import MAX_SPARSITY
from rectified_spaattn.rspa_core.run.profile import (
    MAX_FILE_BYTES,
    ProfileError,
    load_profile,
    save_profile,
)

from .profile_cases import PROFILE, parts, written


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "profile.safetensors"


def refused(path: Path) -> str:
    """What is wrong with the file; the message names it."""
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)
    assert caught.value.path == path
    assert 0 < len(caught.value.problem) < 500
    return caught.value.problem


def test_missing_package_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_profile(PROFILE, path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "package safetensors is needed" in refused(path)
    with pytest.raises(ProfileError, match="package safetensors is needed"):
        save_profile(PROFILE, path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "gone.safetensors")
    assert "not a file" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"x", "not a safetensors file"),
        (b"these are some words, not tensors", "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n", "not a safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "another kind"),
        (struct.pack("<Q", 2**63) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 5) + b"[1,2]", "not a safetensors file"),
        (struct.pack("<Q", 20000) + b"[" * 20000, "not a safetensors file"),
        (bytes(MAX_FILE_BYTES + 1), "more than 1 MiB"),
    ],
    ids=[
        "empty",
        "a byte",
        "text",
        "ones",
        "pickle",
        "no tensors",
        "length",
        "list",
        "nested",
        "big",
    ],
)
def test_files_that_are_no_profiles(content: bytes, expected: str, path: Path) -> None:
    path.write_bytes(content)
    assert expected in refused(path)


def test_a_lora_is_no_profile(path: Path) -> None:
    lora = {f"blocks.0.self_attn.q.lora_{part}.weight": torch.zeros(8, 8) for part in "AB"}
    save_file(lora, path, {"format": "pt", "ss_base_model_version": "wan"})
    assert "another kind" in refused(path)
    save_file(lora, path)
    assert "another kind" in refused(path)


def test_every_truncated_file_is_refused(path: Path) -> None:
    data = written(PROFILE, path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert refused(path)


def test_more_bytes_at_the_end_are_refused(path: Path) -> None:
    data = written(PROFILE, path)
    path.write_bytes(data + b"\0")
    assert "damaged" in refused(path)


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_flipped_bytes_raise_nothing_else(mask: int, path: Path) -> None:
    """A flipped byte may give another valid value, but never another error than ours."""
    data = written(PROFILE, path)
    loaded = 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :])
        try:
            profile = load_profile(path)
        except ProfileError:
            continue
        loaded += 1
        assert all(0 <= value <= MAX_SPARSITY for value in profile.double + profile.single)
        assert len(profile.double) == profile.model.double_blocks
    assert loaded < len(data) / 2


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=400))
def test_random_bytes_are_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert refused(path)


Change = Callable[[dict[str, torch.Tensor], dict[str, str]], Any]


def setting(key: str, value: str) -> Change:
    return lambda tensors, metadata: metadata.update({key: value})


def value_at_0(value: float) -> Change:
    return lambda tensors, metadata: tensors["double.sparsity"].__setitem__(0, value)


def tensor(name: str, value: torch.Tensor) -> Change:
    return lambda tensors, metadata: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (setting("format", "pt"), "another kind"),
        (setting("format_version", "2"), "format version 2 is newer than this pack reads (1)"),
        (setting("format_version", "0"), "no format version 0"),
        (setting("format_version", "one"), "format_version = 'one'"),
        (setting("format_version", "1" * 5000), "format_version"),
        (setting("family", "a\nb"), "family = 'a\\nb' is not allowed"),
        (setting("double_blocks", "3"), "shape [2], but the metadata say 3 blocks"),
        (setting("double_blocks", "0"), "double_blocks = 0"),
        (setting("single_blocks", "0"), "shape [4], but the metadata say 0 blocks"),
        (setting("single_blocks", "-4"), "single_blocks = '-4'"),
        (setting("single_blocks", "٤"), "single_blocks"),
        (setting("hidden_dim", "3072.0"), "hidden_dim"),
        (setting("num_heads", ""), "num_heads"),
        (setting("grid", "21,30"), "grid = '21,30'"),
        (setting("grid", "21,30,0"), "grid = 0"),
        (setting("wanted_error", "nan"), "wanted_error = nan"),
        (setting("wanted_error", "small"), "wanted_error = 'small'"),
        (setting("block_size", "96"), "block_size = 96"),
        (setting("rectification", "__import__('os')"), "rectification"),
        (setting("order", "hilbert"), "order = 'hilbert'"),
        (setting("tail_keys", "16"), "tail_keys = 16"),
        (setting("name", "a\nb"), "name"),
        (setting("name", "x" * 100_000), "name"),
        (value_at_0(float("nan")), "double, block 0 = nan"),
        (value_at_0(float("inf")), "double, block 0 = inf"),
        (value_at_0(-0.25), "double, block 0 = -0.25"),
        (value_at_0(0.9801), "double, block 0 = 0.9801"),
        (tensor("double.sparsity", torch.zeros(2, dtype=torch.float16)), "dtype F16, not F32"),
        (tensor("double.sparsity", torch.zeros(2, dtype=torch.int64)), "dtype I64, not F32"),
        (tensor("double.sparsity", torch.zeros(2, 1)), "shape [2, 1]"),
        (tensor("single.sparsity", torch.zeros(())), "shape []"),
        (tensor("extra", torch.zeros(1)), "a tensor that a profile does not have: 'extra'"),
        (lambda tensors, metadata: tensors.pop("double.sparsity"), "double.sparsity is missing"),
        (lambda tensors, metadata: tensors.pop("single.sparsity"), "single.sparsity is missing"),
    ],
)  # fmt: skip
def test_tampered_files(change: Change, expected: str, path: Path) -> None:
    save_profile(PROFILE, path)
    tensors, metadata = parts(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    assert expected in refused(path)


def test_every_entry_of_the_metadata_is_needed(path: Path) -> None:
    save_profile(PROFILE, path)
    tensors, metadata = parts(path)
    for key in set(metadata) - {"pack_version"}:
        save_file(tensors, path, {name: text for name, text in metadata.items() if name != key})
        assert ("another kind" if key == "format" else key) in refused(path)


def test_metadata_that_are_not_text(path: Path) -> None:
    data = written(PROFILE, path)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for value in (2, None, ["2"], {"a": "b"}):
        header["__metadata__"]["double_blocks"] = value
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        assert refused(path)
