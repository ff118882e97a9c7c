"""The APPLY_MODEL wrapper: decisions per forward, state per run, safety, and warnings."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rectified_spaattn.nodes.patching import KEY, OVERRIDE, SparseAttentionPatch, install
from rectified_spaattn.rspa_core import rectified_attention
from rectified_spaattn.rspa_core.run.calls import RunSettings
from rectified_spaattn.rspa_core.run.reasons import Reason
from rectified_spaattn.rspa_core.run.record import Ending
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule, parse_dense_blocks

from .patch_rig import BLOCKS, CONFIG, SAMPLE_SIGMAS, make_executor, make_patch, rows, run
from .stand_ins import LATENT, TOKENS, wan_forward, wan_model


def test_all_steps_are_sparse() -> None:
    patch, executor = make_patch(), make_executor()
    for sigma in SAMPLE_SIGMAS[:-1].tolist():
        run(patch, executor, sigma)
    assert rows(patch) == dict.fromkeys(range(4), (BLOCKS, 0))
    assert 0.5 <= patch.run.report.record().density < 1.0, (
        "sparsity 0.5, and neighbours are kept on top"
    )


def test_options_are_copied_and_the_override_is_fresh() -> None:
    patch, executor = make_patch(), make_executor()
    options = {
        "sigmas": torch.tensor([1.0]),
        "sample_sigmas": SAMPLE_SIGMAS,
        "patches": {"a": [1]},
    }
    x, text = torch.zeros(LATENT), torch.zeros(1, 77, 64)
    for _ in range(2):
        patch(executor, x, torch.tensor([1.0]), None, text, None, options)
    first, second = executor.options
    assert OVERRIDE not in options
    assert "block_index" not in options, "a model that writes into its options must not reach ours"
    assert first[OVERRIDE] is not second[OVERRIDE]
    assert first["patches"] is options["patches"]


def test_previous_override_is_chained() -> None:
    calls: list[int] = []

    def previous(func, *args, **kwargs):
        calls.append(1)
        return func(*args, **kwargs)

    run(make_patch(), make_executor(), optimized_attention_override=previous)
    assert len(calls) == BLOCKS, "the cross-attention calls; the others were sparse"


def test_percents_are_read_from_the_sampling_of_the_run() -> None:
    """A ModelSamplingSD3 placed after the node changes which sigmas 20 % means."""
    patch = make_patch(SparsitySchedule(0.5, 0.5, "constant", 0.0, 0.2))
    executor = make_executor()
    high_noise = SAMPLE_SIGMAS[:3]  # another sampler takes the rest
    run(patch, executor, 0.75, sample_sigmas=high_noise)  # percent 0.25 unshifted
    assert rows(patch) == {1: (0, BLOCKS)}
    shift = 8.0
    executor.class_obj.model_sampling = SimpleNamespace(
        percent_to_sigma=lambda p: shift * (1 - p) / (1 + (shift - 1) * (1 - p))
    )
    for sigma in (0.97, 0.9):  # percents 0.20 and 0.47 with this shift, 0.03 and 0.10 without
        run(patch, executor, sigma, sample_sigmas=high_noise)
    assert rows(patch) == {0: (BLOCKS, BLOCKS), 1: (0, BLOCKS)}


def test_percents_are_shares_of_the_steps_of_a_whole_sampling() -> None:
    """A scheduler that hurries through the noise, and one that lingers in it."""
    for sigmas in ([1.0, 0.3, 0.2, 0.1, 0.0], [1.0, 0.99, 0.98, 0.97, 0.0]):
        patch = make_patch(SparsitySchedule(0.5, 0.5, "constant", 0.5))
        executor = make_executor()
        for sigma in sigmas[:-1]:
            run(patch, executor, sigma, sample_sigmas=torch.tensor(sigmas))
        dense, sparse = (0, BLOCKS), (BLOCKS, 0)
        assert rows(patch) == {0: dense, 1: dense, 2: sparse, 3: sparse}


def test_steps_are_intervals_of_the_sampler_not_calls() -> None:
    """EasyCache skips calls, heun makes two, SDE samplers evaluate between two sigmas."""
    patch = make_patch(SparsitySchedule(0.5, 0.5, steps=(None, 0.5, None, 0.5)))
    executor = make_executor()
    for sigma in (1.0, 0.9, 0.75, 0.75, 0.3):
        run(patch, executor, sigma)
    assert rows(patch) == {0: (0, 2 * BLOCKS), 1: (2 * BLOCKS, 0), 2: (0, BLOCKS)}


def test_second_sampler_counts_its_own_steps_but_shares_the_percents() -> None:
    schedule = SparsitySchedule(0.5, 0.5, "constant", 0.4, 1.0, dense_steps=(0,))
    patch, executor = make_patch(schedule), make_executor()
    low_noise = SAMPLE_SIGMAS[2:]
    run(patch, executor, 0.5, sample_sigmas=low_noise)
    run(patch, executor, 0.25, sample_sigmas=low_noise)
    assert rows(patch) == {0: (0, BLOCKS), 1: (BLOCKS, 0)}


@pytest.mark.parametrize(
    "sigmas",
    [
        pytest.param([0.0, 0.4, 0.7, 0.9, 1.0], id="inversion"),
        pytest.param([1.0, 0.8, 0.5, 0.9, 0.4, 0.0], id="restart"),
        pytest.param([1.0, 0.9, 0.9, 0.5, 0.0], id="repeated"),
    ],
)
def test_steps_of_sigmas_that_do_not_fall(sigmas: list[float]) -> None:
    """The conditions called one by one, and in the first step context windows, too."""
    count = len(sigmas) - 1
    steps = tuple(0.5 if step % 2 else None for step in range(count))
    patch, executor = make_patch(SparsitySchedule(0.5, 0.5, steps=steps)), make_executor()
    for step, sigma in enumerate(sigmas[:-1]):
        for cond, first in ((0, 0), (1, 0), (0, 2)):
            window = SimpleNamespace(index_list=[first, first + 1])
            run(
                patch,
                executor,
                sigma,
                sample_sigmas=torch.tensor(sigmas),
                cond_or_uncond=[cond],
                context_window=window,
            )
        expected = (3 * BLOCKS, 0) if step % 2 else (0, 3 * BLOCKS)
        assert rows(patch)[step] == expected


def test_without_sample_sigmas_there_is_no_step() -> None:
    patch = make_patch(SparsitySchedule(0.5, 0.5, "constant", steps=(None,)))
    run(patch, make_executor(), 0.5, sample_sigmas=None)
    assert rows(patch) == {None: (BLOCKS, 0)}


def test_grid_is_that_of_each_call() -> None:
    """Context windows: T changes within a step."""
    seen: list[tuple] = []

    def attend(q, k, v, layout, config, **kwargs):
        seen.append(layout.grid)
        return rectified_attention(q, k, v, layout, config, **kwargs)

    def forward(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        tokens = x.shape[2] * (x.shape[3] // 2) * (x.shape[4] // 2)
        q = torch.randn(1, tokens, 32)
        options.update(block_type="double", block_index=0, total_blocks=1)
        options[OVERRIDE](lambda q, *a, **k: q, q, q, q, heads=2, transformer_options=options)
        return x

    patch = make_patch(attend=attend)
    for frames in (3, 4):
        run(patch, make_executor(forward=forward), latent=(1, 16, frames, 24, 32))
    assert seen == [(3, 12, 16), (4, 12, 16)]


def test_small_video_is_dense_with_both_numbers() -> None:
    patch = make_patch(min_tokens=12288)
    run(patch, make_executor())
    expected = f"{TOKENS} video tokens, below min_tokens 12288"
    assert patch.run.report.record().as_dict()["reasons"] == {expected: BLOCKS}


def test_dense_blocks_reach_the_override() -> None:
    patch = make_patch(dense_blocks=parse_dense_blocks("0, -1"))
    run(patch, make_executor())
    calls = patch.run.report.record().as_dict()["calls"]
    assert [row[3:] for row in calls] == [[0, 1], [1, 0], [1, 0], [0, 1]]


class SomeUNet:
    """Not a video transformer."""


def test_unknown_model_class_is_dense_with_its_name() -> None:
    patch = make_patch()
    run(patch, make_executor(SomeUNet()))
    (reason,) = patch.run.report.record().as_dict()["reasons"]
    assert reason.startswith("model class SomeUNet is not supported")


def test_exception_of_the_model_passes_through() -> None:
    def forward(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        raise KeyError("the model's own")

    with pytest.raises(KeyError, match="the model's own"):
        run(make_patch(), make_executor(forward=forward))


class TestNonFinite:
    """Values that are not finite: that forward is repeated dense, the run goes on."""

    def poisoned(self, bad_calls: set[int], value: float = float("nan")) -> Callable[..., Any]:
        """Sparse attention whose n-th calls give a value that is not finite."""
        count = [0]

        def attend(*args: Any, **kwargs: Any) -> Any:
            out, stats = rectified_attention(*args, **kwargs)
            if count[0] in bad_calls:
                out[..., 3, 5] = value
            count[0] += 1
            return out, stats

        return attend

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_forward_is_repeated_dense(self, value: float) -> None:
        patch, executor = make_patch(attend=self.poisoned({2}, value)), make_executor()
        out = run(patch, executor, 1.0)
        assert torch.isfinite(out).all()
        torch.testing.assert_close(out, wan_forward(BLOCKS)(torch.zeros(LATENT), {}))
        run(patch, executor, 0.75)
        assert rows(patch) == {0: (0, BLOCKS), 1: (BLOCKS, 0)}
        assert patch.run.report.record().as_dict()["reasons"] == {Reason.NON_FINITE.value: BLOCKS}

    @pytest.mark.parametrize(
        ("options", "cause"),
        [
            ({"wrappers": {"diffusion_model": {"easycache": [object()]}}}, "easycache"),
            ({"wrappers": {"apply_model": {"other": [object()]}}}, "other"),
            ({}, "forward"),
        ],
    )
    def test_a_forward_with_effects_is_not_repeated(
        self, options: dict[str, Any], cause: str
    ) -> None:
        """A step cache would take the repeat for its next step."""
        model = wan_model() if options else wan_model(forward=object())
        patch, executor = make_patch(attend=self.poisoned({2})), make_executor(model)
        out = run(patch, executor, 1.0, **options)
        assert not torch.isfinite(out).all(), "the first output stands"
        run(patch, executor, 0.75, **options)
        assert len(executor.options) == 2
        assert rows(patch) == {0: (BLOCKS, 0), 1: (0, BLOCKS)}
        (reason,) = patch.run.report.record().reasons
        assert reason.reason is Reason.NON_FINITE_KEPT
        assert cause in reason.text

    def test_our_own_and_the_compile_wrapper_have_no_effects(self) -> None:
        wrappers = {"apply_model": {KEY: [object()], "torch.compile": [object()]}}
        patch, executor = make_patch(attend=self.poisoned({2})), make_executor()
        out = run(patch, executor, 1.0, wrappers=wrappers)
        assert torch.isfinite(out).all()

    def test_hidden_nan_in_fp16_is_found(self) -> None:
        """HunyuanVideo's blocks replace NaNs in fp16, so the result alone looks fine."""
        inner = wan_forward(BLOCKS, dtype=torch.float16)

        def forward(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
            return torch.nan_to_num(inner(x, options))

        patch = make_patch(attend=self.poisoned({1}))
        run(patch, make_executor(forward=forward))
        assert patch.run.report.record().as_dict()["reasons"] == {Reason.NON_FINITE.value: BLOCKS}

    def test_said_once_and_given_up_after_a_few(self, caplog: pytest.LogCaptureFixture) -> None:
        patch = make_patch(attend=self.poisoned(set(range(1000))))
        executor = make_executor()
        with caplog.at_level(logging.WARNING):
            for sigma in (1.0, 0.75, 0.5, 0.25):
                run(patch, executor, sigma)
        assert len([r for r in caplog.records if "not finite" in r.message]) == 1
        # Three repeated forwards, then the last one is dense at once.
        assert len(executor.options) == 3 * 2 + 1
        assert patch.run.report.record().as_dict()["reasons"] == {
            Reason.NON_FINITE.value: 4 * BLOCKS
        }

    def test_model_that_does_it_itself_is_not_repeated_for_ever(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def forward(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
            return wan_forward(BLOCKS)(x, options) * float("nan")

        patch, executor = make_patch(), make_executor(forward=forward)
        with caplog.at_level(logging.WARNING):
            for sigma in (1.0, 0.75, 0.5):
                run(patch, executor, sigma)
        assert len(executor.options) == 2 + 1 + 1
        assert "with dense attention too" in caplog.text


class TestRunState:
    """State belongs to one sampling run of one clone."""

    def test_cleanup_logs_one_line_and_resets(self, caplog: pytest.LogCaptureFixture) -> None:
        patch, executor = make_patch(), make_executor()
        patch.on_pre_run(None)
        with caplog.at_level(logging.INFO):
            run(patch, executor, 1.0)
            run(patch, executor, 0.75)
            patch.on_cleanup(None)
            patch.on_cleanup(None)  # the clone of a second GPU
        (record,) = caplog.records
        assert "sparse 8 / dense 0 · density 0." in record.message
        assert "2 forwards" in record.message
        assert patch.run.report.record().as_dict()["calls"] == []

    def test_an_interruption_and_an_error_are_told_apart(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """ComfyUI cleans up in a `finally`, while the exception passes."""

        class Interruption(BaseException):
            pass

        management = ModuleType("comfy.model_management")
        management.InterruptProcessingException = Interruption
        monkeypatch.setitem(sys.modules, "comfy.model_management", management)
        patch, executor = make_patch(), make_executor()

        def sample(error: BaseException | None = None) -> Ending:
            with contextlib.suppress(Interruption, RuntimeError):
                try:
                    patch.on_pre_run(None)
                    run(patch, executor)
                    if error is not None:
                        raise error
                finally:
                    patch.on_cleanup(None)
            return patch.last_run.ending

        assert sample() is Ending.COMPLETE
        assert sample(Interruption()) is Ending.INTERRUPTED
        assert sample(RuntimeError("no")) is Ending.FAILED
        try:
            raise RuntimeError("out of memory")
        except RuntimeError:  # a node that tries again
            assert sample() is Ending.COMPLETE
            assert sample(Interruption()) is Ending.INTERRUPTED

    def test_two_experts_show_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both nodes do, once the second sampler of the graph is done; no other graph's."""
        texts: dict[str, str] = {}
        server = SimpleNamespace(last_prompt_id="a", send_progress_text=lambda text, node: None)
        server.send_progress_text = lambda text, node: texts.update({node: text})
        module = ModuleType("server")
        module.PromptServer = SimpleNamespace(instance=server)
        monkeypatch.setitem(sys.modules, "server", module)
        schedule = SparsitySchedule(0.5, 0.5, "constant", start_percent=0.2)

        def sample(node: str, sigmas: list[float]) -> None:
            patch, executor = make_patch(schedule, node_id=node), make_executor()
            patch.on_pre_run(None)
            listed = torch.tensor(sigmas)
            for sigma in sigmas[:-1]:
                run(patch, executor, sigma, sample_sigmas=listed)
            patch.on_cleanup(None)

        sample("7", [1.0, 0.75, 0.5])
        assert texts["7"].startswith("sparse 4 / dense 4")
        sample("9", [0.5, 0.25, 0.0])
        assert texts["7"] == texts["9"]
        assert texts["9"].startswith(
            "both samplers: sparse 12 / dense 4 (first 20 %, 1 of 4 steps)"
        )
        assert " with full attention about " in texts["9"]

        sample("7", [1.0, 0.75, 0.5])
        server.last_prompt_id = "b"
        sample("9", [0.5, 0.25, 0.0])
        assert texts["9"].startswith("sparse 8 / dense 0")

    def test_failures_end_with_the_run(self) -> None:
        attempts: list[int] = []

        def attend(*args: Any, **kwargs: Any) -> Any:
            attempts.append(1)
            raise RuntimeError("no")

        patch, executor = make_patch(attend=attend), make_executor()
        for _ in range(2):
            patch.on_pre_run(None)
            run(patch, executor)
            patch.on_cleanup(None)
        assert len(attempts) == 2 * 3

    def test_pre_run_drops_what_a_broken_run_left(self) -> None:
        patch, executor = make_patch(), make_executor()
        run(patch, executor)
        patch.on_pre_run(None)
        run(patch, executor)
        assert rows(patch) == {0: (BLOCKS, 0)}

    def test_verbose_logs_forwards_and_json(self, caplog: pytest.LogCaptureFixture) -> None:
        patch = make_patch(verbose=True)
        with caplog.at_level(logging.INFO):
            run(patch, make_executor())
            patch.on_cleanup(None)
        forward, summary, report = (record.message for record in caplog.records)
        assert "step 1 of 4" in forward
        assert "sparse 4 / dense 0" in summary
        assert report.startswith("RSPA_REPORT {")


class TestNeverCalled:
    """ "Installed but never called", said once per run and not for cached forwards."""

    def silent(self, x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        return x

    def test_replaced_attention(self, caplog: pytest.LogCaptureFixture) -> None:
        patch, executor = make_patch(), make_executor(forward=self.silent)
        with caplog.at_level(logging.WARNING):
            run(patch, executor)
            run(patch, executor)
        (record,) = caplog.records
        assert "no attention call reached it" in record.message

    def test_a_step_cache_that_replaces_the_forward_is_named(self) -> None:
        """TeaCache and MagCache call the blocks of Wan without transformer_options."""
        patch = make_patch()
        run(patch, make_executor(wan_model(forward_orig=object()), forward=self.silent))
        (warning,) = patch.run.report.record().warnings
        assert "TeaCache" in warning
        assert "replaced the model's forward" in warning

    def test_other_lengths_are_named(self, caplog: pytest.LogCaptureFixture) -> None:
        def forward(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
            q, k = torch.zeros(1, 100, 32), torch.zeros(1, 300, 32)
            options[OVERRIDE](lambda q, *a, **k: q, q, k, k, heads=2, transformer_options=options)
            return x

        with caplog.at_level(logging.WARNING):
            run(make_patch(), make_executor(forward=forward))
        assert f"no self-attention over {TOKENS} tokens" in caplog.text
        assert "100x300" in caplog.text

    def test_cached_forwards_are_no_cause(self, caplog: pytest.LogCaptureFixture) -> None:
        patch = make_patch()
        with caplog.at_level(logging.WARNING):
            run(patch, make_executor())
            run(patch, make_executor(forward=self.silent), 0.75)
        assert caplog.records == []


class Patcher:
    """A ComfyUI model patcher as far as wrappers and callbacks go."""

    def __init__(self) -> None:
        self.wrappers: dict[tuple[str, str], list] = {}
        self.callbacks: dict[tuple[str, str], list] = {}

    def clone(self) -> Patcher:
        clone = Patcher()
        clone.wrappers = {key: list(value) for key, value in self.wrappers.items()}
        clone.callbacks = {key: list(value) for key, value in self.callbacks.items()}
        return clone

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.pop((kind, key), None)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault((kind, key), []).append(wrapper)

    def remove_callbacks_with_key(self, kind: str, key: str) -> None:
        self.callbacks.pop((kind, key), None)

    def add_callback_with_key(self, kind: str, key: str, callback: Any) -> None:
        self.callbacks.setdefault((kind, key), []).append(callback)


def test_install_replaces_an_earlier_node_and_leaves_the_input_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extension = ModuleType("comfy.patcher_extension")
    extension.WrappersMP = SimpleNamespace(APPLY_MODEL="apply_model")
    extension.CallbacksMP = SimpleNamespace(ON_PRE_RUN="on_pre_run", ON_CLEANUP="on_cleanup")
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", extension)

    settings = RunSettings(CONFIG, SparsitySchedule(0.5, 0.5))
    model = Patcher()
    first = install(model, SparseAttentionPatch(settings))
    second = install(first, SparseAttentionPatch(settings))
    assert model.wrappers == {}
    assert model.callbacks == {}
    (old,), (new,) = (each.wrappers["apply_model", KEY] for each in (first, second))
    assert old is not new
    assert second.callbacks == {
        ("on_pre_run", KEY): [new.on_pre_run],
        ("on_cleanup", KEY): [new.on_cleanup],
    }


def test_dense_blocks_that_match_nothing_are_said(caplog: pytest.LogCaptureFixture) -> None:
    patch = make_patch(dense_blocks=parse_dense_blocks("99"))
    run(patch, make_executor())
    patch.on_cleanup(None)
    assert "dense_blocks matches no block of this model" in caplog.text
    caplog.clear()
    patch = make_patch(dense_blocks=parse_dense_blocks("0, 99"))
    run(patch, make_executor())
    patch.on_cleanup(None)
    assert "matches no block" not in caplog.text


def test_deep_copy_reports_to_the_same_run() -> None:
    """Other nodes copy model options, and what hangs in them, deeply."""
    patch, executor = make_patch(), make_executor()
    copied = copy.deepcopy({"wrappers": [patch]})["wrappers"][0]
    run(copied, executor, 1.0)
    run(patch, executor, 0.75)
    assert rows(patch) == rows(copied) == {0: (BLOCKS, 0), 1: (BLOCKS, 0)}


def test_two_threads_on_one_patch_count_every_call() -> None:
    """MultiGPU CFG Split: a thread for each GPU, one patch."""
    patch, rounds = make_patch(), 8

    def work() -> None:
        for _ in range(rounds):
            run(patch, make_executor(), 1.0)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(patch) == {0: (2 * rounds * BLOCKS, 0)}
