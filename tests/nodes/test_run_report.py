"""Counting, the status line on the node, and the lines in the log."""

from __future__ import annotations

import json
import logging
import sys
import threading
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from rectified_spaattn.nodes.host import send_status
from rectified_spaattn.rspa_core import TokenLayout
from rectified_spaattn.rspa_core.run.calls import RunSettings, SparseRun
from rectified_spaattn.rspa_core.run.reasons import DenseReason, Reason, why
from rectified_spaattn.rspa_core.run.record import Cell, Ending, RunRecord, joined
from rectified_spaattn.rspa_core.run.report import REPORT_PREFIX, ForwardTally, RunReport
from rectified_spaattn.rspa_core.run.report_text import (
    WAITING,
    headline,
    last_status,
    log_line,
    status_line,
    summary_text,
)
from rectified_spaattn.rspa_core.run.schedule import Position

CPU = torch.device("cpu")
OUT = torch.zeros(2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


FIRST = why(Reason.BEFORE_START, 10.0)
MASK = why(Reason.MASK_VIDEO)


def tally(
    step: int | None, sparse: int = 0, dense: int = 0, reason: DenseReason = FIRST
) -> ForwardTally:
    counts = ForwardTally(CPU, step)
    for index in range(sparse):
        counts.add_sparse(("double", index), OUT, torch.tensor(0.25))
    for index in range(sparse, sparse + dense):
        counts.add_dense(("double", index), reason)
    return counts


def sums(counts: ForwardTally) -> dict:
    return counts.finish(None)[0]


def add(
    report: RunReport, counts: ForwardTally, seconds: float = 0.0, has_company: bool = False
) -> None:
    """One forward that takes `seconds` of the report's clock."""
    started = report.start_forward()
    if seconds:
        report.clock.now += seconds
    report.add_forward(counts, sums(counts), started, has_company=has_company)


def test_dense_forwards_beside_which_kernels_were_compiled_are_no_measure() -> None:
    report = RunReport(clock=Clock())
    add(report, tally(0, dense=4), 9.0, has_company=True)
    add(report, tally(0, dense=4), 7.0, has_company=True)
    assert report.record().dense_forward_seconds == (7.0,)
    add(report, tally(1, dense=4), 3.0)
    assert report.record().dense_forward_seconds == (3.0,)


def test_status_line() -> None:
    clock = Clock()
    report = RunReport(clock=clock)
    add(report, tally(0, dense=16), 2.0)
    for step in range(1, 20):
        add(report, tally(step, sparse=16), 0.5)
    expected = "sparse 304 / dense 16 (first 10 %) · density 0.25 · about 4.0x per step · 11.5 s"
    assert status_line(report.record()) == expected
    assert "dense 16 (16: schedule: first 10 %)" in log_line(report.record())


def test_status_line_lists_several_reasons_with_their_counts() -> None:
    report = RunReport()
    add(report, tally(0, dense=2, reason=why(Reason.DENSE_STEP)))
    add(report, tally(1, dense=3))
    add(report, tally(2, dense=4, reason=MASK))
    assert (
        "dense 9 (4: attention mask over video tokens; 3: first 10 %; 2: dense step)"
        in status_line(report.record())
    )


def test_speed_up_is_told_from_two_sparse_forwards_and_roughly_from_one_dense() -> None:
    report = RunReport(clock=Clock())
    add(report, tally(0, dense=4), 9.0)
    add(report, tally(1, sparse=4), 3.0)
    assert "x per step" not in status_line(report.record())
    add(report, tally(2, sparse=4), 1.0)
    assert "· about 9.0x per step ·" in status_line(report.record())
    assert headline(report.record()).endswith("about 9.0 x faster per step")
    add(report, tally(0, dense=4), 2.0)
    assert "· 2.0x per step ·" in status_line(report.record()), (
        "the slower first forwards do not count"
    )


def test_numbers_at_the_end_of_a_reason_are_not_taken_for_counts() -> None:
    report = RunReport()
    add(report, tally(0, dense=9, reason=why(Reason.MIN_TOKENS, 1560, 8192)))
    assert "(9: 1560 video tokens, below min_tokens 8192)" in log_line(report.record())


def test_a_share_of_the_sampling_is_told_in_steps() -> None:
    """Schedulers make 0 to 6 of 10 steps of the first 20 %."""
    report = RunReport(clock=Clock())
    for step in range(3):
        for _ in range(2):
            counts = tally(step, **({"dense": 2} if step < 2 else {"sparse": 2}))
            report.add_forward(counts, sums(counts), None, None, 10)
    assert "dense 8 (first 10 %, 2 of 10 steps)" in status_line(report.record())
    assert "(8: schedule: first 10 %, 2 of 10 steps)" in log_line(report.record())


def test_density_counts_exact_context_where_it_is_much() -> None:
    report = RunReport()
    counts = tally(0, sparse=4)  # density 0.25
    report.add_forward(counts, sums(counts), None, TokenLayout((2, 4, 4), 64))
    record = report.record()
    assert record.computed == pytest.approx(0.25 / 4 + 3 / 4)
    assert "density 0.25 (0.81 with the context)" in status_line(record)
    assert "0.81 with the context" in headline(record)
    assert "0.812 of all pairs of tokens" in summary_text(record)
    report = RunReport()
    report.add_forward(counts, sums(counts), None, TokenLayout((2, 4, 4), 32))
    assert "density 0.25 ·" in status_line(report.record())


def test_a_slow_down_is_told_as_one() -> None:
    report = RunReport(clock=Clock())
    for step in range(2):
        add(report, tally(step, dense=4), 1.0)
        add(report, tally(step, sparse=4), 2.0)
    assert "· 2.0x slower per step ·" in status_line(report.record())


def test_a_new_run_replaces_the_line_of_the_last_one() -> None:
    sent: list[tuple[str, str | None]] = []
    RunReport(lambda *line: sent.append(line), "7").announce()
    assert sent == [("waiting for the first model call", "7")]


def test_a_first_call_shows_how_far_its_kernels_are() -> None:
    """What a call compiles is told to the node, which then shows the run again."""
    from rectified_spaattn.kernels import progress

    def attend(q: Tensor, *args: object, **options: object) -> tuple[Tensor, SimpleNamespace]:
        for done in compiled:
            listener = progress.get()
            assert listener is not None
            listener(done, 9)
        return q, SimpleNamespace(density=torch.tensor(0.5))

    sent: list[tuple[str, str | None]] = []
    report = RunReport(lambda *line: sent.append(line), "7", clock=Clock())
    run = SparseRun(RunSettings(backend="reference"), report, attend=attend)
    layout = TokenLayout((2, 8, 8), 128)
    q = torch.zeros(1, 1, 128, 16)
    forward = run.open(run.plan(layout, Position()), CPU)
    compiled = [0, 4, 9]
    for _ in range(2):
        decision = forward.decide(("double", 0), 2, CPU, q.dtype, 16)
        assert decision is not None
        assert forward.attend(decision, q, q, q, lambda: q) is not None
        compiled = []
    lines = [f"compiling the kernels, once: {done} of 9" for done in (0, 4, 9)]
    assert sent == [(line, "7") for line in [*lines, WAITING]]


def test_forwards_without_video_attention_are_neither() -> None:
    report = RunReport(clock=Clock())
    add(report, tally(0), 1.0)
    report.finish_run()
    record = report.last_run
    assert record.forwards == 1
    assert record.sparse_forward_seconds == record.dense_forward_seconds == ()


def test_nothing_yet() -> None:
    report = RunReport()
    assert report.record().density is None
    assert status_line(report.record()) == "sparse 0 / dense 0 · 0.0 s"


def test_counts_by_step_and_block() -> None:
    report = RunReport(node_id="7")
    add(report, tally(10, sparse=1, dense=1, reason=why(Reason.DENSE_BLOCK)))
    add(report, tally(2, sparse=1))
    add(report, tally(None, sparse=1))
    data = report.record().as_dict()
    assert data["calls"] == [
        [None, "double", 0, 1, 0],
        [2, "double", 0, 1, 0],
        [10, "double", 0, 1, 0],
        [10, "double", 1, 0, 1],
    ]
    assert data["densities"] == [0.25, 0.25, 0.25, None]
    assert data["first_step"] == 0
    assert data["node"] == "7"
    assert data["reasons"] == {"dense_blocks": 1}
    assert (data["forwards"], data["sparse"], data["dense"], data["density"]) == (3, 3, 1, 0.25)


def test_status_is_sent_seldom_and_at_the_end() -> None:
    clock, sent = Clock(), []
    report = RunReport(lambda text, node: sent.append((text, node)), "7", clock=clock)
    for _ in range(5):
        add(report, tally(0, sparse=1))
    assert len(sent) == 1
    clock.now += 1.0
    add(report, tally(1, sparse=1))
    assert len(sent) == 2
    report.finish_run()
    assert len(sent) == 3
    assert sent[-1][0].startswith("sparse 6 / dense 0")
    assert {node for _, node in sent} == {"7"}


def test_json_line(caplog: pytest.LogCaptureFixture) -> None:
    report = RunReport(verbose=True)
    add(report, tally(0, sparse=2))
    with caplog.at_level(logging.INFO, logger="rectified_spaattn"):
        report.finish_run("WAN21")
    line = next(r.message for r in caplog.records if r.message.startswith(REPORT_PREFIX))
    data = json.loads(line.removeprefix(REPORT_PREFIX))
    assert data["model"] == "WAN21"
    assert data["sparse"] == 2


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (Ending.COMPLETE, "the sampler made no model call"),
        (Ending.INTERRUPTED, "interrupted before the first model call was done"),
        (Ending.FAILED, "ended by an error before the first model call was done"),
    ],
)
def test_a_run_without_forwards_says_so_on_the_node_once(
    ending: Ending, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[str] = []
    report = RunReport(lambda text, node: sent.append(text), "7")
    report.announce()
    with caplog.at_level(logging.INFO):
        report.finish_run("", ending)
        report.finish_run()  # the clone of a second GPU
    assert sent == [WAITING, expected]
    assert not caplog.records


@pytest.mark.parametrize("ending", [Ending.INTERRUPTED, Ending.FAILED])
def test_a_run_that_was_cut_off_says_so(ending: Ending, caplog: pytest.LogCaptureFixture) -> None:
    sent: list[str] = []
    report = RunReport(lambda text, node: sent.append(text), "7")
    add(report, tally(0, dense=2))
    with caplog.at_level(logging.INFO, logger="rectified_spaattn"):
        report.finish_run("WAN21", ending)
    first, second = sent[-1].splitlines()
    assert first == ending.value
    assert second.startswith("sparse 0 / dense 2")
    assert f"{ending.value}: sparse 0 / dense 2" in caplog.text
    assert report.last_run.as_dict()["ending"] == ending.name.lower()
    assert headline(report.last_run).startswith(f"{ending.value} · 0 sparse and 2 dense")


def test_warnings_are_said_once_per_run(caplog: pytest.LogCaptureFixture) -> None:
    report = RunReport()
    for _ in range(2):
        report.warn_once("a")
        report.warn_once("a")
        report.warn_once("b")
        report.reset()
    assert [r.message.removeprefix("Rectified SpaAttn: ") for r in caplog.records] == list("abab")


def test_threads_do_not_lose_counts() -> None:
    """Several GPUs run the conditions of one step in parallel threads."""
    report = RunReport()

    def work() -> None:
        for _ in range(200):
            add(report, tally(0, sparse=3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert report.record().forwards == 800
    assert report.record().as_dict()["sparse"] == 2400
    assert report.record().density == pytest.approx(0.25)


def test_record_of_a_run() -> None:
    clock = Clock()
    report = RunReport(node_id="7", clock=clock, settings={"sparsity": 0.75})
    layout = TokenLayout((2, 4, 4), 40, 8)
    started = report.start_forward()
    counts = tally(0, dense=2)
    clock.now += 3.0
    report.add_forward(counts, sums(counts), started, layout)
    for _ in range(2):
        add(report, tally(1, sparse=2), 1.0)
    report.warn_once("look here")
    assert report.last_run is None
    report.finish_run("WAN21")

    record = report.last_run
    assert (record.model, record.node_id, record.settings) == ("WAN21", "7", {"sparsity": 0.75})
    assert (record.tokens, record.grid, record.warnings) == (40, (2, 4, 4), ("look here",))
    assert (record.sparse, record.dense, record.density, record.seconds) == (4, 2, 0.25, 5.0)
    assert [(each.step, each.seconds, each.forwards) for each in record.steps] == [
        (0, 3.0, 1),
        (1, 2.0, 2),
    ]
    assert record.steps[0].reasons == ((FIRST, 2),)
    assert (record.steps[0].density, record.steps[1].density) == (None, 0.25)
    assert record.cells[1, ("double", 0)] == Cell(2, 0, 0.25)
    assert record.speedup == 3.0
    assert record.full_seconds == 9.0
    assert json.loads(json.dumps(record.as_dict()))["sparse"] == 4
    assert report.record().forwards == 0


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([why(Reason.BEFORE_START, 90.0)], "none of the steps that ran (first 90 %)"),
        ([why(Reason.MIN_TOKENS, 1560, 8192)], "below min_tokens 8192"),
        ([MASK, FIRST], "not sparse: attention mask over video tokens"),
    ],
)
def test_a_run_without_sparse_calls_says_why_on_the_node(
    reasons: list[DenseReason], expected: str
) -> None:
    sent: list[str] = []
    report = RunReport(lambda text, node: sent.append(text), "7")
    for step, reason in enumerate(reasons):
        add(report, tally(step, dense=3, reason=reason))
    report.finish_run()
    first, second = sent[-1].splitlines()
    assert first.startswith("not sparse: ")
    assert expected in first
    assert second.startswith("sparse 0 / dense ")


def test_a_run_that_was_never_called_says_so_on_the_node() -> None:
    sent: list[str] = []
    report = RunReport(lambda text, node: sent.append(text), "7")
    add(report, tally(0))
    report.warn_once("installed, but no attention call reached it.")
    report.finish_run()
    assert sent[-1].startswith("not sparse: installed, but no attention call reached it.")


def expert(seconds: dict[int, float], sigmas: tuple[float, float], node: str) -> RunRecord:
    """A run of forwards that take so long; those of the first step are dense."""
    report = RunReport(node_id=node, clock=Clock())
    for step, each in seconds.items():
        add(report, tally(step, **{"sparse" if step else "dense": 4}), each)
    report.finish_run("WAN21", sigmas=sigmas)
    return report.last_run


def test_two_experts_are_told_in_one_line() -> None:
    """Four steps: one dense call of the first expert is the reference of both."""
    high = expert({0: 8.0, 1: 5.0}, (1.0, 0.9), "7")
    low = expert({1: 4.0, 2: 4.0}, (0.9, 0.0), "9")
    assert high.speedup is low.speedup is None
    assert low.continues(high)
    assert not high.continues(low)
    high = replace(high, num_steps=2, reason_steps={FIRST: 1})
    both = joined(high, replace(low, num_steps=2))
    assert both.nodes == ("7", "9")
    assert last_status(both) == (
        "both samplers: sparse 12 / dense 4 (first 10 %, 1 of 4 steps) · density 0.25 · "
        "about 2.0x per step · 21.0 s, with full attention about 32.0 s"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"sigmas": (0.8, 0.0)},  # not where the first stopped
        {"sigmas": None},
        {"tokens": 99},  # another size, as of a second pass
        {"model": "WAN22"},
    ],
)
def test_other_runs_of_a_graph_are_not_taken_for_an_expert(change: dict) -> None:
    high = expert({0: 8.0, 1: 5.0}, (1.0, 0.9), "7")
    assert not replace(expert({1: 4.0}, (0.9, 0.0), "9"), **change).continues(high)


