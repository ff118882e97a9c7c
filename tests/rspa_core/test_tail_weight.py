"""The factor of a head's tail: the fit by itself, and what it is for."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from rectified_spaattn.rspa_core import (
    SparseConfig,
    TokenLayout,
    dense_attention,
    rectified_attention,
    relative_l2,
)
from rectified_spaattn.rspa_core.tail_weight import LARGEST, SMALLEST, fitted_weight

ROWS, DIM = 32, 24


def parts(heads: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """N, Z, M, W of some heads: the tail weighs half as much to three times what is kept."""
    generator = torch.Generator().manual_seed(seed)
    kept_mass = 0.5 + torch.rand(heads, ROWS, generator=generator)
    tail_mass = kept_mass * (0.5 + 2.5 * torch.rand(heads, ROWS, generator=generator))
    kept, tail = (
        mass[..., None] * torch.randn(heads, ROWS, DIM, generator=generator)
        for mass in (kept_mass, tail_mass)
    )
    return kept, kept_mass, tail, tail_mass


def output(
    kept: Tensor, kept_mass: Tensor, tail: Tensor, tail_mass: Tensor, weight: Tensor
) -> Tensor:
    """out_s(τ), `[..., R, D]`, for τ `[...]`."""
    total = kept_mass + weight[..., None] * tail_mass
    return (kept + weight[..., None, None] * tail) / total[..., None]


def test_known_factors_are_found() -> None:
    known = torch.tensor([0.01, 0.1, 0.5, 1.0, 1.7, 3.5])
    head = parts(len(known), 0)
    torch.testing.assert_close(
        fitted_weight(*head, output(*head, known)), known, rtol=1e-4, atol=1e-6
    )


def test_factors_stay_in_their_range() -> None:
    kept, kept_mass, tail, tail_mass = parts(2, 1)
    without = kept / kept_mass[..., None]
    wrong = without - 0.5 * (tail / tail_mass[..., None] - without)
    small = output(kept, kept_mass, tail, tail_mass, torch.full((2,), 20.0))
    found = [fitted_weight(kept, kept_mass, tail, tail_mass, exact) for exact in (wrong, small)]
    assert torch.equal(torch.stack(found), torch.tensor([[SMALLEST] * 2, [LARGEST] * 2]))


def test_an_empty_tail_counts_once() -> None:
    kept, kept_mass, tail, tail_mass = parts(3, 2)
    found = fitted_weight(kept, kept_mass, 0 * tail, 0 * tail_mass, torch.randn(3, ROWS, DIM))
    assert torch.equal(found, torch.ones(3))


def test_some_rows_without_a_tail() -> None:
    """They have no say."""
    kept, kept_mass, tail, tail_mass = parts(1, 3)
    tail[:, ::2], tail_mass[:, ::2] = 0.0, 0.0
    known = torch.tensor([0.3])
    exact = output(kept, kept_mass, tail, tail_mass, known)
    exact[:, ::2] += 1.0
    torch.testing.assert_close(
        fitted_weight(kept, kept_mass, tail, tail_mass, exact), known, rtol=1e-4, atol=0.0
    )


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_never_worse_than_no_factor(noise: float) -> None:
    """Where no factor is right, also."""
    head = parts(500, 4)
    generator = torch.Generator().manual_seed(5)
    share = torch.rand(500, 1, 1, generator=generator)
    kept, kept_mass, tail, tail_mass = head
    exact = (1 - share) * kept / kept_mass[..., None] + share * tail / tail_mass[..., None]
    exact = exact + noise * torch.randn(exact.shape, generator=generator)

    def loss(weight: Tensor) -> Tensor:
        return (output(*head, weight) - exact).square().sum((-2, -1))

    assert (loss(fitted_weight(*head, exact)) <= (1 + 1e-5) * loss(torch.ones(500))).all()


def test_a_tail_of_twice_the_size_gets_half_the_factor() -> None:
    kept, kept_mass, tail, tail_mass = parts(4, 6)
    exact = output(kept, kept_mass, tail, tail_mass, torch.tensor([0.1, 0.4, 0.9, 1.8]))
    exact = exact + 0.1 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(7))
    once = fitted_weight(kept, kept_mass, tail, tail_mass, exact)
    twice = fitted_weight(kept, kept_mass, 2 * tail, 2 * tail_mass, exact)
    assert ((once > 2 * SMALLEST) & (once < LARGEST)).all()
    torch.testing.assert_close(twice, once / 2, rtol=1e-4, atol=0.0)


def picking_head() -> tuple[TokenLayout, Tensor, Tensor, Tensor]:
    """Every query picks other keys of every block, and those carry values that agree with it.

    The keys' values cancel in every mean; those kept already say what the left-out ones would.
    """
    layout = TokenLayout((4, 32, 32), 4 * 32 * 32)
    generator = torch.Generator().manual_seed(8)
    q, k = (torch.randn(1, 1, layout.length, 32, generator=generator) for _ in range(2))
    return layout, q, k, k + 0.1 * torch.randn(k.shape, generator=generator)


@pytest.mark.parametrize("tail_keys", [2, 4, 8])
@pytest.mark.parametrize("precision", ["16-bit", "int8"])
def test_a_tail_that_misleads_counts_less(precision: str, tail_keys: int) -> None:
    layout, q, k, v = picking_head()
    exact = dense_attention(q, k, v)

    def error(rectification: str, tail_keys: int) -> float:
        config = SparseConfig(
            0.7, 64, 64, rectification=rectification, neighbours=False, tail_keys=tail_keys,
            precision=precision,
        )  # fmt: skip
        out = rectified_attention(q, k, v, layout, config, backend="reference")
        return float(relative_l2(out, exact))

    weighted = error("precise", tail_keys)
    with mock.patch(
        "rectified_spaattn.rspa_core.reference._tail_weight", return_value=torch.tensor(1.0)
    ):
        plain = error("precise", tail_keys)
    assert weighted < 0.6 * plain
    assert weighted <= error("none", 1)
