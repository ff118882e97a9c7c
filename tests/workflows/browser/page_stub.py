"""ComfyUI's page without ComfyUI: files of the front end's package, and answers from a table.

Nothing runs as a server and nothing leaves the browser: every request is answered here, what the
table does not know with 404.
"""

from __future__ import annotations

import contextlib
import json
import mimetypes
import struct
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from artist import Artist
from front_end import MESSAGES, OPENING_MS, USER_SETTINGS, opened
from playwright.sync_api import Page, Route, WebSocketRoute

Json = dict[str, Any]

# Below `localhost` a page is as trusted as on the user's own machine.
ADDRESS = "http://rspa.localhost"
PACK = "rectified-spaattn"
SETTINGS = USER_SETTINGS | {"Comfy.Validation.Workflows": True}
SETTLE_MS = 300
"""Messages come within 50 ms of the graph where no answer takes time."""
NO_MORE = {"offset": 0, "limit": 200, "total": 0, "has_more": False}
TEXT_EVENT = 3
"""Of ComfyUI's binary messages, the one with a line of text for a node."""


class PageStub:
    """Answers the page in ComfyUI's place, with the pack in the folder `pack` installed."""

    def __init__(self, pack: Path, object_info: Json) -> None:
        static = Path(str(resources.files("comfyui_frontend_package"))) / "static"
        self.folders = {f"/extensions/{PACK}/": pack / "web", "/": static}
        scripts = sorted((pack / "web").rglob("*.js"))
        self.answers: Json = {
            "/api/users": {"storage": "server", "migrated": True},
            "/api/settings": SETTINGS,
            "/api/features": {},
            "/api/extensions": [
                f"/extensions/{PACK}/{path.relative_to(pack / 'web').as_posix()}"
                for path in scripts
            ],
            "/api/object_info": object_info,
            "/api/system_stats": {"system": {"argv": []}, "devices": []},
            "/api/userdata": [],
            "/api/i18n": {},
            "/api/embeddings": [],
            "/api/experiment/models": [],
            "/api/node_replacements": {},
            "/api/workflow_templates": {},
            "/api/jobs": {"jobs": [], "pagination": NO_MORE},
            "/api/global_subgraphs": {},
        }
        self.socket: WebSocketRoute | None = None
        self.pictures: dict[str, bytes] = {}
        """What `/view` answers, PNG files by name."""

    def serve(self, page: Page) -> None:
        """Answer the requests and the websocket of `page`."""
        page.route("**/*", self._answer)
        page.route_web_socket("**/ws*", self._connect)

    def send_progress_text(self, text: str, node_id: str) -> None:
        """What `PromptServer.send_progress_text` sends: a line of text for a node."""
        node = node_id.encode()
        assert self.socket is not None, "the page has not connected yet"
        self.socket.send(struct.pack(">II", TEXT_EVENT, len(node)) + node + text.encode())

    def send_event(self, kind: str, **data: Any) -> None:
        """What the server sends as JSON, as `execution_start`."""
        assert self.socket is not None, "the page has not connected yet"
        self.socket.send(json.dumps({"type": kind, "data": data}))

    def _connect(self, socket: WebSocketRoute) -> None:
        self.socket = socket
        status = {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "page"}
        socket.send(json.dumps({"type": "status", "data": status}))

    def _answer(self, route: Route) -> None:
        url = urlsplit(route.request.url)
        if f"{url.scheme}://{url.netloc}" != ADDRESS:
            route.abort()
            return
        path = unquote(url.path)
        if path in self.answers:
            route.fulfill(json=self.answers[path])
            return
        if path == "/api/view":
            name = parse_qs(url.query)["filename"][0]
            known = name in self.pictures
            body = self.pictures.get(name, b"")
            route.fulfill(status=200 if known else 404, content_type="image/png", body=body)
            return
        start = next(start for start in self.folders if path.startswith(start))
        file = self.folders[start] / (path[len(start) :] or "index.html")
        if file.is_file():
            route.fulfill(path=file, content_type=mimetypes.guess_type(file.name)[0])
        else:
            route.fulfill(status=404)


@contextlib.contextmanager
def opened_page(pack: Path, object_info: Json, chromium: str) -> Iterator[tuple[Artist, PageStub]]:
    """The page in the browser `chromium`, with somebody at it, and what answers it."""
    stub = PageStub(pack, object_info)
    with opened(ADDRESS, chromium, stub.serve, SETTLE_MS) as front_end:
        while stub.socket is None:
            front_end.page.wait_for_timeout(SETTLE_MS)
        # Of the graph that the page begins with the table does not know every node; on a busy
        # machine the page would say so when another graph is on show.
        if front_end.findings()["unknown"]:
            front_end.page.wait_for_function(f"() => ({MESSAGES})().length", timeout=OPENING_MS)
        yield Artist(front_end.page, ADDRESS, SETTLE_MS), stub
