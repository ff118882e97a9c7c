"""What the artist reads: help pages and translations tell of the nodes as `nodes/inputs.py` does.

ComfyUI's page looks for `web/docs/<node>/<language>.md`, then for `web/docs/<node>.md`, which is
the English page and the one of every language without its own. Pictures are relative to `web/docs`
there, to the page's own folder on GitHub: a page in a folder has copies (tests/test_links.py looks
for both).
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rectified_spaattn.nodes.inputs import NODES, Input, Output
from rectified_spaattn.rspa_core.run.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
PAGES = {"en": "{}.md", "zh": "{}/zh.md"}
LOCALES = ("zh", "zh-TW", "ja", "ko")

TABLE_HEADS = {"input": "inputs", "输入": "inputs", "output": "outputs", "输出": "outputs"}
WORDS = {
    "en": {True: "on", False: "off", "": "empty", None: "–"},
    "zh": {True: "开", False: "关", "": "空", None: "–"},
}
MAX_PICTURE_BYTES = 150_000
MAX_WORDS = 600
"""Of the main node's page, without addresses and lines of tables: the panel is 280 pixels wide."""
OWN_SCRIPT = {
    "zh": r"[\u4e00-\u9fff]",
    "zh-TW": r"[\u4e00-\u9fff]",
    "ja": r"[\u3040-\u30ff\u4e00-\u9fff]",
    "ko": r"[\uac00-\ud7a3]",
}
# In vue-i18n's messages these have a meaning of their own; older pages fail on them.
MESSAGE_SYNTAX = re.compile(r"[{}@|\\<>]")
# What a translation has to carry over: numbers, quoted examples, names of inputs.
FACT = re.compile(r"'[^']+'|\d+(?:[.,]\d+)*|\b[a-z]+_[a-z_]+\b")

node_ids = pytest.mark.parametrize("node_id", NODES)
page_languages = pytest.mark.parametrize("language", PAGES)
locales = pytest.mark.parametrize("language", LOCALES)


def page(node_id: str, language: str) -> str:
    return (DOCS / PAGES[language].format(node_id)).read_text(encoding="utf-8")


