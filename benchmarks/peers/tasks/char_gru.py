"""A gated recurrent network learns to predict the letters of a small artificial language (numpy)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "n_hidden": {"type": "int_log", "lower": 4, "upper": 32},
    "n_streams": {"type": "int_log", "lower": 12, "upper": 64},
    "unroll": {"type": "int_log", "lower": 3, "upper": 32},
    "optimizer": {"type": "choice", "categories": ["momentum", "rmsprop", "adam"]},
    "learning_rate": {"type": "float_log", "lower": 3e-4, "upper": 1.0},
    "final_rate": {"type": "float_log", "lower": 1e-3, "upper": 1.0},
    "gradient_clip": {"type": "float_log", "lower": 0.03, "upper": 10.0},
    "dropout": {"type": "float", "lower": 0.0, "upper": 0.6},
    "weight_decay": {"type": "float_log", "lower": 1e-6, "upper": 1e-1},
}
"""Gradients go back ``unroll`` letters; the rate falls exponentially to this share of it."""
EPOCHS = 27
DIVERGED = 10.0
"""Most bits a letter that are reported, and those of a network which is no longer finite."""
_TRAIN, _EVAL, _LENGTH = 1600, 80, 25
"""Letters for training; excerpts for validation and test together, and their letters."""
_LETTERS = 16
_SINGLE = np.float32


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """Training text, and excerpts of other texts: words of four kinds in sentences, their endings agree in number."""
    rng = np.random.default_rng(20240803)
    consonants, vowels = np.arange(3, 11), np.arange(11, 16)

    def stem() -> list[int]:
        syllables = rng.integers(1, 3)
        return [int(rng.choice(part)) for _ in range(syllables) for part in (consonants, vowels)]

    kinds = [[stem() for _ in range(n)] for n in (3, 12, 10, 8)]
    text: list[int] = []
    while len(text) < _TRAIN + 1 + _EVAL * (_LENGTH + 1):
        plural = int(rng.integers(2))
        sentence = [0, 1] + [3] * int(rng.integers(2)) + [2] + ([0, 1] if rng.random() < 0.5 else [])
        for kind in sentence:
            odds = 1.0 / np.arange(1, len(kinds[kind]) + 1)
            text += kinds[kind][rng.choice(len(odds), p=odds / odds.sum())]
            text += ([3, 11] if plural else [4]) if kind in (1, 2) else []
            text.append(0)
        text[-1] = 1 if rng.random() < 0.8 else 2
    rest = np.array(text[_TRAIN + 1 : _TRAIN + 1 + _EVAL * (_LENGTH + 1)])
    return np.array(text[: _TRAIN + 1]), rest.reshape(_EVAL, _LENGTH + 1)


class Network:
    """Gates, candidate and output; in its state the network remembers what it read."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        shapes = ((_LETTERS, 3 * n), (n, 2 * n), (n, n), (n, _LETTERS))
        self.parameters = [rng.normal(0.0, np.sqrt(1 / n), shape).astype(_SINGLE) for shape in shapes]
        self.parameters += [np.zeros(3 * n, _SINGLE), np.zeros(_LETTERS, _SINGLE)]
        self.first, self.second = [[np.zeros_like(p) for p in self.parameters] for _ in range(2)]
        self.n, self.step = n, 0

    def read(self, letters: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]]]:
        """The states after each of the (time, streams) letters, and of each step what the gradients need."""
        wx, wg, wc, _, b, _ = self.parameters
        n, states, steps = self.n, np.empty((*letters.shape, self.n), _SINGLE), []
        inputs = wx[letters] + b
        for t, x in enumerate(inputs):
            gates = 0.5 + 0.5 * np.tanh(0.5 * (x[:, : 2 * n] + h @ wg))
            update, reset = gates[:, :n], gates[:, n:]
            kept = reset * h
            candidate = np.tanh(x[:, 2 * n :] + kept @ wc)
            steps.append((h, gates, kept, candidate))
            h = h + update * (candidate - h)
            states[t] = h
        return states, steps

    def gradients(self, letters: np.ndarray, h: np.ndarray, mask: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Of the mean cross-entropy, truncated; and the last state."""
        _, wg, wc, wo, _, bo = self.parameters
        n = self.n
        states, steps = self.read(letters[:-1], h)
        seen = states * mask
        z = seen @ wo + bo
        e = np.exp(z - z.max(2, keepdims=True))
        delta = e / e.sum(2, keepdims=True)
        np.put_along_axis(delta, letters[1:, :, None], np.take_along_axis(delta, letters[1:, :, None], 2) - 1, 2)
        delta /= _SINGLE(letters[1:].size)
        from_output = (delta @ wo.T) * mask
        dx = np.empty((*letters[1:].shape, 3 * n), _SINGLE)
        dwg, dwc, dh = np.zeros_like(wg), np.zeros_like(wc), np.zeros_like(h)
        for t in reversed(range(len(steps))):
            before, gates, kept, candidate = steps[t]
            dh = dh + from_output[t]
            update, reset = gates[:, :n], gates[:, n:]
            dc = dh * update * (1 - candidate * candidate)
            dkept = dc @ wc.T
            dg = np.concatenate([dh * (candidate - before), dkept * before], 1) * gates * (1 - gates)
            dx[t, :, : 2 * n], dx[t, :, 2 * n :] = dg, dc
            dwg += before.T @ dg
            dwc += kept.T @ dc
            dh = dh * (1 - update) + dkept * reset + dg @ wg.T
        onehot = np.eye(_LETTERS, dtype=_SINGLE)[letters[:-1].ravel()]
        flat = delta.reshape(-1, _LETTERS)
        dwo = seen.reshape(-1, n).T @ flat
        return [onehot.T @ dx.reshape(-1, 3 * n), dwg, dwc, dwo, dx.sum((0, 1)), flat.sum(0)], states[-1]

    def update(self, gradients: list[np.ndarray], rate: float, config: dict[str, Any]) -> None:
        """A step with clipped gradients and decoupled weight decay."""
        self.step += 1
        kind, decay = config["optimizer"], _SINGLE(1 - min(1.0, rate * config["weight_decay"]))
        norm = np.sqrt(sum(float((g * g).sum()) for g in gradients))
        clip = _SINGLE(min(1.0, config["gradient_clip"] / (norm + 1e-12)))
        scale = _SINGLE(np.sqrt(1 - 0.99**self.step) / (1 - 0.9**self.step if kind == "adam" else 1.0))
        for p, m, v, g in zip(self.parameters, self.first, self.second, gradients, strict=True):
            g = clip * g
            p *= decay
            if kind == "momentum":
                m *= _SINGLE(0.9)
                m += g
                p -= _SINGLE(rate) * m
                continue
            v += _SINGLE(0.01) * (g * g - v)
            if kind == "adam":
                m += _SINGLE(0.1) * (g - m)
                g = m
            p -= _SINGLE(rate) * scale * g / (np.sqrt(v) + _SINGLE(1e-7))

    def bits(self, letters: np.ndarray) -> np.ndarray:
        """Mean cross-entropy of each excerpt, in bits a letter."""
        states, _ = self.read(letters[:-1], np.zeros((letters.shape[1], self.n), _SINGLE))
        z = states @ self.parameters[3] + self.parameters[5]
        z = z - z.max(2, keepdims=True)
        losses = np.log(np.exp(z).sum(2)) - np.take_along_axis(z, letters[1:, :, None], 2)[..., 0]
        return np.asarray(losses.mean(0) / np.log(2))


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) validation and test bits a letter; the first epochs do not depend on how many follow."""
    rng = np.random.default_rng(seed)
    text, excerpts = data()
    n_streams, keep = config["n_streams"], _SINGLE(1 - config["dropout"])
    length = _TRAIN // n_streams
    model = Network(config["n_hidden"], rng)
    curve = np.empty((epochs, 2), np.float32)
    for epoch in range(epochs):
        rate = config["learning_rate"] * config["final_rate"] ** (epoch / (EPOCHS - 1))
        shift = rng.integers(_TRAIN)
        starts = shift + length * np.arange(n_streams)
        letters = text[(starts + np.arange(length + 1)[:, None]) % len(text)]
        h = np.zeros((n_streams, model.n), _SINGLE)
        for start in range(0, length, config["unroll"]):
            window = letters[start : start + config["unroll"] + 1]
            mask = (rng.random((len(window) - 1, n_streams, model.n), dtype=_SINGLE) < keep) / keep
            gradients, h = model.gradients(window, h, mask)
            model.update(gradients, rate, config)
        bits = model.bits(excerpts.T)
        values = np.array([bits[: _EVAL // 2].mean(), bits[_EVAL // 2 :].mean()])
        curve[epoch] = np.where(np.isfinite(values), np.minimum(values, DIVERGED), DIVERGED)
    return curve
