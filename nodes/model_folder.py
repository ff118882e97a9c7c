"""Where sparsity profiles are kept: a model folder of its own, `models/rectified_spaattn`.

ComfyUI's `folder_paths` is imported inside the functions, so that this file imports without it.
"""

from __future__ import annotations

import os
import re
from itertools import count
from pathlib import Path

from ..rspa_core.config import ConfigError

FOLDER = "rectified_spaattn"
SUFFIX = ".safetensors"
MAX_FILENAME = 200
# Not allowed in names on Windows; a workflow may move there.
FORBIDDEN_CHARACTERS = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')
RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


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


def find_profile(name: str) -> Path:
    """The file behind an entry of `profile_names`.

    Raises:
        ConfigError: there is no such entry or its file is gone.
    """
    import folder_paths

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
    raise ConfigError("profile_name", name, f"no such file in models/{FOLDER}; press R to refresh")


def free_path(filename: str) -> Path:
    """Where to save a profile of that name; `_00002` and so on is added to names that are taken.

    Args:
        filename: relative to the profile folder, with or without `.safetensors`.

    Raises:
        ConfigError: not a file name, or one that leads out of the folder.
    """
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
