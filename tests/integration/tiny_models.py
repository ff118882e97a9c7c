"""Tiny random checkpoints that the stock UNETLoader recognises as video models.

Each recipe lists parameter names and shapes of one public architecture (Wan 2.x, HunyuanVideo,
HunyuanVideo 1.5, MiniMax H3, LTX), a few hundred channels wide and two blocks deep, so that a
sampling step of some hundred tokens takes a fraction of a second on a CPU. The head dimension stays
as in the real models. Modulations and output layers are random, not zero: with the usual zero
initialisation the latents would not depend on attention at all and every comparison would pass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDTH = 256  # two heads of 128
DEPTH = 2
Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, out_features: int, in_features: int) -> Shapes:
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}


def _affine(name: str, features: int) -> Shapes:
    return {f"{name}.weight": (features,), f"{name}.bias": (features,)}


def _conv(name: str, out_channels: int, in_channels: int, patch: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": (out_channels, in_channels, *patch), f"{name}.bias": (out_channels,)}


# --- Wan -----------------------------------------------------------------------------------------

WAN_TEXT_WIDTH = 4096
WAN_CLIP_WIDTH = 1280
WAN_CLIP_TOKENS = 257
WAN_FFN = 256
WAN_PATCH = (1, 2, 2)


def _wan_block(name: str, image_attention: bool, width: int, ffn: int) -> Shapes:
    shapes: Shapes = {f"{name}.modulation": (1, 6, width)}
    for attention in ("self_attn", "cross_attn"):
        for part in ("q", "k", "v", "o"):
            shapes |= _linear(f"{name}.{attention}.{part}", width, width)
        shapes |= {f"{name}.{attention}.norm_{part}.weight": (width,) for part in ("q", "k")}
    if image_attention:
        shapes |= _linear(f"{name}.cross_attn.k_img", width, width)
        shapes |= _linear(f"{name}.cross_attn.v_img", width, width)
        shapes |= {f"{name}.cross_attn.norm_k_img.weight": (width,)}
    shapes |= _affine(f"{name}.norm3", width)
    shapes |= _linear(f"{name}.ffn.0", ffn, width)
    shapes |= _linear(f"{name}.ffn.2", width, ffn)
    return shapes


def _wan(
    in_channels: int,
    out_channels: int = 16,
    *,
    clip_image: bool = False,
    last_image: bool = False,
    vace_channels: int = 0,
    reference_channels: int = 0,
    mask_channels: int = 0,
    width: int = WIDTH,
    depth: int = DEPTH,
    ffn: int = WAN_FFN,
) -> Shapes:
    shapes = _conv("patch_embedding", width, in_channels, WAN_PATCH)
    shapes |= _linear("text_embedding.0", width, WAN_TEXT_WIDTH)
    shapes |= _linear("text_embedding.2", width, width)
    shapes |= _linear("time_embedding.0", width, 256)
    shapes |= _linear("time_embedding.2", width, width)
    shapes |= _linear("time_projection.1", 6 * width, width)
    for index in range(depth):
        shapes |= _wan_block(f"blocks.{index}", clip_image, width, ffn)
    shapes |= {"head.modulation": (1, 2, width)}
    shapes |= _linear("head.head", out_channels * 4, width)
    if clip_image:
        shapes |= _affine("img_emb.proj.0", WAN_CLIP_WIDTH)
        shapes |= _linear("img_emb.proj.1", WAN_CLIP_WIDTH, WAN_CLIP_WIDTH)
        shapes |= _linear("img_emb.proj.3", width, WAN_CLIP_WIDTH)
        shapes |= _affine("img_emb.proj.4", width)
    if last_image:
        shapes |= {"img_emb.emb_pos": (1, 2 * WAN_CLIP_TOKENS, WAN_CLIP_WIDTH)}
    if vace_channels:
        shapes |= _conv("vace_patch_embedding", width, vace_channels, WAN_PATCH)
        shapes |= _wan_block("vace_blocks.0", False, width, ffn)
        shapes |= _linear("vace_blocks.0.before_proj", width, width)
        shapes |= _linear("vace_blocks.0.after_proj", width, width)
    if reference_channels:
        shapes |= _conv("ref_conv", width, reference_channels, WAN_PATCH[1:])
    if mask_channels:  # SCAIL-2
        shapes |= _conv("patch_embedding_pose", width, in_channels, WAN_PATCH)
        shapes |= _conv("patch_embedding_mask", width, mask_channels, WAN_PATCH)
    return shapes


# --- HunyuanVideo --------------------------------------------------------------------------------

HUNYUAN_TEXT_WIDTH = 64
HUNYUAN_POOLED_WIDTH = 768
HUNYUAN15_VISION_WIDTH = 1152
BYT5_WIDTH = 1472
BYT5_HIDDEN = 2048
MLP_WIDTH = 4 * WIDTH


def _embedder(name: str, in_features: int) -> Shapes:
    """Two linear layers around an activation: time, guidance and pooled-text embeddings."""
    return _linear(f"{name}.in_layer", WIDTH, in_features) | _linear(
        f"{name}.out_layer", WIDTH, WIDTH
    )


def _hunyuan_text_refiner() -> Shapes:
    shapes = _linear("txt_in.input_embedder", WIDTH, HUNYUAN_TEXT_WIDTH)
    shapes |= _embedder("txt_in.t_embedder", 256)
    shapes |= _embedder("txt_in.c_embedder", HUNYUAN_TEXT_WIDTH)
    for index in range(2):
        name = f"txt_in.individual_token_refiner.blocks.{index}"
        shapes |= _affine(f"{name}.norm1", WIDTH) | _affine(f"{name}.norm2", WIDTH)
        shapes |= _linear(f"{name}.adaLN_modulation.1", 2 * WIDTH, WIDTH)
        shapes |= _linear(f"{name}.self_attn.qkv", 3 * WIDTH, WIDTH)
        shapes |= _linear(f"{name}.self_attn.proj", WIDTH, WIDTH)
        shapes |= _linear(f"{name}.mlp.0", MLP_WIDTH, WIDTH)
        shapes |= _linear(f"{name}.mlp.2", WIDTH, MLP_WIDTH)
    return shapes


def _hunyuan_blocks() -> Shapes:
    shapes: Shapes = {}
    for index in range(DEPTH):
        for stream in ("img", "txt"):
            name = f"double_blocks.{index}.{stream}"
            shapes |= _linear(f"{name}_mod.lin", 6 * WIDTH, WIDTH)
            shapes |= _linear(f"{name}_attn.qkv", 3 * WIDTH, WIDTH)
            shapes |= _linear(f"{name}_attn.proj", WIDTH, WIDTH)
            shapes |= {f"{name}_attn.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
            shapes |= _linear(f"{name}_mlp.0", MLP_WIDTH, WIDTH)
            shapes |= _linear(f"{name}_mlp.2", WIDTH, MLP_WIDTH)
        name = f"single_blocks.{index}"
        shapes |= _linear(f"{name}.linear1", 3 * WIDTH + MLP_WIDTH, WIDTH)
        shapes |= _linear(f"{name}.linear2", WIDTH, WIDTH + MLP_WIDTH)
        shapes |= _linear(f"{name}.modulation.lin", 3 * WIDTH, WIDTH)
        shapes |= {f"{name}.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    return shapes


def _hunyuan(in_channels: int, out_channels: int, patch: tuple[int, int, int]) -> Shapes:
    shapes = _conv("img_in.proj", WIDTH, in_channels, patch)
    shapes |= _embedder("time_in", 256)
    shapes |= _hunyuan_text_refiner()
    shapes |= _hunyuan_blocks()
    shapes |= _linear("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    shapes |= _linear("final_layer.linear", out_channels * patch[0] * patch[1] * patch[2], WIDTH)
    return shapes


def _hunyuan_v1(in_channels: int, *, guidance: bool) -> Shapes:
    shapes = _hunyuan(in_channels, 16, (1, 2, 2)) | _embedder("vector_in", HUNYUAN_POOLED_WIDTH)
    return shapes | (_embedder("guidance_in", 256) if guidance else {})


def _hunyuan_v15() -> Shapes:
    shapes = _hunyuan(65, 32, (1, 1, 1))
    shapes |= {"cond_type_embedding.weight": (3, WIDTH)}
    shapes |= _affine("vision_in.proj.0", HUNYUAN15_VISION_WIDTH)
    shapes |= _linear("vision_in.proj.1", HUNYUAN15_VISION_WIDTH, HUNYUAN15_VISION_WIDTH)
    shapes |= _linear("vision_in.proj.3", WIDTH, HUNYUAN15_VISION_WIDTH)
    shapes |= _affine("vision_in.proj.4", WIDTH)
    shapes |= _affine("byt5_in.layernorm", BYT5_WIDTH)
    shapes |= _linear("byt5_in.fc1", BYT5_HIDDEN, BYT5_WIDTH)
    shapes |= _linear("byt5_in.fc2", BYT5_HIDDEN, BYT5_HIDDEN)
    shapes |= _linear("byt5_in.fc3", WIDTH, BYT5_HIDDEN)
    return shapes


# --- MiniMax H3 ----------------------------------------------------------------------------------

H3_TEXT_WIDTH = 64
H3_TIME_WIDTH = 32
H3_VIDEO_CHANNELS = 24
H3_AUDIO_CHANNELS = 32


def _h3_block(name: str) -> Shapes:
    shapes: Shapes = {f"{name}.{norm}.weight": (WIDTH,) for norm in ("norm1", "norm2")}
    shapes |= {f"{name}.attn.{part}_norm.weight": (128,) for part in ("q", "k")}
    shapes |= {f"{name}.attn.qkv_proj.weight": (3 * WIDTH, WIDTH)}
    shapes |= {f"{name}.attn.out_proj.weight": (WIDTH, WIDTH)}
    shapes |= {f"{name}.mlp.fc1.weight": (2 * WIDTH, WIDTH)}
    return shapes | {f"{name}.mlp.fc2.weight": (WIDTH, WIDTH)}


def _h3() -> Shapes:
    shapes = _linear("video_patch_proj", WIDTH, 4 * H3_VIDEO_CHANNELS)
    shapes |= _linear("audio_patch_proj", WIDTH, H3_AUDIO_CHANNELS)
    shapes |= _linear("condition_proj", WIDTH, H3_TEXT_WIDTH)
    shapes |= _linear("time_embedder.proj_in", WIDTH, 256)
    shapes |= _linear("time_embedder.proj_out", H3_TIME_WIDTH, WIDTH)
    shapes |= {"rope.inv_freq": (16,), "token_refiner.final_norm.weight": (WIDTH,)}
    for index in range(DEPTH):
        shapes |= _h3_block(f"token_refiner.blocks.{index}")
        shapes |= _h3_block(f"blocks.{index}")
        # Shift, scale and gate of attention and MLP, for video, text and audio tokens.
        shapes |= _linear(f"blocks.{index}.adaln_proj.linear", 6 * 3 * WIDTH, H3_TIME_WIDTH)
    shapes |= {"final_layer.norm.weight": (WIDTH,)}
    shapes |= _linear("final_layer.adaln_proj.linear", 2 * WIDTH, H3_TIME_WIDTH)
    shapes |= _linear("final_layer.video_out", 4 * H3_VIDEO_CHANNELS, WIDTH)
    return shapes | _linear("final_layer.audio_out", H3_AUDIO_CHANNELS, WIDTH)


# --- LTX -----------------------------------------------------------------------------------------

LTX_CHANNELS = 128
LTX_CAPTION_WIDTH = 64
LTX_AUDIO_WIDTH = 128  # two heads of 64


def _ltx_attention(name: str, width: int, query_width: int, context_width: int) -> Shapes:
    shapes = _linear(f"{name}.to_q", width, query_width)
    shapes |= _linear(f"{name}.to_k", width, context_width)
    shapes |= _linear(f"{name}.to_v", width, context_width)
    shapes |= _linear(f"{name}.to_out.0", query_width, width)
    return shapes | {f"{name}.{part}_norm.weight": (width,) for part in ("q", "k")}


def _ltx_timestep(name: str, width: int, values: int) -> Shapes:
    """The modulation of a timestep: `values` vectors of `width` channels."""
    shapes = _linear(f"{name}.emb.timestep_embedder.linear_1", width, 256)
    shapes |= _linear(f"{name}.emb.timestep_embedder.linear_2", width, width)
    return shapes | _linear(f"{name}.linear", values * width, width)


def _ltx_stream(prefix: str, width: int) -> Shapes:
    """What a stream of tokens has around its blocks; the audio's names begin with "audio_"."""
    shapes = _linear(f"{prefix}patchify_proj", width, LTX_CHANNELS)
    shapes |= _ltx_timestep(f"{prefix}adaln_single", width, 6)
    shapes |= _linear(f"{prefix}caption_projection.linear_1", width, LTX_CAPTION_WIDTH)
    shapes |= _linear(f"{prefix}caption_projection.linear_2", width, width)
    shapes |= _linear(f"{prefix}proj_out", LTX_CHANNELS, width)
    return shapes | {f"{prefix}scale_shift_table": (2, width)}


