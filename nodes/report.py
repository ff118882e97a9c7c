"""Node RectifiedSpaAttnReport: what one sampling run really did, as a picture and as text."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..rspa_core.run.report_text import (
    NO_RUN_CAUSES,
    NO_RUN_TITLE,
    NOT_PATCHED_CAUSES,
    NOT_PATCHED_TITLE,
    json_text,
    summary_text,
)
from .host import schema_of, shown_pictures
from .inputs import REPORT
from .patching import find_patch
from .pictures import as_tensor
from .pictures.report import draw_compact, draw_compact_no_run, draw_no_run, draw_report


class RectifiedSpaAttnReport(io.ComfyNode):
    """Reads the last run of a patched model; the drawing is in `pictures/`.

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
        return schema_of(REPORT)

    @classmethod
    def execute(cls, model: Any, after: Any) -> io.NodeOutput:
        patch = find_patch(model)
        record = None if patch is None else patch.last_run
        if record is None:
            # Not an error: switching the node off to compare must not stop the render.
            title = NO_RUN_TITLE if patch is not None else NOT_PATCHED_TITLE
            causes = NO_RUN_CAUSES if patch is not None else NOT_PATCHED_CAUSES
            image = as_tensor(draw_no_run(title, causes))
            compact = as_tensor(draw_compact_no_run(title, causes))
            summary = "\n".join([f"{title}. Likely causes:", *causes])
            json = "null"
        else:
            image = as_tensor(draw_report(record))
            compact = as_tensor(draw_compact(record))
            summary, json = summary_text(record), json_text(record)
        return io.NodeOutput(image, summary, json, ui=shown_pictures(cls, compact, image))
