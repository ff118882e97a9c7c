"""How far an attention output is from full attention."""

from __future__ import annotations

from torch import Tensor


def relative_l2(out: Tensor, ref: Tensor) -> float:
    """‖out - ref‖₂ / ‖ref‖₂ over all elements, in fp32."""
    return float((out.float() - ref.float()).norm() / ref.float().norm())
