"""The documents: pictures that are shown, commands that exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = re.compile(r"python (?:-P )?-m rectified_spaattn\.benchmarks\.(\w+)([^`\n]*)")


def documents() -> list[Path]:
    """All Markdown files outside hidden folders."""
    return [
        path
        for path in ROOT.rglob("*.md")
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


def commands() -> list[tuple[str, str]]:
    """(program, its arguments) of every benchmark that a document or the Makefile starts."""
    found = set()
    for path in [*documents(), ROOT / "Makefile"]:
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"\\\n\s*", " ", text)  # lines that go on
        text = re.sub(r"`[^`\n]+(?:\n[^`\n]+)?`", lambda code: code[0].replace("\n", " "), text)
        text = text.replace("<ComfyUI's Python>", "python")
        found |= set(COMMAND.findall(text))
    return sorted(found)


def test_every_picture_is_shown_somewhere() -> None:
    shown = "".join(path.read_text(encoding="utf-8") for path in documents())
    shown += (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pictures = [path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file()]
    assert pictures
    orphans = [
        path.relative_to(ROOT).as_posix()
        for path in pictures
        if path.relative_to(ROOT / "docs").as_posix() not in shown
    ]
    assert not orphans


def test_documents_start_every_benchmark() -> None:
    programs = {program for program, _ in commands()}
    known = "calls capture cards clips convert fidelity forward my_card paired"
    assert programs == set(known.split())


@pytest.mark.parametrize(("program", "words"), commands())
def test_commands_of_the_documents_are_understood(program: str, words: str) -> None:
    package = f"rectified_spaattn.benchmarks.{program}"
    folder = ROOT / "benchmarks" / program
    module = importlib.import_module(f"{package}.__main__" if folder.is_dir() else package)
    words = words.replace("$(DEMO_ARGS)", "").replace("<checkout>", "checkout")
    if "BLOCKS" not in words:  # a placeholder
        module.parse(shlex.split(words, comments=True))
