"""The relative error against hand-made numbers."""

from __future__ import annotations

import math

import pytest
import torch

from rectified_spaattn.rspa_core import relative_l2


def test_relative_error_of_known_numbers() -> None:
    ref = torch.tensor([[3.0, -4.0], [0.0, 5.0]])
    out = torch.tensor([[3.0, -1.0], [4.0, 5.0]])
    assert relative_l2(out, ref) == pytest.approx(5 / math.sqrt(50))


def test_equal_tensors() -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    assert relative_l2(x, x) == 0.0
    assert relative_l2(1.5 * x, x) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_are_floats_in_any_dtype(dtype: torch.dtype) -> None:
    # 300^2 overflows fp16: sums are taken in fp32.
    ref = torch.full((1, 1, 64, 64), 300.0, dtype=dtype)
    value = relative_l2(ref * 0.5, ref)
    assert isinstance(value, float)
    assert value == pytest.approx(0.5, rel=1e-3)
