"""Two processes that share sequence and heads give what one gives."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_hunyuan_video, transformer_wan
from torch import Tensor

from rectified_spaattn.adapters import sparse_attention
from rectified_spaattn.adapters.ulysses import attend_share, shares
from rectified_spaattn.rspa_core import ConfigError, TokenLayout, rectified_attention
from rectified_spaattn.rspa_core.run.reasons import Reason

from .models import FULL, SPARSE, counts, hunyuan, hunyuan_inputs, velocity, wan, wan_inputs
from .ulysses_process import MODELS, ODD, result


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has to say."""
    folder = tmp_path_factory.mktemp("ulysses")
    module = "rectified_spaattn.tests.adapters.ulysses_process"
    command = [sys.executable, "-m", module, "2", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_give_what_one_gives(name: str, processes: list[dict[str, Any]]) -> None:
    make, inputs, config, _ = MODELS[name]
    expected, counted, density = result(make(), inputs, config)
    assert counted == (2, {})
    outs, counts_of_both, densities = zip(*(each[name] for each in processes), strict=True)
    assert torch.equal(*outs)
    torch.testing.assert_close(outs[0], expected, rtol=1e-5, atol=1e-5)
    assert counts_of_both == (counted, counted)  # each process says what it has done
    heads = shares(3 if name == "wan, 3 heads" else 2, 2)
    mean = sum(share * each for share, each in zip(heads, densities, strict=True)) / sum(heads)
    assert mean == pytest.approx(density)
    dense = velocity(make(), inputs)
    assert (expected - dense).abs().max() < 1e-5 if config is FULL else density < 0.5


def test_calls_that_are_dense_in_all_processes(processes: list[dict[str, Any]]) -> None:
    for each in processes:
        out, counted, _ = each["dense"]
        torch.testing.assert_close(out, velocity(wan(), wan_inputs()), rtol=1e-5, atol=1e-5)
        assert counted == (0, {"schedule: step is off": 2})


def test_a_process_that_fails_keeps_none_waiting(processes: list[dict[str, Any]]) -> None:
    (out, first), (other, second) = (each["failing"] for each in processes)
    assert torch.equal(out, other)
    assert first == (6, {})
    assert second == (0, {"OutOfMemoryError: out of memory": 6})
    # Its head is dense, that of the other process sparse.
    both = (velocity(wan(), wan_inputs()), result(wan(), wan_inputs(), SPARSE)[0])
    assert all((out - each).abs().max() > 1e-4 for each in both)
    assert torch.isfinite(out).all()


def test_no_process_repeats_a_forward_alone(processes: list[dict[str, Any]]) -> None:
    for each in processes:
        out, (sparse, reasons) = each["not finite"]
        torch.testing.assert_close(out, velocity(wan(), wan_inputs()), rtol=1e-5, atol=1e-5)
        text = Reason.NON_FINITE_KEPT.value.format("other processes take part in it")
        assert (sparse, reasons) == (2, {text: 2})


def test_the_example_for_other_hosts(processes: list[dict[str, Any]]) -> None:
    q, k, v = torch.randn((3, 2, 191, 48), generator=torch.Generator().manual_seed(3))
    q, k, v = (x[:, :189].unflatten(-1, (3, 16)).transpose(1, 2) for x in (q, k, v))
    expected = rectified_attention(q, k, v, TokenLayout(ODD, 189), SPARSE)
    out = torch.cat([each["another host"] for each in processes], dim=1)
    torch.testing.assert_close(out[:, :189], expected.transpose(1, 2).flatten(2))
    assert not out[:, 189:].any()


def test_padding_is_no_key() -> None:
    layout = TokenLayout(ODD, 193, 2)  # two tokens before the video, two behind it
    q, k, v = torch.randn(3, 1, 2, 200, 16)
    out = attend_share(q, k, v, layout, SPARSE)
    for x in (q, k, v):
        x[:, :, 193:] = 100.0
    assert torch.equal(attend_share(q, k, v, layout, SPARSE), out)
    own = (x[:, :, :193] for x in (q, k, v))
    assert torch.equal(out[:, :, :193], rectified_attention(*own, layout, SPARSE))
    assert not out[:, :, 193:].any()


def test_a_share_of_the_keys_is_refused() -> None:
    q, k, v = torch.randn(3, 1, 2, 95, 16)
    with pytest.raises(ConfigError, match=r"tokens of q = 95 .* ring attention never has them"):
        attend_share(q, k, v, TokenLayout(ODD, 189), SPARSE)


def parallel_processor(base: type, **degrees: int) -> Any:
    """A processor of this class under context parallelism, whose dense path is that of one GPU."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return base()(*args, **kwargs)

    config = SimpleNamespace(context_parallel_config=SimpleNamespace(**degrees))
    return type(base.__name__, (base,), {"__call__": call, "_parallel_config": config})()


def test_ring_attention_is_refused_with_a_reason() -> None:
    model, inputs = wan(), wan_inputs()
    dense = velocity(model, inputs)
    for block in model.blocks:
        of_ring = parallel_processor(transformer_wan.WanAttnProcessor, ring_degree=2)
        block.attn1.set_processor(of_ring)
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        assert torch.equal(velocity(model, inputs), dense)
    assert counts(sparse) == (0, {Reason.RING.value: 2})


def test_text_in_the_sequence_is_refused_with_a_reason() -> None:
    model, inputs = hunyuan(), hunyuan_inputs(6, 4)
    dense = velocity(model, inputs)
    base = transformer_hunyuan_video.HunyuanVideoAttnProcessor2_0
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.attn.set_processor(parallel_processor(base, ring_degree=1))
    with sparse_attention(model, SPARSE, min_tokens=0, backend="reference") as sparse:
        assert torch.equal(velocity(model, inputs), dense)
    assert counts(sparse) == (0, {Reason.PARALLEL_TEXT.value: 4})


@pytest.mark.parametrize("rectification", ["none", "paper", "precise"])
def test_no_head_knows_of_another(rectification: str) -> None:
    """What Ulysses rests on: a share of the heads gives these heads' share of the output."""
    q, k, v = torch.randn(3, 1, 4, 189, 16, generator=torch.Generator().manual_seed(0))
    for precision in ("16-bit", "int8"):
        config = type(SPARSE)(0.75, 64, 64, rectification=rectification, precision=precision)
        layout = TokenLayout(ODD, 189)
        whole = rectified_attention(q, k, v, layout, config)
        for share in (slice(0, 1), slice(1, 4)):
            part = (x[:, share] for x in (q, k, v))
            assert torch.equal(rectified_attention(*part, layout, config), whole[:, share])


def test_shares() -> None:
    assert shares(189, 2) == [95, 94]
    assert shares(288, 4) == [72, 72, 72, 72]
    assert [len(part) for part in Tensor.tensor_split(torch.arange(11), 4)] == shares(11, 4)
