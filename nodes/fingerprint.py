"""Which model a sparsity profile belongs to, read off ComfyUI's transformers."""

from __future__ import annotations

from typing import Any

from ..rspa_core.fingerprint import ModelFingerprint
from .token_regions import HUNYUAN_PARTS, WAN_PARTS


def fingerprint_of_patcher(patcher: Any) -> ModelFingerprint | None:
    """That of the transformer in a ComfyUI model patcher, None if it has none of a known kind."""
    return fingerprint_of(getattr(getattr(patcher, "model", None), "diffusion_model", None))


def fingerprint_of(diffusion_model: Any) -> ModelFingerprint | None:
    """Family and sizes of a Wan or HunyuanVideo transformer, compiled or not; None for others.

    Recognised by its parts, as in `token_regions.py`.
    """
    # torch.compile hides the model behind a module that holds it as `_orig_mod`.
    model = getattr(diffusion_model, "_orig_mod", diffusion_model)
    patch: Any = getattr(model, "patch_size", None)
    if not isinstance(patch, (tuple, list)) or len(patch) != 3:
        return None
    try:
        if all(hasattr(model, part) for part in WAN_PARTS):
            return ModelFingerprint("wan", len(model.blocks), 0, model.dim, model.num_heads)
        if all(hasattr(model, part) for part in HUNYUAN_PARTS):
            return ModelFingerprint(
                "hunyuan_video",
                len(model.double_blocks),
                len(model.single_blocks),
                model.hidden_size,
                model.num_heads,
            )
    except (AttributeError, TypeError, ValueError):  # the parts are there, their sizes are not
        return None
    return None
