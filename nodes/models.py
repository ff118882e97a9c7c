"""The model families that can be sparse in ComfyUI: one row each in `FAMILIES`.

A row says how a model is recognised, where the video tokens lie in its attention sequence in one
forward, and its sizes, which tell whether a profile fits. The video tokens lie in raster order
(T, H, W) in one run; everything else (text, reference frames, pose, motion) is context. The
sequence is computed from the latent and the conditions of this very forward, because context
windows and area conditions change the grid from call to call. A model is recognised by its parts,
not by its class name: subclasses with the same parts work, anything else is unsupported.
`tools/write_families.py` writes the rows into docs/models.md and the help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..rspa_core import TokenLayout
from ..rspa_core.run.profile import ModelFingerprint
from ..rspa_core.run.reasons import DenseReason, Reason, why

Shape = Sequence[int]

Spans = tuple[tuple[int, int, int], int, int]
"""Video grid (T, H, W) in tokens, context tokens before the video, context tokens behind it."""


@dataclass(frozen=True)
class Family:
    """What has to be known about a model family.

    Attributes:
        name: as people know it.
        variants: what is known to run sparse; tests/integration/test_token_regions.py shows for
            each of them where its video tokens lie.
        sequence: of a self-attention call, in words.
        dense: kinds of reasons why some of its models or calls are dense.
        parts: attributes of the transformer that recognise it.
        spans: (transformer, latent, text condition, other conditions, patch size) to where the
            video tokens lie.
        sizes: of a transformer: main blocks, single blocks, width of a token, attention heads.
        cross_lengths: (text condition, other conditions) to the token counts of attention calls
            over conditions and over other streams, which must not be as many as the video tokens;
            None where such calls cannot be mistaken for the video's.
        unlabelled: the transformer's list of blocks, where ComfyUI does not say in the options of
            an attention call which block makes it; "" where it does.
        by_frame: the condition with which the model asks for its self-attention frame by frame;
            "" for none.
    """

    name: str
    variants: tuple[str, ...]
    sequence: str
    dense: tuple[Reason, ...]
    parts: tuple[str, ...]
    spans: Callable[[Any, Any, Any, Mapping[str, Any], Shape], Spans]
    sizes: Callable[[Any], tuple[int, int, int, int]]
    cross_lengths: Callable[[Any, Mapping[str, Any]], set[int]] | None = None
    unlabelled: str = ""
    by_frame: str = ""


def family_of(diffusion_model: Any) -> Family | None:
    """The family of a video transformer, compiled or not; None for any other model."""
    model = _uncompiled(diffusion_model)
    patch = _patch_size(model)
    if not isinstance(patch, (tuple, list)) or len(patch) != 3:
        return None
    has_parts = (each for each in FAMILIES if all(hasattr(model, part) for part in each.parts))
    return next(has_parts, None)


def token_layout(
    diffusion_model: Any, x: Any, text: Any, conds: Mapping[str, Any]
) -> TokenLayout | DenseReason:
    """Find the video tokens in the self-attention sequence of one forward.

    Args:
        diffusion_model: the transformer, compiled or not.
        x: the noisy latent, `[B, C, T, H, W]`, or several packed into one, `[B, 1, N]`.
        text: text condition (`c_crossattn`), `[B, L, C]`, or None.
        conds: the other conditions of the call, by ComfyUI's names.

    Returns:
        The layout, or why the video tokens are not known.
    """
    model = _uncompiled(diffusion_model)
    family = family_of(model)
    x = _video_latent(x, conds)
    if x.ndim == 4:  # HunyuanImage's transformer has the class of HunyuanVideo's
        return why(Reason.IMAGE_MODEL)
    if family is None:
        return why(Reason.UNSUPPORTED_MODEL, type(model).__name__, family_names())
    if x.ndim != 5:
        return why(Reason.NO_VIDEO, x.ndim)
    if text is None:
        return why(Reason.NO_TEXT)
    if _has_trained_gates(model):
        return why(Reason.TRAINED_SPARSE)
    try:
        grid, prefix, suffix = family.spans(model, x, text, conds, _patch_size(model))
        layout = TokenLayout(grid, prefix + math.prod(grid) + suffix, prefix)
        others = other_lengths(model, text, conds)
    except Exception as error:  # conditions of a form that this model is not known to take
        return why(Reason.UNKNOWN_CONDITIONS, type(error).__name__, str(error))
    if layout.length in others:
        # Cross-attention could not be told from self-attention by shape.
        return why(Reason.AMBIGUOUS_LENGTH, layout.length)
    return layout


def other_lengths(diffusion_model: Any, text: Any, conds: Mapping[str, Any]) -> set[int]:
    """Token counts of a forward's attention calls over conditions and streams beside the video.

    Args: as those of `token_layout`.
    """
    family = family_of(diffusion_model)
    if family is None or family.cross_lengths is None:
        return set()
    return family.cross_lengths(text, conds)


def fingerprint_of(diffusion_model: Any) -> ModelFingerprint | None:
    """Family and sizes of a transformer, compiled or not; None for one of no known family."""
    family = family_of(diffusion_model)
    if family is None:
        return None
    try:
        return ModelFingerprint(family.name, *family.sizes(_uncompiled(diffusion_model)))
    except (AttributeError, TypeError, ValueError):  # the parts are there, their sizes are not
        return None


def fingerprint_of_patcher(patcher: Any) -> ModelFingerprint | None:
    """That of the transformer in a ComfyUI model patcher, None if it has none of a known kind."""
    return fingerprint_of(getattr(getattr(patcher, "model", None), "diffusion_model", None))


def family_names() -> str:
    """ "Wan, HunyuanVideo": for messages."""
    return ", ".join(each.name for each in FAMILIES)


def label_blocks(diffusion_model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer_options of a forward, so that its attention calls know their block.

    ComfyUI puts block_type, block_index and total_blocks into the options of most models' blocks.
    For the others each block is replaced, by ComfyUI's own means, with itself and these labels; a
    replacement that another node has made stays in place, inside of ours.
    """
    model = _uncompiled(diffusion_model)
    family = family_of(model)
    if family is None or not family.unlabelled:
        return dict(options)
    total = len(getattr(model, family.unlabelled))
    replacements = options.get("patches_replace", {})
    blocks = dict(replacements.get("dit", {}))
    for index in range(total):
        key = ("double_block", index)
        blocks[key] = _labelled(index, total, blocks.get(key))
    return {**options, "patches_replace": {**replacements, "dit": blocks}}


