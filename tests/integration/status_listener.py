"""The status lines the server shows on nodes while it samples."""

from __future__ import annotations

import struct

from rectified_spaattn.benchmarks.paired.web_socket import BINARY, WebSocketReader

TEXT_EVENT = 3  # ComfyUI's binary event for a text on a node


class StatusListener(WebSocketReader):
    """Collects (node id, text) from /ws of a server while the `with` block runs."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "tests", self._hear_text)
        self.texts: list[tuple[str, str]] = []

    def _hear_text(self, kind: int, payload: bytes) -> None:
        if kind == BINARY and payload[:4] == struct.pack(">I", TEXT_EVENT):
            end = 8 + int.from_bytes(payload[4:8], "big")
            self.texts.append((payload[8:end].decode(), payload[end:].decode()))
