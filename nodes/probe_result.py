"""Node RectifiedSpaAttnProbeResult: a sparsity profile from what a probe has measured."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .canvas import as_tensor
from .probe_model import MAX_ERROR, MIN_ERROR, read_probe
from .probe_outcome import summary_text
from .probe_picture import draw_probe
from .profile_type import PROFILE_TYPE
from .schema_compat import build


class RectifiedSpaAttnProbeResult(io.ComfyNode):
    """Reads the probe of a model after sampling; another wanted error needs no new render."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return build(
            io.Schema,
            node_id="RectifiedSpaAttnProbeResult",
            display_name="Rectified SpaAttn Probe Result",
            category="model/patch/attention",
            description=(
                "Turns what Rectified SpaAttn Probe has measured into a profile: for each block "
                "the highest sparsity that stays within the wanted error. Another wanted error "
                "does not render again."
            ),
            search_aliases=["SpaAttn probe result", "sparsity profile", "error per block"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model from Rectified SpaAttn Probe, the same that the sampler "
                    "uses.",
                ),
                io.AnyType.Input(
                    "after",
                    tooltip="Anything that comes out of the sampler, such as its latent: the "
                    "result is made when it is there.",
                ),
                io.Float.Input(
                    "wanted_error",
                    default=0.05,
                    min=MIN_ERROR,
                    max=MAX_ERROR,
                    step=0.001,
                    tooltip="How far each block's attention may be from full attention: 0.05 is "
                    "5 percent. Lower is closer to the full result and slower.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="What you call the profile. It is kept in the file and in the picture.",
                ),
            ],
            outputs=[
                PROFILE_TYPE.Output(
                    "profile",
                    display_name="profile",
                    tooltip="A sparsity for each block. Connect it to Rectified SpaAttn or to "
                    "Rectified SpaAttn Save Profile.",
                ),
                io.Image.Output(
                    "image",
                    display_name="image",
                    tooltip="The picture that the node shows, to save it or to post it.",
                ),
                io.String.Output(
                    "summary",
                    display_name="summary",
                    tooltip="The result in plain lines, with a table of the worst blocks.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, after: Any, wanted_error: float, name: str) -> io.NodeOutput:
        outcome = read_probe(model, wanted_error, name)
        image = as_tensor(draw_probe(outcome))
        return io.NodeOutput(
            outcome.profile, image, summary_text(outcome), ui=ui.PreviewImage(image, cls=cls)
        )
