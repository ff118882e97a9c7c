"""Rectified SpaAttn in plain torch: the method, without ComfyUI and without Triton."""

from .attention import AttentionStats, dense_attention, merge_attention, rectified_attention
from .config import ConfigError, SparseConfig
from .dispatch import BackendStatus, BackendUnavailable, backend_status, release_tables
from .layout import TokenLayout
from .order import block_neighbours, inverse_order, token_order
from .reference import relative_l2
from .selection import critical_blocks

__all__ = [
    "AttentionStats",
    "BackendStatus",
    "BackendUnavailable",
    "ConfigError",
    "SparseConfig",
    "TokenLayout",
    "backend_status",
    "block_neighbours",
    "critical_blocks",
    "dense_attention",
    "inverse_order",
    "merge_attention",
    "rectified_attention",
    "relative_l2",
    "release_tables",
    "token_order",
]
