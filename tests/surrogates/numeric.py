"""Derivatives by differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def central_differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """Gradient of a function to a scalar."""
    flat = x.reshape(-1)
    gradient = torch.zeros_like(flat)
    for i in range(len(flat)):
        shift = torch.zeros_like(flat)
        shift[i] = step
        up, down = (function((flat + s).reshape(x.shape)) for s in (shift, -shift))
        gradient[i] = (up - down) / (2.0 * step)
    return gradient.reshape(x.shape)


def assert_gradient(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, rtol: float = 1e-6) -> None:
    expected = central_differences(function, x)
    torch.testing.assert_close(gradient, expected, rtol=rtol, atol=rtol * max(1.0, float(expected.abs().max())))
