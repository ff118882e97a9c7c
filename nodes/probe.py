"""Node RectifiedSpaAttnProbe: measures, while sampling, how far each block may be sparse."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .probe_model import attach_probe
from .schema_compat import build


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