def _labelled(index: int, total: int, replaced: Callable[..., Any] | None) -> Callable[..., Any]:
    """A replacement of a block that runs the block, or what `replaced` it, with its labels."""
    labels = {"block_type": "double", "block_index": index, "total_blocks": total}

    # Not compiled, as each block's would be compiled anew; the block inside is.
    @torch.compiler.disable(recursive=False)
    def block(args: Mapping[str, Any], extra: Mapping[str, Any]) -> Any:
        args = {**args, "transformer_options": {**args["transformer_options"], **labels}}
        return extra["original_block"](args) if replaced is None else replaced(args, extra)

    return block


def _has_trained_gates(model: Any) -> bool:
    """Whether a checkpoint has the gates of a sparse attention that it was trained with."""
    attention = getattr(model.blocks[0], "attn", None) if getattr(model, "blocks", None) else None
    return getattr(attention, "to_gate_compress", None) is not None


def _uncompiled(diffusion_model: Any) -> Any:
    # torch.compile hides the model behind a module that holds it as `_orig_mod`.
    return getattr(diffusion_model, "_orig_mod", diffusion_model)


def _patch_size(model: Any) -> Any:
    """Latent voxels (T, H, W) of a token; LTX leaves them to its patchifier."""
    return getattr(getattr(model, "patchifier", model), "patch_size", None)


def _video_latent(x: Any, conds: Mapping[str, Any]) -> Any:
    """The first of several latents that ComfyUI has packed into one, where it has: the video."""
    shapes: Any = conds.get("latent_shapes") or ()
    if len(shapes) < 2:
        return x
    shape = tuple(shapes[0][1:])
    return x[..., : math.prod(shape)].reshape(len(x), *shape)


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


def _h3_spans(model: Any, x: Any, text: Any, conds: Mapping[str, Any], patch: Shape) -> Spans:
    frames, height, width = _padded_grid(x.shape, patch)
    payload = conds["minimax_payload"]
    tokens = text.shape[1]
    for keyframe in payload.get("keyframes") or ():
        # Those of one picture, or in newer cores of a clip, on the grid of the video.
        if keyframe.get("latent") is not None:
            tokens += keyframe["latent"].shape[2] * height * width
        tokens += _stereo_tokens(keyframe.get("audio_latent"))
    for reference in payload.get("refs") or ():
        if reference.get("latent") is not None:
            tokens += _cut_tokens(reference["latent"].shape[2:], patch)
        tokens += _stereo_tokens(reference.get("audio_latent"))
    audio = conds["latent_shapes"][1]
    return (frames, height, width), tokens + 2 * audio[-1], 0


def _ltx_spans(model: Any, x: Any, text: Any, conds: Mapping[str, Any], patch: Shape) -> Spans:
    frames, height, width = _padded_grid(x.shape, patch)
    keyframes = conds.get("keyframe_idxs")
    guides = 0 if keyframes is None else keyframes.shape[2]
    if not guides:
        return (frames, height, width), 0, 0
    # Guides are the last frames of the latent. A negative mask takes tokens out of the sequence,
    # such as those between the tokens of a guide of lower resolution.
    guide_frames, rest = divmod(guides, height * width)
    masks = model.patchifier.patchify(conds["denoise_mask"])[0]
    stays = (masks[0] >= 0).all(dim=-1)
    missing, kept_guides = torch.stack([(~stays[:-guides]).sum(), stays[-guides:].sum()]).tolist()
    if rest or missing:
        raise ValueError(f"{guides} guide tokens at {height} x {width}, {missing} without video")
    return (frames - guide_frames, height, width), 0, kept_guides