def test_a_render_that_was_finished_is_not_continued() -> None:
    done = expert({0: 8.0, 1: 5.0}, (1.0, 0.0), "7")
    assert not replace(done, sigmas=(0.0, 0.0)).continues(done)
    stopped = replace(done, sigmas=(1.0, 0.9), ending=Ending.INTERRUPTED)
    assert not replace(done, sigmas=(0.9, 0.0)).continues(stopped)


def test_what_full_attention_would_have_taken_is_not_told_beside_a_probe() -> None:
    report = RunReport(clock=Clock())
    add(report, tally(0, dense=4), 2.0)
    add(report, tally(1, dense=4, reason=why(Reason.PROBED)), 30.0)
    for step in (2, 3):
        add(report, tally(step, sparse=4), 1.0)
    assert report.record().speedup == 2.0
    assert report.record().full_seconds is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_finish_finds_values_that_are_not_finite(value: float) -> None:
    counts = tally(0, sparse=3)
    output = torch.zeros(1, 16, 2, 4, 4)
    density_sums, is_finite = counts.finish(output)
    assert density_sums == {("double", index): 0.25 for index in range(3)}
    assert is_finite
    output[0, 3, 1, 2, 2] = value
    assert not counts.finish(output)[1]


def test_large_finite_values_are_finite() -> None:
    counts = ForwardTally(CPU, 0)
    counts.add_sparse(("double", 0), torch.full((1000,), 65504.0).half(), torch.tensor(1.0))
    assert counts.finish(torch.zeros(1))[1]


class Server:
    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def send_progress_text(self, text: str, node_id: str) -> None:
        self.sent.append((text, node_id))


def test_send_status_to_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    module = ModuleType("server")
    module.PromptServer = SimpleNamespace(instance=server)
    monkeypatch.setitem(sys.modules, "server", module)
    send_status("a", "7")
    send_status("b", None)
    assert server.sent == [("a", "7")]
    server.sent.clear()
    send_status("c", "129:4:164")
    assert server.sent == [("c", "129:4:164"), ("c", "129:4"), ("c", "129")]


def test_send_status_without_a_server_or_with_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "server", raising=False)
    send_status("a", "7")
    module = ModuleType("server")
    monkeypatch.setitem(sys.modules, "server", module)
    send_status("a", "7")
    module.PromptServer = SimpleNamespace(instance=None)
    send_status("a", "7")
    module.PromptServer = SimpleNamespace(instance=object())
    send_status("a", "7")
