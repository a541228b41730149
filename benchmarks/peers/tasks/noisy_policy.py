"""An evolution strategy learns to swing up a pendulum in a gusty wind, one generation an epoch (numpy)."""

from __future__ import annotations

from typing import Any

import numpy as np

SPACE = {
    "n_pairs": {"type": "int_log", "lower": 2, "upper": 24},
    "episodes": {"type": "int", "lower": 1, "upper": 4},
    "n_hidden": {"type": "int_log", "lower": 2, "upper": 16},
    "sigma": {"type": "float_log", "lower": 0.01, "upper": 2.0},
    "learning_rate": {"type": "float_log", "lower": 1e-3, "upper": 3.0},
    "momentum": {"type": "float", "lower": 0.0, "upper": 0.95},
    "weight_decay": {"type": "float_log", "lower": 1e-4, "upper": 1e-1},
    "shaping": {"type": "choice", "categories": ["raw", "standardised", "ranks"]},
}
EPOCHS = 81
_STEPS, _DT, _TORQUE, _WIND = 50, 0.12, 0.75, 0.4
_TRIALS = 8
"""Episodes in which a policy is judged, as many for validation as for test."""


def returns(policies: np.ndarray, n_hidden: int, episodes: int, rng: np.random.Generator) -> np.ndarray:
    """(policies, episodes) share of the time, between 0 and 1, that the pendulum is up; all policies share the luck."""
    n = len(policies)
    inner = policies[:, : 4 * n_hidden].reshape(n, 4, n_hidden)
    outer = policies[:, 4 * n_hidden :, None]
    angle = np.tile(np.pi + rng.normal(0.0, 0.4, episodes), (n, 1))
    speed = np.tile(rng.normal(0.0, 0.4, episodes), (n, 1))
    wind = rng.normal(0.0, _WIND, (_STEPS, episodes))
    seen = np.ones((n, episodes, 4))
    total = np.zeros((n, episodes))
    for step in range(_STEPS):
        sine, cosine = np.sin(angle), np.cos(angle)
        seen[..., 0], seen[..., 1], seen[..., 2] = sine, cosine, speed * 0.5
        torque = np.tanh((np.tanh(seen @ inner) @ outer)[..., 0])
        speed += _DT * (sine + _TORQUE * torque + wind[step] - 0.05 * speed)
        angle += _DT * 2.0 * speed
        total += np.maximum(cosine, 0.0) ** 2
    return total / _STEPS


def shaped(fitness: np.ndarray, kind: str) -> np.ndarray:
    """What the strategy climbs, with mean zero."""
    if kind == "ranks":
        return fitness.argsort().argsort() / (len(fitness) - 1) - 0.5
    centred = fitness - fitness.mean()
    return np.asarray(centred / (fitness.std() + 1e-8) if kind == "standardised" else centred)


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) one minus the return for validation and test; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    h, sigma = config["n_hidden"], config["sigma"]
    policy = np.concatenate([rng.normal(0.0, 0.5, 4 * h), rng.normal(0.0, 1 / np.sqrt(h), h)])
    velocity = np.zeros_like(policy)
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        half = rng.normal(0.0, 1.0, (config["n_pairs"], len(policy)))
        steps = np.concatenate([half, -half])
        fitness = returns(policy + sigma * steps, h, config["episodes"], rng).mean(1)
        gradient = shaped(fitness, config["shaping"]) @ steps / (len(steps) * sigma)
        velocity = config["momentum"] * velocity + (1 - config["momentum"]) * gradient
        policy = policy + config["learning_rate"] * (velocity - config["weight_decay"] * policy)
        judged = returns(policy[None], h, 2 * _TRIALS, rng)[0]
        curve[epoch] = 1 - judged[:_TRIALS].mean(), 1 - judged[_TRIALS:].mean()
    return curve
