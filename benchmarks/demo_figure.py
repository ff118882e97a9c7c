"""The picture of the demo: which blocks are kept, where the error is, how sparsity changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..rspa_core.run.schedule import SparsitySchedule

if TYPE_CHECKING:
    from .demo import SizeResult

# Okabe-Ito colours: told apart by colour-blind readers and in print.
COLOURS = {
    "none 128": "#8c8c8c",
    "paper 128": "#e69f00",
    "precise 128": "#0072b2",
    "precise 64": "#56b4e9",
}
INK = "#22303c"
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
"""Of every picture of the benchmarks, as matplotlib's rc parameters."""
STEPS = 20


def save_figure(result: SizeResult, sparsity: float, folder: Path) -> Path:
    """Draw the four panels for `result` and save them as `folder`/rectified_spaattn.png.

    Args:
        result: measurements of one video size, with its block mask.
        sparsity: target that the measured configurations had.
        folder: created when missing.

    Returns:
        The path of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
        _draw_mask(axes[0, 0], result)
        _draw_block_error(axes[0, 1], result)
        _draw_kind_error(axes[1, 0], result)
        _draw_schedule(axes[1, 1], sparsity)
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.12, h_pad=0.12)
        tokens = math.prod(result.grid)
        figure.suptitle(
            f"Rectified SpaAttn on synthetic video heads, {tokens:,} tokens, grid {result.grid}",
            fontsize=13,
            fontweight="bold",
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "rectified_spaattn.png"
        figure.savefig(path, dpi=120, facecolor="white")
        plt.close(figure)
    return path


def _draw_mask(axes: Any, result: SizeResult) -> None:
    """Panel 1: the block mask of the content head."""
    from matplotlib.colors import ListedColormap

    assert result.block_mask is not None
    axes.grid(False)
    axes.imshow(
        result.block_mask.numpy(),
        cmap=ListedColormap(["#eef2f6", "#0072b2"]),
        interpolation="nearest",
        aspect="auto",
    )
    density = result.block_mask.float().mean()
    axes.set_title(f"Blocks attended exactly (blue), content head: {density:.1%}")
    axes.set_xlabel("kv-block along the token order")
    axes.set_ylabel("q-block along the token order")


def _draw_block_error(axes: Any, result: SizeResult) -> None:
    """Panel 2: error of each q-block over all heads, blocks of 128 only."""
    for name, errors in result.block_error.items():
        if name.endswith(" 128"):
            axes.plot(
                errors.numpy(), color=COLOURS[name], linewidth=1.4, label=name.removesuffix(" 128")
            )
    axes.set_title("Error of each q-block, all heads, blocks of 128")
    axes.set_xlabel("q-block along the token order")
    axes.set_ylabel("relative L2 error against dense")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=3, loc="upper right")


def _draw_kind_error(axes: Any, result: SizeResult) -> None:
    """Panel 3: error by head kind, one bar per mode."""
    kinds = list(next(iter(result.kind_error.values())))
    width = 0.8 / len(result.kind_error)
    for index, (name, errors) in enumerate(result.kind_error.items()):
        offset = (index - (len(result.kind_error) - 1) / 2) * width
        axes.bar(
            [position + offset for position in range(len(kinds))],
            [errors[kind] for kind in kinds],
            width=width * 0.92,
            color=COLOURS[name],
            label=name,
        )
    axes.set_xticks(range(len(kinds)), kinds)
    axes.grid(axis="x", visible=False)
    axes.set_title("Error by what a head looks at")
    axes.set_ylabel("relative L2 error against dense")
    axes.legend(ncols=2)


def _draw_schedule(axes: Any, sparsity: float) -> None:
    """Panel 4: sparsity over the steps for three schedules; 0 where a step runs dense."""
    schedules = {
        f"constant {sparsity:g}": (
            "#d55e00",
            SparsitySchedule(sparsity, sparsity, "constant", 0.0, 1.0),
        ),
        "linear 0.6 to 0.8, from 10 %": (
            "#009e73",
            SparsitySchedule(0.6, 0.8, "linear", 0.1, 1.0),
        ),
        "cosine 0.3 to 0.9, first and last step dense": (
            "#cc79a7",
            SparsitySchedule(0.3, 0.9, "cosine", 0.0, 1.0, dense_steps=(0, -1)),
        ),
    }
    steps = range(STEPS)
    for name, (colour, schedule) in schedules.items():
        values = [schedule.sparsity_at(step / STEPS, step, STEPS)[0] or 0.0 for step in steps]
        axes.step(steps, values, where="mid", color=colour, linewidth=1.8, label=name)
    axes.set_title(f"Sparsity over {STEPS} steps (0 = dense)")
    axes.set_xlabel("sampling step")
    axes.set_ylabel("sparsity asked for")
    axes.set_xticks(range(0, STEPS, 2))
    axes.set_ylim(-0.03, 1.0)
    axes.legend(loc="lower center")
