"""Rectified SpaAttn in plain torch: the method, without ComfyUI and without Triton."""

from . import metrics
from .attention import AttentionStats, dense_attention, merge_attention, rectified_attention
from .config import ConfigError, SparseConfig
from .dispatch import BackendStatus, BackendUnavailable, backend_status, release_tables
from .layout import TokenLayout
from .order import block_neighbours, inverse_order, token_order
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
    "metrics",
    "rectified_attention",
    "release_tables",
    "token_order",
]
