"""A running ComfyUI over HTTP: what it is, and one render with its frames, times and reports."""

from __future__ import annotations

import itertools
import json
import re
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from ...nodes.inputs import MAIN
from ..rules import plain_name
from .graph import FRAMES, REPORTED, Graph
from .web_socket import TEXT, WebSocketReader

POLL_S = 0.5
TIMEOUT_S = 60
MAX_BYTES = 64 << 20
SAMPLER = "Sampler"
"""Part of the class names of all samplers."""
GIB = 1 << 30


class ServerError(RuntimeError):
    """The server does not answer, refuses the graph, or fails. The message is its own."""


@dataclass(frozen=True)
class Render:
    """One finished clip.

    Attributes:
        frames: names under which the server keeps the frames as PNG, for `Server.frame`.
        seconds: of the whole graph; what ComfyUI had cached takes none.
        sampling_s: of all samplers, by ComfyUI's events; None if they came from the cache.
        peak_gib: most memory of the GPU that was in use at a poll; None on a CPU.
        reports: what our nodes say of the run; empty where they were off.
    """

    frames: list[dict[str, str]]
    seconds: float
    sampling_s: float | None
    peak_gib: float | None
    reports: list[dict[str, Any]]


class Server:
    """A ComfyUI that runs."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def about(self) -> dict[str, Any]:
        """Versions and card: nothing about users and folders.

        Raises:
            ServerError: it does not answer, or has no node of ours.
        """
        stats = self._json("/system_stats")
        if not isinstance(stats, dict) or not {"system", "devices"} <= stats.keys():
            raise ServerError(f"what answers at {self.url} is no ComfyUI")
        if MAIN.node_id not in self._json(f"/object_info/{MAIN.node_id}"):
            raise ServerError(
                f"the ComfyUI at {self.url} has no node {MAIN.title!r}: install the pack there"
            )
        system, device = stats["system"], stats["devices"][0]
        is_gpu = device["type"] != "cpu"
        # "cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync"
        name = re.sub(r"^cuda:\d+ | : \S+$", "", device["name"]) if is_gpu else "CPU"
        return {
            "device": {
                "name": plain_name(name),
                "type": device["type"],
                "memory_gib": round(device["vram_total"] / GIB, 1) if is_gpu else None,
            },
            "software": {
                "comfyui": str(system.get("comfyui_version", "0")),
                "torch": str(system.get("pytorch_version", "0")),
                "python": system["python_version"].split()[0],
                "system": system["os"],
            },
        }

    def render(self, graph: Graph) -> Render:
        """Queue a graph of `graph.render_graph` and wait for its end.

        Raises:
            ServerError: with what the server says.
        """
        client, starts = uuid.uuid4().hex, list[tuple[float, str | None]]()

        def hear(kind: int, payload: bytes) -> None:
            message = json.loads(payload) if kind == TEXT else {}
            if message.get("type") == "executing":
                starts.append((time.monotonic(), message["data"]["node"]))

        try:
            with WebSocketReader(self.url, client, hear) as events:
                queued = self._json("/prompt", {"prompt": graph, "client_id": client})
                if queued.get("node_errors"):
                    raise ServerError(_refusal(queued))
                entry, peak = self._wait(queued["prompt_id"], events)
        except OSError as error:
            raise ServerError(self._silence(error)) from error
        status = entry["status"]
        if status["status_str"] != "success":
            raise ServerError(_failure(status))
        outputs = entry["outputs"]
        texts = ["".join(each["text"]) for name, each in outputs.items() if _is_report(name)]
        stamps = {kind: values.get("timestamp", 0) for kind, values in status["messages"]}
        return Render(
            outputs[FRAMES]["images"],
            (stamps.get("execution_success", 0) - stamps.get("execution_start", 0)) / 1e3,
            _sampling(starts, graph),
            peak,
            [report for report in map(json.loads, texts) if report is not None],
        )

    def frame(self, name: dict[str, str]) -> bytes:
        """The PNG of one of a render's frames."""
        return self._bytes(f"/view?{urlencode(name)}")

    def _wait(self, prompt: str, events: WebSocketReader) -> tuple[Any, float | None]:
        peak = None
        while True:
            is_open = events.is_open  # before the question: an answer may come as the last word
            entry = self._json(f"/history/{prompt}").get(prompt)
            if entry is not None:
                return entry, peak
            if not is_open:
                raise ServerError(f"the ComfyUI at {self.url} has ended or was restarted")
            device = self._json("/system_stats")["devices"][0]
            if device["type"] != "cpu":
                used = (device["vram_total"] - device["vram_free"]) / GIB
                peak = round(max(peak or 0.0, used), 2)
            time.sleep(POLL_S)

    def _json(self, path: str, data: Any = None) -> Any:
        try:
            return json.loads(self._bytes(path, data))
        except ValueError as error:
            raise ServerError(f"what answers at {self.url} is no ComfyUI: {error}") from error

    def _bytes(self, path: str, data: Any = None) -> bytes:
        body = None if data is None else json.dumps(data).encode()
        headers = {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(self.url + path, body, headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                found = answer.read(MAX_BYTES + 1)
        except urllib.error.HTTPError as error:
            said = error.read(MAX_BYTES).decode("utf-8", errors="replace")
            raise ServerError(_refusal(said)) from error
        except (OSError, ValueError) as error:
            raise ServerError(self._silence(error)) from error
        if len(found) > MAX_BYTES:
            raise ServerError(f"{path} has more than {MAX_BYTES >> 20} MiB")
        return found

    def _silence(self, error: Exception) -> str:
        reason = getattr(error, "reason", error)
        return f"no ComfyUI answers at {self.url} ({reason}): start it, or see --server"


def _is_report(name: str) -> bool:
    return name.startswith(REPORTED) and name.endswith("_json")


def _sampling(starts: list[tuple[float, str | None]], graph: Graph) -> float | None:
    """Seconds from the start of each sampler to that of what came after it."""
    spent = [
        after - begun
        for (begun, node), (after, _) in itertools.pairwise(starts)
        if node is not None and SAMPLER in graph.get(node, {}).get("class_type", "")
    ]
    return sum(spent) if spent else None


def _refusal(said: Any) -> str:
    """What a server says of a graph that it does not take: every node with its errors."""
    try:
        answer = json.loads(said) if isinstance(said, str) else said
        lines = [answer["error"]["message"]] if answer.get("error") else []
        for node_id, node in (answer.get("node_errors") or {}).items():
            for each in node["errors"]:
                words = f"{each['message']}: {each['details']}"
                lines.append(f"  node {node_id}, {node['class_type']}: {words}")
    except (ValueError, TypeError, KeyError, AttributeError):
        lines = [str(said)[:1000]]
    return "\n".join(["the server refuses the workflow:", *lines])


def _failure(status: dict[str, Any]) -> str:
    for kind, values in status["messages"]:
        if kind == "execution_error":
            where = f"node {values['node_id']}, {values['node_type']}"
            return f"the render failed in {where}: {values['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return "the render was interrupted"
    return f"the render ended with {status['status_str']!r}"
