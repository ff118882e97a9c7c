"""Nodes RectifiedSpaAttnProbe and RectifiedSpaAttnProbeResult.

The first measures, while sampling, how far each block may be sparse; the second turns that into a
sparsity profile, and a closer or a faster one needs no new render.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..rspa_core.run.report_text import probe_summary_text
from .host import schema_of, shown_pictures
from .inputs import PROBE, PROBE_RESULT
from .patching import attach_probe, read_probe
from .pictures import as_tensor
from .pictures.compact import draw_compact_probe
from .pictures.probe import draw_probe


class RectifiedSpaAttnProbe(io.ComfyNode):
    """Adds a probe to a model that RectifiedSpaAttn has patched."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(PROBE)

    @classmethod
    def validate_inputs(
        cls, steps: str | None = None, blocks: str | None = None, sparsities: str | None = None
    ) -> bool | str:
        return PROBE.problem({"steps": steps, "blocks": blocks, "sparsities": sparsities}) or True

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        return io.NodeOutput(attach_probe(model, **PROBE.checked(values), node_id=node_id))


class RectifiedSpaAttnProbeResult(io.ComfyNode):
    """Reads the probe of a model after sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(PROBE_RESULT)

    @classmethod
    def validate_inputs(cls, closest_to_fastest: Any = None, name: Any = None) -> bool | str:
        """Before anything runs: no render is lost to them."""
        given = {"closest_to_fastest": closest_to_fastest, "name": name}
        return PROBE_RESULT.problem(given) or True

    @classmethod
    def execute(cls, model: Any, after: Any, **values: Any) -> io.NodeOutput:
        outcome = read_probe(model, **PROBE_RESULT.checked(values))
        image = as_tensor(draw_probe(outcome))
        shown = shown_pictures(cls, as_tensor(draw_compact_probe(outcome)), image)
        return io.NodeOutput(outcome.profile, image, probe_summary_text(outcome), ui=shown)
