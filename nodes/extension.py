"""The extension object ComfyUI asks for its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .host import register_model_folder
from .probe import RectifiedSpaAttnProbe, RectifiedSpaAttnProbeResult
from .profiles import RectifiedSpaAttnLoadProfile, RectifiedSpaAttnSaveProfile
from .report import RectifiedSpaAttnReport
from .schedule import RectifiedSpaAttnSchedule
from .sparse_attention import RectifiedSpaAttn


class RectifiedSpaAttnExtension(ComfyExtension):
    """Lists the nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_model_folder()
        return [
            RectifiedSpaAttn,
            RectifiedSpaAttnSchedule,
            RectifiedSpaAttnReport,
            RectifiedSpaAttnProbe,
            RectifiedSpaAttnProbeResult,
            RectifiedSpaAttnSaveProfile,
            RectifiedSpaAttnLoadProfile,
        ]
