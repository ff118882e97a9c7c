"""Start a real ComfyUI server, queue graphs over HTTP, read latents and the log."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PACK_PARTS = (
    "__init__.py", "pyproject.toml", "nodes", "rspa_core", "kernels", "benchmarks", "web",
    "locales",
)  # fmt: skip
PACK_FOLDER = "ComfyUI-Rectified-SpaAttn"  # what a git clone would be called; not importable
TEST_NODES = Path(__file__).parent / "test_nodes"
REPORT_MARK = "RSPA_REPORT "
START_TIMEOUT_S = 180
RUN_TIMEOUT_S = 300


@dataclass(frozen=True)
class Checkout:
    """A ComfyUI source folder with its own virtual environment."""

    folder: Path
    python: Path


CHECKOUTS = {
    "current": ("COMFYUI_DIR", "~/comfy/ComfyUI"),
    "oldest": ("COMFYUI_DIR_OLD", "~/comfy/ComfyUI-0.8.0"),
}
"""For each version: the environment variable that names its folder, and the default."""

MORE = "COMFYUI_DIRS_MORE"
"""The environment variable that names folders of further versions, separated as in PATH."""


def all_checkouts() -> dict[str, tuple[str, str]]:
    """CHECKOUTS and the further versions, which are called as their folders are."""
    folders = [each for each in os.environ.get(MORE, "").split(os.pathsep) if each]
    return CHECKOUTS | {Path(folder).name: (MORE, folder) for folder in folders}


def checkout_folder(variable: str, default: str) -> Path:
    """Where a checkout is looked for: as an environment variable says, else the default."""
    named = None if variable == MORE else os.environ.get(variable)
    return Path(named or default).expanduser()


def find_checkout(variable: str, default: str) -> Checkout | str:
    """The checkout named by an environment variable, else the default; or why there is none."""
    folder = checkout_folder(variable, default)
    if not folder.exists():
        return f"no ComfyUI at {folder} (make comfyui, or set {variable})"
    if not (folder / "main.py").is_file():
        return f"{folder} has no main.py"
    for relative in ("bin/python", "Scripts/python.exe"):
        python = folder / ".venv" / relative
        if python.exists():
            return Checkout(folder, python)
    return f"{folder} has no .venv with a Python interpreter (make comfyui)"


@dataclass
class Run:
    """What one queued graph left behind. latents: name given to the save node -> tensor."""

    latents: dict[str, torch.Tensor]
    log: str
    seconds: float
    reports: list[dict] = field(default_factory=list)

    @property
    def samples(self) -> torch.Tensor:
        """The latent of a graph that saves one, or that it saves as "latent"."""
        if "latent" in self.latents:
            return self.latents["latent"]
        (only,) = self.latents.values()
        return only

    @property
    def report(self) -> dict:
        """The report of a graph whose sampler ran once with one of our nodes."""
        if len(self.reports) != 1:
            raise AssertionError(f"expected one report, found {len(self.reports)}:\n{self.log}")
        return self.reports[0]


class GraphError(RuntimeError):
    """The server refused the graph or a node raised; the message holds its explanation."""


def install_pack(custom_nodes: Path) -> None:
    """Copy what users install, and the test nodes, into a custom_nodes folder."""
    target = custom_nodes / PACK_FOLDER
    ignore = shutil.ignore_patterns("__pycache__")
    target.mkdir(parents=True)
    for part in PACK_PARTS:
        source = PROJECT_ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=ignore)
        elif source.is_file():
            shutil.copy2(source, target / part)
    shutil.copytree(TEST_NODES, custom_nodes / "rspa_test_nodes", ignore=ignore)


def clean_environment() -> dict[str, str]:
    """Environment for ComfyUI's Python: without what this test process set for its own kernels."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTHONPATH")
    }
    # More than one thread spins at barriers: ten times slower on a machine that is busy otherwise.
    return environment | {
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ComfyServer:
    """One running server, on the CPU unless `on_gpu`.

    `base` holds models, custom_nodes, output and the log.
    """

    def __init__(self, checkout: Checkout, base: Path, on_gpu: bool = False):
        self.checkout = checkout
        self.base = base
        self.on_gpu = on_gpu
        self.log_path = base / "server.log"
        self.triton_cache = base / "triton"
        self.url = ""
        self._process: subprocess.Popen | None = None
        self._runs = 0

    def start(self) -> None:
        """Start main.py and wait until it answers; raises RuntimeError with the log if not."""
        for name in ("custom_nodes", "models/diffusion_models", "input", "output", "temp", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [str(self.checkout.python), "main.py", "--port", str(port)]
        command += [] if self.on_gpu else ["--cpu"]
        command += ["--base-directory", str(self.base), "--disable-auto-launch"]
        # The attention function GPU users get; the CPU default would be a chunked one.
        command += ["--use-pytorch-cross-attention"]
        environment = clean_environment()
        # Both versions compile much the same kernels: one cache beside the servers' folders.
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(self.base.parent / "inductor")
        environment["TRITON_CACHE_DIR"] = str(self.triton_cache)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.checkout.folder, env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended while starting:\n{self.log()[-6000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        self.stop()
        raise RuntimeError(f"ComfyUI did not answer:\n{self.log()[-6000:]}")

    def stop(self) -> None:
        """End the server process."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def log(self, start: int = 0) -> str:
        """Text of the server's log from byte `start` on."""
        return self.log_path.read_bytes()[start:].decode("utf-8", errors="replace")

    def get(self, path: str) -> dict:
        """GET a JSON answer."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def _post(self, path: str, data: dict) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def free(self) -> None:
        """Have all models unloaded and all results forgotten before the next run."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def _queue(self, nodes: dict) -> str:
        try:
            return json.loads(self._post("/prompt", {"prompt": nodes}))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise GraphError(error.read().decode("utf-8", errors="replace")) from error

    def _wait(self, prompt_id: str) -> dict:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return entry
            if self._process is None or self._process.poll() is not None:
                raise GraphError(f"the server ended:\n{self.log()[-6000:]}")
            time.sleep(0.02)
        raise GraphError(f"no result after {RUN_TIMEOUT_S} s:\n{self.log()[-3000:]}")

    def run(self, nodes: dict) -> Run:
        """Queue a graph, wait for it and collect its latents; GraphError if a node failed.

        Every call samples anew: a fresh nonce in the latent nodes defeats the server's cache.
        """
        self._runs += 1
        names = {}
        nodes = json.loads(json.dumps(nodes))
        for node_id, node in nodes.items():
            if node["class_type"] == "RSPATestLatent":
                node["inputs"]["nonce"] = self._runs
            if node["class_type"] == "RSPATestSaveLatent":
                names[node_id] = node["inputs"]["name"]
                node["inputs"]["name"] = f"{node['inputs']['name']}_{self._runs}"
        log_start = self.log_path.stat().st_size
        started = time.monotonic()
        entry = self._wait(self._queue(nodes))
        seconds = time.monotonic() - started
        if entry["status"]["status_str"] != "success":
            raise GraphError(_explain(entry))
        latents = {
            name: load_file(self.base / "output" / f"{name}_{self._runs}.safetensors")["samples"]
            for name in names.values()
        }
        log = self.log(log_start)
        return Run(latents, log, seconds, parse_reports(log))

    def interrupt_when(self, nodes: dict, seen: str) -> None:
        """Queue a graph and interrupt it as soon as its log holds `seen`."""
        log_start = self.log_path.stat().st_size
        prompt_id = self._queue(nodes)
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while seen not in self.log(log_start):
            if time.monotonic() > deadline:
                raise GraphError(f"{seen!r} never came:\n{self.log(log_start)}")
            time.sleep(0.02)
        self._post("/interrupt", {})
        if self._wait(prompt_id)["status"]["status_str"] == "success":
            raise GraphError("the graph was finished before it could be interrupted")

    def interrupt_often(self, nodes: dict) -> str:
        """Queue a graph whose log says nothing, interrupt it until it ends; its status."""
        prompt_id = self._queue(nodes)
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while prompt_id not in (history := self.get(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise GraphError("the graph does not end")
            # One that comes before the graph has begun is forgotten when it begins.
            self._post("/interrupt", {})
            time.sleep(0.05)
        return history[prompt_id]["status"]["status_str"]


def parse_reports(log: str) -> list[dict]:
    """The JSON objects our node writes to the log when its `verbose` input is on."""
    lines = (line for line in log.splitlines() if REPORT_MARK in line)
    decoder = json.JSONDecoder()
    return [decoder.raw_decode(line.split(REPORT_MARK, 1)[1])[0] for line in lines]


def _explain(entry: dict) -> str:
    for kind, details in entry["status"]["messages"]:
        if kind == "execution_error":
            trace = "".join(details.get("traceback", []))
            return f"{details['node_type']}: {details['exception_message']}\n{trace}"
    return json.dumps(entry["status"])[:4000]
