"""The rows our node takes for the video are the video's, in raster order (see voxel_probe.py)."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from . import tiny_models
from .comfy_server import PROJECT_ROOT, clean_environment
from .graphs import H3_REFERENCES

PROBE = Path(__file__).parent / "voxel_probe.py"
CLIP_IMAGE = [1, 257, tiny_models.WAN_CLIP_WIDTH]
VISION = [1, 49, tiny_models.HUNYUAN15_VISION_WIDTH]
BYT5 = [1, 11, tiny_models.BYT5_WIDTH]


# Wan variants with many parts of their own, built from ComfyUI's class in this size.
VARIANT = {
    "dim": tiny_models.WIDTH,
    "ffn_dim": tiny_models.WAN_FFN,
    "num_heads": 2,
    "num_layers": 2,
    "in_dim": 16,
}


@dataclass(frozen=True)
class Case:
    """A model with one set of conditions.

    model: a checkpoint of tiny_models, or a class of comfy.ldm.wan.model with its `arguments` on
    top of VARIANT. before, after: context tokens around the video. extra_frames: tokens along T
    that conditions add behind the video. audio: frames of an audio latent. needs: what ComfyUI's
    Wan or LTX models must know for the case, or the folder of another family's model. shows: the
    family and the variant of nodes/models.py that it is an example of. guide: size (T, H, W) of a
    guide of LTX.
    """

    model: str
    latent: tuple[int, int, int]
    extras: dict = field(default_factory=dict)
    before: int = 0
    after: int = 0
    extra_frames: int = 0
    text_tokens: int = 21
    audio: int = 0
    needs: str = ""
    arguments: dict = field(default_factory=dict)
    shows: tuple[str, str] | None = None
    guide: tuple[int, ...] = ()

    @property
    def recipe(self) -> tiny_models.TinyModel:
        return tiny_models.MODELS.get(self.model, tiny_models.MODELS["wan21_t2v"])

    @property
    def grid(self) -> tuple[int, int, int]:
        t, h, w = (-(-n // p) for n, p in zip(self.latent, self.recipe.patch, strict=True))
        return t + self.extra_frames, h, w

    @property
    def pokes(self) -> list[tuple[int, int, int]]:
        """Voxels near both ends and inside.

        Never index 0 of a spatial axis: ComfyUI pads odd sizes circularly, so that such a voxel
        also reaches the padded patch at the other end.
        """
        t, h, w = (size - 1 for size in self.latent)
        return [(0, 1, 1), (0, 1, w), (t, 1, 1), (t // 2, h // 2, w // 2), (t, h, w)]

    def row(self, voxel: tuple[int, int, int]) -> int:
        """Row of the patch that holds a voxel, if the video starts behind `before` tokens."""
        t, h, w = (index // p for index, p in zip(voxel, self.recipe.patch, strict=True))
        return self.before + (t * self.grid[1] + h) * self.grid[2] + w

    def as_json(self) -> dict:
        return {
            "model": self.model,
            "latent": self.latent,
            "channels": self.recipe.latent_channels,
            "audio": self.audio,
            "text_tokens": self.text_tokens,
            "width": self.recipe.text_width,
            "extras": self.extras,
            "arguments": VARIANT | self.arguments,
            "pokes": self.pokes,
            "guide": self.guide,
        }


def _image(latent: tuple[int, int, int], channels: int = 16) -> dict:
    return {"concat_latent_image": [1, channels, *latent], "concat_mask": [1, 1, *latent]}


WAN, HUNYUAN, H3, LTX = "Wan", "HunyuanVideo", "MiniMax H3", "LTX"
LTX_TEXT = {"frame_rate": 25, "attention_mask": [21, 4]}
ODD = (3, 7, 9)
EVEN = (3, 6, 10)  # HunyuanVideo cannot cut odd sizes into patches; the token grid is still odd

H3_FRAME = {"latent": [1, 24, 1, 6, 10]}

CASES = {
    "wan21_t2v": Case("wan21_t2v", ODD, shows=(WAN, "2.1 T2V")),
    "wan21_t2v_even": Case("wan21_t2v", (2, 8, 6)),
    "wan21_t2v_one_frame": Case("wan21_t2v", (1, 9, 7)),
    "wan21_i2v": Case(
        "wan21_i2v", ODD, {**_image(ODD), "clip_vision": CLIP_IMAGE}, shows=(WAN, "2.1 I2V")
    ),
    "wan22_i2v_high": Case("wan22_i2v_high", ODD, _image(ODD), shows=(WAN, "2.2 14B I2V")),
    "wan22_t2v_low": Case("wan22_t2v_low", ODD, shows=(WAN, "2.2 14B T2V")),
    "wan22_5b": Case("wan22_5b", ODD, shows=(WAN, "2.2 5B")),
    # ComfyUI does not pad the VACE frames: only even sizes work there.
    "wan_vace": Case(
        "wan_vace",
        EVEN,
        {"vace_frames": [[1, 32, *EVEN]], "vace_mask": [[1, 64, *EVEN]]},
        shows=(WAN, "VACE"),
    ),
    "wan_phantom": Case(
        "wan21_t2v",
        ODD,
        {"time_dim_concat": [1, 16, 2, 7, 9]},
        extra_frames=2,
        shows=(WAN, "Phantom"),
    ),
    "wan_fun_reference": Case(
        "wan_fun_ref",
        EVEN,
        {"reference_latents": [[1, 16, 1, 6, 10]]},
        before=15,
        shows=(WAN, "Fun-Control"),
    ),
    "wan_context_latents": Case(
        "wan21_t2v",
        ODD,
        {"context_latents": [[1, 16, 1, 5, 6]]},
        after=9,
        needs="context_latents",
        shows=(WAN, "in-context references"),
    ),
    "wan_humo": Case(
        "HumoWanModel",
        EVEN,
        {"reference_latents": [[1, 16, 2, 6, 10]]},
        after=30,
        shows=(WAN, "HuMo"),
    ),
    "wan21_flf": Case(
        "wan21_flf",
        ODD,
        {**_image(ODD), "clip_vision": [1, 2 * tiny_models.WAN_CLIP_TOKENS, 1280]},
        shows=(WAN, "2.1 first and last frame"),
    ),
    "wan_bernini_r": Case(
        "wan22_t2v_low",
        ODD,
        {"context_latents": [[1, 16, *ODD], [1, 16, 1, 5, 6], [1, 16, 1, 6, 4]]},
        after=3 * 4 * 5 + 9 + 6,
        needs="context_latents",
        shows=(WAN, "Bernini-R"),
    ),
    "wan_scail2": Case(
        "wan_scail2",
        ODD,
        {
            "reference_latents": [[1, 16, 1, 7, 9], [1, 16, 1, 7, 9]],
            "ref_mask_28ch": [1, 5, 28, 7, 9],
            "pose_video_latent": [1, 16, 3, 4, 5],
            "driving_mask_28ch": [1, 3, 28, 4, 5],
            "ref_mask_flag": False,
        },
        before=2 * 4 * 5,
        after=3 * 2 * 3,
        needs="class SCAIL2WanModel",
        shows=(WAN, "SCAIL-2"),
    ),
    # Without a pose, which makes calls of single frames: see test_animate2.py.
    "wan_animate2": Case(
        "wan_animate2",
        ODD,
        {**_image(ODD), "clip_vision": CLIP_IMAGE},
        needs="class WanAnimate2Model",
        shows=("Wan Animate2", "character animation"),
    ),
    "wan_s2v": Case("WanModel_S2V", (2, 18, 22)),
    # Packed motion: 1 frame in 2x2 patches, 2 frames in 4x4 x2, 16 frames in 8x8 x4.
    "wan_s2v_motion": Case(
        "WanModel_S2V",
        (2, 18, 22),
        {"reference_latents": [[1, 16, 1, 18, 22]], "reference_motion": [1, 16, 19, 18, 22]},
        after=9 * 11 + (9 * 11 + 4 * 5 + 4 * 2 * 2),
        shows=(WAN, "S2V"),
    ),
    "wan_scail": Case(
        "SCAILWanModel",
        ODD,
        {"reference_latents": [[1, 16, 1, 7, 9]], "pose_video_latent": [1, 16, 3, 4, 5]},
        before=4 * 5,
        after=3 * 2 * 3,
        needs="class SCAILWanModel",
        arguments={"in_dim": 20},
        shows=(WAN, "SCAIL"),
    ),
    "wan_camera": Case("CameraWanModel", EVEN, arguments={"in_dim": 32}, shows=(WAN, "Camera")),
    "hunyuan_t2v": Case("hunyuan_t2v", EVEN, before=21, shows=(HUNYUAN, "T2V")),
    "hunyuan_t2v_long_text": Case("hunyuan_t2v", EVEN, before=150, text_tokens=150),
    "hunyuan_i2v_concat": Case(
        "hunyuan_i2v", EVEN, _image(EVEN), before=21, shows=(HUNYUAN, "I2V")
    ),
    "hunyuan_i2v_replace": Case("hunyuan_t2v", EVEN, {"guiding_frame_index": 0}, before=21),
    "hunyuan_reference": Case(
        "hunyuan_t2v",
        EVEN,
        {"ref_latent": [1, 16, 1, 6, 10]},
        before=21 + 15,
        shows=(HUNYUAN, "I2V with a reference"),
    ),
    "hunyuan15_t2v": Case("hunyuan15", ODD, before=21, shows=(HUNYUAN, "1.5 T2V")),
    "hunyuan15_t2v_byt5": Case("hunyuan15", ODD, {"conditioning_byt5small": BYT5}, before=21 + 11),
    "hunyuan15_i2v": Case(
        "hunyuan15",
        ODD,
        {**_image(ODD, 32), "clip_vision": VISION, "conditioning_byt5small": BYT5},
        before=21 + 11 + 49,
        shows=(HUNYUAN, "1.5 I2V"),
    ),
    "minimax_h3_t2v": Case(
        "minimax_h3", ODD, before=21 + 2 * 6, audio=6, needs="minimax", shows=(H3, "T2V")
    ),
    "minimax_h3_i2v": Case(
        "minimax_h3",
        EVEN,
        {"minimax_keyframes": [H3_FRAME | {"resolved_frame_index": index} for index in (0, 4)]}
        | {"minimax_frame_count": 5},
        before=21 + 2 * 15 + 2 * 6,
        audio=6,
        needs="minimax",
        shows=(H3, "I2V with first and last frame"),
    ),
    "minimax_h3_r2v": Case(
        "minimax_h3",
        ODD,
        {"minimax_refs": H3_REFERENCES},
        before=21 + 4 * 3 + (2 * 7 + 2 * 3 * 4) + 2 * 5 + 2 * 6,
        audio=6,
        needs="minimax",
        shows=(H3, "references (R2V)"),
    ),
    "ltx_video": Case("ltx_video", ODD, LTX_TEXT, shows=(LTX, "LTX-Video")),
    "ltx_video_guide": Case(
        "ltx_video",
        ODD,
        LTX_TEXT,
        guide=(2, 7, 9),
        after=2 * 7 * 9,
        shows=(LTX, "LTX-Video with a guide"),
    ),
    "ltx_av": Case("ltx_av", ODD, LTX_TEXT, audio=12, shows=(LTX, "LTX 2")),
    "ltx_av_guide": Case(
        "ltx_av",
        ODD,
        LTX_TEXT,
        audio=12,
        guide=(1, 7, 9),
        after=7 * 9,
        shows=(LTX, "LTX 2 with a guide"),
    ),
    "ltx_av_small_guide": Case(
        "ltx_av",
        EVEN,
        LTX_TEXT,
        audio=12,
        guide=(2, 3, 5),
        after=2 * 3 * 5,
        needs="num_guide_tokens",
    ),
}


def _with_text_last(case: Case) -> Case:
    """Up to ComfyUI 0.13 HunyuanVideo had its text behind the video, references before it."""
    if not case.model.startswith("hunyuan"):
        return case
    reference = 15 if "ref_latent" in case.extras else 0
    fields = {**case.__dict__, "before": reference, "after": case.before - reference}
    return Case(**fields)


@pytest.fixture(scope="session")
def probed(checkout, tiny_folder) -> dict[str, tuple[Case, dict]]:
    """Case and probe result by name, all from one process of this version's Python."""
    families = ("wan", "hunyuan_video", "lightricks")
    wan, hunyuan, ltx = (_source(checkout.folder, family) for family in families)
    has_text_last = "flipped_img_txt" in hunyuan
    families = {each.name for each in (checkout.folder / "comfy" / "ldm").iterdir()}
    cases = {
        name: _with_text_last(case) if has_text_last else case
        for name, case in CASES.items()
        if case.needs in families or case.needs in (ltx if case.model.startswith("ltx") else wan)
    }
    command = [str(checkout.python), str(PROBE), str(checkout.folder), str(PROJECT_ROOT)]
    done = subprocess.run(
        [*command, str(tiny_folder)],
        input=json.dumps([case.as_json() for case in cases.values()]),
        capture_output=True,
        text=True,
        env=clean_environment(),
        cwd=checkout.folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return {name: (cases[name], result) for name, result in zip(cases, results, strict=True)}


def _source(folder: Path, family: str) -> str:
    """The code of a model family in a checkout."""
    files = sorted((folder / "comfy" / "ldm" / family).glob("model*.py"))
    return "".join(file.read_text(encoding="utf-8") for file in files)


@pytest.mark.parametrize("name", CASES)
def test_video_rows(probed, name):
    if name not in probed:
        pytest.skip("this ComfyUI does not know the condition")
    case, result = probed[name]

    video = case.grid[0] * case.grid[1] * case.grid[2]
    length = case.before + video + case.after
    assert result["layout"] == {
        "grid": list(case.grid),
        "length": length,
        "video_start": case.before,
    }
    assert result["rows"] == length
    assert result["pokes"] == [[case.row(voxel)] for voxel in case.pokes]
    # Phantom's subjects are context to the user but further frames of the video to attention.
    first_own = case.before + case.grid[1] * case.grid[2] * case.latent[0]
    is_video = range(case.before, first_own if case.extra_frames else case.before + video)
    assert result["context"] == [row for row in range(length) if row not in is_video]
