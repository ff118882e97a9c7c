"""What the artist changes in each example workflow before it is run on a CPU with tiny models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NODE = "RectifiedSpaAttn"
OPTIONS = "RectifiedSpaAttnOptions"
REPORT = "RectifiedSpaAttnReport"
PROBE = "RectifiedSpaAttnProbe"
RESULT = "RectifiedSpaAttnProbeResult"
PICTURED = {
    NODE: "node",
    OPTIONS: "options",
    REPORT: "report",
    PROBE: "probing",
    RESULT: "probe",
    "RectifiedSpaAttnSaveProfile": "profile",
    "PreviewImage": "preview",
    "SaveVideo": "video",
}
"""Types of nodes that pictures are taken of, and what those are called."""
LARGE_NODES = (REPORT, RESULT, "PreviewImage")
"""Types of nodes that the usual window may be too low for."""
LATENTS = (
    "EmptyHunyuanLatentVideo",
    "EmptyHunyuanVideo15Latent",
    "WanImageToVideo",
    "WanFirstLastFrameToVideo",
    "Wan22ImageToVideoLatent",
)

Values = dict[str, str]


@dataclass(frozen=True)
class Plan:
    """How one workflow is made small.

    Attributes:
        width, height, length: of the video, pixels and frames.
        steps, cfg: of a KSampler or scheduler; with subgraphs, the switch for four steps serves.
        prompt: names a scene of the trained model; None leaves the template's.
        shift: of the noise levels; None leaves the template's.
        min_tokens: typed into the options of our node; None leaves its default, for videos that are
            large enough.
        duration: seconds, where the workflow asks for those instead of frames.
        megapixels: where it asks for those instead of width and height.
    """

    width: int = 256
    height: int = 256
    length: int = 17
    steps: int = 4
    cfg: str = "1"
    prompt: str | None = None
    shift: str | None = None
    min_tokens: str | None = "0"
    duration: str = "1"
    megapixels: str = "0.1"
    toggles: dict[str, bool] = field(
        default_factory=lambda: {"enable_turbo_mode": True, "turbo_mode": True}
    )

    def values_for(self, node: dict[str, Any]) -> Values:
        """What to type into the widgets of this node, by label."""
        size = {"width": str(self.width), "height": str(self.height)}
        if node["is_subgraph"]:
            values = size | {"duration": self.duration}
            if node["title"].startswith(("Models", "Sampling", "Dense")):  # ours around others
                values |= {"length": str(self.length), "steps": str(self.steps), "cfg": self.cfg}
                values |= {"switch_at_step": str(self.steps // 2)}
                values |= _given("shift", self.shift)
            return values
        if node["type"] in LATENTS:
            return size | {"length": str(self.length)}
        if node["type"] == OPTIONS:
            # The tiny models have so few blocks that leaving out two of them leaves none.
            values = {"dense_blocks": "", "backend": "reference"}  # on a CPU it would stay dense
            return values | _given("min_tokens", self.min_tokens)
        if node["type"] == "ResolutionSelector":
            return {"megapixels": self.megapixels}
        if node["type"] == "ModelSamplingSD3":
            return _given("shift", self.shift)
        if node["type"] in ("KSampler", "BasicScheduler", "CFGGuider"):
            return {"steps": str(self.steps), "cfg": self.cfg}
        return {}


def _given(name: str, value: str | None) -> Values:
    return {} if value is None else {name: value}


# As wide as the template's video, so that the nodes take up as much room as they do there.
TRAINED = Plan(320, 192, 33, steps=8, cfg="3", prompt="garden in autumn", shift="3")
SHORT = Plan(320, 192, steps=6, prompt="garden in autumn", shift="3")
LARGE = Plan(512, 320, 49, steps=4, prompt="garden in autumn", shift="3", min_tokens=None)
"""8,320 tokens: above the node's default limit for sparse attention."""
LTX = Plan(megapixels="0.4", duration="2", toggles={"prompt_enhance": False})
"""A token of LTX is 32 pixels wide: smaller videos have too few blocks to leave any out."""

SHORT_STEM = "wan2.1_text_to_video"
PLANS = {
    SHORT_STEM: LARGE,
    "compare_dense_and_sparse": TRAINED,
    "tune_with_the_probe": TRAINED,
    "wan2.2_14B_text_to_video": Plan(duration="2", prompt="garden in autumn"),
    "wan_animate2_character_animation": Plan(192, 320),
    "wan2.2_5B_text_to_video": Plan(768, 416, steps=8),
    "hunyuan_video_text_to_video": Plan(320, 192, steps=8),
    "hunyuan_video_1.5_text_to_video": Plan(384, 224),
    "scail2_character_replacement": Plan(448, 256),
    "ltx2.5_text_to_video": LTX,
    "ltx2.5_image_to_video": LTX,
}


def plan_of(stem: str, is_short: bool) -> Plan:
    """The plan for a workflow; a small one for those without their own."""
    return SHORT if is_short else PLANS.get(stem, Plan())
