"""The picture of the fidelity benchmark: error against time, or against the kept share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..output import COLOURS, INK, STYLE
from .report import KERNEL, Record, curves_of, geometric_mean, mean, pareto_front

LINES = {"128x128": "-", "128x64": "--", "64x64": ":"}
MARKERS = {"16-bit": "o", "int8": "^", "fp32": "s"}
FRONT = "#b8c4cf"


def save_figure(document: dict[str, Any], path: Path) -> Path:
    """Draw a panel for every set of heads and save them as `path` (PNG).

    The x axis is milliseconds where kernels were timed, else the kept share. Only the first token
    order and variants with a colour above are drawn; the Pareto front is that of what is drawn.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {inputs: drawn_curves(document, inputs) for inputs in document["inputs"]}
    with plt.rc_context(STYLE | {"font.size": 11, "axes.titlesize": 12}):
        size = (6.4 * max(len(panels), 1.4), 7.2)
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, layout="constrained", squeeze=False
        )
        for axis, (inputs, curves) in zip(axes[0], panels.items(), strict=True):
            _draw_panel(axis, document["inputs"][inputs], inputs, curves)
        used = [record for curves in panels.values() for each in curves.values() for record in each]
        figure.legend(
            handles=_legend(used), loc="outside lower center", ncols=4 * min(len(panels), 2)
        )
        title = f"Error against full attention in fp32, {document['device']}"
        figure.suptitle(title, fontsize=13, fontweight="bold")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, facecolor="white")
        plt.close(figure)
    return path


def drawn_curves(document: dict[str, Any], inputs: str) -> dict[str, list[Record]]:
    """Curves that the picture shows; the formula of Sol-Attn only where it cannot run itself."""
    curves = curves_of(document["records"], inputs)
    sol_ran = any(records[0]["kind"] == "sol" for records in curves.values())
    return {
        label: records
        for label, records in curves.items()
        if records[0]["name"] in COLOURS
        and records[0]["order"] in ("raster", document["orders"][0])
        and not (records[0]["kind"] == "sol formula" and sol_ran)
    }


def is_timed(record: Record) -> bool:
    """Whether its milliseconds are a kernel's."""
    return record["ms_source"].startswith(KERNEL)


def point_of(record: Record) -> tuple[float, float]:
    """Where a record is drawn: milliseconds of its kernel, or the kept share; and the error."""
    x = record["ms"] if is_timed(record) else mean(record["density"])
    return x, geometric_mean(record["relative_l2"])


def _draw_panel(
    axes: Any, facts: dict[str, Any], inputs: str, curves: dict[str, list[Record]]
) -> None:
    every = [record for records in curves.values() for record in records]
    timed = any(map(is_timed, every))
    shown = [record for record in every if is_timed(record) == timed]
    points = [point_of(record) for record in shown]
    front = [points[index] for index in pareto_front(points)]
    # A step: between two of its points nothing is better than the left one.
    style: Any = {"linewidth": 7, "alpha": 0.6, "drawstyle": "steps-post", "zorder": 1}
    axes.plot(*zip(*front, strict=True), color=FRONT, **style)
    for records in curves.values():
        own = sorted(point_of(record) for record in records if record in shown)
        first = records[0]
        int8 = first["precision"] == "int8" and first["kind"] != "sol"
        colour = COLOURS[first["name"]]
        axes.plot(
            *zip(*own, strict=True), color=colour, linestyle=LINES[first["blocks"]],
            linewidth=1.1 if int8 else 1.9, marker=MARKERS[first["precision"]], markersize=5,
            markerfacecolor="white" if int8 else colour,
        )  # fmt: skip
    axes.set_yscale("log")
    for labelled in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        labelled(lambda value, _: f"{value:.4g}")
    axes.tick_params(axis="y", which="minor", labelsize=8)
    axes.set_xlabel("milliseconds of one attention call" if timed else "kept share of block pairs")
    axes.set_ylabel("relative L2 error, geometric mean over heads")
    axes.set_title(f"{inputs} heads: {facts['heads']} of {facts['tokens']:,} tokens")
    axes.grid(True, which="minor", axis="y", color="#f1f3f5")


def _legend(records: list[Record]) -> list[Any]:
    """One entry for every method, block size and precision that is drawn, and for the front."""
    from matplotlib.lines import Line2D

    styles: list[tuple[str, str, dict[str, Any]]] = [
        *(("name", name, {"color": colour}) for name, colour in COLOURS.items()),
        *(("blocks", size, {"linestyle": style}) for size, style in LINES.items()),
        *(("precision", name, {"marker": marker, "linestyle": ""})
          for name, marker in MARKERS.items()),
    ]  # fmt: skip
    shown = [
        (value, style) for key, value, style in styles if any(r[key] == value for r in records)
    ]
    common: dict[str, Any] = {"color": INK, "linewidth": 1.9}
    lines: list[Any] = [Line2D([], [], label=value, **(common | style)) for value, style in shown]
    return [*lines, Line2D([], [], label="Pareto front", color=FRONT, linewidth=7)]
