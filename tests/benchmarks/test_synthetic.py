"""The input factory: shapes, repeatability, and that each kind of head looks where it says."""

import math

import pytest
import torch

from rectified_spaattn.benchmarks.synthetic import HEAD_KINDS, KINDS, head_kind_of, synthetic_qkv

GRID = (5, 12, 16)
TOKENS = math.prod(GRID)


def attention(kind: str, head_dim: int = 128, seed: int = 0) -> torch.Tensor:
    """Attention probabilities of one head, [N, N] fp32."""
    q, k, _ = synthetic_qkv(kind, GRID, 1, head_dim, seed=seed)
    return (q[0, 0] @ k[0, 0].mT * head_dim**-0.5).softmax(dim=-1)


def perplexity(probs: torch.Tensor) -> float:
    """Mean number of keys that a query effectively looks at."""
    return float(torch.exp(-(probs * probs.clamp_min(1e-30).log()).sum(-1)).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shape_dtype_and_finite(kind: str, context: int, dtype: torch.dtype) -> None:
    for tensor in synthetic_qkv(kind, (2, 3, 5), 6, 32, context, dtype):
        assert tensor.shape == (1, 6, context + 30, 32)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert tensor.isfinite().all()
        assert tensor.float().std() > 0.1


def test_same_seed_same_values_and_other_seed_other_values() -> None:
    first, again, other = (synthetic_qkv("mixed", (2, 4, 4), 2, 16, seed=s) for s in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_a_head_does_not_depend_on_how_many_are_made() -> None:
    few = synthetic_qkv("mixed", (2, 4, 4), 2, 16)
    many = synthetic_qkv("mixed", (2, 4, 4), 7, 16)
    for a, b in zip(few, many, strict=True):
        assert torch.equal(a, b[:, :2])
        assert not torch.equal(a[:, 0], a[:, 1])


def test_mixed_deals_the_kinds_in_turn() -> None:
    dealt = [head_kind_of("mixed", head) for head in range(2 * len(HEAD_KINDS))]
    assert dealt == list(HEAD_KINDS) * 2


def test_local_heads_look_at_near_tokens() -> None:
    probs = attention("local")
    axes = torch.meshgrid(*(torch.arange(size) for size in GRID), indexing="ij")
    coords = torch.stack(axes, dim=-1).reshape(-1, 3).float()
    near = torch.cdist(coords, coords) <= 4.0
    share = float((probs * near).sum(-1).mean())
    assert share > 3 * float(near.float().mean())
    assert share > 0.5


def test_kinds_differ_in_how_much_they_look_at() -> None:
    seen = {kind: perplexity(attention(kind)) for kind in HEAD_KINDS}
    assert seen["flat"] > 0.6 * TOKENS
    assert max(value for kind, value in seen.items() if kind != "flat") < 0.3 * TOKENS


@pytest.mark.parametrize("head_dim", [64, 128])
def test_sinks_draw_their_share_from_every_query(head_dim: int) -> None:
    probs = attention("sink", head_dim)
    drawn = probs.sum(0).topk(4).values.sum() / TOKENS
    assert 0.15 < float(drawn) < 0.5
    # Every query gives something, not only the sinks' neighbours.
    sinks = probs.mean(0).topk(4).indices
    assert float((probs[:, sinks].sum(-1) > 0.02).float().mean()) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "blurry"}, "kind = 'blurry' is not allowed"),
        ({"grid": (0, 4, 4)}, "grid = (0, 4, 4) is not allowed"),
        ({"heads": 0}, "heads = 0 is not allowed"),
        ({"head_dim": 20}, "head_dim = 20 is not allowed"),
        ({"context": -1}, "context = -1 is not allowed"),
        ({"seed": -1}, "seed = -1 is not allowed"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], message: str) -> None:
    arguments = {"kind": "local", "grid": (2, 4, 4), "heads": 1, "head_dim": 16} | change
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is checked below)
        synthetic_qkv(**arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)
