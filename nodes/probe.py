"""Puts a probe on a patched model, and reads it after sampling.

Shows on a node how far a probe is: a bar and a line of text, each optional.

Node RectifiedSpaAttnProbe: measures, while sampling, how far each block may be sparse.

Node RectifiedSpaAttnProbeResult: a sparsity profile from what a probe has measured.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..rspa_core.run.report_text import probe_summary_text
from .host import build
from .patching import MAX_ERROR, MIN_ERROR, attach_probe, read_probe
from .pictures.canvas import as_tensor
from .pictures.probe import draw_probe
from .profiles import PROFILE_TYPE


class RectifiedSpaAttnProbe(io.ComfyNode):
    """Adds a probe to a model that RectifiedSpaAttn has patched."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return build(
            io.Schema,
            node_id="RectifiedSpaAttnProbe",
            display_name="Rectified SpaAttn Probe",
            category="model/patch/attention",
            description=(
                "Measures, while the sampler renders, how far sparse attention is from full "
                "attention in each block of the model. Place it after Rectified SpaAttn and "
                "connect Rectified SpaAttn Probe Result. Measured steps take several times as long."
            ),
            search_aliases=["SpaAttn probe", "measure sparse attention", "sparsity per block"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model from Rectified SpaAttn, with the settings to measure.",
                ),
                io.String.Input(
                    "steps",
                    default="1, 50%, -1",
                    tooltip="Steps in which to measure: 0 is the first, -1 the last, 50% the one "
                    "half-way. Each one more makes the render longer.",
                ),
                io.String.Input(
                    "blocks",
                    default="",
                    tooltip="Transformer blocks to measure, empty for all: '0-9, -1' is the first "
                    "ten and the last; 'single 0-2' are HunyuanVideo's first three single blocks.",
                ),
                io.String.Input(
                    "sparsities",
                    default="0.5, 0.65, 0.75, 0.85, 0.92",
                    tooltip="Sparsities to try at each block, above 0 and up to 0.98. A profile "
                    "stays within the lowest and the highest of them.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model with the probe. Connect it to the sampler and to Rectified "
                    "SpaAttn Probe Result.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, steps: str, blocks: str, sparsities: str) -> io.NodeOutput:
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        return io.NodeOutput(attach_probe(model, steps, blocks, sparsities, node_id))


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
            outcome.profile, image, probe_summary_text(outcome), ui=ui.PreviewImage(image, cls=cls)
        )
