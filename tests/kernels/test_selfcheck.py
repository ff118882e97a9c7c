"""A tile that a new Triton may have broken is tried in a process of its own, which cannot take the
render with it."""

from __future__ import annotations

import faulthandler
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rectified_spaattn.rspa_core import SparseConfig

pytest.importorskip("triton", reason="Triton is not installed")

from rectified_spaattn.kernels import devices, progress, selfcheck
from rectified_spaattn.kernels.devices import Tile, has_gluon, is_known
from rectified_spaattn.kernels.selfcheck import (
    FILE,
    LOAD,
    PROGRAM,
    NoKernelError,
    Trial,
    TrialError,
    cache_folder,
    first_correct,
)

PACK = Path(selfcheck.__file__).parent.parent
BAD, GOOD = Tile(64, 4, 1), Tile(64, 4, 2)
SHORT = 1.5
"""Seconds for a child that hangs."""
SLACK = 8.0
"""Seconds on top for starting and killing it on a busy machine."""

# A child that speaks for itself, so that it starts within milliseconds. Tiles of two stages work.
QUICK = """
import json, os, signal, subprocess, sys, threading, time
asked = json.loads(sys.argv[1])
def say(**told): os.write(1, b"\\nrspa-trial " + json.dumps(told).encode() + b"\\n")
with open(os.path.join(os.environ["TRITON_CACHE_DIR"], "starts"), "a") as file:
    file.write(f"{os.getpid()}\\n")
say(started=True)
if asked["tile"][2] == 2:
    say(error=1e-3)
    sys.exit()
"""
HANGS = "time.sleep(1e6)"