def _ltx_block(name: str, prefix: str, width: int) -> Shapes:
    """The part of a block that belongs to one stream."""
    shapes: Shapes = {f"{name}.{prefix}scale_shift_table": (6, width)}
    for attention in ("attn1", "attn2"):
        shapes |= _ltx_attention(f"{name}.{prefix}{attention}", width, width, width)
    shapes |= _linear(f"{name}.{prefix}ff.net.0.proj", 4 * width, width)
    return shapes | _linear(f"{name}.{prefix}ff.net.2", width, 4 * width)


def _ltx_video() -> Shapes:
    shapes = _ltx_stream("", WIDTH)
    for index in range(DEPTH):
        shapes |= _ltx_block(f"transformer_blocks.{index}", "", WIDTH)
    return shapes


def _ltx_audio_video() -> Shapes:
    audio = LTX_AUDIO_WIDTH
    shapes = _ltx_video() | _ltx_stream("audio_", audio)
    shapes |= _ltx_timestep("av_ca_video_scale_shift_adaln_single", WIDTH, 4)
    shapes |= _ltx_timestep("av_ca_a2v_gate_adaln_single", WIDTH, 1)
    shapes |= _ltx_timestep("av_ca_audio_scale_shift_adaln_single", audio, 4)
    shapes |= _ltx_timestep("av_ca_v2a_gate_adaln_single", audio, 1)
    for index in range(DEPTH):
        name = f"transformer_blocks.{index}"
        shapes |= _ltx_block(name, "audio_", audio)
        shapes |= _ltx_attention(f"{name}.audio_to_video_attn", audio, WIDTH, audio)
        shapes |= _ltx_attention(f"{name}.video_to_audio_attn", audio, audio, WIDTH)
        shapes |= {f"{name}.scale_shift_table_a2v_ca_audio": (5, audio)}
        shapes |= {f"{name}.scale_shift_table_a2v_ca_video": (5, WIDTH)}
    return shapes


