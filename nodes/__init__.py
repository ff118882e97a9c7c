"""Everything that knows ComfyUI: its nodes, and how they patch a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension


def make_extension() -> ComfyExtension:
    """The extension that lists the nodes of this pack, in the order of the table of inputs."""
    from comfy_api.latest import ComfyExtension, io

    from .benchmark import RectifiedSpaAttnBenchmark
    from .profiles import (
        RectifiedSpaAttnLoadProfile,
        RectifiedSpaAttnProbe,
        RectifiedSpaAttnProbeResult,
        RectifiedSpaAttnSaveProfile,
        register_model_folder,
    )
    from .report import RectifiedSpaAttnReport
    from .sparse_attention import (
        RectifiedSpaAttn,
        RectifiedSpaAttnOptions,
        RectifiedSpaAttnSchedule,
    )

    class RectifiedSpaAttnExtension(ComfyExtension):
        """Lists the nodes of this pack."""

        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            register_model_folder()
            return [
                RectifiedSpaAttn,
                RectifiedSpaAttnOptions,
                RectifiedSpaAttnSchedule,
                RectifiedSpaAttnReport,
                RectifiedSpaAttnProbe,
                RectifiedSpaAttnProbeResult,
                RectifiedSpaAttnSaveProfile,
                RectifiedSpaAttnLoadProfile,
                RectifiedSpaAttnBenchmark,
            ]

    return RectifiedSpaAttnExtension()
