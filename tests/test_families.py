"""The table of model families in README and help is the code's, and tests show its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectified_spaattn.nodes.models import FAMILIES
from rectified_spaattn.tools.write_families import DOCUMENTS, with_table

from .integration.test_token_regions import CASES


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_documents_have_the_present_table(path: Path) -> None:
    """Else: python tools/write_families.py."""
    text = path.read_text(encoding="utf-8")
    assert with_table(text, *DOCUMENTS[path]) == text


def test_a_document_without_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no table"):
        with_table("text", "| header |", "other")


def test_every_variant_is_located_by_a_test() -> None:
    claimed = {(family.name, variant) for family in FAMILIES for variant in family.variants}
    shown = {case.shows for case in CASES.values() if case.shows is not None}
    assert claimed == shown
