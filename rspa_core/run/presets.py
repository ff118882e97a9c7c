"""Presets: settings for a model family and a wish, chosen by what was measured.

The figures behind every choice, and the commands that give them, are in docs/notes/fidelity.md.
`start_percent` is a share of the sampling, so one preset serves any number of steps: 0.2 keeps 1 of
4, 2 of 8, 4 of 20 and 10 of 50 steps dense (evenly spaced sigmas).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from ..config import ConfigError, check_choice

CUSTOM = "custom"
FAMILIES = ("wan", "hunyuan_video")


@dataclass(frozen=True)
class Preset:
    """Values of the inputs of the node of the same names.

    Attributes:
        sparsity: share of the video that is skipped, 0 to 0.98.
        block_size: tokens kept or skipped together, 64 or 128.
        start_percent, end_percent: sparse from one to the other, shares of the sampling.
        rectification: "precise", "paper" or "none".
        tail_keys: with "precise", keys that stand for a skipped block.
    """

    sparsity: float
    block_size: int
    start_percent: float
    end_percent: float = 1.0
    rectification: str = "precise"
    tail_keys: int = 4

    def as_dict(self) -> dict[str, Any]:
        """The values by the names of the node's inputs."""
        return asdict(self)


_WAN = {
    "quality": Preset(0.6, 64, 0.2, tail_keys=8),
    "balanced": Preset(0.75, 128, 0.2),
    "fast": Preset(0.85, 128, 0.15),
    "4-step": Preset(0.85, 128, 0.2),  # few steps need no gentler one
}
# No trained HunyuanVideo small enough to measure pictures with: Wan's values, until there is one.
_HUNYUAN = dict(_WAN)

PRESETS: Mapping[str, Mapping[str, Preset]] = MappingProxyType(
    {"wan": MappingProxyType(_WAN), "hunyuan_video": MappingProxyType(_HUNYUAN)}
)
PRESET_NAMES = (CUSTOM, *_WAN)


def preset(name: str, family: str | None) -> Preset | None:
    """The preset of that name, None for "custom".

    Args:
        family: "wan" or "hunyuan_video"; None (a model that stays dense anyway) reads as "wan".

    Raises:
        ConfigError: there is no such preset or family.
    """
    check_choice("preset", name, PRESET_NAMES)
    if name == CUSTOM:
        return None
    family = family or "wan"
    if family not in PRESETS:
        raise ConfigError("model family", family, "one of " + ", ".join(PRESETS))
    return PRESETS[family][name]
