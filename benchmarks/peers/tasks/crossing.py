"""Formulas for learning curves that cross: a frozen model looks best early, slow and regularised ones win (numpy)."""

from __future__ import annotations

from typing import Any

import numpy as np

SPACE = {
    "learning_rate": {"type": "float_log", "lower": 1e-4, "upper": 1e-1},
    "width": {"type": "int_log", "lower": 16, "upper": 512},
    "decay": {"type": "float_log", "lower": 1e-5, "upper": 1e-1},
    "warmup_epochs": {"type": "int", "lower": 0, "upper": 12},
    "dropout": {"type": "float", "lower": 0.0, "upper": 0.7},
    "body": {"type": "choice", "categories": ["plain", "residual", "pretrained"]},
}
EPOCHS = 27
START = 0.9
"""Error before training."""


def sigmoid(x: float) -> float:
    return float(0.5 + 0.5 * np.tanh(0.5 * x))


def coordinates(config: dict[str, Any]) -> tuple[float, float, float, float, float]:
    """Learning rate, width, decay, warm-up and dropout, each about -1 to 1."""
    return (
        float(np.log10(config["learning_rate"]) + 2.5) / 1.5,
        float(np.log2(config["width"]) - 6.5) / 2.5,
        float(np.log10(config["decay"]) + 3.0) / 2.0,
        (config["warmup_epochs"] - 6.0) / 6.0,
        (config["dropout"] - 0.35) / 0.35,
    )


def trained(config: dict[str, Any], epochs: np.ndarray) -> np.ndarray:
    """Curve of a model trained as a whole: what makes its last error low makes it fall late."""
    rate, width, decay, warmup, dropout = coordinates(config)
    is_residual = config["body"] == "residual"
    # The best rate falls with the width; wide and regularised is good, and only together.
    best_rate = 0.1 - 0.35 * width + (0.15 if is_residual else -0.05)
    distance = (
        0.9 * (rate - best_rate) ** 2
        + 0.35 * (width - 0.6) ** 2
        + 0.30 * (decay - 0.3 - 0.3 * width) ** 2
        + 0.15 * (warmup - 0.2 - 0.3 * rate) ** 2
        + 0.25 * (dropout - 0.1 - 0.3 * width) ** 2
    )
    last = 0.55 - (0.44 if is_residual else 0.41) * np.exp(-0.9 * distance)
    # Epoch at which half of the way is gone: later for wide, regularised, slow or well warmed up models.
    half = np.exp(1.5 + 0.25 * width + 0.20 * decay - 0.30 * rate + 0.25 * warmup + 0.15 * dropout)
    half = half * (1.35 - 0.7 * (last - 0.1)) * (1.1 if is_residual else 1.0)
    shape = (epochs / half) ** 3
    return np.asarray(last + (START - last) / (1 + shape))


def frozen(config: dict[str, Any], epochs: np.ndarray) -> np.ndarray:
    """Curve of a pretrained model that is trained too slowly to leave where it came from: mediocre and flat."""
    rate, width, decay, _, dropout = coordinates(config)
    last = 0.30 + 0.03 * (rate + 0.5) ** 2 + 0.015 * decay**2 + 0.015 * (dropout + 0.4) ** 2 - 0.01 * width
    return np.asarray(last + 0.10 * np.exp(-epochs / (1.5 - 0.5 * rate)))


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test errors; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    luck, noise = rng.normal(0.0, 1.0, 2), rng.normal(0.0, 1.0, (epochs, 2))
    at = np.arange(1, epochs + 1, dtype=np.float64)
    at_luck = at * np.exp(0.06 * luck[0])
    curve = trained(config, at_luck)
    if config["body"] == "pretrained":  # a high learning rate overwrites what was learned before
        share = sigmoid(8.0 * (0.3 - coordinates(config)[0]))
        curve = share * frozen(config, at_luck) + (1 - share) * curve
    both = curve[:, None] * np.exp(0.03 * luck[1] + 0.015 * noise)
    return np.clip(both, 0.0, 1.0).astype(np.float32)
