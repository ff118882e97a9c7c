"""First use of a tile on a GPU: it is trusted only after its output has matched the reference.

Compilers differ between Triton versions and chips, and a bad configuration may return garbage
without any error. A tile that fails, or does not fit, gives way to the next row of the table.

With a Triton newer than the releases that the kernels have run with, a kernel may hang or take its
process with it, and nothing in that process could help. So a child calls `error_of` first, and is
killed where it gives no answer in time. Its verdict is kept in Triton's cache folder. A call waits
at most `TRIAL_LIMIT` for all of its tiles, and `END_LIMIT` for each child to end once it is killed.
The parent asks in `Trial`; the child runs `PROGRAM`, which calls `answer`.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, wraps
from pathlib import Path
from typing import Any

import torch
import triton

from ..rspa_core.config import SparseConfig
from ..rspa_core.layout import TokenLayout
from ..rspa_core.reference import reference_attention, reference_attention_lse, relative_l2
from . import Launch, compiling, progress, recorded
from .devices import (
    Tile,
    has_descriptors,
    has_gluon,
    is_known,
    resolved_precision,
    tile_candidates,
)
from .launch import launch

# What rounding inputs, weights and output to the dtype stays below; a wrong tile is off by 1.
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 2e-2, torch.float32: 1e-4}
# A value half way between two steps of int8 may go either way.
INT8_TOLERANCE = 1e-3
TILE_LIMIT = 120.0
"""Seconds that a child has, imports and compilers included."""
TRIAL_LIMIT = 240.0
"""Seconds for all tiles of one kind of call."""
END_LIMIT = 5.0
"""Seconds that a killed child is waited for."""
FILE = "rectified_spaattn_trials.json"
MAX_KEPT = 200
"""Verdicts in the file; the oldest go."""
HEADERS = {
    False: "Install gcc and Python's headers (Debian, Ubuntu: 'apt install gcc python3-dev'), "
    "then restart.",
    True: "Portable: put the folders 'include' and 'libs' of your Python version into "
    "python_embeded (python_3.x.x_include_libs.zip on the page of triton-windows). Else install "
    "Python from python.org, and 'pip install -U triton-windows', which brings its compiler. "
    "Then restart.",
}
"""What to install, by whether this is Windows."""

LOAD = """
import importlib, json, sys, types
asked = json.loads(sys.argv[1])
sys.path += [each for each in asked["path"] if each not in sys.path]
package = sys.modules["rspa_trial"] = types.ModuleType("rspa_trial")
package.__path__ = [asked["pack"]]
selfcheck = importlib.import_module("rspa_trial.kernels.selfcheck")
"""
"""How the child finds the pack: by its folder, whatever its name, without its front door."""
PROGRAM = LOAD + "selfcheck.answer(asked)"
Lines = queue.SimpleQueue[dict[str, Any]]
"""What the child says, line by line."""

_MARK = b"rspa-trial "  # of lines for the parent; compilers write to stdout, too
_POLL = 0.1
_LAYOUT = TokenLayout(grid=(5, 9, 17), length=5 * 9 * 17 + 150, video_start=70)

logger = logging.getLogger("rectified_spaattn")


class NoKernelError(RuntimeError):
    """No tile of the table works on this GPU. The message says what happened to the last one."""


class TrialError(RuntimeError):
    """A tile is not to be run in this process. The message says what became of its trial."""


def explained(function: Callable[..., Tile]) -> Callable[..., Tile]:
    """The function, with errors of Triton's C compiler as a `NoKernelError` that says the cure."""

    @wraps(function)
    def call(*args: Any) -> Tile:
        try:
            return function(*args)
        except NoKernelError:
            raise
        except Exception as error:  # Triton compiles C code before the first kernel, too
            problem = compiler_problem(error)
            if problem is None:
                raise
            raise NoKernelError(problem) from error

    return call


def checked_config(config: SparseConfig) -> SparseConfig:
    """What one check answers for: the same blocks, rectification, precision and tail keys."""
    return SparseConfig(
        sparsity=0.6,
        q_block=config.q_block,
        kv_block=config.kv_block,
        rectification=config.rectification,
        precision=config.precision,
        tail_keys=config.tail_keys,
    )


