"""Triton kernels of Rectified SpaAttn. Import `kernels.op` only where Triton is installed."""
