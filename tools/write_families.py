"""Write the table of model families into README and help pages, from `nodes/models.py`.

python tools/write_families.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rectified_spaattn.nodes.models import ANY_DENSE, FAMILIES
from rectified_spaattn.rspa_core.run.reasons import Reason

ROOT = Path(__file__).resolve().parent.parent
ENGLISH = (
    "| model family | runs sparse | tokens of one call, all but the video exact | runs dense |"
)
CHINESE = "| 模型系列 | 稀疏计算 | 一次计算的 token，视频之外都精确 | 完整注意力 |"
DOCUMENTS = {
    ROOT / "README.md": (ENGLISH, "any other"),
    ROOT / "web" / "docs" / "RectifiedSpaAttn.md": (ENGLISH, "any other"),
    ROOT / "web" / "docs" / "RectifiedSpaAttn" / "zh.md": (CHINESE, "其他"),
}
"""Documents with the table: its header there, and what its last row is called."""
EXPLANATION = re.compile(r": | \(|, (?:and|which) ")
"""Where what explains a reason begins."""


def rows(last: str) -> list[str]:
    """The table's rows below its header; the last one, called `last`, is about any model."""
    found = ["|---|---|---|---|"]
    for family in FAMILIES:
        variants = ", ".join(family.variants)
        found.append(
            f"| {family.name} | {variants} | `{family.sequence}` | {_texts(family.dense)} |"
        )
    return [*found, f"| {last} | | | {_texts(ANY_DENSE)} |"]


def with_table(document: str, header: str, last: str) -> str:
    """The document with the present rows in its table.

    Raises:
        ValueError: the table is not in the document.
    """
    lines = document.split("\n")
    if header not in lines:
        raise ValueError(f"the document has no table with the header {header}")
    start = end = lines.index(header) + 1
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    lines[start:end] = rows(last)
    return "\n".join(lines)


def _texts(reasons: Iterable[Reason]) -> str:
    """How the node says the reasons, each a piece of code: dots for details and explanations."""
    return ", ".join(f"`{_shortened(each.value)}`" for each in reasons)


def _shortened(text: str) -> str:
    begins, *rest = EXPLANATION.split(text, maxsplit=1)
    return re.sub(r"\{[^}]*\}", "...", begins) + (" ..." if rest else "")


def main() -> None:
    """Command line: rewrite all documents."""
    for path, (header, last) in DOCUMENTS.items():
        text = path.read_text(encoding="utf-8")
        path.write_text(with_table(text, header, last), encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