def _ltx_config(**values: Any) -> str:
    """Sizes and rotary embedding, which the released files name in their metadata, too."""
    common = {"caption_channels": LTX_CAPTION_WIDTH, "cross_attention_dim": WIDTH}
    return json.dumps({"transformer": common | values})


LTX_CONFIG = _ltx_config(num_attention_heads=4, attention_head_dim=64)
"""Heads of 64 channels and interleaved rotary embedding, as in LTX-Video 2B."""
LTX_AV_CONFIG = _ltx_config(
    num_attention_heads=2,
    attention_head_dim=128,
    audio_num_attention_heads=2,
    audio_attention_head_dim=64,
    audio_cross_attention_dim=LTX_AUDIO_WIDTH,
    connector_num_attention_heads=1,
    connector_attention_head_dim=64,
    connector_num_layers=1,
    rope_type="split",
    frequencies_precision="float64",
    causal_temporal_positioning=True,
    use_middle_indices_grid=True,
)
"""Heads of 128 channels and split rotary embedding, as in LTX 2."""


# --- Checkpoints ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint recipe and what a test must know about the model behind it.

    patch: latent voxels per token along (T, H, W). attention_blocks: (block type, block index,
    self-attention calls over the video) of one forward pass, as ComfyUI labels its blocks.
    text_width: last dimension of the text conditioning. config: what the file's metadata say.
    """

    shapes: Shapes
    latent_channels: int
    patch: tuple[int, int, int]
    attention_blocks: tuple[tuple[str, int, int], ...]
    text_width: int
    seed: int
    config: str = ""


def _wan_model(shapes: Shapes, seed: int, channels: int = 16, vace: bool = False) -> TinyModel:
    # The VACE block runs after main block 0 and under its index.
    blocks = tuple(("double", index, 2 if vace and index == 0 else 1) for index in range(DEPTH))
    return TinyModel(shapes, channels, WAN_PATCH, blocks, WAN_TEXT_WIDTH, seed)


def _hunyuan_model(shapes: Shapes, seed: int, channels: int, patch: int) -> TinyModel:
    blocks = tuple((kind, index, 1) for kind in ("double", "single") for index in range(DEPTH))
    return TinyModel(shapes, channels, (1, patch, patch), blocks, HUNYUAN_TEXT_WIDTH, seed)


def _main_blocks() -> tuple[tuple[str, int, int], ...]:
    return tuple(("double", index, 1) for index in range(DEPTH))


def _ltx_model(shapes: Shapes, seed: int, config: str, text_width: int) -> TinyModel:
    return TinyModel(shapes, LTX_CHANNELS, (1, 1, 1), _main_blocks(), text_width, seed, config)


MODELS: dict[str, TinyModel] = {
    "wan21_t2v": _wan_model(_wan(16), 1),
    "wan21_i2v": _wan_model(_wan(36, clip_image=True), 2),
    "wan22_t2v_high": _wan_model(_wan(16), 3),
    "wan22_t2v_low": _wan_model(_wan(16), 4),
    "wan22_i2v_high": _wan_model(_wan(36), 5),
    "wan22_i2v_low": _wan_model(_wan(36), 6),
    "wan22_5b": _wan_model(_wan(48, 48), 7, channels=48),
    "wan_vace": _wan_model(_wan(16, vace_channels=96), 8, vace=True),
    "ltx_video": _ltx_model(_ltx_video(), 18, LTX_CONFIG, LTX_CAPTION_WIDTH),
    "ltx_av": _ltx_model(_ltx_audio_video(), 19, LTX_AV_CONFIG, 2 * LTX_CAPTION_WIDTH),
    "wan_causal": replace(_wan_model(_wan(16), 13), config='{"transformer": {"causal_ar": true}}'),
    "wan21_flf": _wan_model(_wan(36, clip_image=True, last_image=True), 15),
    "wan_scail2": _wan_model(_wan(20, clip_image=True, mask_channels=28), 16),
    "wan_animate2": replace(
        _wan_model(_wan(36, clip_image=True), 17),
        config='{"transformer": {"model_type": "animate2"}}',
    ),
    "wan_fun_ref": _wan_model(_wan(48, reference_channels=16), 9),
    "hunyuan_t2v": _hunyuan_model(_hunyuan_v1(16, guidance=True), 10, 16, 2),
    "hunyuan_i2v": _hunyuan_model(_hunyuan_v1(33, guidance=False), 11, 16, 2),
    "hunyuan15": _hunyuan_model(_hunyuan_v15(), 12, 32, 1),
    "minimax_h3": TinyModel(_h3(), H3_VIDEO_CHANNELS, (1, 2, 2), _main_blocks(), H3_TEXT_WIDTH, 15),
}


LORA_NAME = "tiny.safetensors"


def write_lora(folder: Path) -> None:
    """Write a LoRA of one projection of Wan's first block to `folder`/tiny.safetensors."""
    name, rank = "diffusion_model.blocks.0.self_attn.v", 4
    shapes = {f"{name}.lora_A.weight": (rank, WIDTH), f"{name}.lora_B.weight": (WIDTH, rank)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_parameters(shapes, 14), folder / LORA_NAME)


