"""Rectified SpaAttn in other hosts than ComfyUI: so far the video models of diffusers."""

from .call_report import CallReport
from .diffusers import SparseAttention, install, sparse_attention

__all__ = ["CallReport", "SparseAttention", "install", "sparse_attention"]
