"""Rectified SpaAttn in other hosts than ComfyUI: diffusers, and those that share sequences."""

from .diffusers import SparseAttention, install, sparse_attention

__all__ = ["SparseAttention", "install", "sparse_attention"]
