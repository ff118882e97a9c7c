"""Which tokens are the video, for every supported variant and both text orders."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rectified_spaattn.nodes.models import family_names, label_blocks, other_lengths, token_layout
from rectified_spaattn.rspa_core import TokenLayout
from rectified_spaattn.rspa_core.run.reasons import DenseReason, Reason, why

from .stand_ins import h3_model, hunyuan_model, ltx_model, wan_model

TEXT = torch.empty(1, 77, 64)
AREA = 8 * 12


def latent(frames: int = 5, height: int = 16, width: int = 24, channels: int = 16) -> torch.Tensor:
    return torch.empty(1, channels, frames, height, width)


def layout_of(model: Any, x: torch.Tensor, **conds: Any) -> TokenLayout:
    layout = token_layout(model, x, TEXT, conds)
    assert isinstance(layout, TokenLayout), layout
    return layout


S2V_PACKER = SimpleNamespace(
    proj=SimpleNamespace(kernel_size=(1, 2, 2)),
    proj_2x=SimpleNamespace(kernel_size=(2, 4, 4)),
    proj_4x=SimpleNamespace(kernel_size=(4, 8, 8)),
    zip_frame_buckets=[1, 2, 16],
)


@pytest.mark.parametrize(
    ("parts", "conds", "before", "frames", "after"),
    [
        pytest.param({}, {}, 0, 5, 0, id="t2v"),
        pytest.param({}, {"clip_fea": torch.empty(1, 257, 1280)}, 0, 5, 0, id="i2v"),
        pytest.param({"vace_blocks": []}, {"vace_context": latent()}, 0, 5, 0, id="vace"),
        pytest.param({"control_adapter": 1}, {"camera_conditions": 1}, 0, 5, 0, id="camera"),
        pytest.param({}, {"time_dim_concat": latent(2)}, 0, 7, 0, id="phantom"),
        pytest.param(
            {"ref_conv": object()},
            {"reference_latent": torch.empty(1, 16, 16, 24)},
            AREA,
            5,
            0,
            id="fun-control",
        ),
        pytest.param(
            {"ref_conv": object()},
            {"reference_latent": torch.empty(1, 16, 17, 25)},
            AREA,
            5,
            0,
            id="fun-control with an odd reference, cut off by its convolution",
        ),
        pytest.param(
            {},
            {"reference_latent": torch.empty(1, 16, 16, 24)},
            0,
            5,
            0,
            id="reference that this model ignores",
        ),
        pytest.param(
            {},
            {"context_latents": [latent(2), latent(1, 8, 9)]},
            0,
            5,
            2 * AREA + 4 * 5,
            id="in-context references",
        ),
        pytest.param(
            {"audio_proj": 1}, {"reference_latent": latent(1)}, 0, 5, AREA, id="humo reference"
        ),
        pytest.param(
            {"frame_packer": S2V_PACKER},
            {"reference_latent": latent(1), "reference_motion": latent(19)},
            0,
            5,
            AREA + 8 * 12 + 4 * 6 + 4 * 2 * 3,
            id="s2v reference and motion",
        ),
        pytest.param(
            {"patch_embedding_pose": 1},
            {"reference_latent": latent(1), "pose_latents": latent(5, 8, 12)},
            AREA,
            5,
            5 * 4 * 6,
            id="scail reference and pose",
        ),
    ],
)
def test_wan(
    parts: dict[str, Any], conds: dict[str, Any], before: int, frames: int, after: int
) -> None:
    layout = layout_of(wan_model(**parts), latent(), **conds)
    assert layout.grid == (frames, 8, 12)
    assert layout.video_start == before
    assert layout.length == before + frames * AREA + after


def test_odd_latents_are_padded_to_whole_patches() -> None:
    assert layout_of(wan_model(), latent(3, 15, 23)).grid == (3, 8, 12)
    assert layout_of(hunyuan_model(), latent(3, 15, 23)).grid == (3, 8, 12)


def test_grid_follows_the_latent_of_each_call() -> None:
    model = wan_model()
    assert layout_of(model, latent(3)).grid == (3, 8, 12)
    assert layout_of(model, latent(4, 8, 8)).grid == (4, 4, 4)


def test_wan_2_2_5b_and_other_patches() -> None:
    assert layout_of(wan_model(patch_size=[1, 2, 2]), latent(channels=48)).grid == (5, 8, 12)
    assert layout_of(wan_model(patch_size=(2, 2, 2)), latent()).grid == (3, 8, 12)


@pytest.mark.parametrize("text_is_last", [False, True], ids=["text first", "text last"])
@pytest.mark.parametrize(
    ("parts", "conds", "text_tokens", "reference_tokens"),
    [
        pytest.param({}, {}, 77, 0, id="t2v"),
        pytest.param({}, {"ref_latent": latent(1)}, 77, AREA, id="i2v with reference"),
        pytest.param({}, {"txt_byt5": torch.empty(1, 40, 8)}, 77, 0, id="byt5 without its mapper"),
        pytest.param(
            {"byt5_in": object()},
            {"txt_byt5": torch.empty(1, 40, 8), "clip_fea": torch.empty(1, 73, 8)},
            77 + 40 + 73,
            0,
            id="1.5 i2v",
        ),
    ],
)
def test_hunyuan(
    text_is_last: bool,
    parts: dict[str, Any],
    conds: dict[str, Any],
    text_tokens: int,
    reference_tokens: int,
) -> None:
    layout = layout_of(hunyuan_model(text_is_last, **parts), latent(), **conds)
    assert layout.grid == (5, 8, 12)
    assert layout.length == 5 * AREA + text_tokens + reference_tokens
    assert layout.video_start == reference_tokens + (0 if text_is_last else text_tokens)


def test_hunyuan_1_5_has_patches_of_one() -> None:
    assert layout_of(hunyuan_model(patch_size=[1, 1, 1]), latent(5, 8, 12)).grid == (5, 8, 12)


AUDIO = torch.empty(1, 32, 2, 7)
PICTURE = {"kind": "image", "latent": torch.empty(1, 24, 1, 8, 6)}
CLIP = {"kind": "video_audio", "latent": torch.empty(1, 24, 2, 6, 8), "audio_latent": AUDIO}


def h3_call(frames: int = 5, **payload: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Packed latent of `frames` frames of video and 13 of audio, and the conditions."""
    shapes = [(1, 24, frames, 16, 24), (1, 32, 2, 13)]
    packed = torch.empty(1, 1, sum(math.prod(shape) for shape in shapes))
    return packed, {"latent_shapes": shapes, "minimax_payload": payload}


