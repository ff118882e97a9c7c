"""A minimal WebSocket client: the status lines the server shows on nodes while it samples."""

from __future__ import annotations

import base64
import os
import socket
import struct
import threading
from urllib.parse import urlsplit

TEXT_EVENT = 3  # ComfyUI's binary event for a text on a node


class StatusListener:
    """Collects (node id, text) from /ws of a server while the `with` block runs."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self.texts: list[tuple[str, str]] = []

    def __enter__(self) -> StatusListener:
        host, port = self._address.hostname, self._address.port
        self._socket = socket.create_connection((host, port), timeout=10)
        key = base64.b64encode(os.urandom(16)).decode()
        request = [
            "GET /ws?clientId=tests HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        self._socket.sendall(("\r\n".join(request) + "\r\n\r\n").encode())
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        if b" 101 " not in status:
            raise ConnectionError(f"no WebSocket: {status!r}")
        while self._stream.readline().strip():
            pass  # the other headers
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=10)
        self._stream.close()
        self._socket.close()

    def _read(self) -> None:
        """Read frames until the connection ends; frames from a server are not masked."""
        while len(head := self._stream.read(2)) == 2:
            length = head[1] & 0x7F
            if length >= 126:
                size = 2 if length == 126 else 8
                length = int.from_bytes(self._stream.read(size), "big")
            payload = self._stream.read(length)
            is_binary = head[0] & 0x0F == 2
            if is_binary and payload[:4] == struct.pack(">I", TEXT_EVENT):
                end = 8 + int.from_bytes(payload[4:8], "big")
                self.texts.append((payload[8:end].decode(), payload[end:].decode()))
