"""The registry archive holds what a user of ComfyUI needs and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"kernels", "locales", "nodes", "rspa_core", "subgraphs", "web", "workflows"}
PARTLY = {"benchmarks"}
"""Of it what the benchmark node runs."""
FILES = {"__init__.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
MAX_BYTES = 8 << 20


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> list[zipfile.ZipInfo]:
    """Entries of what `comfy node pack` makes of the files that git tracks or would track."""
    program = Path(sys.executable).with_name("comfy")
    if not program.exists():
        pytest.skip("comfy-cli is not installed")
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: comfy-cli packs what git tracks")
    folder = tmp_path_factory.mktemp("pack")
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    subprocess.run([*git, "add", "-A"], check=True)
    command = [str(program), "--skip-prompt", "--no-enable-telemetry", "node", "pack"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(folder / "node.zip") as archive:
        return [entry for entry in archive.infolist() if not entry.is_dir()]


def test_only_what_a_user_needs(packed: list[zipfile.ZipInfo]) -> None:
    tops = {entry.filename.split("/")[0] for entry in packed}
    assert tops <= FOLDERS | PARTLY | FILES
    assert {name for name in FILES | FOLDERS if (ROOT / name).exists()} <= tops


def test_everything_the_pack_loads_is_in(packed: list[zipfile.ZipInfo]) -> None:
    names = {entry.filename for entry in packed}
    for folder in FOLDERS:
        wanted = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        missing = {
            path.relative_to(ROOT).as_posix() for path in wanted if "__pycache__" not in path.parts
        } - names
        assert not missing


def test_benchmark_of_the_node_is_in(packed: list[zipfile.ZipInfo], tmp_path: Path) -> None:
    """What the node imports when it runs can be imported from the archive alone."""
    pack = tmp_path / "pack"
    for entry in packed:
        if entry.filename.endswith((".py", ".toml")):
            (pack / entry.filename).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / entry.filename, pack / entry.filename)
    code = "import pack.benchmarks.my_card.__main__, pack.benchmarks.my_card.picture"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_it_is_small(packed: list[zipfile.ZipInfo]) -> None:
    assert sum(entry.compress_size for entry in packed) < MAX_BYTES
