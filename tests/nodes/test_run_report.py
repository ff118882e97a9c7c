"""Counting, the status line on the node, and the lines in the log."""

from __future__ import annotations

import json
import logging
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import torch

from rectified_spaattn.nodes.host import send_status
from rectified_spaattn.nodes.run_report import REPORT_PREFIX, ForwardTally, RunReport

CPU = torch.device("cpu")
OUT = torch.zeros(2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tally(step: int | None, sparse: int = 0, dense: int = 0, reason: str = "") -> ForwardTally:
    counts = ForwardTally(CPU, step)
    for index in range(sparse):
        counts.add_sparse(("double", index), OUT, torch.tensor(0.25))
    for index in range(sparse, sparse + dense):
        counts.add_dense(("double", index), reason)
    return counts


def test_status_line() -> None:
    clock = Clock()
    report = RunReport(clock=clock)
    report.start_forward()
    clock.now += 2.0
    report.add_forward(tally(0, dense=16, reason="schedule: dense step"), 0.0)
    for step in range(1, 20):
        report.add_forward(tally(step, sparse=16), 16 * 0.27)
    clock.now += 10.3
    report.add_forward(tally(20), 0.0)
    expected = "sparse 304 / dense 16 (schedule 16) · density 0.27 · 12.3 s"
    assert report.status_text() == expected
    assert "schedule: dense step 16" in report.status_text(full_reasons=True)


def test_status_line_merges_the_reasons_of_the_schedule_only() -> None:
    report = RunReport()
    report.add_forward(tally(0, dense=2, reason="schedule: dense step"), 0.0)
    report.add_forward(tally(1, dense=3, reason="schedule: step is off"), 0.0)
    report.add_forward(tally(2, dense=4, reason="attention mask"), 0.0)
    assert "dense 9 (schedule 5, attention mask 4)" in report.status_text()


def test_nothing_yet() -> None:
    report = RunReport()
    assert report.density is None
    assert report.status_text() == "sparse 0 / dense 0 · 0.0 s"


def test_counts_by_step_and_block() -> None:
    report = RunReport("7")
    report.add_forward(tally(10, sparse=1, dense=1, reason="dense_blocks"), 0.25)
    report.add_forward(tally(2, sparse=1), 0.25)
    report.add_forward(tally(None, sparse=1), 0.25)
    data = report.as_dict()
    assert data["calls"] == [
        [None, "double", 0, 1, 0],
        [2, "double", 0, 1, 0],
        [10, "double", 0, 1, 0],
        [10, "double", 1, 0, 1],
    ]
    assert data["node"] == "7"
    assert data["reasons"] == {"dense_blocks": 1}
    assert (data["forwards"], data["sparse"], data["dense"], data["density"]) == (3, 3, 1, 0.25)


def test_status_is_sent_seldom_and_at_the_end() -> None:
    clock, sent = Clock(), []
    report = RunReport("7", send_status=lambda text, node: sent.append((text, node)), clock=clock)
    for _ in range(5):
        report.add_forward(tally(0, sparse=1), 0.25)
    assert len(sent) == 1
    clock.now += 1.0
    report.add_forward(tally(1, sparse=1), 0.25)
    assert len(sent) == 2
    report.finish_run()
    assert len(sent) == 3
    assert sent[-1][0].startswith("sparse 6 / dense 0")
    assert {node for _, node in sent} == {"7"}


def test_json_line(caplog: pytest.LogCaptureFixture) -> None:
    report = RunReport(verbose=True)
    report.add_forward(tally(0, sparse=2), 0.5)
    with caplog.at_level(logging.INFO, logger="rectified_spaattn"):
        report.finish_run("WAN21")
    line = next(r.message for r in caplog.records if r.message.startswith(REPORT_PREFIX))
    data = json.loads(line.removeprefix(REPORT_PREFIX))
    assert data["model"] == "WAN21"
    assert data["sparse"] == 2


def test_a_run_without_forwards_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[str] = []
    report = RunReport("7", send_status=lambda text, node: sent.append(text))
    with caplog.at_level(logging.INFO):
        report.finish_run()
    assert not sent
    assert not caplog.records


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
            report.add_forward(tally(0, sparse=3), 0.75)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert report.forwards == 800
    assert report.as_dict()["sparse"] == 2400
    assert report.density == pytest.approx(0.25)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_finish_finds_values_that_are_not_finite(value: float) -> None:
    counts = tally(0, sparse=3)
    output = torch.zeros(1, 16, 2, 4, 4)
    density_sum, is_finite = counts.finish(output)
    assert density_sum == pytest.approx(0.75)
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
