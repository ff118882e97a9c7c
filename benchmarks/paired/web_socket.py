"""What a server sends over a WebSocket: the reading half of RFC 6455, on the standard library."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

TEXT, BINARY = 1, 2
"""Kinds of frames."""
MAX_FRAME = 64 << 20


class WebSocketReader:
    """Gives every frame of `<url>/ws?clientId=...` to a function while the `with` block runs."""

    def __init__(self, url: str, client: str, hear: Callable[[int, bytes], None]) -> None:
        """`hear(kind, payload)` is called on a thread of its own."""
        self._address = urlsplit(url)
        self._client = client
        self._hear = hear
        self._thread = threading.Thread(target=self._read, daemon=True)

    @property
    def is_open(self) -> bool:
        """Whether the server still sends."""
        return self._thread.is_alive()

    def __enter__(self) -> WebSocketReader:
        """Connect; raises `OSError` where no WebSocket answers."""
        secure = self._address.scheme == "https"
        host, port = self._address.hostname or "", self._address.port or (443 if secure else 80)
        self._socket = socket.create_connection((host, port), timeout=10)
        if secure:
            self._socket = ssl.create_default_context().wrap_socket(
                self._socket, server_hostname=host
            )
        request = [
            f"GET {self._address.path.rstrip('/')}/ws?clientId={self._client} HTTP/1.1",
            f"Host: {self._address.netloc.rpartition('@')[2]}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
        ]
        self._socket.sendall(("\r\n".join(request) + "\r\n\r\n").encode())
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline(1000)
        if b" 101 " not in status:
            self._socket.close()
            raise ConnectionError(f"no WebSocket: {status!r}")
        while self._stream.readline(10_000).strip():
            pass  # the other headers
        self._socket.settimeout(None)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):  # the server may have ended
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=10)
        self._stream.close()
        self._socket.close()

    def _read(self) -> None:
        """Read frames until the connection ends; frames from a server are not masked."""
        try:
            while len(head := self._stream.read(2)) == 2:
                length = head[1] & 0x7F
                if length >= 126:
                    length = int.from_bytes(self._stream.read(2 if length == 126 else 8), "big")
                if length > MAX_FRAME:
                    return
                self._hear(head[0] & 0x0F, self._stream.read(length))
        except OSError:
            return