class Answers:
    """The true `answer`, in this process: a child of its own would import torch, for seconds."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture

    def child(self, error: Exception | None = None, **asked: Any) -> str:
        """A program that says what `answer` says, by default of a tile whose check raises."""

        def check() -> float:
            assert error is not None
            raise error

        self.capture.readouterr()
        try:
            selfcheck.answer({"limit": 60.0, **asked}, None if error is None else check)
        finally:
            faulthandler.cancel_dump_traceback_later()
        return f"import os; os.write(1, {self.capture.readouterr().out.encode()!r})"


@pytest.fixture
def answers(capfd: pytest.CaptureFixture[str]) -> Answers:
    return Answers(capfd)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Trial]:
    """Makes a trial whose child runs `QUICK`, then `body`; all of them share a cache."""

    def make(body: str = "", **changes: Any) -> Trial:
        settings: dict[str, Any] = {
            "device": torch.device("cpu"),
            "dtype": torch.float16,
            "head_dim": 64,
            "config": SparseConfig(0.6, 64, 64),
            "has_context": True,
            "gpu": "Test GPU 9.0",
            "program": QUICK + body,
            "cache": tmp_path,
        }
        return Trial(**{**settings, **changes})

    return make


def starts(cache: Path) -> list[int]:
    """Processes that ran `QUICK`."""
    file = cache / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def choose(trial: Trial, *tiles: Tile) -> Tile:
    return first_correct(list(tiles), trial.error_of, 1e-2, "Test GPU")


CRASH = "crashes: exit code 139"
FAILURES: dict[str, tuple[str | Exception, str]] = {
    "garbage": ("say(error=1.0)", "differs from the reference by 1.0e+00"),
    "not finite": ("say(error=float('nan'))", "differs from the reference by nan"),
    "does not compile": (
        ValueError("no such instruction\nat line 3"),
        "does not compile or run: ValueError: no such instruction (tried",
    ),
    "exits": ("os.write(2, b'illegal access\\n'); os._exit(139)", f"{CRASH}, illegal access (tr"),
    "exits in silence": ("os._exit(139)", f"{CRASH} (tried"),
    "dies": ("os.kill(os.getpid(), signal.SIGSEGV)", "crashes: exit code -11 (tried"),
}


@pytest.mark.parametrize("name", list(FAILURES))
def test_a_tile_that_fails_gives_way_and_is_not_tried_again(
    name: str, make: Callable[..., Trial], answers: Answers
) -> None:
    failure, reason = FAILURES[name]
    is_said = isinstance(failure, Exception)
    trial = make(program=answers.child(failure)) if is_said else make(failure)
    with pytest.raises(NoKernelError) as raised:
        choose(trial, BAD)
    assert str(raised.value).startswith("no kernel works on Test GPU: ")
    assert reason in str(raised.value)
    # Kept: of two tiles the bad one is known, the next one is tried and taken, and kept in turn.
    before = len(starts(trial.cache))
    assert choose(make("say(error=0.0)"), BAD, GOOD) == GOOD
    assert choose(make("say(error=0.0)"), BAD, GOOD) == GOOD
    assert len(starts(trial.cache)) == before + 1
    with pytest.raises(NoKernelError, match="no kernel works on Test GPU: ") as again:
        choose(make("say(error=0.0)"), BAD)
    assert reason in str(again.value)


def test_a_tile_that_hangs_is_killed_in_time(
    make: Callable[..., Trial], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rectified_spaattn")
    trial = make(HANGS, tile_limit=SHORT)
    started = time.monotonic()
    assert choose(trial, BAD, GOOD) == GOOD
    assert time.monotonic() - started < SHORT + SLACK
    assert not any(map(is_alive, starts(trial.cache)))
    said = [record.getMessage() for record in caplog.records]
    told = [line for line in said if "hangs: " in line]
    assert len(told) == 1
    assert f"{BAD} is not used: TrialError: hangs: no answer within 2 s" in told[0]
    assert f"to try again delete {trial.file}" in told[0]
    assert sum("is tried in a process of its own" in line for line in said) == 2
    assert sum(f"{GOOD}: relative error 1.0e-03" in line for line in said) == 1
    kept = json.loads(trial.file.read_text(encoding="utf-8"))
    (key,) = (key for key, verdict in kept.items() if verdict["problem"])
    for part in ("Triton ", "torch ", "Test GPU 9.0", "float16", "head_dim=64", str(BAD)):
        assert part in key
    assert SHORT <= kept[key]["seconds"] < SHORT + SLACK


def test_compilers_of_a_tile_that_hangs_are_killed_too(make: Callable[..., Trial]) -> None:
    compiler = 'other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])'
    note = 'with open(file.name, "a") as file: file.write(f"{other.pid}\\n")'
    trial = make(f"{compiler}\n{note}\n{HANGS}", tile_limit=SHORT)
    with pytest.raises(TrialError, match="hangs"):
        trial.error_of(BAD)
    child, compiler_pid = starts(trial.cache)
    if os.name == "posix":
        status = Path(f"/proc/{compiler_pid}/status")
        for _ in range(50):  # whoever adopted it buries it
            if not is_alive(compiler_pid) or "State:\tZ" in status.read_text():
                break
            time.sleep(0.1)
        else:
            pytest.fail("the compiler goes on")
    assert not is_alive(child)


def test_a_process_that_keeps_the_pipe_keeps_nobody_waiting(make: Callable[..., Trial]) -> None:
    holder = (
        'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"],'
        " start_new_session=True)\nos._exit(3)"
    )
    started = time.monotonic()
    with pytest.raises(TrialError, match="crashes: exit code 3"):
        make(holder).error_of(BAD)
    assert time.monotonic() - started < SLACK


FLOOD = "threading.Thread(target=lambda: [os.write(1, b'x' * 9999) for _ in iter(int, 1)]).start()"
FLOODED = 0.7
"""Seconds for a child that floods: as long it has a processor to itself, and the parent another."""


def test_a_flood_of_output_drowns_no_answer(make: Callable[..., Trial]) -> None:
    assert make(f"{FLOOD}\ntime.sleep(0.2)\nsay(error=0.25)").error_of(BAD) == 0.25
    started = time.monotonic()
    with pytest.raises(TrialError, match="hangs"):
        make(FLOOD, tile_limit=FLOODED, head_dim=128).error_of(BAD)
    assert time.monotonic() - started < FLOODED + SLACK


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_a_full_gpu_says_nothing_about_a_tile(
    failure: str | Exception, make: Callable[..., Trial], answers: Answers
) -> None:
    is_said = isinstance(failure, Exception)
    trial = make(program=answers.child(failure)) if is_said else make(failure)
    with pytest.raises(torch.OutOfMemoryError, match="trial of a kernel: "):
        choose(trial, BAD, GOOD)
    assert not trial.file.exists()


def test_a_missing_compiler_says_nothing_about_a_tile(
    make: Callable[..., Trial], answers: Answers
) -> None:
    trial = make(program=answers.child(RuntimeError("Failed to find C compiler.")))
    with pytest.raises(NoKernelError, match="Triton cannot compile: it finds no C compiler"):
        choose(trial, BAD, GOOD)
    assert not trial.file.exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        (f"import time; {HANGS}", "hangs: no answer within"),
        ("", "process finds Triton"),
    ],
)
def test_a_child_that_does_not_come_to_the_tile_says_nothing_about_it(
    program: str, reason: str, make: Callable[..., Trial], answers: Answers
) -> None:
    """Nor is it tried with the next one: that would take as long, to the same end."""
    limit = SHORT if HANGS in program else 60.0
    program = program or answers.child(versions=["3.2.0", torch.__version__])
    trial = make(program=program, tile_limit=limit)
    with pytest.raises(TrialError, match="cannot be tried: ") as raised:
        trial.error_of(BAD)
    assert reason in str(raised.value)
    started = time.monotonic()
    with pytest.raises(TrialError, match="cannot be tried: "):
        trial.error_of(GOOD)
    assert time.monotonic() - started < 0.5
    assert not trial.file.exists()


def test_without_a_python_to_start_there_is_a_reason(
    make: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(NoKernelError, match=r"cannot be tried: .*No such file"):
        choose(make(), BAD, GOOD)


def test_all_tiles_together_have_a_limit(make: Callable[..., Trial]) -> None:
    tiles = [Tile(64, 4, 1), Tile(32, 4, 1), Tile(16, 4, 1), Tile(8, 4, 1)]
    trial = make(HANGS, tile_limit=SHORT, trial_limit=1.2 * SHORT)
    started = time.monotonic()
    with pytest.raises(NoKernelError, match="not tried: the tiles before it took"):
        choose(trial, *tiles)
    assert time.monotonic() - started < 1.2 * SHORT + SLACK
    # The second was given too little to be judged for good.
    assert len(json.loads(trial.file.read_text())) == 1


def test_after_one_specialised_tile_hangs_none_is_tried(make: Callable[..., Trial]) -> None:
    first, second = (Tile(size, 4, 1, specialised=True) for size in (128, 64))
    trial = make(HANGS, tile_limit=SHORT)
    assert choose(trial, first, second, GOOD) == GOOD
    assert len(starts(trial.cache)) == 2
    # Nor with calls of another kind, whose tiles are tried otherwise.
    other = make(config=SparseConfig(0.6, 128, 64))
    assert choose(other, first, second, GOOD) == GOOD
    assert len(starts(trial.cache)) == 3
    # Nor where nothing can be kept.
    file = trial.cache / "no folder"
    file.touch()
    program = f"import os; os.environ['TRITON_CACHE_DIR'] = {str(trial.cache)!r}\n" + QUICK + HANGS
    trial = make(program=program, tile_limit=SHORT, cache=file)
    assert choose(trial, first, second, GOOD) == GOOD
    assert len(starts(file.parent)) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": torch.bfloat16},
        {"head_dim": 128},
        {"config": SparseConfig(0.6, 64, 64, rectification="paper")},
        {"has_context": False},
        {"gpu": "Test GPU 10.0"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_is_tried_on_its_own(
    change: dict[str, Any], make: Callable[..., Trial]
) -> None:
    assert make("say(error=0.5)").error_of(BAD) == 0.5
    assert make("say(error=0.25)", **change).error_of(BAD) == 0.25
    assert make("say(error=0.125)").error_of(BAD) == 0.5


def copied_pack(folder: Path) -> Path:
    """The pack's kernels and method in another folder, with a front door that must stay shut."""
    for part in ("kernels", "rspa_core"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACK / part, folder / part, ignore=ignored)
    (folder / "__init__.py").write_text("raise RuntimeError('front door')\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("part", ["kernels/attend.py", "rspa_core/reference.py"])
def test_other_sources_are_tried_again(
    part: str, make: Callable[..., Trial], tmp_path: Path
) -> None:
    pack = copied_pack(tmp_path / "pack")
    assert make("say(error=0.5)", pack=pack).error_of(BAD) == 0.5
    with (pack / part).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert make("say(error=0.25)", pack=pack).error_of(BAD) == 0.25


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[1]",
        b"3",
        b"null",
        b'{"KEY": 0.001}',
        b'{"KEY": {"error": 0.001}}',
        b'{"KEY": {"error": "0", "problem": "", "seconds": 1}}',
        b'{"KEY": {"error": null, "problem": "", "seconds": 1}}',
        b'{"KEY": {"error": 0.001, "problem": 7, "seconds": 1}}',
        b'{"KEY": {"error": 0.001, "problem": "", "seconds": 1, "more": 1}}',
        b"[" * 100_000,
    ],
    ids=lambda text: text[:60].decode(errors="replace") or "empty",
)
def test_a_strange_file_is_as_none(text: bytes, make: Callable[..., Trial]) -> None:
    trial = make("say(error=0.5)")
    trial.error_of(BAD)
    (key,) = json.loads(trial.file.read_text())
    trial.file.write_bytes(text.replace(b"KEY", key.encode()))
    assert make("say(error=0.25)").error_of(BAD) == 0.25
    assert make("say(error=0.125)").error_of(BAD) == 0.25