# One entry per kind of call: a handful in a process. A failure is not kept: the caller gives up
# for its run, and the next run may find more memory.
@lru_cache(maxsize=64)
@explained
def trusted_tile(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    config: SparseConfig,
    has_context: bool = True,
    with_lse: bool = False,
) -> Tile:
    """First tile of the table that gives the reference's output on `device`.

    Args:
        device, dtype, head_dim: of q, k and v.
        config: see `checked_config`.
        has_context: whether there are tokens beside the video, which have kernels of their own.
        with_lse: whether the logarithms of the sums of weights are asked for, too.

    Raises:
        NoKernelError: no tile does.
        torch.OutOfMemoryError: the GPU is too full to tell.
    """
    name = torch.cuda.get_device_name(device)
    capability = torch.cuda.get_device_capability(device)
    precision = resolved_precision(config.precision, capability)
    candidates = tile_candidates(
        capability,
        triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"],
        dtype,
        triton.next_power_of_2(head_dim),
        config.q_block,
        config.kv_block,
        has_descriptors(),
        has_gluon(),
        int8=precision == "int8",
    )
    logger.info("Rectified SpaAttn: compiling kernels once for %s, scores in %s", name, precision)
    tolerance = max(TOLERANCE[dtype], INT8_TOLERANCE) if precision == "int8" else TOLERANCE[dtype]
    call = (device, dtype, head_dim, config, has_context)
    trial = Trial(*call, gpu="{} {}.{}".format(name, *capability))

    def error(tile: Tile) -> float:
        tried = 0.0 if is_known(tile) else trial.error_of(tile)
        return error_of(tile, *call, with_lse) if tried < tolerance else tried

    return first_correct(candidates, error, tolerance, name)


def first_correct(
    candidates: list[Tile], error: Callable[[Tile], float], tolerance: float, gpu: str
) -> Tile:
    """First tile whose error is below the tolerance; one that raises gives way to the next.

    Args:
        candidates: tiles, best first.
        error: relative error of a tile's output, NaN if it is not finite; compiles and runs it.
        tolerance: largest error that rounding can explain.
        gpu: name of the GPU, for messages.

    Raises:
        NoKernelError: none is left.
        torch.OutOfMemoryError: raised by `error`; it says nothing about the tile.
    """
    problem = "no tile fits into its shared memory"
    for tile in candidates:
        try:
            difference = error(tile)
        except torch.OutOfMemoryError:
            raise
        except Exception as exception:  # compiler and launch errors have no common type
            cure = compiler_problem(exception)
            if cure is not None:  # no tile has anything to do with it
                raise NoKernelError(cure) from exception
            problem = f"{type(exception).__name__}: {exception}".splitlines()[0]
        else:
            if difference < tolerance:  # also false for NaN
                return tile
            problem = f"{tile} differs from the reference by {difference:.1e}"
        logger.warning("Rectified SpaAttn: %s is not used: %s", tile, problem)
    raise NoKernelError(f"no kernel works on {gpu}: {problem}")


@dataclass(frozen=True)
class Verdict:
    """Relative error of a tile, or what is wrong with it ("": nothing), and seconds it took."""

    error: float
    problem: str
    seconds: float


