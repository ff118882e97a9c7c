"""The terms in which `catalogue` describes an example workflow.

Node ids are those of the templates. Positions are canvas pixels, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rectified_spaattn.rspa_core.run.presets import PRESETS, Preset
from rectified_spaattn.rspa_core.run.schedule import (
    SparsitySchedule,
    parse_dense_steps,
    parse_steps,
)

from .graph import Workflow
from .nodes import OURS
from .thumbnails import Picture

Json = dict[str, Any]
Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Insertion:
    """One `RectifiedSpaAttn` node on the model links from `source` to `targets`.

    `values` come on top of the preset's.
    """

    source: int
    targets: tuple[int, ...]
    position: Point
    values: Mapping[str, Any] = field(default_factory=dict)
    title: str = "Rectified SpaAttn"
    width: float = 460


@dataclass(frozen=True)
class Report:
    """One report node behind the sampler `sampler`, on the model of the insertion `of`.

    Inside a subgraph its picture also leaves through the subgraph's output `name`, to a preview
    at `preview` in the root graph. The links lead through the points of the routes, around nodes
    that they would otherwise seem to come from.
    """

    sampler: int
    position: Point
    of: int = 0
    title: str = "What really ran"
    name: str = ""
    preview: Point = (0, 0)
    model_route: tuple[Point, ...] = ()
    after_route: tuple[Point, ...] = ()
    output_route: tuple[Point, ...] = ()
    preview_route: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """One schedule node in the root graph, with its preview.

    It reaches the attention nodes listed in `feeds` (indices into the insertions) through the
    subgraph input called `name`.
    """

    name: str
    title: str
    values: Mapping[str, Any]
    feeds: tuple[int, ...]
    position: Point
    preview: Box


@dataclass(frozen=True)
class Shift:
    """Everything from `from_x` on (and above `above_y`) moves right by `distance`."""

    from_x: float
    distance: float
    above_y: float = float("inf")


@dataclass(frozen=True)
class Spec:
    """One example workflow: `stem` names its files, `template` the official workflow.

    `groups` are titled frames. `widgets` replaces values: (node id, position) to value. `lower`
    moves nodes down by pixels, where a node above them has grown since the template was drawn.
    `extend` adds what only this workflow has; it gets the workflow, the attention nodes and the
    pack's version. `steps` is what the sampler is set to, over both experts.
    """

    stem: str
    template: str
    insertions: tuple[Insertion, ...]
    shift: Shift
    groups: Mapping[str, Box]
    note: str
    note_box: Box
    steps: int
    picture: Picture
    reports: tuple[Report, ...] = ()
    preset: str = "balanced"
    family: str = "wan"
    root_groups: Mapping[str, Box] = field(default_factory=dict)
    root_shift: Shift | None = None
    schedules: tuple[Schedule, ...] = ()
    widgets: Mapping[tuple[int, int], Any] = field(default_factory=dict)
    lower: Mapping[int, float] = field(default_factory=dict)
    extend: Callable[[Workflow, list[Json], str], None] | None = None

    @property
    def chosen(self) -> Preset:
        """The preset's values."""
        return PRESETS[self.family][self.preset]

    @property
    def preset_widgets(self) -> dict[str, Any]:
        """The preset as values of the attention node's widgets."""
        values = self.chosen.as_dict()
        values["block_size"], values["tail_keys"] = map(
            str, (values["block_size"], values["tail_keys"])
        )
        return values | {"preset": self.preset}

    def sparsity_of_steps(self, count: int | None = None) -> list[float | None]:
        """Sparsity of each step, which ComfyUI's simple scheduler spaces evenly; None is dense.

        For the workflow's own number of steps, or for `count`: each expert's list of steps is
        then stretched to its share of them.
        """
        count = count or self.steps
        if not self.schedules:
            chosen = self.chosen
            percents = chosen.start_percent, chosen.end_percent
            return _steps(SparsitySchedule(chosen.sparsity, 0.0, "constant", *percents), count)
        found: list[float | None] = []
        defaults = OURS["RectifiedSpaAttnSchedule"].widgets
        for schedule in self.schedules:
            values = {**defaults, **schedule.values}
            own = values.pop("preview_steps")
            listed = parse_steps(values.pop("steps"))
            dense = parse_dense_steps(values.pop("dense_steps"))
            curve = SparsitySchedule(*values.values(), listed, dense)
            if listed or dense:
                wanted = count // len(self.schedules)
                sparsities = _steps(curve, own)
                found += [sparsities[step * own // wanted] for step in range(wanted)]
            else:
                found += _steps(curve, count)
        return found


def _steps(schedule: SparsitySchedule, count: int) -> list[float | None]:
    return [schedule.sparsity_at(step / count, step, count)[0] for step in range(count)]
