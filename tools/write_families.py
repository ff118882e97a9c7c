"""Write the model families of `nodes/models.py` into docs/models.md and into the help pages.

python tools/write_families.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rectified_spaattn.nodes.models import ANY_DENSE, FAMILIES
from rectified_spaattn.rspa_core.run.reasons import Reason

ROOT = Path(__file__).resolve().parent.parent
TABLE = "| model family | runs sparse | tokens of one call, all but the video exact | runs dense |"
HELP = ROOT / "web" / "docs"
PLACES = {
    ROOT / "docs" / "models.md": TABLE,
    HELP / "RectifiedSpaAttn.md": "## Models",
    HELP / "RectifiedSpaAttn" / "zh.md": "## 模型",
}
"""Documents, and the line below which the families stand: a table's header, or a list's title."""
EXPLANATION = re.compile(r": | \(|, (?:and|which) ")
"""Where what explains a reason begins."""


def table_rows() -> list[str]:
    """The table's rows below its header; the last one is about any model."""
    found = ["|---|---|---|---|"]
    for family in FAMILIES:
        variants = ", ".join(family.variants)
        found.append(
            f"| {family.name} | {variants} | `{family.sequence}` | {_texts(family.dense)} |"
        )
    return [*found, f"| any other | | | {_texts(ANY_DENSE)} |"]


def list_rows() -> list[str]:
    """A short list, for the narrow panel of the help."""
    return ["", *(f"- **{family.name}**: {', '.join(family.variants)}" for family in FAMILIES)]


def with_families(document: str, place: str) -> str:
    """The document with the present families below the line `place`.

    Raises:
        ValueError: the line is not in the document.
    """
    lines = document.split("\n")
    if place not in lines:
        raise ValueError(f"the document has no line {place}")
    rows = table_rows() if place == TABLE else list_rows()
    start = lines.index(place) + 1
    end = start + (place != TABLE)  # the empty line between title and list
    while end < len(lines) and lines[end].startswith(("|", "- ")):
        end += 1
    lines[start:end] = rows
    return "\n".join(lines)


def _texts(reasons: Iterable[Reason]) -> str:
    """How the node says the reasons, each a piece of code: dots for details and explanations."""
    return ", ".join(f"`{_shortened(each.value)}`" for each in reasons)


def _shortened(text: str) -> str:
    begins, *rest = EXPLANATION.split(text, maxsplit=1)
    return re.sub(r"\{[^}]*\}", "...", begins) + (" ..." if rest else "")


def main() -> None:
    """Command line: rewrite all documents."""
    for path, place in PLACES.items():
        text = path.read_text(encoding="utf-8")
        path.write_text(with_families(text, place), encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
