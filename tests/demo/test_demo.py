"""The demo end to end at a tiny size: table, honesty about the backend, picture."""

from pathlib import Path

import pytest
from PIL import Image

from rectified_spaattn.benchmarks import demo

MODES = ["none 128", "paper 128", "precise 128", "precise 64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, Path]:
    """Exit status, printed text and output folder of one demo run on the CPU."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        status = demo.main(
            ["--device", "cpu", "--grid", "3x12x16", "--rounds", "1", "--out", str(folder)]
        )
    return status, text.getvalue(), folder


def rows(text: str) -> dict[str, list[str]]:
    """Table rows by name, split into cells."""
    names = ["dense", *MODES]
    lines = {
        name: line for line in text.splitlines() for name in names if line.startswith(f"{name} ")
    }
    return {name: line[len(name) :].split() for name, line in lines.items() if "ms" not in line}


def test_prints_one_row_per_mode(run: tuple[int, str, Path]) -> None:
    status, text, _ = run
    assert status == 0
    assert "256 x 192, 9 frames: 576 tokens, grid (3, 12, 16), median of 1" in text
    found = rows(text.split("dense = torch SDPA")[0])
    assert list(found) == ["dense", *MODES]
    assert found["dense"][1:4] == ["1.00x", "1.000", "0"]
    for mode in MODES:
        milliseconds, speed_up, density, error, *kinds = found[mode]
        assert float(milliseconds) > 0
        assert speed_up.endswith("x")
        assert 0 < float(density) <= 1
        assert 0 <= float(error) < 1
        assert len(kinds) == 5


def test_says_that_the_reference_is_no_measure_of_the_kernels(run: tuple[int, str, Path]) -> None:
    assert "backend   reference" in run[1]
    assert "its time says nothing about" in run[1]


def test_saves_the_picture(run: tuple[int, str, Path]) -> None:
    picture = run[2] / "rectified_spaattn.png"
    assert str(picture) in run[1]
    with Image.open(picture) as image:
        assert image.width >= 1200
        assert len(image.convert("RGB").resize((64, 48)).getcolors(4096) or []) > 10


def test_video_name_counts_wan_pixels_and_frames() -> None:
    assert demo.video_name((21, 45, 80)) == "1280 x 720, 81 frames"


def test_rejects_a_grid_that_is_not_three_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--grid", "12"])
    assert "is not T x H x W" in capsys.readouterr().err
