"""The documents: pictures that are shown, commands that exist, lines and figures as the code's."""

import ast
import importlib
import re
import runpy
import shlex
from functools import cache
from pathlib import Path

import pytest

from rectified_spaattn.rspa_core.run.presets import PRESETS
from rectified_spaattn.rspa_core.run.reasons import Reason, why
from rectified_spaattn.rspa_core.run.report_text import last_status

from .nodes.run_records import run_record

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


STATUS = re.compile(r"sparse [\d,]+ / dense [\d,]+[^`\n|]*")
WAN_14B_BLOCKS = 40
MESSAGE = re.compile(r"`([^`]*(?: |\.\.\.)[^`]*)`")
ODD = [
    ROOT / "docs" / "troubleshooting.md",
    ROOT / "web" / "docs" / "RectifiedSpaAttn.md",
    ROOT / "web" / "docs" / "RectifiedSpaAttn" / "zh.md",
]
GAIN = re.compile(r"([\d.]+) → ([\d.]+) s, ([\d.]+)x \| ([\d.]+)x")
STEPS = 20


def dense_steps() -> int:
    """Of the steps of the documents' examples, with the node's defaults."""
    return round(PRESETS["balanced"].start_percent * STEPS)


def gains() -> list[tuple[float, float, float, float]]:
    """Rows of README's first table: seconds dense and sparse, times faster per call and render."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [tuple(map(float, row)) for row in GAIN.findall(text)]  # type: ignore[misc]


def example_line() -> str:
    """The last line of a render of Wan 14B with the preset `balanced`, cfg 1.

    The seconds are those of the first row of README's table.
    """
    preset, first = PRESETS["balanced"], dense_steps()
    dense, sparse, *_ = gains()[0]
    reason = why(Reason.BEFORE_START, 100 * preset.start_percent)
    record = run_record(
        STEPS,
        WAN_14B_BLOCKS,
        dense_steps=first,
        density=1 - preset.sparsity,
        reasons={reason: first * WAN_14B_BLOCKS},
        reason_steps={reason: first},
        num_steps=STEPS,
        seconds=first * dense + (STEPS - first) * sparse,
        sparse_forward_seconds=(sparse,) * (STEPS - first),
        dense_forward_seconds=(dense,) * first,
    )
    return last_status(record)


def test_example_lines_are_what_the_node_says() -> None:
    shown = {
        (path.relative_to(ROOT).as_posix(), line.strip())
        for path in documents()
        for line in STATUS.findall(path.read_text(encoding="utf-8"))
        if "·" in line or "(" in line
    }
    assert {path for path, _ in shown} >= {"README.md", "web/docs/RectifiedSpaAttn.md"}
    assert {line for _, line in shown} == {example_line()}


@cache
def said() -> list[str]:
    """Texts in the code: reasons and other constants, and pieces of those with values in them."""
    found = [each.value for each in Reason]
    for folder in ("nodes", "rspa_core", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for node in nodes:
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
                    found.append("".join(map(str, parts)))
    scripts = (path.read_text(encoding="utf-8") for path in (ROOT / "web" / "js").glob("*.js"))
    return [*found, *scripts]


@pytest.mark.parametrize("path", ODD, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_messages_are_those_of_the_code(path: Path) -> None:
    rows = [
        line.split("|")[1]
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    messages = [each for row in rows for each in MESSAGE.findall(row)]
    assert len(messages) >= 4
    unknown = [
        message
        for message in messages
        if not all(
            any(piece in text for text in said())
            for piece in map(str.strip, message.split("..."))
            if piece
        )
    ]
    assert not unknown


def test_the_example_of_the_library_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    program = tmp_path / "page.py"
    code, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    program.write_text(code, encoding="utf-8")
    result = runpy.run_path(str(program))
    assert result["out"].shape == result["q"].shape
    assert result["out"].isfinite().all()


def test_figures_of_the_first_table() -> None:
    """Each is in docs/benchmarks.md, and the multiples are those of the seconds beside them."""
    found, first = gains(), dense_steps()
    table = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    known = set(re.findall(r"\d+\.\d+", table))
    assert len(found) >= 8
    for dense, sparse, per_call, per_render in found:
        assert {f"{dense:g}", f"{sparse:g}"} <= {f"{float(each):g}" for each in known}
        assert per_call == round(dense / sparse, 1)
        render = STEPS * dense / (first * dense + (STEPS - first) * sparse)
        assert per_render == pytest.approx(render, abs=0.0051)


def test_readme_says_how_many_results_have_come() -> None:
    table = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    sent = table[table.index("## Graphics cards, measured") : table.index("### Captured")]
    tables = [re.findall(r"^\|[^-\n].*\|$", part, re.M) for part in sent.split("\n## ")]
    assert [rows[0].split(" | ")[0] for rows in tables] == ["| card", "| card"]
    words = {0: "no", 1: "one", 2: "two", 3: "three"}
    cards, comparisons = (words.get(len(rows) - 1, str(len(rows) - 1)) for rows in tables)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert re.search(rf"So far: {cards} cards?, {comparisons} comparisons?\.", readme)
