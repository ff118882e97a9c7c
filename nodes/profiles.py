"""The socket type of sparsity profiles.

Where sparsity profiles are kept: a model folder of its own, `models/rectified_spaattn`.

ComfyUI's `folder_paths` is imported inside the functions, so that this file imports without it.

Nodes RectifiedSpaAttnSaveProfile and RectifiedSpaAttnLoadProfile.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..rspa_core.config import ConfigError
from ..rspa_core.run.profile import SparsityProfile, load_profile, save_profile
from .host import build, find_profile, free_path, profile_names, send_status, shown_path

PROFILE_TYPE = io.Custom("RSPA_PROFILE")


class RectifiedSpaAttnSaveProfile(io.ComfyNode):
    """Writes a profile to the profile folder and passes it on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return build(
            io.Schema,
            node_id="RectifiedSpaAttnSaveProfile",
            display_name="Rectified SpaAttn Save Profile",
            category="model/patch/attention",
            description=(
                "Saves a sparsity profile to models/rectified_spaattn, so that a model is measured "
                "only once. A file that is there already is kept: the new one gets a number."
            ),
            search_aliases=["save sparsity profile", "SpaAttn profile"],
            inputs=[
                PROFILE_TYPE.Input(
                    "profile",
                    tooltip="The profile to save, from Rectified SpaAttn Probe Result.",
                ),
                io.String.Input(
                    "filename",
                    default="profile",
                    tooltip="Name of the file. 'wan/fast' saves fast.safetensors in the subfolder "
                    "wan.",
                ),
            ],
            outputs=[
                PROFILE_TYPE.Output(
                    "saved_profile",
                    display_name="profile",
                    tooltip="The same profile. Connect it to Rectified SpaAttn to use it at once.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, profile: Any, filename: str) -> io.NodeOutput:
        if not isinstance(profile, SparsityProfile):
            raise ConfigError("profile", profile, "the output of a Rectified SpaAttn node")
        path = free_path(filename)
        save_profile(profile, path)
        return _shown(cls, f"Saved {shown_path(path)}", profile)


class RectifiedSpaAttnLoadProfile(io.ComfyNode):
    """Reads a profile from the profile folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return build(
            io.Schema,
            node_id="RectifiedSpaAttnLoadProfile",
            display_name="Rectified SpaAttn Load Profile",
            category="model/patch/attention",
            description=(
                "Loads a sparsity profile from models/rectified_spaattn. It belongs to the model "
                "that it was measured on; others are refused."
            ),
            search_aliases=["load sparsity profile", "SpaAttn profile"],
            inputs=[
                io.Combo.Input(
                    "profile_name",
                    options=profile_names(),
                    # Without any file the page sends no value: `execute` then says what to do,
                    # where ComfyUI would only say that an input is missing.
                    optional=True,
                    tooltip="A file in models/rectified_spaattn. Press R to see new files.",
                ),
            ],
            outputs=[
                PROFILE_TYPE.Output(
                    "profile",
                    display_name="profile",
                    tooltip="Connect to the profile input of Rectified SpaAttn.",
                ),
                io.String.Output(
                    "summary",
                    display_name="summary",
                    tooltip="What the profile was measured on and how sparse it is, as text.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, profile_name: str | None = None) -> bool | str:
        """Before anything runs: a model is not loaded first if the file is gone or damaged."""
        if profile_name is None:  # comes from another node, or there is no file to choose
            return True
        try:
            load_profile(find_profile(profile_name))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, profile_name: str | None = None) -> str:
        """Changes with the file, so that it is read again."""
        try:
            status = find_profile(profile_name or "").stat()
        except (OSError, ValueError):
            return ""
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, profile_name: str | None = None) -> io.NodeOutput:
        profile = load_profile(find_profile(profile_name or ""))
        lines = profile.describe().splitlines()
        return _shown(cls, "\n".join(lines[:2]), profile, "\n".join(lines))


def _shown(cls: type[io.ComfyNode], text: str, *outputs: Any) -> io.NodeOutput:
    """Outputs of a node that shows `text` on itself."""
    # The page draws the status line on any node; the text of the result goes to the history.
    send_status(text, cls.hidden.unique_id if cls.hidden is not None else None)
    preview = getattr(ui, "PreviewText", None)
    return io.NodeOutput(*outputs, ui=preview(text) if preview is not None else None)