@pytest.mark.parametrize(
    ("payload", "tokens"),
    [
        pytest.param({}, 0, id="t2v"),
        pytest.param({"keyframes": [{"latent": latent(1)}] * 2}, 2 * AREA, id="first and last"),
        pytest.param({"keyframes": [{"latent": latent(3)}]}, 3 * AREA, id="a clip as keyframe"),
        pytest.param({"keyframes": [{"audio_latent": AUDIO}]}, 14, id="sound as keyframe"),
        pytest.param({"refs": [PICTURE]}, 4 * 3, id="picture"),
        pytest.param({"refs": [PICTURE, CLIP]}, 12 + 2 * 3 * 4 + 14, id="picture and clip"),
        pytest.param({"refs": [{"kind": "audio", "audio_latent": AUDIO}]}, 14, id="sound"),
        pytest.param({"refs": None, "keyframes": None}, 0, id="none of either"),
    ],
)
def test_minimax_h3(payload: dict[str, Any], tokens: int) -> None:
    x, conds = h3_call(**payload)
    layout = layout_of(h3_model(), x, **conds)
    assert layout.grid == (5, 8, 12)
    assert layout.video_start == 77 + tokens + 2 * 13
    assert layout.length == layout.video_start + 5 * AREA
    x, conds = h3_call(2, **payload)
    assert layout_of(h3_model(), x, **conds).grid == (2, 8, 12)


def test_a_checkpoint_with_trained_gates_keeps_its_own_attention() -> None:
    attention = SimpleNamespace(heads=2, to_gate_compress=object())
    model = h3_model(blocks=[SimpleNamespace(attn=attention)])
    x, conds = h3_call()
    assert token_layout(model, x, TEXT, conds) == why(Reason.TRAINED_SPARSE)
    attention.to_gate_compress = None  # newer cores: of a checkpoint without them
    assert isinstance(token_layout(model, x, TEXT, conds), TokenLayout)


