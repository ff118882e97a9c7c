"""Runs a program of `browser/` once per test run and hands its report to every test process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "browser"


def browser() -> str | None:
    """Path of a Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def comfyui() -> tuple[Path, Path] | str:
    """ComfyUI's folder and its Python, or the reason why nothing can run in a browser."""
    folder = Path(os.environ.get("COMFYUI_DIR") or "~/comfy/ComfyUI").expanduser()
    if not (folder / "main.py").is_file():
        return f"no ComfyUI at {folder} (set COMFYUI_DIR)"
    pythons = [folder / ".venv" / name for name in ("bin/python", "Scripts/python.exe")]
    python = next((path for path in pythons if path.exists()), None)
    if python is None:
        return f"{folder} has no .venv with a Python interpreter"
    probe = [str(python), "-c", "import playwright, comfyui_frontend_package"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return f"{python} lacks playwright or ComfyUI's requirements"
    if browser() is None:
        return "no Chromium on the path"
    return folder, python


def report_of(
    program: str, temporary: pytest.TempPathFactory, seconds: float, *words: str
) -> dict[str, Any]:
    """The report.json of `browser/<program>`, plus the folder of its files under "folder".

    With several test processes the first one runs it and the others wait. Skips, with the reason,
    where there is no ComfyUI or no browser.
    """
    found = comfyui()
    if isinstance(found, str):
        pytest.skip(found)
    shared = temporary.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    out = shared / Path(program).stem
    finished = out / "finished.json"
    try:
        out.mkdir()
    except FileExistsError:  # another test process is at it
        deadline = time.monotonic() + seconds
        while not finished.exists() and time.monotonic() < deadline:
            time.sleep(1)
    else:
        partial = out / "partial.json"
        end = time.monotonic() + seconds
        outcome = _run(program, *found, out, seconds, words)
        # On a busy machine a page may not answer in time: once more, if there is time for it.
        remaining = end - time.monotonic()
        if _went_wrong(outcome[0], out) and remaining > seconds / 2:
            outcome = _run(program, *found, out, remaining, words)
        partial.write_text(json.dumps(outcome), encoding="utf-8")
        partial.rename(finished)
    returncode, error_text = json.loads(finished.read_text(encoding="utf-8"))
    assert returncode == 0, error_text
    return json.loads((out / "report.json").read_text(encoding="utf-8")) | {"folder": str(out)}


def _went_wrong(returncode: int, out: Path) -> bool:
    """Whether the program failed, or reports a workflow that it could not go through."""
    if returncode:
        return True
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return any("error" in entry for entry in report["workflows"].values())


def _run(
    program: str, folder: Path, python: Path, out: Path, seconds: float, words: tuple[str, ...]
) -> tuple[int, str]:
    """Return code and last words of the program, which writes its files to `out`."""
    command = [python, FOLDER / program, "--comfyui", folder, "--out", out]
    command += ["--chromium", browser(), *words]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    try:
        result = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no report after {seconds} s"
    return result.returncode, result.stderr[-4000:]
