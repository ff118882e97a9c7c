"""Starts a real ComfyUI on the CPU, with this pack linked in, in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from front_end import USER_SETTINGS

PACK_FOLDER = "rectified-spaattn"
PACK_TITLE = "Rectified SpaAttn"
"""What the template browser calls that folder: `locales/<language>/main.json`."""
START_SECONDS = 180


@dataclass(frozen=True)
class Server:
    """A running ComfyUI: its address, and the folder that holds its models and input."""

    address: str
    base: Path

    def add_placeholder(self, folder: str, name: str) -> None:
        """Put an empty file where a model belongs, so that loaders offer its name."""
        target = self.base / "models" / folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()

    def add_video(self, name: str) -> None:
        """Put an empty file where a video belongs, so that *Load Video* offers its name."""
        (self.base / "input" / name).touch()


@contextlib.contextmanager
def running_server(comfyui: Path, pack: Path) -> Iterator[Server]:
    """Yield a ComfyUI that serves `pack`; stops it afterwards.

    `comfyui` is a ComfyUI folder; this interpreter must have its requirements. Models, input,
    output and settings live in a temporary base directory. `RuntimeError` with the end of the
    server's log when it does not answer in time.
    """
    with tempfile.TemporaryDirectory(prefix="rspa-comfyui-") as temporary:
        base = Path(temporary)
        for name in ("models", "input", "output", "temp", "user/default", "custom_nodes"):
            (base / name).mkdir(parents=True)
        (base / "custom_nodes" / PACK_FOLDER).symlink_to(pack, target_is_directory=True)
        settings = base / "user" / "default" / "comfy.settings.json"
        settings.write_text(json.dumps(USER_SETTINGS), encoding="utf-8")
        example = comfyui / "input" / "example.png"
        if example.exists():  # ComfyUI ships it; the image-to-video workflows name it
            shutil.copy(example, base / "input")
        port = _free_port()
        address = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            "main.py",
            "--cpu",
            "--port",
            str(port),
            "--base-directory",
            str(base),
            "--database-url",
            "sqlite:///:memory:",
        ]
        log_path = base / "server.log"
        with open(log_path, "w", encoding="utf-8") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}
            process = subprocess.Popen(
                command, cwd=comfyui, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            try:
                _wait_until_up(address, process, log_path)
                yield Server(address, base)
            finally:
                process.terminate()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()


def get_json(url: str) -> Any:
    """The JSON that a GET of `url` returns."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def version(address: str) -> str:
    """The version of the ComfyUI at `address`."""
    return get_json(f"{address}/system_stats")["system"]["comfyui_version"]


def get_status(url: str) -> tuple[int, str, int]:
    """Status, content type and size in bytes of a GET of `url`."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.headers.get_content_type(), len(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, "", 0


def post_prompt(address: str, prompt: dict[str, Any]) -> dict[str, Any]:
    """The server's answer to an API-format prompt: accepted, or the list of its errors."""
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(
        f"{address}/prompt", data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            get_json(f"{address}/system_stats")
            return
        time.sleep(0.5)
    tail = log_path.read_text(encoding="utf-8", errors="replace")[-3000:]
    raise RuntimeError(f"ComfyUI did not answer within {START_SECONDS} s:\n{tail}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
