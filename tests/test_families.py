"""The model families in docs/models.md and the help are the code's, and tests show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectified_spaattn.nodes.models import FAMILIES
from rectified_spaattn.tools.write_families import PLACES, TABLE, with_families

from .integration.test_token_regions import CASES


@pytest.mark.parametrize("path", PLACES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_documents_have_the_present_families(path: Path) -> None:
    """Else: python tools/write_families.py."""
    text = path.read_text(encoding="utf-8")
    assert with_families(text, PLACES[path]) == text
    assert FAMILIES[0].variants[0] in text


@pytest.mark.parametrize("place", [TABLE, "## Models"])
def test_a_document_without_the_place_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match="no line"):
        with_families("text", place)


@pytest.mark.parametrize("place", [TABLE, "## Models"])
def test_what_stands_around_the_families_stays(place: str) -> None:
    once = with_families(f"before\n{place}\n\nafter", place)
    assert once.startswith(f"before\n{place}\n")
    assert once.endswith("\nafter")
    assert with_families(once, place) == once


def test_every_variant_is_located_by_a_test() -> None:
    claimed = {(family.name, variant) for family in FAMILIES for variant in family.variants}
    shown = {case.shows for case in CASES.values() if case.shows is not None}
    assert claimed == shown
