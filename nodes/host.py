"""The few places outside the node classes that reach into a running ComfyUI, each optional.

Imports happen inside the functions: the patching code can then be imported and tested without
ComfyUI, and a core that lacks one of these names still works.

Schema keywords that older cores do not know yet.

An unknown keyword in one schema makes ComfyUI drop the whole pack, so those that came later are
left out where the signature lacks them. Any other keyword is passed on as it is: a misspelt one
still fails.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from ..rspa_core.config import ConfigError


def send_status(text: str, node_id: str | None) -> None:
    """Show `text` on the node, and on the subgraphs around it for whoever has not opened them.

    Does nothing without a server or a node id. Ids inside a subgraph read "129:164".
    """
    if node_id is None:
        return
    # Looked up, not imported: outside ComfyUI `server` may be anybody's module.
    prompt_server = getattr(sys.modules.get("server"), "PromptServer", None)
    server = getattr(prompt_server, "instance", None)
    if server is None:
        return
    # A status line must never end a sampling run, whatever the server thinks of it.
    with suppress(Exception):
        parts = node_id.split(":")
        for depth in range(len(parts), 0, -1):
            server.send_progress_text(text, ":".join(parts[:depth]))


def core_attention() -> Callable[..., Any]:
    """ComfyUI's own attention function, the dense path of calls that come without one."""
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention


def pause_allocation_recording() -> AbstractContextManager[Any]:
    """Context in which newer cores do not record allocations for replay; elsewhere no effect.

    Index tables that are built at the first sparse call outlive the transformer block they are
    built in, which a recorded block must not contain.
    """
    try:
        from comfy.model_prefetch import pause_malloc_graph
    except ImportError:
        return nullcontext()
    return pause_malloc_graph()


T = TypeVar("T")

LATER_KEYWORDS = frozenset(
    {
        "advanced",  # on inputs, 0.9.2
        "search_aliases",  # on Schema, 0.10.0
    }
)


def build(factory: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `factory` without the later keywords that its signature does not have."""
    known = inspect.signature(factory).parameters
    return factory(
        *args,
        **{
            name: value
            for name, value in kwargs.items()
            if name in known or name not in LATER_KEYWORDS
        },
    )


SAY_INTERVAL_S = 0.25


class ProbeProgress:
    """Progress of one probe on the node `node_id`; without a node id it shows nothing."""

    def __init__(self, node_id: str | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._node_id = node_id
        self._clock = clock
        self._bar: Any = None
        self._last_said: float | None = None

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` are measured; the total may grow."""
        if self._node_id is None:
            return
        if self._bar is None or done <= 1:  # a new run begins with a new bar
            self._bar = progress_bar(total, self._node_id)
        if self._bar is None:
            return
        try:
            self._bar.update_absolute(done, total)
        except Exception as error:  # a bar must never end a sampling run
            _pass_on_interruption(error)

    def say(self, text: str, is_last: bool) -> None:
        """Show a line of text on the node, those before the last a few times a second."""
        now = self._clock()
        if is_last or self._last_said is None or now - self._last_said >= SAY_INTERVAL_S:
            self._last_said = now
            send_status(text, self._node_id)


def progress_bar(total: int, node_id: str | None) -> Any:
    """ComfyUI's progress bar on a node; None where there is no ComfyUI."""
    try:
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    return ProgressBar(total, node_id=node_id)


def _pass_on_interruption(error: Exception) -> None:
    """Ask for an interruption again, which older cores raise as an ordinary exception.

    A bar of theirs takes the request and raises; the sampler finds it at the end of its step.
    """
    from comfy import model_management

    if isinstance(error, model_management.InterruptProcessingException):
        model_management.interrupt_current_processing(True)


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
