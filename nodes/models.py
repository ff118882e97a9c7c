"""Which tokens of a model's attention sequence are the video, for one forward.

The video tokens lie in raster order (T, H, W) in one run; everything else (text, reference frames,
pose, motion) is context. The sequence is computed from the latent and the conditions of this very
forward, because context windows and area conditions change the grid from call to call. A model is
recognised by its parts, not by its class name, so that subclasses with the same parts work and
anything else is reported as unsupported.

    Wan              [ref_conv reference | SCAIL reference] [video] [in-context, reference, pose]
    HunyuanVideo     [vision] [byt5] [text] [ref_latent] [video]      cores after 0.13
                     [ref_latent] [video] [vision] [byt5] [text]      cores up to 0.13

Which model a sparsity profile belongs to, read off ComfyUI's transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..rspa_core import TokenLayout
from ..rspa_core.run.families import ModelFingerprint

Shape = Sequence[int]

WAN_PARTS = ("patch_embedding", "text_embedding", "blocks", "head")
HUNYUAN_PARTS = ("img_in", "txt_in", "double_blocks", "single_blocks")

Spans = tuple[tuple[int, int, int], int, int]
"""Video grid (T, H, W) in tokens, context tokens before the video, context tokens behind it."""


def token_layout(
    diffusion_model: Any, x: Any, text: Any, conds: Mapping[str, Any]
) -> tuple[TokenLayout | None, str]:
    """Find the video tokens in the self-attention sequence of one forward.

    Args:
        diffusion_model: the transformer, compiled or not.
        x: the noisy latent, `[B, C, T, H, W]`.
        text: text condition (`c_crossattn`), `[B, L, C]`, or None.
        conds: the other conditions of the call, by ComfyUI's names.

    Returns:
        (layout, "") or (None, why the video tokens are not known).
    """
    # torch.compile hides the model behind a module that holds it as `_orig_mod`.
    model = getattr(diffusion_model, "_orig_mod", diffusion_model)
    patch: Any = getattr(model, "patch_size", None)
    is_video_patch = isinstance(patch, (tuple, list)) and len(patch) == 3
    if is_video_patch and _has_parts(model, WAN_PARTS):
        find_spans = _wan_spans
    elif is_video_patch and _has_parts(model, HUNYUAN_PARTS):
        find_spans = _hunyuan_spans
    else:
        return None, f"model class {type(model).__name__} is not supported (Wan, HunyuanVideo)"
    if x.ndim != 5:
        return None, f"latent has {x.ndim} dimensions, a video has 5"
    if text is None:
        return None, "no text condition"

    try:
        grid, prefix, suffix = find_spans(model, x, text, conds, patch)
        layout = TokenLayout(grid, prefix + math.prod(grid) + suffix, prefix)
    except Exception as error:  # conditions of a form that this model is not known to take
        return None, f"conditions not understood ({type(error).__name__}: {error})"
    if find_spans is _wan_spans and layout.length in _cross_attention_lengths(text, conds):
        # Wan's cross-attention could not be told from its self-attention by shape.
        return None, f"{layout.length} video tokens are as many as the condition has"
    return layout, ""


def _wan_spans(model: Any, x: Any, text: Any, conds: Mapping[str, Any], patch: Shape) -> Spans:
    frames, height, width = _padded_grid(x.shape, patch)
    extra_frames = conds.get("time_dim_concat")  # Phantom's subjects: more frames of the video
    if extra_frames is not None:
        frames += _padded_grid(extra_frames.shape, patch)[0]

    prefix = suffix = 0
    is_scail = hasattr(model, "patch_embedding_pose")
    reference = conds.get("reference_latent")
    if reference is None:
        pass
    elif getattr(model, "ref_conv", None) is not None:  # Fun-Control; a Conv2d without padding
        prefix += _cut_tokens(reference.shape[-2:], patch[1:])
    elif is_scail:
        prefix += math.prod(_padded_grid(reference.shape, patch))
    elif hasattr(model, "audio_proj") or hasattr(model, "frame_packer"):  # HuMo, S2V
        suffix += _cut_tokens(reference.shape[-3:], patch)
    # Every other Wan takes the reference as channels or not at all: no tokens.

    pose = conds.get("pose_latents")
    if is_scail and pose is not None:
        suffix += math.prod(_padded_grid(pose.shape, patch))
    motion = conds.get("reference_motion")
    if motion is not None and hasattr(model, "frame_packer"):
        suffix += _packed_motion_tokens(model.frame_packer, motion.shape)
    for latent in conds.get("context_latents") or ():
        suffix += math.prod(_padded_grid(latent.shape, patch))
    return (frames, height, width), prefix, suffix


def _hunyuan_spans(model: Any, x: Any, text: Any, conds: Mapping[str, Any], patch: Shape) -> Spans:
    grid = _padded_grid(x.shape, patch)
    text_tokens = text.shape[1]
    byt5 = conds.get("txt_byt5")
    if byt5 is not None and getattr(model, "byt5_in", None) is not None:
        text_tokens += byt5.shape[1]
    vision = conds.get("clip_fea")
    if vision is not None:
        text_tokens += vision.shape[1]
    reference = conds.get("ref_latent")
    reference_tokens = 0 if reference is None else math.prod(_padded_grid(reference.shape, patch))

    # Cores up to 0.13 put the text last and mark their blocks so; newer ones dropped the mark.
    text_is_last = getattr(model.double_blocks[0], "flipped_img_txt", False)
    if text_is_last:
        return grid, reference_tokens, text_tokens
    return grid, text_tokens + reference_tokens, 0


def _packed_motion_tokens(packer: Any, shape: Shape) -> int:
    """Tokens of S2V's packed motion frames: ever coarser patches, the further back the frames."""
    height, width = shape[-2:]
    tokens = 0
    projections = (packer.proj, packer.proj_2x, packer.proj_4x)
    for projection, frames in zip(projections, packer.zip_frame_buckets, strict=True):
        tokens += _cut_tokens((frames, height, width), projection.kernel_size)
    return tokens


def _cross_attention_lengths(text: Any, conds: Mapping[str, Any]) -> set[int]:
    """Key counts of Wan's cross-attention calls: the text, and the image features in one."""
    features = (conds.get("clip_fea"), conds.get("clip_fea_ref"))
    image_tokens = sum(feature.shape[-2] for feature in features if feature is not None)
    return {text.shape[1], image_tokens}


def _padded_grid(shape: Shape, patch: Shape) -> tuple[int, int, int]:
    """Patches of a latent `[..., T, H, W]` that is padded to whole patches first."""
    frames, height, width = (-(-size // step) for size, step in zip(shape[-3:], patch, strict=True))
    return frames, height, width


def _cut_tokens(sizes: Shape, patch: Shape) -> int:
    """Patches of a latent whose incomplete last patches are cut off (a strided convolution)."""
    return math.prod(size // step for size, step in zip(sizes, patch, strict=True))


def _has_parts(model: Any, names: Sequence[str]) -> bool:
    return all(hasattr(model, name) for name in names)


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