@dataclass
class Trial:
    """The trial of the tiles of one kind of call.

    Attributes:
        device, dtype, head_dim, config, has_context: see `trusted_tile`.
        gpu: name and compute capability.
        program: Python source that the child runs; see `_ask` for what it gets, `answer` for what
            it says.
        pack, cache: folders of the pack, and of Triton's cache.
        tile_limit, trial_limit: seconds for a tile, and for all.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    config: SparseConfig
    has_context: bool
    gpu: str
    program: str = PROGRAM
    pack: Path = Path(__file__).resolve().parent.parent
    cache: Path = field(default_factory=lambda: cache_folder())
    tile_limit: float = TILE_LIMIT
    trial_limit: float = TRIAL_LIMIT
    _verdicts: dict[str, Verdict] = field(default_factory=dict, init=False)
    _spent: float = field(default=0.0, init=False)
    _obstacle: str = field(default="", init=False)
    _can_keep: bool = field(default=True, init=False)

    def error_of(self, tile: Tile) -> float:
        """Relative error of `tile` in a process of its own, now or when it was first tried.

        Raises:
            TrialError: it hangs, crashes, does not compile, or cannot be tried.
            NoKernelError: Triton has no C compiler.
            torch.OutOfMemoryError: there is no memory to try it.
        """
        known = read_verdicts(self.file) | self._verdicts
        # A hang takes minutes, and one specialised tile is like the next.
        keys = [self._key(tile), self._key(None)] if tile.specialised else [self._key(tile)]
        verdict = next((known[key] for key in keys if key in known), None) or self._try(tile)
        if not verdict.problem:
            return verdict.error
        is_kept = any(key in read_verdicts(self.file) for key in keys)
        again = f"to try again delete {self.file}" if is_kept else "tried again next time"
        how = f"tried with Triton {triton.__version__} in a process of its own; {again}"
        raise TrialError(f"{verdict.problem} ({how})")

    @property
    def file(self) -> Path:
        """Where verdicts are kept."""
        return self.cache / FILE

    @cached_property
    def _where(self) -> str:
        sources = hashlib.sha256()
        for folder in ("kernels", "rspa_core"):
            for path in sorted((self.pack / folder).glob("*.py")):
                sources.update(path.name.encode() + path.read_bytes())
        versions = f"Triton {triton.__version__}, torch {torch.__version__}"
        return f"{versions}, sources {sources.hexdigest()[:16]}, {self.gpu}"

    def _key(self, tile: Tile | None) -> str:
        """All that decides about a verdict; for None, about one on all specialised tiles."""
        if tile is None:
            return f"{self._where}, specialised"
        call = f"{self.dtype}, head_dim={self.head_dim}, has_context={self.has_context}"
        return f"{self._where}, {call}, {self.config.to_text()}, {tile}"

    def _try(self, tile: Tile) -> Verdict:
        limit = min(self.tile_limit, self.trial_limit - self._spent)
        if limit <= 0:
            self._obstacle = f"not tried: the tiles before it took {self._spent:.0f} s"
        if self._obstacle:
            raise TrialError(self._obstacle)
        logger.info(
            "Rectified SpaAttn: Triton %s has not run this kernel yet: %s is tried in a process of "
            "its own, for %.0f s at most",
            *(triton.__version__, tile, limit),
        )
        started = time.monotonic()
        try:
            told, code = self._ask(tile, limit)
        except OSError as error:
            told, code = {"problem": str(error)}, None
        finally:
            seconds = time.monotonic() - started
            self._spent += seconds
        if code == -9 and "error" not in told:
            told = {"full": "its process was killed, as Linux does where memory runs out"}
        if "full" in told:
            raise torch.OutOfMemoryError(f"trial of a kernel: {told['full']}")
        if "cure" in told:
            raise NoKernelError(told["cure"])
        hangs = code is None and not told.keys() & {"error", "problem"}
        problem = told.get("problem", "")
        if hangs:
            problem = f"hangs: no answer within {limit:.0f} s{told.get('compiled', '')}"
        elif not problem and "error" not in told:
            problem = f"crashes: exit code {code}, {told.get('last', '')}".rstrip(", ")
        if "started" not in told:  # says nothing about the tile, and the next would fail as well
            self._obstacle = f"cannot be tried: {problem}"
            raise TrialError(self._obstacle)
        verdict = Verdict(told.get("error", math.nan), problem, round(seconds, 1))
        key = self._key(None if hangs and tile.specialised else tile)
        self._verdicts[key] = verdict
        if not hangs or limit > self.tile_limit / 2:  # with less it may have been slow only
            self._keep(key, verdict)
        if not problem:
            logger.info(
                "Rectified SpaAttn: %s: relative error %.1e, after %.0f s%s",
                *(tile, verdict.error, seconds, f"; kept in {self.file}" * self._can_keep),
            )
        return verdict

    def _keep(self, key: str, verdict: Verdict) -> None:
        verdicts = [*(read_verdicts(self.file) | {key: verdict}).items()][-MAX_KEPT:]
        text = json.dumps({key: asdict(each) for key, each in verdicts}, indent=1)
        own = self.file.with_name(f"{FILE}.{uuid.uuid4().hex}")
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            own.write_text(text, encoding="utf-8")
            os.replace(own, self.file)
        except OSError as error:
            with suppress(OSError):
                own.unlink(missing_ok=True)
            if self._can_keep:
                self._can_keep = False
                logger.warning("Rectified SpaAttn: what was tried cannot be kept: %s", error)

    def _ask(self, tile: Tile, limit: float) -> tuple[dict[str, Any], int | None]:
        """What the child said, all its lines as one, and its exit code; None: it was killed."""
        asked = {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "head_dim": self.head_dim,
            "config": self.config.to_text(),
            "has_context": self.has_context,
            "tile": list(tile),
            "versions": [triton.__version__, torch.__version__],
            "pack": str(self.pack),
            "path": [str(each) for each in sys.path],
            "limit": limit,
        }
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the child cannot use what this process keeps
        options = ["-P", *(["-s"] if sys.flags.no_user_site else [])]
        process = subprocess.Popen(
            [sys.executable, *options, "-c", self.program, json.dumps(asked)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TRITON_CACHE_DIR": str(self.cache)},
            start_new_session=True,  # its compilers are killed with it
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        # Read in a thread: a compiler that holds the pipe open keeps nobody waiting.
        lines: Lines = queue.SimpleQueue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        try:
            return _listen(process, lines, time.monotonic() + limit), process.poll()
        finally:
            _end(process)


def error_of(
    tile: Tile,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    config: SparseConfig,
    has_context: bool = True,
    with_lse: bool = False,
) -> float:
    """Relative L2 error of `tile` on a small random problem with ragged blocks and context; with
    `with_lse` that of the logarithms, if it is larger.

    On a GPU the kernels are compiled side by side first; `progress` hears of it.
    """
    layout = _LAYOUT if has_context else TokenLayout(_LAYOUT.grid, _LAYOUT.video_length)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, layout.length, head_dim, generator=generator, device=device).to(dtype)
        for _ in range(3)
    )
    config = replace(config, precision="int8" if tile.int8 else "16-bit")
    # One head at a time: later chunks start at other offsets than the first.
    arguments = (q, k, v, layout, config, tile, False, 1, with_lse)
    launches: list[Launch] = []
    if device.type == "cuda":
        with recorded() as launches:
            launch(*arguments)
    with compiling(launches, device, progress.get()):
        if with_lse:
            expected, _, expected_lse = reference_attention_lse(q, k, v, layout, config)
        else:
            expected, _ = reference_attention(q, k, v, layout, config)
    out, _, _, lse = launch(*arguments)
    errors = [relative_l2(out, expected)]
    if with_lse:
        errors.append(relative_l2(lse, expected_lse))
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def cache_folder() -> Path:
    """Triton's cache folder."""
    knobs = getattr(getattr(triton, "knobs", None), "cache", None)  # of Triton 3.4 and newer
    told = getattr(knobs, "dir", None) or os.environ.get("TRITON_CACHE_DIR")
    return Path(told or os.path.expanduser("~/.triton/cache"))


