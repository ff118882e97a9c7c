"""Links of documents, help pages, workflows and pyproject.toml: they lead somewhere.

Without a network: a link into the repository is looked up in its files, with its anchor; any other
has to be of a known site.

ComfyUI's page puts `docs/` of the pack in front of a picture's relative path, whatever the language
of a help page, and opens any other link as it is (createMarkdownRenderer in its front end). So a
picture of a page in a folder is looked for in two places, ComfyUI's and GitHub's, and its other
links have to be whole addresses.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from rectified_spaattn.tools.write_owner import ADDRESS, repository, text_files

ROOT = Path(__file__).resolve().parent.parent
HELP = ROOT / "web" / "docs"
CODE = re.compile(r"^( *```).*?^\1|^(?: {4}|\t)[^\n]*|`[^`\n]+`", re.M | re.S)
LINK = re.compile(r"(!?)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
BARE = re.compile(r"https?://[^\s\"'`<>()\\\]|]+")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)
LOCAL = ("127.0.0.1", "localhost")
KNOWN = {
    "arxiv.org": ("/abs/",),
    "comfyanonymous.github.io": ("/ComfyUI_examples/",),
    "creativecommons.org": ("/licenses/by/3.0/",),
    "docs.comfy.org": ("/",),
    "download.pytorch.org": ("/whl/cpu",),
    "github.com": (
        "/BienLuky/Rectified-SpaAttn",
        "/Comfy-Org/",
        "/bytedance/",
        "/comfyanonymous/",
    ),
    "huggingface.co": (
        "/Comfy-Org/",
        "/Kijai/",
        "/Lightricks/",
        "/datasets/Yi30/wan-bf16-flash-captures",
        "/datasets/baseten-admin/wan2.2_production_values",
        "/comfyanonymous/",
        "/lightx2v/",
        "/zai-org/",
    ),
    "peach.blender.org": ("",),
    "raw.githubusercontent.com": ("/Comfy-Org/",),
    "www.minimax.io": ("/blog/",),
    "www.modelscope.cn": ("/models/Comfy-Org/",),
}
"""Sites that may be linked to, and with what the path begins there."""

DOCUMENTS = [path for path in text_files() if path.suffix == ".md"]
GRAPHS = [path for path in text_files() if path.parent.name in ("workflows", "subgraphs")]
GRAPHS = [path for path in GRAPHS if path.suffix == ".json"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a document."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: set[str] = set()
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        same = sum(re.fullmatch(re.escape(slug) + r"(-\d+)?", each) is not None for each in found)
        found.add(f"{slug}-{same}" if same else slug)
    return found


def problem_in_files(base: Path, target: str) -> str | None:
    """What is wrong with a path from the folder `base`, or None."""
    file, _, anchor = target.partition("#")
    path = (base / unquote(file)).resolve()
    if not path.is_relative_to(ROOT) or not path.exists():
        return "there is no such file"
    if not anchor:
        return None
    page = path / "README.md" if path.is_dir() else path
    return None if anchor in anchors(page) else f"{name(page)} has no such heading"


def problem_of_address(address: str) -> str | None:
    """What is wrong with a whole address, or None."""
    parts = urlsplit(address)
    host, own = parts.hostname or "", f"/{repository()}"
    if host in LOCAL:
        return None
    if parts.scheme != "https":
        return "neither a path nor https"
    if host in ("github.com", "raw.githubusercontent.com") and parts.path.startswith(own):
        rest = parts.path.removeprefix(own)
        if rest in ("", "/issues"):
            rest = ""
        elif host == "raw.githubusercontent.com":
            rest = rest.removeprefix("/main/")
        elif (inside := re.match(r"/(?:blob|tree)/main/(.+)", rest)) is not None:
            rest = inside[1]
        else:
            return "neither an issue nor a file of the branch main"
        return problem_in_files(ROOT, rest + (f"#{parts.fragment}" if parts.fragment else ""))
    if not parts.path.startswith(KNOWN.get(host, ())):
        return "the site, or its part, is not among those known to tests/test_links.py"
    return None


def problem_in_document(path: Path, is_picture: bool, target: str) -> str | None:
    """What is wrong with a link of a document, or None."""
    if urlsplit(target).scheme:
        return problem_of_address(target)
    if target.startswith("/"):
        return "a path from the root"
    on_github = problem_in_files(path.parent, target if target[0] != "#" else path.name + target)
    if path.is_relative_to(HELP):
        if not is_picture:
            return "ComfyUI opens it as it is: a whole address is needed"
        return problem_in_files(HELP, target) or on_github
    return on_github


def links(text: str) -> list[tuple[bool, str]]:
    """(is a picture, target) of every link outside of code, a picture inside a link, too."""
    text = CODE.sub("", text)
    found = [(mark == "!", target) for mark, target in LINK.findall(text)]
    inner = re.findall(r"\[!\[[^\]]*\]\(([^)\s]+)\)", text)
    return found + [(True, target) for target in inner]


def texts_of(value: object) -> list[str]:
    """Every text in JSON data."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in texts_of(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts_of(each)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_of_documents(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    problems = [
        f"{target}: {problem}"
        for is_picture, target in links(text)
        if (problem := problem_in_document(path, is_picture, target))
    ]
    problems += [
        f"{address}: {problem}"
        for address in BARE.findall(text)
        if (problem := problem_of_address(address.rstrip(".,;:")))
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", GRAPHS, ids=name)
def test_links_of_workflows(path: Path) -> None:
    texts = texts_of(json.loads(path.read_text(encoding="utf-8")))
    found = {address.rstrip(".,;:") for text in texts for address in BARE.findall(text)}
    problems = [f"{each}: {problem}" for each in found if (problem := problem_of_address(each))]
    assert not problems, "\n".join(problems)


def test_links_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = BARE.findall(text)
    assert len(found) >= 6
    problems = [f"{each}: {problem}" for each in found if (problem := problem_of_address(each))]
    assert not problems, "\n".join(problems)


def test_the_repository_has_one_address() -> None:
    """Else: python tools/write_owner.py."""
    found = {
        (name(path), match[2])
        for path in text_files()
        for match in ADDRESS.finditer(path.read_text(encoding="utf-8"))
    }
    assert {path for path, _ in found} >= {
        "README.md",
        "pyproject.toml",
        "web/docs/RectifiedSpaAttn.md",
    }
    assert {each for _, each in found} == {repository()}


@pytest.mark.parametrize(
    ("page", "is_picture", "target", "problem"),
    [
        ("README.md", False, "docs/models.md#how-many-tokens-is-my-video", None),
        ("README.md", False, "docs/models.md#how-many", "no such heading"),
        ("README.md", False, "docs/no_such.md", "no such file"),
        ("README.md", False, "../elsewhere.md", "no such file"),
        ("README.md", False, "#install", None),
        ("README.md", False, "http://arxiv.org/abs/2511.19835", "https"),
        ("README.md", False, "https://example.com", "not among those known"),
        ("web/docs/RectifiedSpaAttnReport.md", True, "images/report.png", None),
        ("web/docs/RectifiedSpaAttnReport/zh.md", True, "images/report.png", None),
        ("web/docs/RectifiedSpaAttnReport/zh.md", True, "../images/report.png", "no such file"),
        ("web/docs/RectifiedSpaAttnReport.md", False, "#inputs", "whole address"),
    ],
)  # fmt: skip
def test_what_is_a_problem(page: str, is_picture: bool, target: str, problem: str | None) -> None:
    found = problem_in_document(ROOT / page, is_picture, target)
    assert (found is None) if problem is None else (problem in (found or ""))


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        ("", None),
        ("/issues", None),
        ("#works-with", None),
        ("#no-such-heading", "no such heading"),
        ("/blob/main/docs/settings.md#the-ramp", None),
        ("/blob/main/docs/no_such.md", "no such file"),
        ("/wiki", "neither"),
    ],
)
def test_addresses_of_the_repository(rest: str, problem: str | None) -> None:
    found = problem_of_address(f"https://github.com/{repository()}{rest}")
    assert (found is None) if problem is None else (problem in (found or ""))


def test_links_are_found_outside_of_code() -> None:
    text = "[a](x.md) `[b](y.md)` [![c](z.png)](w.md)\n\n    [d](v.md)\n\n```\n[e](u.md)\n```\n"
    assert links(text) == [(False, "x.md"), (False, "w.md"), (True, "z.png")]
