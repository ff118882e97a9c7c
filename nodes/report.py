"""Node RectifiedSpaAttnReport: what one sampling run really did, as a picture and as text."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..rspa_core.run.report_text import (
    NO_RUN_CAUSES,
    NO_RUN_TITLE,
    NOT_PATCHED_CAUSES,
    NOT_PATCHED_TITLE,
    json_text,
    summary_text,
)
from .host import build
from .patching import find_patch
from .pictures.canvas import as_tensor
from .pictures.report import draw_no_run, draw_report


class RectifiedSpaAttnReport(io.ComfyNode):
    """Reads the last run of a patched model; drawing and words are in `report_*.py`.

    There is no `fingerprint_inputs` on purpose. ComfyUI's cache key holds everything before this
    node, and through `after` that is the sampler with all its inputs: whatever makes it sample
    anew (a seed, a prompt, a model, a node that never caches) runs this node again. A key that
    always changes would be worse: of two samplers on one model, the report of the one that was
    cached would show the other's run, and where ComfyUI has dropped the sampler's result to save
    memory, the report would have the video rendered again. The price: if that same video is
    rendered again for another node, the report of its first rendering stays.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return build(
            io.Schema,
            node_id="RectifiedSpaAttnReport",
            display_name="Rectified SpaAttn Report",
            category="model/patch/attention",
            description=(
                "Shows what Rectified SpaAttn really did in a run: which blocks and steps were "
                "sparse and how sparse, why the others were not, and the time of every step."
            ),
            search_aliases=[
                "sparse attention report",
                "SpaAttn statistics",
                "attention density",
                "time per step",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that the sampler uses, from Rectified SpaAttn or from a "
                    "node behind it.",
                ),
                io.AnyType.Input(
                    "after",
                    tooltip="Anything that comes out of the sampler, such as its latent: the "
                    "report is made when it is there.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image",
                    display_name="image",
                    tooltip="The picture that the node shows, to save it or to post it.",
                ),
                io.String.Output(
                    "summary",
                    display_name="summary",
                    tooltip="The run in plain lines, ready to paste into a post.",
                ),
                io.String.Output(
                    "json",
                    display_name="json",
                    tooltip="All counts and times as JSON, for tables and scripts.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, after: Any) -> io.NodeOutput:
        patch = find_patch(model)
        record = None if patch is None else patch.last_run
        if record is None:
            # Not an error: switching the node off to compare must not stop the render.
            title = NO_RUN_TITLE if patch is not None else NOT_PATCHED_TITLE
            causes = NO_RUN_CAUSES if patch is not None else NOT_PATCHED_CAUSES
            image = as_tensor(draw_no_run(title, causes))
            summary = "\n".join([f"{title}. Likely causes:", *causes])
            json = "null"
        else:
            image = as_tensor(draw_report(record))
            summary, json = summary_text(record), json_text(record)
        return io.NodeOutput(image, summary, json, ui=ui.PreviewImage(image, cls=cls))