def read_verdicts(file: Path) -> dict[str, Verdict]:
    """Verdicts by key; none where the file is missing or not what `Trial` writes."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        verdicts = {key: Verdict(**each) for key, each in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    kinds = {(type(each.error), type(each.problem)) for each in verdicts.values()}
    return verdicts if kinds <= {(float, str)} else {}


def _read(process: subprocess.Popen[bytes], lines: Lines) -> None:
    """Hand on what is for the parent and, at the end, the last line of the rest."""
    assert process.stdout is not None
    last = b""
    with process.stdout as stream:
        for line in iter(lambda: stream.readline(1 << 16), b""):
            if line.startswith(_MARK):
                with suppress(ValueError):  # a crash cut it off
                    lines.put(json.loads(line.removeprefix(_MARK)))
            elif line.strip():
                last = line
    lines.put({"last": last.decode(errors="replace").strip()[-200:]})


def _listen(process: subprocess.Popen[bytes], lines: Lines, deadline: float) -> dict[str, Any]:
    """What the child says until it has answered, or ended, or its time is over."""
    said: dict[str, Any] = {}
    while (left := deadline - time.monotonic()) > 0:
        with suppress(queue.Empty):
            told = lines.get(timeout=min(left, _POLL))
            if "variants" in told:
                done, count = told["variants"]
                told = {"compiled": f", {done} of {count} kernels compiled"}
                if (listener := progress.get()) is not None:
                    listener(done, count)
            said |= told
        if said.keys() & {"error", "problem", "full", "cure"}:
            break
        if process.poll() is not None:
            if "last" in said:
                break
            deadline = min(deadline, time.monotonic() + 1.0)  # the rest is on its way
    return said


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child, and with it what it runs on the GPU."""
    with suppress(OSError):
        if os.name == "posix" and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    try:
        process.wait(END_LIMIT)
    except subprocess.TimeoutExpired:  # its driver does not let go
        logger.warning("Rectified SpaAttn: process %d of a trial does not end", process.pid)


