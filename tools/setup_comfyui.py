"""`make comfyui`: the ComfyUI versions that tests/integration drives, checked out and installed.

    python tools/setup_comfyui.py --help

Needs only the standard library, git and a package index. Done a second time it finds everything in
place. A folder that holds a main.py is not moved to another version, and an environment that
somebody else made is not touched. Each version is started once at the end; the exit status is 1 if
one does not start.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "requirements" / "demo.txt"
TORCH_PACKAGES = ("torchvision", "torchaudio")
STAMP = ".rspa-installed"
START_TIMEOUT_S = 300

# Schemas of the operators that torchvision describes while it is imported; a compiled library that
# was built for another torch does not load, and leaves them undeclared.
OPERATORS = """\
import torch as _torch

_operators = _torch.library.Library("torchvision", "FRAGMENT")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


class SetupError(RuntimeError):
    """A step failed; the message says which and what to do."""


@dataclass(frozen=True)
class Version:
    """One ComfyUI to set up: where it goes, where it comes from, and which commit or tag."""

    name: str
    folder: Path
    source: str
    ref: str

    @property
    def python(self) -> Path:
        """The interpreter of the checkout's own environment."""
        scripts = "Scripts/python.exe" if os.name == "nt" else "bin/python"
        return self.folder / ".venv" / scripts


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program; returns what it printed. Raises SetupError with its last lines if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise SetupError(f"{' '.join(words)}\nended with {done.returncode}:\n{tail}")
    return done.stdout


def say(version: Version, text: str) -> None:
    print(f"{version.name}: {text}", flush=True)


def found_version(folder: Path) -> str:
    """The version a checkout states, "?" if it does not."""
    file = folder / "comfyui_version.py"
    match = re.search(r'__version__ = "([^"]+)"', file.read_text()) if file.is_file() else None
    return match[1] if match else "?"


