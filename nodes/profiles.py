"""Nodes that measure sparsity profiles, RectifiedSpaAttnProbe and RectifiedSpaAttnProbeResult, and
that keep them, RectifiedSpaAttnSaveProfile and RectifiedSpaAttnLoadProfile.

The first measures, while sampling, how far each block may be sparse; the second turns that into a
profile, and a closer or a faster one needs no new render. Profiles are kept in a model folder of
their own, `models/rectified_spaattn`.
"""

from __future__ import annotations

import os
import re
from itertools import count
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..rspa_core.config import ConfigError, shown
from ..rspa_core.run.profile import SparsityProfile, load_profile, save_profile
from ..rspa_core.run.report_text import probe_summary_text
from .host import schema_of, send_status, shown_pictures
from .inputs import LOAD_PROFILE, NO_PROFILE, PROBE, PROBE_RESULT, SAVE_PROFILE
from .patching import attach_probe, read_probe
from .pictures import as_tensor
from .pictures.probe import draw_compact_probe, draw_probe

FOLDER = "rectified_spaattn"
SUFFIX = ".safetensors"
MAX_FILENAME = 200
# Not allowed in names on Windows; a workflow may move there.
FORBIDDEN_CHARACTERS = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')
RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


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


class RectifiedSpaAttnSaveProfile(io.ComfyNode):
    """Writes a profile to the profile folder and passes it on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(SAVE_PROFILE)

    @classmethod
    def validate_inputs(cls, filename: Any = None) -> bool | str:
        """Before anything runs: a profile is not measured first if it cannot be saved."""
        if filename is None:  # comes from another node
            return True
        try:
            free_path(filename)
        except ConfigError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, profile: Any, filename: Any) -> io.NodeOutput:
        if not isinstance(profile, SparsityProfile):
            raise ConfigError("profile", profile, "the output of a Rectified SpaAttn node")
        path = free_path(filename)
        save_profile(profile, path)
        return _shown(cls, f"Saved {shown_path(path)}", profile)


class RectifiedSpaAttnLoadProfile(io.ComfyNode):
    """Reads a profile from the profile folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(LOAD_PROFILE, {"profile_name": profile_names() or [NO_PROFILE]})

    @classmethod
    def validate_inputs(cls, profile_name: Any = None) -> bool | str:
        """Before anything runs: a model is not loaded first if the file is gone or damaged."""
        if profile_name is None:  # comes from another node
            return True
        try:
            load_profile(find_profile(profile_name))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, profile_name: Any = None) -> str:
        """Changes with the file, so that it is read again."""
        try:
            status = find_profile(profile_name).stat()
        except (OSError, ValueError):
            return ""
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, profile_name: Any = None) -> io.NodeOutput:
        profile = load_profile(find_profile(profile_name))
        lines = profile.describe().splitlines()
        return _shown(cls, "\n".join(lines[:2]), profile, "\n".join(lines))


def _shown(cls: type[io.ComfyNode], text: str, *outputs: Any) -> io.NodeOutput:
    """Outputs of a node that shows `text` on itself."""
    # The page draws the status line on any node; the text of the result goes to the history.
    send_status(text, cls.hidden.unique_id if cls.hidden is not None else None)
    preview = getattr(ui, "PreviewText", None)
    return io.NodeOutput(*outputs, ui=preview(text) if preview is not None else None)


def register_model_folder() -> None:
    """Make the folder known to ComfyUI; further folders come from extra_model_paths.yaml."""
    import folder_paths

    # First in line: what is saved is then also what a name that exists twice stands for.
    folder_paths.add_model_folder_path(FOLDER, str(_own_folder()), is_default=True)
    folders, _ = folder_paths.folder_names_and_paths[FOLDER]
    # Without an extension, as folders of extra_model_paths.yaml come, every file would be listed.
    folder_paths.folder_names_and_paths[FOLDER] = (folders, {SUFFIX})


def profile_names() -> list[str]:
    """Files in the profile folders, relative to them, as a combo lists them."""
    import folder_paths

    try:
        return folder_paths.get_filename_list(FOLDER)
    except FileNotFoundError:
        # ComfyUI looks at the folders of its last listing, one of which somebody has removed.
        folder_paths.filename_list_cache.pop(FOLDER, None)
        return folder_paths.get_filename_list(FOLDER)


def find_profile(name: Any) -> Path:
    """The file behind an entry of `profile_names`; None stands for "".

    Raises:
        ConfigError: not a text, there is no such entry or its file is gone.
    """
    import folder_paths

    name = _text("profile_name", name)
    names = profile_names()
    # Workflows saved on Windows name subfolders with a backslash.
    listed = {entry.replace("\\", "/"): entry for entry in names}
    entry = listed.get(name.replace("\\", "/"))
    found = folder_paths.get_full_path(FOLDER, entry) if entry is not None else None
    if found is not None:
        return Path(found)
    if not names:
        raise ConfigError(
            "profile_name",
            name,
            f"there is no profile in {_own_folder()} yet: make one with the nodes Rectified "
            "SpaAttn Probe and Save Profile, or put a file there, and press R",
        )
    if name in ("", NO_PROFILE):
        raise ConfigError("profile_name", name, f"choose a file of models/{FOLDER}")
    raise ConfigError("profile_name", name, f"no such file in models/{FOLDER}; press R to refresh")


def free_path(filename: Any) -> Path:
    """Where to save a profile of that name; `_00002` and so on is added to names that are taken.

    Args:
        filename: relative to the profile folder, with or without `.safetensors`.

    Raises:
        ConfigError: not a file name, or one that leads out of the folder.
    """
    filename = _text("filename", filename)
    folder = _own_folder()
    path = folder.joinpath(*_parts(filename))
    # A link inside the folder may lead out of it.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError("filename", filename, f"a file inside {folder}")
    free = path
    numbers = count(2)
    while os.path.lexists(free):
        free = path.with_name(f"{path.stem}_{next(numbers):05d}{path.suffix}")
    return free


def shown_path(path: Path) -> str:
    """A file of the profile folder as a user knows it: from models/ on."""
    return f"models/{FOLDER}/{path.relative_to(_own_folder()).as_posix()}"


def _text(field: str, value: Any) -> str:
    """A name that was given: numbers as texts, None as ""."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return shown(value)
    if not isinstance(value, (str, type(None))):
        raise ConfigError(field, value, f"the name of a file in models/{FOLDER}, as a text")
    return value or ""


def _parts(filename: str) -> list[str]:
    """Folders and file name of a relative path that is one on every system."""
    allowed = 'a file name, or subfolder/name, without .. and without < > : " | ? *'
    text = filename.strip().replace("\\", "/")
    if len(text) > MAX_FILENAME:
        raise ConfigError("filename", filename, f"at most {MAX_FILENAME} characters")
    if text and not text.lower().endswith(SUFFIX):
        text += SUFFIX
    parts = text.split("/")
    for part in parts:
        # A leading dot: hidden, "." or ".."; Windows drops dots and blanks at the end.
        odd = not part or part.startswith(".") or part != part.strip() or part.endswith(".")
        if odd or FORBIDDEN_CHARACTERS.search(part) or RESERVED_NAMES.fullmatch(part):
            raise ConfigError("filename", filename, allowed)
    return parts


def _own_folder() -> Path:
    import folder_paths

    return Path(folder_paths.models_dir) / FOLDER