def test_the_file_stays_small_and_alone(
    make: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck, "MAX_KEPT", 2)
    for size in (16, 32, 64):
        make().error_of(GOOD._replace(tile_n=size))
    trial = make()
    assert [key.rsplit("tile_n=")[1][:2] for key in json.loads(trial.file.read_text())] == [
        "32",
        "64",
    ]
    assert {each.name for each in trial.cache.iterdir()} == {FILE, "starts"}


def test_a_cache_that_cannot_be_written_is_told_once(
    make: Callable[..., Trial], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a file"
    file.touch()
    program = f"import os; os.environ['TRITON_CACHE_DIR'] = {str(tmp_path)!r}\n{QUICK}os._exit(5)"
    for _ in range(2):
        caplog.clear()
        trial = make(program=program, cache=file)
        assert choose(trial, BAD, BAD._replace(tile_n=32), GOOD) == GOOD
        said = [record.getMessage() for record in caplog.records]
        assert sum("what was tried cannot be kept" in line for line in said) == 1
        assert sum("tried again next time" in line for line in said) == 2
        assert not any("kept in" in line or "to try again" in line for line in said)
    assert len(starts(tmp_path)) == 6


def test_the_compilers_of_the_child_are_heard_of(make: Callable[..., Trial]) -> None:
    heard: list[tuple[int, int]] = []
    token = progress.set(lambda *both: heard.append(both))
    try:
        trial = make("say(variants=[1, 2]); say(variants=[2, 2]); say(error=0.5)")
        assert trial.error_of(BAD) == 0.5
        trial = make(f"say(variants=[4, 9]); {HANGS}", head_dim=128, tile_limit=SHORT)
        with pytest.raises(TrialError, match="4 of 9 kernels compiled"):
            trial.error_of(BAD)
    finally:
        progress.reset(token)
    assert heard == [(1, 2), (2, 2), (4, 9)]


def test_a_listener_may_call_it_off(make: Callable[..., Trial]) -> None:
    """As ComfyUI does where the artist cancels."""

    def cancel(done: int, count: int) -> None:
        raise KeyboardInterrupt

    token = progress.set(cancel)
    trial = make(f"say(variants=[1, 2]); {HANGS}")
    try:
        with pytest.raises(KeyboardInterrupt):
            trial.error_of(BAD)
    finally:
        progress.reset(token)
    assert not any(map(is_alive, starts(trial.cache)))
    assert not trial.file.exists()


def test_a_child_ends_by_itself_where_its_parent_is_gone() -> None:
    hangs = (
        "import time; selfcheck.END_LIMIT = 0.5; selfcheck.answer(asked, lambda: time.sleep(1e6))"
    )
    asked = json.dumps({"path": sys.path, "pack": str(PACK), "limit": 0.5})
    command = [sys.executable, "-P", "-c", LOAD + hangs, asked]
    run = subprocess.run(command, capture_output=True, timeout=60)
    assert run.returncode == 1
    assert b'rspa-trial {"started": true}' in run.stdout


def test_the_cache_is_tritons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TRITON_CACHE_DIR")
    assert cache_folder() == Path(triton.knobs.cache.dir)
    monkeypatch.setattr(triton, "knobs", None)
    assert cache_folder() == Path.home() / ".triton" / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path


def needs_interpreter(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("the kernels of this process are for a GPU")


def test_a_real_child_checks_a_tile_from_a_folder_of_any_name(
    make: Callable[..., Trial], tmp_path: Path, device: torch.device
) -> None:
    needs_interpreter(device)
    pack = copied_pack(tmp_path / "my rectified-spaattn 2.0")
    config = SparseConfig(0.6, 128, 64, rectification="none")
    call = {"head_dim": 32, "config": config, "has_context": False}
    error = make(program=PROGRAM, pack=pack, **call).error_of(BAD)
    assert 0 < error < selfcheck.TOLERANCE[torch.float16]
    here = selfcheck.error_of(BAD, device, torch.float16, **call)
    assert error == pytest.approx(here, rel=1e-6)


@pytest.mark.parametrize("is_new", [False, True])
def test_only_a_new_triton_starts_a_child(
    is_new: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import triton

    asked: list[Tile] = []

    def ask(self: Trial, tile: Tile, limit: float) -> tuple[dict[str, object], int]:
        asked.append(tile)
        return {"started": True, "error": 1e-3}, 0

    monkeypatch.setattr(Trial, "_ask", ask)
    monkeypatch.setattr(selfcheck, "error_of", lambda *_: 1e-3)

    limits = SimpleNamespace(get_device_properties=lambda index: {"max_shared_mem": 1 << 17})
    driver = SimpleNamespace(active=SimpleNamespace(utils=limits))
    monkeypatch.setattr(triton.runtime, "driver", driver)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if is_new:
        monkeypatch.setattr(devices, "KNOWN_RELEASES", ((3, 3),))
    config = selfcheck.checked_config(SparseConfig(0.6, 64, 64, rectification="none"))
    call = (torch.device("cpu"), torch.float16, 64, config)
    tile = selfcheck.trusted_tile.__wrapped__(*call)
    assert not tile.specialised
    file = tmp_path / FILE
    assert asked == ([tile] if is_new else [])
    assert file.exists() == is_new
    if is_new:
        (verdict,) = json.loads(file.read_text()).values()
        assert verdict["problem"] == ""
        assert verdict["error"] == 1e-3
        # Tried with a good verdict is not tried again; with a bad one the next tile is.
        text = file.read_text().replace(str(verdict["error"]), "0.5")
        file.write_text(text)
        assert selfcheck.trusted_tile.__wrapped__(*call) != tile
        assert len(asked) == len(json.loads(file.read_text())) == 2


def test_releases_that_were_run_need_no_trial() -> None:
    generic, gluon = GOOD, Tile(128, 4, 2, specialised=True)
    newest = max(devices.GLUON_RELEASES)
    for release in devices.KNOWN_RELEASES:
        version = "{}.{}.1".format(*release)
        assert is_known(generic, version)
        assert is_known(gluon, version) == (release in devices.GLUON_RELEASES)
        # What is older than the newest one is not offered unless it was run.
        if release <= newest:
            assert has_gluon(version) == (release in devices.GLUON_RELEASES)
    for version in ("3.10.0", "3.10.0rc1", "4.0.0+git1234"):
        assert not is_known(generic, version)
        assert not is_known(gluon, version)
    for version in ("3.3.1", "3.5.1"):
        assert not has_gluon(version)


def test_a_new_triton_is_offered_gluon_where_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_gluon("99.0.0")
    # As if this release had no such module.
    monkeypatch.setitem(sys.modules, "triton.experimental.gluon", None)
    monkeypatch.delitem(sys.modules, "rectified_spaattn.kernels.attend_hopper", raising=False)
    assert not has_gluon("99.0.0")
    assert has_gluon("{}.{}.0".format(*max(devices.GLUON_RELEASES)))


def test_a_gpu_survives_a_kernel_that_never_ends(
    make: Callable[..., Trial], device: torch.device
) -> None:
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    here = torch.ones(1 << 20, device=device)
    note = "open(os.environ['TRITON_CACHE_DIR'] + '/starts', 'w').write(str(os.getpid()))"
    program = (
        f"{LOAD}import os; {note}; sys.path.append({str(Path(__file__).parent)!r})\n"
        "import spinning; selfcheck.answer(asked, lambda: spinning.spin(asked['device']))"
    )
    limit = 60.0
    trial = make(program=program, device=device, tile_limit=limit)
    started = time.monotonic()
    with pytest.raises(TrialError, match="hangs: no answer within 60 s"):
        trial.error_of(BAD)
    assert time.monotonic() - started < limit + SLACK
    (pid,) = starts(trial.cache)
    assert not is_alive(pid)
    # The GPU is free again, for this process and for the next trial.
    assert math.isclose(float((here @ here).item()), 1 << 20)
    assert 0 < make(program=PROGRAM, device=device).error_of(GOOD) < 1e-2
