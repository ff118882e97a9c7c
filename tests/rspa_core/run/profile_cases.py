"""Profiles and helpers shared by the tests of profiles."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rectified_spaattn.rspa_core.run.profile import ModelFingerprint, SparsityProfile, save_profile

WAN = ModelFingerprint("Wan", 3, 0, 5120, 40)
HUNYUAN = ModelFingerprint("HunyuanVideo", 2, 4, 3072, 24)
PROFILE = SparsityProfile(
    HUNYUAN, (0.75, 0.0), (0.5, 0.98, 0.123456, 0.9), (21, 30, 52), 0.05, 128, "precise", "gilbert",
    4, "night shots",
)  # fmt: skip
WAN_PROFILE = SparsityProfile(
    WAN, (0.0, 0.6, 0.92), (), (5, 11, 13), 0.1, 64, "paper", "tile", 1
)  # fmt: skip


def written(profile: SparsityProfile, path: Path) -> bytes:
    save_profile(profile, path)
    return path.read_bytes()


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return load_file(path), dict(file.metadata())