ATTENTION_NORMS = ("norm_q", "norm_k", "query_norm", "key_norm", "q_norm", "k_norm")


def _initial_value(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random parameters under which activations keep unit scale and attention is not flat."""
    noise = torch.randn(shape, generator=generator)
    if any(norm in name for norm in ATTENTION_NORMS):
        # Logits q.k / sqrt(128) then have a standard deviation near 2: some keys matter.
        return 1.5 + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if name.endswith("modulation") or "scale_shift_table" in name:
        return 0.7 * noise
    if len(shape) == 1:
        return 1.0 + 0.1 * noise
    fan_in = noise[0].numel()
    return noise * fan_in**-0.5


def random_parameters(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """fp32 parameters of the given shapes, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _initial_value(name, shape, generator) for name, shape in sorted(shapes.items())}


def write_checkpoints(folder: Path) -> None:
    """Write every recipe to `folder`/<name>.safetensors, keeping files that exist already."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in MODELS.items():
        path = folder / f"{name}.safetensors"
        if not path.exists():
            metadata = {"config": model.config} if model.config else None
            save_file(random_parameters(model.shapes, model.seed), path, metadata)


def write_wide_wan(folder: Path) -> None:
    """Write "wan21_t2v" with 12 heads and six blocks in fp16, large enough for times on a GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = _wan(16, width=1536, depth=6, ffn=4096)
    weights = {name: each.half() for name, each in random_parameters(shapes, 1).items()}
    save_file(weights, folder / "wan21_t2v.safetensors")
