"""What the attention calls of a model really were: counted, with the reasons of the dense ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor


class CallReport:
    """Counts of self-attention calls, from `reset` on.

    Attributes:
        forwards: forwards of the model.
        sparse: sparse calls.
        reasons: dense calls by reason.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.forwards = 0
        self.sparse = 0
        self.reasons: Counter[str] = Counter()
        self._densities: dict[torch.device, Tensor] = {}

    def add_sparse(self, density: Tensor) -> None:
        """Count a sparse call; `density` is a 0-dim fp32 tensor, read no earlier than asked for."""
        self.sparse += 1
        total = self._densities.get(density.device)
        self._densities[density.device] = density if total is None else total + density

    def add_dense(self, reason: str) -> None:
        """Count a dense call."""
        self.reasons[reason] += 1

    @property
    def dense(self) -> int:
        """Dense calls."""
        return self.reasons.total()

    @property
    def density(self) -> float | None:
        """Mean over the sparse calls of the kept share of block pairs, None without any.

        Waits for the device.
        """
        if not self.sparse:
            return None
        return sum(float(total) for total in self._densities.values()) / self.sparse

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON data."""
        return {
            "forwards": self.forwards,
            "sparse": self.sparse,
            "dense": self.dense,
            "reasons": dict(self.reasons),
            "density": self.density,
        }

    def __str__(self) -> str:
        """ "sparse 304 / dense 16 (schedule: dense step 16) · density 0.27" """
        text = f"sparse {self.sparse} / dense {self.dense}"
        if self.reasons:
            listed = (f"{reason} {count}" for reason, count in self.reasons.most_common())
            text += f" ({', '.join(listed)})"
        density = self.density
        return text if density is None else f"{text} · density {density:.2f}"
