"""Keywords that older cores lack are left out, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from rectified_spaattn.nodes.host import build


def old(name: str, default: int = 0) -> dict[str, Any]:
    return {"name": name, "default": default}


def new(name: str, default: int = 0, search_aliases: bool = False) -> dict[str, Any]:
    return {"name": name, "default": default, "search_aliases": search_aliases}


def test_later_keyword_reaches_a_core_that_has_it() -> None:
    assert build(new, "top_p", default=1, search_aliases=True) == {
        "name": "top_p",
        "default": 1,
        "search_aliases": True,
    }


def test_later_keyword_is_left_out_on_an_older_core() -> None:
    assert build(old, "top_p", default=1, search_aliases=True) == {"name": "top_p", "default": 1}


def test_misspelt_keyword_still_fails() -> None:
    with pytest.raises(TypeError, match="tooltpi"):
        build(old, "top_p", tooltpi="...")
