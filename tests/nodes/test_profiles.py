"""The profile folder: what is listed, which names are found, and names that must not lead out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from rectified_spaattn.nodes.inputs import NO_PROFILE
from rectified_spaattn.nodes.profiles import (
    FOLDER,
    find_profile,
    free_path,
    profile_names,
    register_model_folder,
)
from rectified_spaattn.rspa_core.config import ConfigError


class FolderPaths(ModuleType):
    """Stand-in for ComfyUI's module: the functions as in its source, without caches."""

    def __init__(self, models: Path) -> None:
        super().__init__("folder_paths")
        self.models_dir = str(models)
        self.folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}

    def add_model_folder_path(self, name: str, path: str, is_default: bool = False) -> None:
        paths, _ = self.folder_names_and_paths.setdefault(name, ([], set()))
        if path in paths and is_default:
            paths.remove(path)
        if path not in paths:
            paths.insert(0 if is_default else len(paths), path)

    def get_filename_list(self, name: str) -> list[str]:
        folders, extensions = self.folder_names_and_paths[name]
        return sorted(
            {
                str(file.relative_to(folder))
                for folder in folders
                for file in Path(folder).rglob("*")
                if file.is_file() and (not extensions or file.suffix in extensions)
            }
        )

    def get_full_path(self, name: str, filename: str) -> str | None:
        candidates = (Path(folder) / filename for folder in self.folder_names_and_paths[name][0])
        return next((str(path) for path in candidates if path.is_file()), None)


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FolderPaths]:
    """ComfyUI's module with the folder registered."""
    module = FolderPaths(tmp_path / "models")
    monkeypatch.setitem(sys.modules, "folder_paths", module)
    register_model_folder()
    return module


@pytest.fixture
def folder(comfy: FolderPaths) -> Path:
    return Path(comfy.models_dir) / FOLDER


def put(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_a_removed_folder_does_not_stop_the_listing(
    comfy: FolderPaths, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI asks the folders of its cached listing for their time, and falls over a lost one."""
    put(folder, "left.safetensors")
    comfy.filename_list_cache = {FOLDER: "with a folder that is gone"}
    listing = comfy.get_filename_list

    def cached(name: str) -> list[str]:
        if name in comfy.filename_list_cache:
            raise FileNotFoundError(2, "No such file or directory")
        return listing(name)

    monkeypatch.setattr(comfy, "get_filename_list", cached)
    assert profile_names() == ["left.safetensors"]


# --- Registration --------------------------------------------------------------------------------


def test_registering_again_changes_nothing(comfy: FolderPaths, folder: Path) -> None:
    once = {name: (list(paths), set(ext)) for name, (paths, ext) in _entries(comfy)}
    register_model_folder()
    register_model_folder()
    assert dict(_entries(comfy)) == once == {FOLDER: ([str(folder)], {".safetensors"})}
    assert not folder.exists()


def _entries(comfy: FolderPaths) -> list[tuple[str, tuple[list[str], set[str]]]]:
    return list(comfy.folder_names_and_paths.items())


@pytest.mark.parametrize("is_default", [False, True])
def test_folders_of_extra_model_paths_stay(
    is_default: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI reads that file before it asks for nodes."""
    module = FolderPaths(tmp_path / "models")
    monkeypatch.setitem(sys.modules, "folder_paths", module)
    extra = tmp_path / "nas"
    module.add_model_folder_path(FOLDER, str(extra), is_default)
    register_model_folder()
    own = tmp_path / "models" / FOLDER
    assert module.folder_names_and_paths[FOLDER] == ([str(own), str(extra)], {".safetensors"})

    put(extra, "shared.safetensors")
    put(extra, "notes.txt")
    assert profile_names() == ["shared.safetensors"]
    assert find_profile("shared.safetensors") == extra / "shared.safetensors"
    # What was just saved under a name is what the name stands for.
    put(own, "shared.safetensors")
    assert find_profile("shared.safetensors") == own / "shared.safetensors"
    assert free_path("new").parent == own


# --- Finding -------------------------------------------------------------------------------------


def test_listed_files_are_found(folder: Path) -> None:
    path = put(folder, "wan/fast.safetensors")
    put(folder, "readme.md")
    assert profile_names() == [os.path.join("wan", "fast.safetensors")]
    assert find_profile("wan/fast.safetensors") == path
    assert find_profile("wan\\fast.safetensors") == path  # a workflow from Windows


def test_an_empty_folder_says_what_to_do(comfy: FolderPaths, folder: Path) -> None:
    assert profile_names() == []
    for name in ("", NO_PROFILE, "profile.safetensors"):
        with pytest.raises(ConfigError, match=r"there is no profile in .* yet") as caught:
            find_profile(name)
        assert caught.value.field == "profile_name"
        assert str(folder) in str(caught.value)


def test_a_file_that_is_gone_is_named(folder: Path) -> None:
    put(folder, "other.safetensors")
    for name in ("", NO_PROFILE):
        with pytest.raises(ConfigError, match="choose a file of models/"):
            find_profile(name)
    with pytest.raises(ConfigError, match=r"'gone.safetensors' .* no such file in models/"):
        find_profile("gone.safetensors")


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "..\\secret.safetensors", "/secret.safetensors", "", "."]
)
def test_only_listed_names_are_found(name: str, folder: Path) -> None:
    put(folder.parent, "secret.safetensors")
    put(folder, "profile.safetensors")
    with pytest.raises(ConfigError):
        find_profile(name)
    with pytest.raises(ConfigError):
        find_profile(str(folder.parent / "secret.safetensors"))


