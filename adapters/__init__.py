"""Rectified SpaAttn in other hosts than ComfyUI: so far the video models of diffusers."""

from .diffusers import SparseAttention, install, sparse_attention

__all__ = ["SparseAttention", "install", "sparse_attention"]
