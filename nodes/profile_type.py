"""The socket type of sparsity profiles."""

from __future__ import annotations

from comfy_api.latest import io

PROFILE_TYPE = io.Custom("RSPA_PROFILE")