def answer(asked: dict[str, Any], error: Callable[[], float] | None = None) -> None:
    """The child's part: run the tile and say what becomes of it.

    Args:
        asked: see `Trial._ask`.
        error: in place of `error_of`.
    """
    # Even a hanging kernel ends, should the parent no longer be there to kill it.
    faulthandler.dump_traceback_later(asked["limit"] + END_LIMIT, exit=True)
    try:
        error = error or _ready(asked)
        _say(started=True)
        _say(error=float(error()))
    except Exception as exception:
        text = (str(exception).strip().splitlines() or [""])[0][:200]
        is_full = isinstance(exception, (torch.OutOfMemoryError, MemoryError))
        if is_full or "out of memory" in text:  # a full GPU may fail before torch can say so
            _say(full=text)
        elif (cure := compiler_problem(exception)) is not None:
            _say(cure=cure)
        else:
            _say(problem=f"does not compile or run: {type(exception).__name__}: {text}")


def _ready(asked: dict[str, Any]) -> Callable[[], float]:
    """`error_of` of what is asked, once nothing but the tile is left to fail."""
    if asked["versions"] != [triton.__version__, torch.__version__]:
        raise RuntimeError(f"another process finds Triton {triton.__version__}, {triton.__file__}")
    device = torch.device(asked["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.zeros(1, device=device)
    progress.set(lambda done, count: _say(variants=[done, count]))
    dtype, config = getattr(torch, asked["dtype"]), SparseConfig.from_text(asked["config"])
    tile = Tile(*asked["tile"])
    return lambda: error_of(tile, device, dtype, asked["head_dim"], config, asked["has_context"])


def _say(**told: Any) -> None:
    # The first line break ends what a compiler may have left of a line.
    os.write(1, b"\n" + _MARK + json.dumps(told).encode() + b"\n")


def compiler_problem(error: BaseException) -> str | None:
    """What to do where Triton cannot build the C code around its kernels; None for other errors.

    Triton needs a C compiler and Python's headers for that, whatever the kernel. Its error is the
    compiler's command line.
    """
    said, has_failed = "", False
    each: BaseException | None = error
    while each is not None:
        said += f"{each}\n"
        if type(each).__name__ == "CalledProcessError":  # of subprocess
            has_failed = True
            for stream in (getattr(each, "stdout", None), getattr(each, "stderr", None)):
                said += (
                    stream.decode(errors="replace") if isinstance(stream, bytes) else stream or ""
                )
        each = each.__cause__ or each.__context__
    if "Failed to find C compiler" in said:
        cause = "it finds no C compiler"
    elif "Python.h" in said:
        cause = "Python.h is missing"
    elif has_failed:
        cause = "its C compiler failed, mostly because Python's headers are missing"
    else:
        return None
    return f"Triton cannot compile: {cause}. {HEADERS[sys.platform == 'win32']}"
