"""The film of the README: a workflow is opened from the template browser, set, and run.

    <ComfyUI's Python> tests/workflows/browser/film.py --comfyui <folder> --out <film.webp>

Everything in it happens in ComfyUI's page, by the mouse whose pointer is drawn in; the small
trained model samples on the CPU. Out of sight, between opening the workflow and choosing the
preset, the values of `FILMED` are typed into the graph, among them the backend for a CPU.
Waiting is left out: moves of the mouse and of the view have a speed of their own, the run is one
frame for each line of the node, and the video is put forward picture by picture. That Python needs
ComfyUI's requirements and playwright.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import front_end
import session_server
from artist import IS_DRAWN, WIDGET_AT, Artist
from artist_session import WORKFLOWS, Visit
from front_end import CARD, PATIENCE_MS, SETTLE_MS
from PIL import Image
from playwright.sync_api import Locator
from reel import Place, Reel
from server import PACK_TITLE
from session_plan import LARGE, NODE, REPORT, SHORT_STEM

WINDOW = {"width": 1040, "height": 650}
FILMED = replace(LARGE, steps=10, cfg="2")
PRESET = "fast"
VIDEO_SCALE = 0.75
RUN_SECONDS = 1200
NOTE = "a small model, on a CPU"

MOVE_MS = 50
"""How long a frame of a move stays."""
MOVE_FRAMES = 9
LINE_MS = 600
"""How long each line of the node stays while it samples."""
LAST_MS = 3000
PICTURE_MS = 125
"""How long a picture of the video stays."""

VIEW = "() => [app.canvas.ds.scale, ...app.canvas.ds.offset]"
SET_VIEW = """([scale, x, y]) => {
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [x, y];
  app.canvas.setDirty(true, true);
  return app.canvas.frame;
}"""
VIDEO_LENGTH = "() => document.querySelector('video').duration"
SEEK = """async seconds => {
  const video = document.querySelector('video');
  video.pause();
  const is_there = new Promise(then => video.addEventListener('seeked', then, {once: true}));
  video.currentTime = seconds;
  await is_there;
}"""
TEXTS = "() => window.sessionTexts.length"


class Camera:
    """Films what an artist does; the pictures go to `reel`."""

    def __init__(self, artist: Artist, reel: Reel) -> None:
        self.artist = artist
        self.page = artist.page
        self.reel = reel
        self.pointer: Place = (WINDOW["width"] * 0.55, WINDOW["height"] * 0.6)
        self.shows_pointer = True

    def shoot(self, ms: int, is_pressed: bool = False) -> None:
        """Add the window as it looks now, for so long."""
        with Image.open(io.BytesIO(self.page.screenshot())) as picture:
            pointer = self.pointer if self.shows_pointer else None
            self.reel.add(picture.convert("RGB"), ms, pointer, is_pressed)

    def move_to(self, x: float, y: float) -> None:
        """Move the mouse."""
        start = self.pointer
        for part in eased(MOVE_FRAMES):
            self.pointer = tuple(mixed(start, (x, y), part))
            self.page.mouse.move(*self.pointer)
            self.shoot(MOVE_MS)
        self.shoot(250)

    def move_onto(self, thing: Locator) -> None:
        """Move the mouse to the middle of something on the page."""
        box = thing.bounding_box()
        assert box is not None, "nothing to be seen there"
        self.move_to(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def click(self) -> None:
        """Click where the mouse is."""
        self.shoot(200, is_pressed=True)
        self.page.mouse.click(*self.pointer)

    def set_view(self, view: list[float]) -> None:
        """Show another part of the graph: scale and offset of the canvas."""
        frame = self.page.evaluate(SET_VIEW, view)
        self.page.wait_for_function(IS_DRAWN, arg=frame, timeout=PATIENCE_MS)

    def look_at(self, node: str, scale: float) -> None:
        """Bring a node to the middle of the window."""
        start = self.page.evaluate(VIEW)
        self.artist.look_at(node, scale)
        self.page.wait_for_timeout(SETTLE_MS)  # what comes into view may load and grow
        self.artist.look_at(node, scale)
        end = self.page.evaluate(VIEW)
        for part in eased(MOVE_FRAMES):
            self.set_view(mixed_views(start, end, part))
            self.page.wait_for_timeout(50)  # texts of the page follow the canvas
            self.shoot(MOVE_MS)


def eased(count: int) -> list[float]:
    """`count` parts of a way that begins and ends slowly, the last is 1."""
    return [part * part * (3 - 2 * part) for part in ((n + 1) / count for n in range(count))]


def mixed(start: Any, end: Any, part: float) -> list[float]:
    """Numbers between `start` and `end`."""
    return [a + (b - a) * part for a, b in zip(start, end, strict=True)]


def mixed_views(start: list[float], end: list[float], part: float) -> list[float]:
    """A view between two, such that every node moves straight."""
    on_screen = [[scale, x * scale, y * scale] for scale, x, y in (start, end)]
    scale, x, y = mixed(*on_screen, part)
    return [scale, x / scale, y / scale]


def film(artist: Artist, reel: Reel) -> None:
    """Go through the scenes."""
    page, camera = artist.page, Camera(artist, reel)
    page.set_viewport_size(WINDOW)
    page.wait_for_timeout(SETTLE_MS)
    page.mouse.move(*camera.pointer)

    reel.caption = ("1", "Open the templates, choose this pack, then a workflow")
    camera.shoot(900)
    open_template(camera)

    reel.caption = ("2", "The workflow: one node behind the models")
    camera.shoot(1200)
    visit = Visit(artist, Path())
    tune(camera, visit)
    node = visit.find(NODE)
    assert node is not None, "no node of ours in the graph"
    camera.look_at(node, 1.35)
    camera.shoot(1200)

    reel.caption = ("3", "Choose a preset: it fills in the values below")
    camera.move_to(*page.evaluate(WIDGET_AT, [node, "preset"]))
    camera.click()
    entry = page.locator(f'.litecontextmenu .litemenu-entry[data-value="{PRESET}"]')
    entry.wait_for(timeout=PATIENCE_MS)
    camera.shoot(700)
    camera.move_onto(entry)
    camera.click()
    page.wait_for_timeout(300)
    assert artist.value(node, "preset") == PRESET
    camera.shoot(1400)

    reel.caption = ("4", "Run")
    camera.move_onto(page.get_by_role("button", name="Run", exact=True).first)
    camera.shoot(200, is_pressed=True)
    artist.press_run(by_key=False)
    camera.shoot(400)
    _, top = page.evaluate(WIDGET_AT, [node, "ramp"])
    camera.move_to(WINDOW["width"] * 0.3, top + 110)
    watch(camera)

    artist.wait_for_outputs([REPORT, "SaveVideo"])
    video, report = visit.find("SaveVideo"), visit.find(REPORT)
    assert video is not None
    assert report is not None
    camera.shows_pointer = False
    page.mouse.move(WINDOW["width"] - 4, WINDOW["height"] / 2)
    reel.caption = ("6", "The video")
    camera.look_at(video, VIDEO_SCALE)
    play(camera)

    reel.caption = ("7", "The report: what was sparse, and the time of each step")
    camera.look_at(report, 1.7)
    camera.shoot(LAST_MS)


def open_template(camera: Camera) -> None:
    """Open the template browser, choose the pack, click the workflow."""
    page, artist = camera.page, camera.artist
    camera.move_onto(page.locator(".templates-tab-button"))
    camera.click()
    dialog = page.get_by_role("dialog")
    pack = dialog.get_by_text(PACK_TITLE, exact=True).first
    pack.wait_for(timeout=PATIENCE_MS)
    page.wait_for_timeout(SETTLE_MS)
    camera.shoot(700)
    pack.scroll_into_view_if_needed(timeout=PATIENCE_MS)
    page.wait_for_timeout(300)
    camera.move_onto(pack)
    camera.shoot(200, is_pressed=True)
    artist.choose_pack(PACK_TITLE, SHORT_STEM)
    camera.shoot(700)
    card = dialog.locator(CARD.format(SHORT_STEM))
    camera.move_onto(card)
    camera.shoot(600)
    camera.click()
    dialog.wait_for(state="hidden", timeout=PATIENCE_MS)
    page.wait_for_timeout(SETTLE_MS)


def tune(camera: Camera, visit: Visit) -> None:
    """Make the workflow small enough for a CPU, out of sight."""
    page = camera.page
    view = page.evaluate(VIEW)
    page.set_viewport_size(front_end.VIEWPORT)
    visit.tune(FILMED)
    page.set_viewport_size(WINDOW)
    page.wait_for_timeout(SETTLE_MS)
    page.mouse.move(*camera.pointer)
    camera.set_view(view)


def watch(camera: Camera) -> None:
    """One frame for each line that the node shows while it samples."""
    camera.reel.caption = ("5", "While it samples, the node says what it does (shortened)")
    artist, count = camera.artist, 0
    while True:
        artist.wait_for_texts(count + 1)
        shown = camera.page.evaluate(TEXTS)
        if shown == count:  # the run is over
            break
        count = shown
        camera.page.wait_for_timeout(150)
        camera.shoot(LINE_MS)
    artist.wait_until_done(RUN_SECONDS)
    camera.shoot(2200)


def play(camera: Camera) -> None:
    """Show the pictures of the video, every other one."""
    length = camera.page.evaluate(VIDEO_LENGTH)
    pictures = round(length * 1000 / PICTURE_MS)
    for number in range(pictures):
        camera.page.evaluate(SEEK, (number + 0.5) * length / pictures)
        camera.page.wait_for_timeout(60)
        camera.shoot(PICTURE_MS)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--out", type=Path, required=True, help="the film, .webp")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser program")
    options = parser.parse_args()
    checkout = session_server.find_checkout("", str(options.comfyui))
    if isinstance(checkout, str):
        parser.error(checkout)
    workflow = json.loads((WORKFLOWS / f"{SHORT_STEM}.json").read_text(encoding="utf-8"))
    reel = Reel(NOTE)
    with (
        tempfile.TemporaryDirectory(prefix="rspa-film-") as folder,
        session_server.running(checkout, Path(folder) / "comfy", [workflow]) as server,
        front_end.opened(server.url, options.chromium) as page,
    ):
        film(Artist(page.page, page.address), reel)
    reel.save(options.out)


if __name__ == "__main__":
    main()