def _stereo_tokens(latent: Any) -> int:
    """Tokens of H3's audio latent `[B, C, 2, T]` or None: one for each channel and frame."""
    return 0 if latent is None else 2 * latent.shape[-1]


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


def _animate2_spans(model: Any, x: Any, text: Any, conds: Mapping[str, Any], patch: Shape) -> Spans:
    """Frame 0 is the reference; the pose has a branch of its own."""
    return _padded_grid(x.shape, patch), 0, 0


def _ltx_other_lengths(text: Any, conds: Mapping[str, Any]) -> set[int]:
    """Token counts of LTX's text and, in its audio-video models, of the audio."""
    lengths = {text.shape[1]}
    shapes: Any = conds.get("latent_shapes") or ()
    if len(shapes) > 1:
        reference = conds.get("ref_audio")
        lengths.add(shapes[1][2] + (0 if reference is None else reference["tokens"].shape[1]))
    return lengths


def _padded_grid(shape: Shape, patch: Shape) -> tuple[int, int, int]:
    """Patches of a latent `[..., T, H, W]` that is padded to whole patches first."""
    frames, height, width = (-(-size // step) for size, step in zip(shape[-3:], patch, strict=True))
    return frames, height, width


def _cut_tokens(sizes: Shape, patch: Shape) -> int:
    """Patches of a latent whose incomplete last patches are cut off (a strided convolution)."""
    return math.prod(size // step for size, step in zip(sizes, patch, strict=True))


ANY_DENSE = (
    Reason.UNSUPPORTED_MODEL,
    Reason.OTHER_LENGTH,
    Reason.MIN_TOKENS,
    Reason.MASK_VIDEO,
    Reason.MASK_WEIGHTS,
    Reason.MASK_FORM,
    Reason.SPLIT_ROWS,
)
"""Kinds of reasons why a model or a call of any family is dense."""

FAMILIES = (
    Family(
        "Wan Animate2",
        ("character animation",),
        "[video]; the pose, a frame for each of the video's, exact",
        (Reason.POSE_BRANCH, Reason.FRAMES_NOT_PROBED, Reason.AMBIGUOUS_LENGTH),
        ("patch_embedding", "text_embedding", "blocks", "head", "rope_encode_pose"),
        _animate2_spans,
        lambda model: (len(model.blocks), 0, model.dim, model.num_heads),
        _cross_attention_lengths,
        by_frame="pose_latents",
    ),
    Family(
        "Wan",
        (
            "2.1 T2V",
            "2.1 I2V",
            "2.1 first and last frame",
            "2.2 14B T2V",
            "2.2 14B I2V",
            "2.2 5B",
            "VACE",
            "Phantom",
            "Fun-Control",
            "Camera",
            "in-context references",
            "Bernini-R",
            "HuMo",
            "S2V",
            "SCAIL",
            "SCAIL-2",
        ),
        "[reference] [video] [references, pose, motion]",
        (Reason.FRAME_CACHE, Reason.AMBIGUOUS_LENGTH),
        ("patch_embedding", "text_embedding", "blocks", "head"),
        _wan_spans,
        lambda model: (len(model.blocks), 0, model.dim, model.num_heads),
        _cross_attention_lengths,
    ),
    Family(
        "HunyuanVideo",
        ("T2V", "I2V", "I2V with a reference", "1.5 T2V", "1.5 I2V"),
        # Cores up to 0.13: [reference] [video] [vision] [byt5] [text].
        "[vision] [byt5] [text] [reference] [video]",
        (Reason.IMAGE_MODEL,),
        ("img_in", "txt_in", "double_blocks", "single_blocks"),
        _hunyuan_spans,
        lambda model: (
            len(model.double_blocks),
            len(model.single_blocks),
            model.hidden_size,
            model.num_heads,
        ),
    ),
    Family(
        "MiniMax H3",
        ("T2V", "I2V with first and last frame", "references (R2V)"),
        "[text] [keyframes, references] [audio] [video]",
        (Reason.TRAINED_SPARSE,),
        ("video_patch_proj", "audio_patch_proj", "token_refiner", "blocks"),
        _h3_spans,
        lambda model: (len(model.blocks), 0, model.hidden_size, model.blocks[0].attn.heads),
        unlabelled="blocks",
    ),
    Family(
        "LTX",
        ("LTX-Video", "LTX-Video with a guide", "LTX 2", "LTX 2 with a guide"),
        "[video] [guides]",
        (Reason.WEIGHTS_NOT_PROBED, Reason.AMBIGUOUS_LENGTH),
        ("patchify_proj", "adaln_single", "transformer_blocks", "proj_out"),
        _ltx_spans,
        lambda model: (
            len(model.transformer_blocks),
            0,
            model.inner_dim,
            model.num_attention_heads,
        ),
        _ltx_other_lengths,
        unlabelled="transformer_blocks",
    ),
)