def check_out(version: Version) -> None:
    """Bring the files of one version, without its history, unless a main.py is already there."""
    folder = version.folder
    if (folder / "main.py").is_file():
        say(version, f"{folder} holds ComfyUI {found_version(folder)}, left as it is")
        return
    say(version, f"{version.ref} of {version.source} -> {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    run("git", "init", "--quiet", folder)
    mirror = Path(version.source).expanduser()
    if mirror.is_dir():
        # Objects are borrowed, not copied: a mirror may lack some, and fetching would refuse.
        git_dir = run("git", "-C", mirror, "rev-parse", "--absolute-git-dir").strip()
        commit = run("git", "-C", mirror, "rev-parse", f"{version.ref}^{{commit}}").strip()
        alternates = folder / ".git" / "objects" / "info" / "alternates"
        alternates.write_text(f"{git_dir}/objects\n")
    else:
        run("git", "fetch", "--quiet", "--depth", "1", version.source, version.ref, cwd=folder)
        commit = "FETCH_HEAD"
    run("git", "checkout", "--quiet", "--detach", commit, cwd=folder)
    if not (folder / "main.py").is_file():
        raise SetupError(f"{version.ref} of {version.source} has no main.py")


def torch_pin() -> str:
    """The requirement of torch that this project is tested with."""
    match = re.search(r"^torch==\S+", PINS.read_text(), re.MULTILINE)
    if match is None:
        raise SetupError(f"{PINS} pins no torch")
    return match[0]


def install(version: Version, base_python: str, torch_index: str) -> None:
    """Create the checkout's .venv with a CPU build of torch and ComfyUI's own requirements."""
    requirements = version.folder / "requirements.txt"
    venv = version.folder / ".venv"
    wanted = hashlib.sha256(f"{torch_pin()}\n{requirements.read_text()}".encode()).hexdigest()
    stamp = venv / STAMP
    started = venv / f"{STAMP}-started"
    if venv.exists() and not started.exists() and version.python.exists():
        say(version, f"{venv} was made by somebody else, left as it is")
        return
    if stamp.is_file() and stamp.read_text() == wanted:
        say(version, f"{venv} is installed")
        return
    say(version, f"installing {venv}")
    run(base_python, "-m", "venv", venv)
    started.touch()
    pip = (version.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    index = ("--index-url", torch_index) if torch_index else ()
    run(*pip, *index, torch_pin(), *TORCH_PACKAGES)
    # Named again, so that the requirements cannot move torch to another build.
    # playwright: the tests in the browser run with this Python, too (Chromium is the system's own).
    run(*pip, torch_pin(), "--requirement", requirements, "playwright")
    repair_media_packages(version)
    stamp.write_text(wanted)


def repair_media_packages(version: Version) -> None:
    """Let torchvision and torchaudio that were built for another torch be imported all the same.

    Package indexes without CPU builds give those for CUDA, whose compiled libraries do not load
    here. ComfyUI only needs the imports: torchvision gets the schemas of its operators, torchaudio
    does without its libraries.
    """
    if "torchvision::nms does not exist" in import_error(version, "torchvision"):
        say(version, "torchvision was built for another torch: declaring its operators")
        module = site_packages(version) / "torchvision" / "extension.py"
        module.write_text(f"{module.read_text()}\n{OPERATORS}")
    if "Could not load this library" in import_error(version, "torchaudio"):
        say(version, "torchaudio was built for another torch: setting its libraries aside")
        for library in (site_packages(version) / "torchaudio" / "lib").iterdir():
            library.rename(library.with_name(f"{library.name}.unused"))
    for package in TORCH_PACKAGES:
        if error := import_error(version, package):
            raise SetupError(f"{package} cannot be imported by {version.python}:\n{error[-1500:]}")


def import_error(version: Version, package: str) -> str:
    """What importing `package` writes to stderr when it fails, "" when it works."""
    command = [str(version.python), "-c", f"import {package}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def site_packages(version: Version) -> Path:
    """The folder that pip installs into."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run(version.python, "-c", where).strip())


def share(version: Version, first: Version) -> None:
    """Use the environment of another version: the newer requirements serve the older one too."""
    venv = version.folder / ".venv"
    if venv.exists():
        say(version, f"{venv} exists, left as it is")
        return
    say(version, f"shares {first.folder / '.venv'}")
    venv.unlink(missing_ok=True)  # a link that leads nowhere
    venv.symlink_to((first.folder / ".venv").resolve(), target_is_directory=True)


def try_start(version: Version) -> None:
    """Start main.py once on the CPU; raises SetupError with the end of its log if it fails."""
    with tempfile.TemporaryDirectory() as base:
        options = ("--cpu", "--quick-test-for-ci", "--base-directory", base)
        command = (str(version.python), "main.py", *options, "--disable-all-custom-nodes")
        try:
            done = subprocess.run(
                command, cwd=version.folder, capture_output=True, text=True, check=False,
                timeout=START_TIMEOUT_S,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, OSError) as error:
            raise SetupError(f"{version.folder} does not start: {error}") from error
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise SetupError(f"{version.folder} does not start:\n{tail}")
    say(version, f"ComfyUI {found_version(version.folder)} starts")


def main() -> int:
    """Set up the versions asked for, each in its folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("current", "oldest"):
        parser.add_argument(f"--{name}-folder", type=Path, required=True)
        parser.add_argument(f"--{name}-source", required=True, help="URL or folder of a repository")
        parser.add_argument(f"--{name}-ref", required=True, help="tag or full commit hash")
    parser.add_argument(
        "--versions", nargs="+", default=["current", "oldest"], choices=["current", "oldest"],
        help="all others share the environment of the first",
    )  # fmt: skip
    parser.add_argument(
        "--more", nargs=2, action="append", default=[], metavar=("FOLDER", "REF"),
        help="a further version of the same source, in an environment shared with the first one",
    )  # fmt: skip
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments")
    parser.add_argument("--torch-index", default="", help="package index of CPU builds of torch")
    options = vars(parser.parse_args())
    versions = [
        Version(
            name,
            Path(os.path.abspath(options[f"{name}_folder"].expanduser())),
            options[f"{name}_source"],
            options[f"{name}_ref"],
        )
        for name in options["versions"]
    ]
    for given, ref in options["more"]:
        folder = Path(os.path.abspath(Path(given).expanduser()))
        versions.append(Version(folder.name, folder, options["current_source"], ref))
    try:
        for version in versions:
            check_out(version)
        install(versions[0], options["python"], options["torch_index"])
        for version in versions[1:]:
            share(version, versions[0])
        for version in versions:
            try_start(version)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