def table_rows(text: str, kind: str) -> list[list[str]]:
    """Rows of a page's tables of inputs or of outputs; a backtick opens the first cell."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] in TABLE_HEADS:
            inside = TABLE_HEADS[cells[0]] == kind
        elif inside and not set(line) <= set("|- "):
            rows.append(cells)
    return rows


def row_name(row: list[str]) -> str:
    return row[0].split("`")[1]


def names(node_id: str, kind: str) -> list[str]:
    return [each.name for each in getattr(NODES[node_id], kind)]


def shown_default(each: Input, language: str) -> str:
    """A default as the pages write it."""
    default = each.default if each.choices or each.kind != "choice" else None
    if default is None or isinstance(default, bool) or default == "":
        return WORDS[language][default]
    return f"{default:g}" if isinstance(default, float) else str(default)


def translations(language: str) -> dict[str, Any]:
    path = ROOT / "locales" / language / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_no_page_is_left_over() -> None:
    expected = {DOCS / form.format(node_id) for form in PAGES.values() for node_id in NODES}
    assert set(DOCS.rglob("*.md")) == expected


@node_ids
@page_languages
def test_help_page_lists_inputs_and_outputs(node_id: str, language: str) -> None:
    text = page(node_id, language)
    listed = [row_name(row) for row in table_rows(text, "inputs")]
    assert sorted(listed) == sorted(names(node_id, "inputs"))
    assert [row_name(row) for row in table_rows(text, "outputs")] == names(node_id, "outputs")


@node_ids
@page_languages
def test_help_page_has_the_defaults(node_id: str, language: str) -> None:
    listed = {row_name(row): row[1] for row in table_rows(page(node_id, language), "inputs")}
    expected = {each.name: shown_default(each, language) for each in NODES[node_id].inputs}
    assert listed == expected


@page_languages
def test_help_page_has_the_presets(language: str) -> None:
    text = page("RectifiedSpaAttn", language)
    for name, preset in PRESETS.items():
        values = (preset.sparsity, preset.start_percent, preset.block_size, preset.tail_keys)
        cells = re.escape(" | ".join(f"{value:g}" for value in values))
        assert re.search(rf"^\| `{name}`[^|]* \| {cells} \|$", text, re.M), name


def test_settings_in_detail_have_the_presets() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    head = next(line for line in text.splitlines() if line.startswith("| preset |"))
    columns = re.findall(r"`(\w+)`", head)
    assert set(columns) == set(PRESETS["balanced"].as_dict())
    for name, preset in PRESETS.items():
        values = (preset.as_dict()[column] for column in columns)
        cells = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
        assert f"| `{name}` | {' | '.join(cells)} | " in text


def test_the_main_page_is_short() -> None:
    text = re.sub(r"\]\([^)]*\)", "]", page("RectifiedSpaAttn", "en"))
    words = re.findall(r"[^\s|]*\w[^\s|]*", text)
    assert len(words) < MAX_WORDS


@node_ids
def test_pages_are_called_like_the_nodes(node_id: str) -> None:
    assert page(node_id, "en").startswith(f"# {NODES[node_id].title}\n")
    assert page(node_id, "zh").startswith(f"# {translations('zh')[node_id]['display_name']}\n")


@node_ids
def test_chinese_page_has_the_names_on_the_node(node_id: str) -> None:
    translated, text = translations("zh")[node_id], page(node_id, "zh")
    for row in table_rows(text, "inputs"):
        name = row_name(row)
        assert row[0] == f"`{name}` {translated['inputs'][name]['name']}"
    for index, row in enumerate(table_rows(text, "outputs")):
        assert row[0] == f"`{row_name(row)}` {translated['outputs'][str(index)]['name']}"


def test_pictures_are_there_and_small() -> None:
    linked = set()
    for path in DOCS.rglob("*.md"):
        links = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
        linked |= {folder / link for folder in (DOCS, path.parent) for link in links}
    assert linked == {path for path in DOCS.rglob("*") if path.is_file() and path.suffix != ".md"}
    assert [path.name for path in linked if path.stat().st_size > MAX_PICTURE_BYTES] == []


def test_copies_of_pictures_are_the_same() -> None:
    """Else: copy web/docs/images/... into the folder, or python tools/draw_help.py."""
    copies = list(DOCS.glob("*/images/*"))
    assert copies
    different = [
        path.relative_to(DOCS).as_posix()
        for path in copies
        if path.read_bytes() != (DOCS / "images" / path.name).read_bytes()
    ]
    assert different == []


def test_languages() -> None:
    folders = {path.name: path for path in (ROOT / "locales").iterdir()}
    assert set(folders) == {"en", *LOCALES}
    # The nodes say it in English themselves.
    assert [path.name for path in folders["en"].iterdir()] == ["main.json"]


@pytest.mark.parametrize("language", ["en", *LOCALES])
def test_title_in_the_template_browser(language: str) -> None:
    """For the folder that ComfyUI's registry installs, and for that of a clone."""
    path = ROOT / "locales" / language / "main.json"
    titles = json.loads(path.read_text(encoding="utf-8"))["templateWorkflows"]["category"]
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    clone = project["urls"]["Repository"].rsplit("/", 1)[-1]
    assert titles == dict.fromkeys((project["name"], clone), "Rectified SpaAttn")


@locales
def test_translation_is_complete(language: str) -> None:
    translated = translations(language)
    assert list(translated) == list(NODES)
    for node_id, texts in translated.items():
        assert set(texts) == {"display_name", "description", "inputs", "outputs"}
        assert list(texts["inputs"]) == names(node_id, "inputs")
        count = len(NODES[node_id].outputs)
        assert list(texts["outputs"]) == [str(index) for index in range(count)]


@locales
def test_translation_has_words(language: str) -> None:
    """Every text is there and in the language; names that are words of the method may stay."""
    for node_id, texts in translations(language).items():
        assert texts["display_name"].startswith("Rectified SpaAttn ")
        entries = [*texts["inputs"].items(), *texts["outputs"].items()]
        long = [texts["display_name"], texts["description"]]
        for name, entry in entries:
            assert set(entry) == {"name", "tooltip"}, (node_id, name)
            assert entry["name"].strip(), (node_id, name)
            long.append(entry["tooltip"])
        for text in long:
            assert re.search(OWN_SCRIPT[language], text), (node_id, text)
        for text in [*long, *(entry["name"] for _, entry in entries)]:
            assert not MESSAGE_SYNTAX.search(text), (node_id, text)


@locales
@node_ids
def test_translation_keeps_the_facts(language: str, node_id: str) -> None:
    """Numbers, examples and names in a tooltip are in its translation: it was not left behind."""
    texts = translations(language)[node_id]
    given: list[Input | Output] = [*NODES[node_id].inputs, *NODES[node_id].outputs]
    told = [*texts["inputs"].values(), *texts["outputs"].values()]
    # The node shows translated names, so that these stand for the ids in the English text.
    shown = {name: entry["name"] for name, entry in texts["inputs"].items()}
    lost = [
        (each.name, fact)
        for each, entry in zip(given, told, strict=True)
        for fact in FACT.findall(each.tooltip)
        if shown.get(fact, fact) not in entry["tooltip"]
    ]
    assert lost == []
