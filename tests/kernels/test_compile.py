"""Entries of the tile table compile for their architecture, fit, and their loops do not spill.

By default the tile that Hopper gets when no check fails: its code is of a kind of its own. That of
all others is of one kind, of which benchmarks/test_cards.py compiles a tile; they differ in shared
memory (checked in test_tiles.py, too).
`make test-all` compiles every tile for every architecture, and the other kernels of a call, with
the installed Triton and with the releases that it puts into folders of their own: the lowest that
the kernels run with, and the newest.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
USUAL, USUAL_BLOCK = 90, 128
"""The architecture that is always tried, and the size of the blocks."""
CALLED = (89, USUAL)
"""Architectures that all kernels of a call are compiled for."""
LOWEST, NEWEST = "3.3.1", "3.9.0"
RELEASES = (None, LOWEST, NEWEST)
"""Of Triton; None for the installed one."""


class Spills(NamedTuple):
    """Bytes of memory that a thread parks registers in, and instructions of all loops that do so or
    read them back."""

    parked: int
    in_loops: int


# What does not fit beside the innermost loops is parked around them, mostly for the tail of
# `precise`, which comes last. Inside these loops nothing spills.
USUAL_SPILLS = Spills(48, 0)
# But these releases read a few of the parked registers back in the loops of one tile, with less
# than two instructions in a hundred (docs/notes/kernels.md, "Tiles").
MOST_SPILLS = {
    (LOWEST, 80): Spills(48, 5),
    (LOWEST, 86): Spills(80, 29),
    (LOWEST, 89): Spills(80, 29),
    (NEWEST, 80): Spills(48, 4),
}

# A product of Hopper takes its addresses from registers that the threads share. Some are copied
# there once a tile; more where the assembler does not know that threads take a branch together, see
# `uniform` in kernels/attend_hopper.py.
MOST_COPIES = 20


def name_of(release: str | None) -> str:
    """In the name of a test."""
    return release or "installed"


def records_of(script: str, *options: str, release: str | None = None) -> list[dict[str, Any]]:
    """What a script of this folder prints with a release of Triton, without its interpreter.

    Skips the test where the release is not there.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if release is not None:
        folder = Path(sys.prefix) / f"triton-{release}"
        if not (folder / "triton").is_dir():
            pytest.skip(f"make test-all installs Triton {release}")
        paths = [str(folder), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    run = subprocess.run(
        [sys.executable, HERE / script, *options], env=environment, capture_output=True, text=True
    )
    # Behind an error Triton 3.9 lists what it has not freed.
    assert run.returncode == 0, run.stderr.split("nanobind: leaked")[0][-2000:]
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert {record["triton"] for record in records} == {release or installed()}
    return records


def installed() -> str:
    import triton

    return triton.__version__


@pytest.mark.timeout(1800)  # minutes, where other processes have the processors
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("release", RELEASES, ids=name_of)
def test_tile_table(release: str | None, arch: int, pytestconfig: pytest.Config) -> None:
    is_whole = pytestconfig.getoption("--all-tiles")
    if not is_whole and (arch != USUAL or release is not None):
        pytest.skip("compiles for minutes: make test-all")
    options = [] if is_whole else ["--first", str(USUAL_BLOCK)]
    records = records_of("compile_tiles.py", str(arch), *options, release=release)
    blocks = {(128, 128), (128, 64), (64, 64)} if is_whole else {(USUAL_BLOCK, USUAL_BLOCK)}
    assert {tuple(record["blocks"]) for record in records} == blocks
    most = MOST_SPILLS.get((release, arch), USUAL_SPILLS)
    wrong = [
        record
        for record in records
        if record["shared"] > record["limit"]
        or record["parked"] > most.parked
        or record["spills_in_loops"] > most.in_loops
        or record["copies_in_a_loop"] > MOST_COPIES
    ]
    assert not wrong, "\n".join(map(json.dumps, wrong))


@pytest.mark.timeout(1800)  # minutes, where other processes have the processors
@pytest.mark.parametrize("arch", CALLED)
@pytest.mark.parametrize("release", RELEASES, ids=name_of)
def test_kernels_of_a_call(release: str | None, arch: int, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--all-tiles"):
        pytest.skip("compiles for a minute: make test-all")
    records = records_of("compile_calls.py", str(arch), release=release)
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "kernels").glob("*.py")]
    kernels = {name for each in sources for name in re.findall(r"^def (\w+_kernel)\(", each, re.M)}
    is_hopper_kernel_taken = arch == 90 and release != LOWEST
    other = "attend_kernel" if is_hopper_kernel_taken else "attend_hopper_kernel"
    assert {record["kernel"] for record in records} == kernels - {other}
    wrong = [record for record in records if record["shared"] > record["limit"]]
    assert not wrong, "\n".join(map(json.dumps, wrong))


def test_releases_are_those_of_the_makefile_and_the_first_and_last_known() -> None:
    from rectified_spaattn.kernels.devices import KNOWN_RELEASES, MIN_TRITON

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^TRITON_RELEASES := (.*)$", makefile, re.M)[1] == f"{LOWEST} {NEWEST}"
    for release, known in ((LOWEST, MIN_TRITON), (NEWEST, max(KNOWN_RELEASES))):
        assert tuple(map(int, release.split(".")[:2])) == known
