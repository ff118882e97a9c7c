"""The film of the README: how its frames are put together, and the film itself."""

from pathlib import Path

import pytest
from PIL import Image

from .browser.reel import BAR, MAX_BYTES, Reel

ROOT = Path(__file__).resolve().parents[2]
FILM = ROOT / "docs" / "images" / "ui" / "film.webp"
SIZE = (160, 100)


def picture(shade: int) -> Image.Image:
    """A picture of a page."""
    return Image.new("RGB", SIZE, (shade, shade, shade))


def test_frames_that_look_the_same_become_one() -> None:
    reel = Reel("")
    for shade, pointer in [(0, None), (0, None), (0, (50.0, 40.0)), (90, (50.0, 40.0))]:
        reel.add(picture(shade), 100, pointer)
    assert reel.times == [200, 100, 100]
    assert reel.seconds == pytest.approx(0.4)


def test_a_new_caption_is_a_new_frame_below_the_same_picture() -> None:
    reel = Reel("")
    for words in ("one", "two"):
        reel.caption = ("1", words)
        reel.add(picture(90), 100, None)
    first, second = reel.frames
    assert first.size == (SIZE[0], SIZE[1] + BAR)
    box = (0, 0, *SIZE)
    assert first.crop(box).tobytes() == second.crop(box).tobytes() == picture(90).tobytes()
    assert first.tobytes() != second.tobytes()


def test_the_pointer_stays_out_of_the_line() -> None:
    frames = []
    for pointer in (None, (80.0, 99.0)):
        reel = Reel("")
        reel.add(picture(90), 100, pointer, is_pressed=True)
        frames.append(reel.frames[0])
    assert frames[0].tobytes() != frames[1].tobytes()
    lines = [frame.crop((0, SIZE[1], SIZE[0], SIZE[1] + BAR)).tobytes() for frame in frames]
    assert lines[0] == lines[1]


def test_a_film_keeps_frames_and_times_and_starts_again(tmp_path: Path) -> None:
    reel = Reel("")
    for shade in (0, 120, 240):
        reel.add(picture(shade), shade + 100, None)
    path = tmp_path / "film.webp"
    reel.save(path)
    with Image.open(path) as film:
        assert film.n_frames == 3
        assert film.info["loop"] == 0
        times = []
        for number in range(3):
            film.seek(number)
            film.load()
            times.append(film.info["duration"])
    assert times == reel.times
    with pytest.raises(ValueError, match="at most 10"):
        reel.save(path, max_bytes=10)


def test_the_film_of_the_readme_is_short_and_small() -> None:
    assert FILM.stat().st_size <= MAX_BYTES
    seconds = 0.0
    with Image.open(FILM) as film:
        for number in range(film.n_frames):
            film.seek(number)
            film.load()
            seconds += film.info["duration"] / 1000
    assert 15 <= seconds <= 40
