"""Presets: settings for a wish, chosen by what was measured with a trained Wan model.

The figures behind every choice, and the commands that give them, are in docs/notes/fidelity.md.
`start_percent` is a share of the steps, so one preset serves any number of them: 0.2 keeps 1 of 4,
2 of 8, 4 of 20 and 10 of 50 steps dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from ..config import check_choice

CUSTOM = "custom"


@dataclass(frozen=True)
class Preset:
    """Values of the inputs of the node of the same names.

    Attributes:
        sparsity: share of the video that is skipped, 0 to 0.98.
        block_size: tokens kept or skipped together, 64 or 128.
        start_percent, end_percent: sparse from one to the other, shares of the steps.
        rectification: "precise", "paper" or "none".
        tail_keys: with "precise", keys that stand for a skipped block.
        ramp: how much more noisy steps keep than clean ones, 0 to 1; `sparsity` stays the mean.
    """

    sparsity: float
    block_size: int
    start_percent: float
    end_percent: float = 1.0
    rectification: str = "precise"
    tail_keys: int = 4
    ramp: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The values by the names of the node's inputs."""
        return asdict(self)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "quality": Preset(0.6, 64, 0.2, tail_keys=8),
        "balanced": Preset(0.75, 128, 0.2),
        "fast": Preset(0.85, 128, 0.15),
        "4-step": Preset(0.85, 128, 0.2),  # few steps need no gentler one
    }
)
PRESET_NAMES = (CUSTOM, *PRESETS)


def preset(name: str) -> Preset | None:
    """The preset of that name, None for "custom".

    Raises:
        ConfigError: there is no such preset.
    """
    check_choice("preset", name, PRESET_NAMES)
    return None if name == CUSTOM else PRESETS[name]
