"""A server that answers as ComfyUI does: clips are noise around a picture of prompt and seed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

FRAMES, HEIGHT, WIDTH = 3, 24, 32
ACCEPT = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
REPORT = {
    "settings": {"preset": "balanced", "sparsity": 0.75, "block_size": 128},
    "tokens": 720, "steps": [{}, {}], "sparse": 6, "dense": 3, "density": 0.25, "seconds": 1.5,
    "reasons": {"first 20 %": 3},
}  # fmt: skip


def png(seed: int, noise: float, frame: int) -> bytes:
    """A frame of a scene, with some noise."""
    scene = np.random.default_rng(seed).uniform(60, 190, (HEIGHT, WIDTH, 3))
    change = noise * np.random.default_rng(frame).standard_normal(scene.shape)
    stream = io.BytesIO()
    Image.fromarray((scene + change).round().astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


class FakeComfy:
    """Renders graphs at once; `device`, `refusal` and `failure` are what it says."""

    def __init__(self) -> None:
        self.device: dict[str, Any] = {
            "name": "cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync", "type": "cuda",
            "vram_total": 24 << 30, "vram_free": 4 << 30,
        }  # fmt: skip
        self.knows_node = True
        self.refusal: Any = None
        self.failure: list[Any] | None = None
        self.graphs: list[dict[str, Any]] = []
        self._asked: set[str] = set()
        self._clients: dict[str, Callable[[dict[str, Any]], None]] = {}

    def __enter__(self) -> FakeComfy:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake._get(self)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fake._queue(self, json.loads(body))

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        serve = partial(self._server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        address = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if address.path == "/ws":
            self._connect(request, query["clientId"])
        elif address.path == "/view":
            seed, noise, frame = query["filename"].split("_")
            answer(request, png(int(seed), float(noise), int(frame)))
        elif address.path == "/system_stats":
            system = {
                "os": "linux", "comfyui_version": "0.33.0", "pytorch_version": "2.13.0+cu130",
                "python_version": "3.12.3 (main)", "argv": ["somebody/main.py"],
            }  # fmt: skip
            answer(request, {"system": system, "devices": [self.device]})
        elif address.path.startswith("/object_info/"):
            answer(request, {address.path.split("/")[-1]: {}} if self.knows_node else {})
        else:
            number = address.path.split("/")[-1]
            asked = number in self._asked
            self._asked.add(number)  # the first time it still renders
            answer(request, {number: self._history(int(number))} if asked else {})

    def _connect(self, request: BaseHTTPRequestHandler, client: str) -> None:
        key = request.headers["Sec-WebSocket-Key"] + ACCEPT
        request.send_response(101)
        request.send_header("Upgrade", "websocket")
        request.send_header("Connection", "Upgrade")
        digest = hashlib.sha1(key.encode()).digest()
        request.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())

        def send(message: dict[str, Any]) -> None:
            payload = json.dumps(message).encode()
            head = bytes([0x81, 126]) + len(payload).to_bytes(2, "big")
            request.wfile.write(head + payload)

        self._clients[client] = send
        request.end_headers()  # from now on the client may queue
        request.rfile.read(1)  # until the client leaves

    def _queue(self, request: BaseHTTPRequestHandler, data: dict[str, Any]) -> None:
        if self.refusal is not None:
            answer(request, self.refusal, 400)
            return
        self.graphs.append(data["prompt"])
        for node in ("55:3", "55:8", None):
            values = {"node": node, "filler": "x" * 200}
            self._clients[data["client_id"]]({"type": "executing", "data": values})
        answer(request, {"prompt_id": str(len(self.graphs) - 1), "node_errors": {}})

    def _history(self, number: int) -> dict[str, Any]:
        graph = self.graphs[number]
        seed = graph["55:3"]["inputs"]["seed"] + len(graph["54:6"]["inputs"]["text"])
        enabled = graph["51"]["inputs"]["enabled"]
        names = [{"filename": f"{seed}_{4.0 * enabled}_{each}"} for each in range(FRAMES)]
        start = ["execution_start", {"timestamp": 1000}]
        if self.failure is not None:
            status = {"status_str": "error", "messages": [start, self.failure]}
            return {"status": status, "outputs": {}}
        messages = [start, ["execution_success", {"timestamp": 4500}]]
        report = json.dumps(REPORT if enabled else None)
        outputs = {
            "paired_frames": {"images": names},
            "paired_report_0_json": {"text": [report]},
            "paired_report_0": {"images": []},
        }
        return {"status": {"status_str": "success", "messages": messages}, "outputs": outputs}


def answer(request: BaseHTTPRequestHandler, data: Any, code: int = 200) -> None:
    """Send bytes, or anything else as JSON."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    request.send_response(code)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
