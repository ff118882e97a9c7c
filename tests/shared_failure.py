"""What many tests need and cannot have fails once, with its reason; the others skip and say where.

A fixture raises `SharedFailure`; `conftest.py` turns every report of it but the first into a skip,
across all test processes of a run.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest


class SharedFailure(Exception):
    """Something that many tests need is broken.

    what: names it in a few words; equal words are one failure. reason: for the one test that
    reports it, for instance the end of a log.
    """

    def __init__(self, what: str, reason: str):
        super().__init__(f"{what}:\n{reason}")
        self.what = what


def shared_folder(temporary: pytest.TempPathFactory) -> Path:
    """The temporary folder that all test processes of this run have in common."""
    base = temporary.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _note(folder: Path, what: str) -> Path:
    return folder / f"failed-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def first_to_report(folder: Path, what: str, test: str) -> str:
    """The test that reports this failure: `test` if none did before."""
    note = _note(folder, what)
    try:
        with note.open("x", encoding="utf-8") as file:
            file.write(test)
    except FileExistsError:
        return note.read_text(encoding="utf-8")
    return test


def skip_if_reported(folder: Path, what: str) -> None:
    """Skip without trying again what another test process has found broken."""
    note = _note(folder, what)
    if note.exists():
        pytest.skip(f"{what}: see {note.read_text(encoding='utf-8')}")