# --- Naming --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("profile", "profile.safetensors"),
        (" profile.safetensors ", "profile.safetensors"),
        ("Profile.SafeTensors", "Profile.SafeTensors"),
        ("wan 2.2 high", "wan 2.2 high.safetensors"),
        ("a..b", "a..b.safetensors"),
        ("wan/fast", "wan/fast.safetensors"),
        ("wan\\fast", "wan/fast.safetensors"),
        ("Ночь 夜 🌙", "Ночь 夜 🌙.safetensors"),
        ("console", "console.safetensors"),
    ],
)
def test_names_inside_the_folder(filename: str, expected: str, folder: Path) -> None:
    assert free_path(filename) == folder / expected
    assert not folder.exists()


@pytest.mark.parametrize(
    "filename",
    [
        "",
        "  ",
        ".",
        "..",
        "../profile",
        "..\\profile",
        "wan/../../profile",
        "wan/./profile",
        "/etc/profile",
        "\\\\server\\share\\profile",
        "C:\\profile",
        "C:profile",
        "wan//fast",
        "wan/",
        ".hidden",
        ".safetensors",
        "wan /fast",
        "wan./fast",
        "pro\0file",
        "pro\nfile",
        "pro\ud800file",
        "what?",
        "stream.safetensors:ads",
        "con",
        "NUL.safetensors",
        "lpt1/profile",
        "x" * 201,
    ],
)
def test_names_that_are_refused(filename: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        free_path(filename)
    assert caught.value.field == "filename"


def test_a_link_does_not_lead_out(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "broken.safetensors").symlink_to(tmp_path / "elsewhere" / "new.safetensors")
    for filename in ("out/profile", "broken"):
        with pytest.raises(ConfigError, match="a file inside"):
            free_path(filename)


def test_a_linked_folder_is_fine(comfy: FolderPaths, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nas").mkdir()
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "nas")
    assert free_path("profile") == folder / "profile.safetensors"


def test_names_that_are_taken_get_a_number(folder: Path) -> None:
    put(folder, "wan/fast.safetensors")
    assert free_path("wan/fast") == folder / "wan" / "fast_00002.safetensors"
    put(folder, "wan/fast_00002.safetensors")
    assert free_path("wan/fast.safetensors") == folder / "wan" / "fast_00003.safetensors"
    (folder / "folder.safetensors").mkdir()
    assert free_path("folder") == folder / "folder_00002.safetensors"