def test_blocks_that_the_model_does_not_label_are_labelled_around_other_patches() -> None:
    def another_nodes(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        return "patched", extra["original_block"](args)

    replaced = {"dit": {("double_block", 1): another_nodes, ("other", 0): 1}, "attn2": {}}
    options = {"sigmas": 1, "patches_replace": replaced}
    found = label_blocks(SimpleNamespace(_orig_mod=h3_model()), options)
    assert replaced["dit"] == {("double_block", 1): another_nodes, ("other", 0): 1}
    assert found["sigmas"] == 1
    assert found["patches_replace"].keys() == {"dit", "attn2"}
    patches = found["patches_replace"]["dit"]
    assert patches.pop(("other", 0)) == 1
    assert patches.keys() == {("double_block", index) for index in range(4)}

    def block(args: dict[str, Any]) -> Any:
        return dict(args["transformer_options"])

    for index in range(4):
        got = patches["double_block", index]({"transformer_options": {}}, {"original_block": block})
        numbers = {"block_type": "double", "block_index": index, "total_blocks": 4}
        assert got == (("patched", numbers) if index == 1 else numbers)


@pytest.mark.parametrize("model", [wan_model(), hunyuan_model(), SimpleNamespace()])
def test_other_models_keep_their_options(model: Any) -> None:
    options = {"patches_replace": {"dit": {}}, "sigmas": 1}
    assert label_blocks(model, options) == options


def test_compiled_model_is_looked_into() -> None:
    compiled = SimpleNamespace(_orig_mod=wan_model())
    assert layout_of(compiled, latent()).grid == (5, 8, 12)


class SomeUNet:
    """No part in common with a video transformer."""


class FluxLike:
    """Has HunyuanVideo's parts, but makes images: its patch size is one number."""

    patch_size = 2
    img_in = txt_in = object()
    double_blocks = single_blocks = (object(),)


@pytest.mark.parametrize("model", [SomeUNet(), FluxLike()])
def test_unknown_model_class_is_named(model: Any) -> None:
    reason = token_layout(model, latent(), TEXT, {})
    assert reason == why(Reason.UNSUPPORTED_MODEL, type(model).__name__, family_names())


@pytest.mark.parametrize(
    ("x", "text", "expected"),
    [
        (torch.empty(1, 16, 32, 32), TEXT, "an image model"),
        (torch.empty(1, 16, 32), TEXT, "latent has 3 dimensions, a video has 5"),
        (latent(), None, "no text condition"),
        (latent(), torch.empty(1, 5 * AREA, 64), "480 video tokens are as many as"),
    ],
)
def test_reasons_not_to_know(x: torch.Tensor, text: torch.Tensor | None, expected: str) -> None:
    reason = token_layout(wan_model(), x, text, {})
    assert isinstance(reason, DenseReason)
    assert expected in reason.text


def test_a_second_latent_of_an_unknown_form_is_no_error() -> None:
    x, conds = packed(latent(5, 8, 12), torch.empty(1, 8))
    reason = token_layout(ltx_model(), x, TEXT, conds)
    assert isinstance(reason, DenseReason)
    assert reason.reason is Reason.UNKNOWN_CONDITIONS


def test_an_image_model_of_a_video_models_class_is_called_one() -> None:
    """HunyuanImage 2.1: ComfyUI's class HunyuanVideo with patches of two dimensions."""
    model = hunyuan_model(patch_size=[1, 1])
    reason = token_layout(model, torch.empty(1, 64, 32, 32), TEXT, {})
    assert reason == why(Reason.IMAGE_MODEL)
    assert "HunyuanVideo" not in reason.text


def test_conditions_of_an_unknown_form_are_no_error() -> None:
    conds = {"time_dim_concat": "five frames"}
    reason = token_layout(wan_model(), latent(), TEXT, conds)
    assert isinstance(reason, DenseReason)
    assert reason.reason is Reason.UNKNOWN_CONDITIONS
    assert reason.details[0] == "AttributeError"


def test_wan_image_condition_as_long_as_the_video_is_not_told_apart() -> None:
    clip = torch.empty(1, 5 * AREA, 1280)
    reason = token_layout(wan_model(), latent(), TEXT, {"clip_fea": clip})
    assert reason == why(Reason.AMBIGUOUS_LENGTH, 5 * AREA)


def guides(frames: int, height: int = 8, width: int = 12) -> dict[str, torch.Tensor]:
    """Conditions of LTX for `frames` guide frames behind a video of 5 frames."""
    return {
        "keyframe_idxs": torch.zeros(1, 3, frames * height * width, 2),
        "denoise_mask": torch.ones(1, 1, 5 + frames, height, width),
    }


def test_ltx_has_no_context_of_its_own() -> None:
    x = latent(5, 8, 12, channels=128)
    layout = layout_of(ltx_model(), x, denoise_mask=torch.zeros(1, 1, 5, 8, 12))
    assert layout == TokenLayout((5, 8, 12), 5 * AREA)


def test_ltx_guides_stand_behind_the_video() -> None:
    conds = guides(2)
    layout = layout_of(ltx_model(), latent(7, 8, 12), **conds)
    assert layout == TokenLayout((5, 8, 12), 7 * AREA)

    conds["denoise_mask"][:, :, 5:] = -1.0  # a guide of half the resolution
    conds["denoise_mask"][:, :, 5:, ::2, ::2] = 0.0
    layout = layout_of(ltx_model(), latent(7, 8, 12), **conds)
    assert layout == TokenLayout((5, 8, 12), 5 * AREA + 2 * 4 * 6)

    none = {**conds, "keyframe_idxs": conds["keyframe_idxs"][:, :, :0]}
    assert layout_of(ltx_model(), latent(7, 8, 12), **none) == TokenLayout((7, 8, 12), 7 * AREA)


def test_ltx_guides_of_another_size_or_a_video_with_holes_stay_dense() -> None:
    holes = guides(2)
    holes["denoise_mask"][:, :, 3, 0, 0] = -1.0
    sized = guides(2) | {"keyframe_idxs": torch.zeros(1, 3, 77, 2)}
    for conds in (holes, sized, {"keyframe_idxs": torch.zeros(1, 3, AREA, 2)}):
        reason = token_layout(ltx_model(), latent(7, 8, 12), TEXT, conds)
        assert isinstance(reason, DenseReason)
        assert reason.reason is Reason.UNKNOWN_CONDITIONS


def packed(video: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """Two latents as ComfyUI hands them to a model of both, and the condition that says so."""
    both = torch.cat([video.flatten(1), audio.flatten(1)], dim=1)[:, None]
    return both, {"latent_shapes": [video.shape, audio.shape]}


def test_ltx_video_is_the_first_of_two_packed_latents() -> None:
    x, conds = packed(latent(5, 8, 12), torch.empty(1, 8, 33, 16))
    assert layout_of(ltx_model(), x, **conds) == TokenLayout((5, 8, 12), 5 * AREA)
    assert other_lengths(ltx_model(), TEXT, conds) == {77, 33}
    twice = torch.cat([x, x])  # guidance: two samples, the shapes of one
    assert layout_of(ltx_model(), twice, **conds) == TokenLayout((5, 8, 12), 5 * AREA)
    conds["ref_audio"] = {"tokens": torch.empty(1, 20, 128)}
    assert other_lengths(ltx_model(), TEXT, conds) == {77, 53}


def test_ltx_audio_as_long_as_the_video_is_not_told_apart() -> None:
    x, conds = packed(latent(5, 8, 12), torch.empty(1, 8, 5 * AREA, 16))
    assert token_layout(ltx_model(), x, TEXT, conds) == why(Reason.AMBIGUOUS_LENGTH, 5 * AREA)


def test_blocks_of_ltx_are_told_which_they_are() -> None:
    seen: list[Any] = []

    def other(args: Any, extra: Any) -> Any:
        seen.append("other")
        return extra["original_block"](args)

    before = {("double_block", 1): other, ("double_block", 9): other}
    options = {"cond_or_uncond": [0], "patches_replace": {"dit": before, "layer": {"a": 1}}}
    labelled = label_blocks(ltx_model(), options)
    assert options["patches_replace"]["dit"] is before, "what came in stays as it was"
    assert labelled["patches_replace"]["layer"] == {"a": 1}
    blocks = labelled["patches_replace"]["dit"]
    assert set(blocks) == {("double_block", index) for index in (0, 1, 2, 3, 9)}

    def original(args: Any) -> Any:
        seen.append(args)
        return {"img": args["img"] + 1}

    for index in range(4):
        args = {"img": index, "transformer_options": {"cond_or_uncond": [0]}}
        out = blocks["double_block", index](args, {"original_block": original})
        assert out == {"img": index + 1}
    assert seen.pop(1) == "other"
    for index, args in enumerate(seen):
        assert args["transformer_options"] == {
            "cond_or_uncond": [0],
            "block_type": "double",
            "block_index": index,
            "total_blocks": 4,
        }


@pytest.mark.parametrize("model", [wan_model(), hunyuan_model(), SomeUNet()])
def test_blocks_of_other_models_are_left_alone(model: Any) -> None:
    options = {"patches_replace": {"dit": {}}}
    assert label_blocks(model, options) == options
