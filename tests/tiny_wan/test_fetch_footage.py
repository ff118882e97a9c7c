"""Collecting footage: the list of sources is sound, and files are found in packages."""

from __future__ import annotations

import importlib
import io
import re
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def fetch(tiny: SimpleNamespace) -> ModuleType:
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed (make venv does)")
    return importlib.import_module("fetch_footage")


def test_every_scene_has_a_source_with_hash_licence_and_shots(fetch: ModuleType) -> None:
    assert {source.scene for source in fetch.SOURCES} == set(range(len(fetch.SCENES)))
    page = (Path(fetch.__file__).parent / "tiny_wan" / "README.md").read_text(encoding="utf-8")
    for source in fetch.SOURCES:
        assert re.fullmatch(r"(pip|npm|apt):\S+", source.package)
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert source.licence
        ends = [number for shot in source.shots for number in shot]
        assert ends == sorted(ends)
        assert Path(source.path).name in page
        assert fetch.SCENES[source.scene] in page


def test_files_are_found_in_wheels_and_tarballs(fetch: ModuleType, tmp_path: Path) -> None:
    wheel, tarball = tmp_path / "a.whl", tmp_path / "a.tgz"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/data/clip.mp4", b"wheel")
    with tarfile.open(tarball, "w:gz") as archive:
        member = tarfile.TarInfo("package/data/clip.mp4")
        member.size = 7
        archive.addfile(member, io.BytesIO(b"tarball"))
    assert fetch.read(wheel, "data/clip.mp4") == b"wheel"
    assert fetch.read(tarball, "data/clip.mp4") == b"tarball"
    for archive in (wheel, tarball):
        with pytest.raises(FileNotFoundError, match="has no other"):
            fetch.read(archive, "other.mp4")


def test_pictures_become_camera_moves_of_at_most_so_many_rows(
    fetch: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "still.png"
    Image.linear_gradient("L").resize((600, 500)).convert("RGB").save(path)
    frames = fetch.decode(path, "loop=3:1")
    assert frames.shape == (4, 3, 400, 480)
    moved = fetch.decode(path, fetch.MOVE.replace("loop=96:1", "loop=2:1"))
    assert moved.shape == (3, 3, 400, 640)
    assert (moved[0].float() - moved[2].float()).abs().mean() > 0.5


def test_another_file_than_the_listed_one_is_refused(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pip-nothing==1.0"
    folder.mkdir()
    with zipfile.ZipFile(folder / "nothing.whl", "w") as archive:
        archive.writestr("clip.mp4", b"something else")
    source = fetch.Source("pip:nothing==1.0", "clip.mp4", "0" * 64, "MIT", 0, ((0, 1),))
    monkeypatch.setattr(fetch, "SOURCES", (source,))
    with pytest.raises(ValueError, match="another file than the one listed"):
        fetch.collect(tmp_path)
