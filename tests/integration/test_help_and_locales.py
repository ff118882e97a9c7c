"""Help pages, their pictures and the translations as the web page of ComfyUI asks for them."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import pytest

from rectified_spaattn.nodes.inputs import NODES

from .comfy_server import PACK_FOLDER, PROJECT_ROOT

LOCALES = {path.parent.name: path.parent for path in PROJECT_ROOT.glob("locales/*/nodeDefs.json")}
HAN = re.compile(r"[\u4e00-\u9fff]")


def fetch(comfy, path: str) -> tuple[str, bytes] | None:
    """(content type, body) of a file in the pack's web folder, None if it is not there."""
    url = f"{comfy.server.url}/extensions/{PACK_FOLDER}/{path}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.headers.get("Content-Type", ""), answer.read()
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return None


def help_page(comfy, name: str, language: str) -> str:
    """What ComfyUI's page shows: it asks for these two, and takes no HTML for an answer."""
    for path in (f"docs/{name}/{language}.md", f"docs/{name}.md"):
        found = fetch(comfy, path)
        if found is not None and "text/html" not in found[0]:
            return found[1].decode()
    raise AssertionError(f"no help for {name} in {language}")


@pytest.mark.parametrize("name", NODES)
def test_help_in_every_language(comfy, name):
    """Chinese has its own page; other languages get the English one."""
    english, chinese = (help_page(comfy, name, language) for language in ("en", "zh"))
    assert english.startswith("# ")
    assert not HAN.search(english)
    assert chinese.startswith("# ")
    assert HAN.search(chinese)
    assert help_page(comfy, name, "fr") == english


@pytest.mark.parametrize("name", NODES)
def test_pictures_of_the_help_pages(comfy, name):
    """The page resolves links against docs/, whichever folder the text came from."""
    for language in ("en", "zh"):
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", help_page(comfy, name, language)):
            found = fetch(comfy, f"docs/{link}")
            assert found is not None, link
            assert found[0] == "image/png"


def test_translations_are_served(comfy):
    served = comfy.server.get("/i18n")
    for language, folder in LOCALES.items():
        own = json.loads((folder / "nodeDefs.json").read_text(encoding="utf-8"))
        assert {name: served[language]["nodeDefs"][name] for name in own} == own


def test_translated_names_are_those_of_the_node(comfy):
    """Inputs by name, outputs by place: what the server describes is what is translated."""
    for name in NODES:
        info = comfy.object_info(name)
        inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
        for folder in LOCALES.values():
            texts = json.loads((folder / "nodeDefs.json").read_text(encoding="utf-8"))[name]
            assert set(texts["inputs"]) == set(inputs)
            assert len(texts["outputs"]) == len(info["output"])
