"""A temporal-difference learner that plans with its own model finds its way through a slippery maze with pits."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np

SPACE = {
    "algorithm": {"type": "choice", "categories": ["q_learning", "sarsa", "expected_sarsa"]},
    "learning_rate": {"type": "float_log", "lower": 0.01, "upper": 1.0},
    "rate_power": {"type": "float", "lower": 0.0, "upper": 1.0},
    "one_minus_discount": {"type": "float_log", "lower": 1e-3, "upper": 0.3},
    "epsilon": {"type": "float_log", "lower": 0.01, "upper": 1.0},
    "epsilon_halving": {"type": "int_log", "lower": 2, "upper": 81},
    "initial_value": {"type": "float", "lower": -0.5, "upper": 1.0},
    "planning_steps": {"type": "int", "lower": 0, "upper": 6},
}
"""The rate falls with the visits of a state and action to this power, epsilon by half in so many epochs."""
EPOCHS = 81
_MAZE = (
    "S...#..",
    ".##....",
    ".#..#.P",
    "....#..",
    ".P#....",
    "...P..G",
)
_STEPS = 200
"""In the maze, an epoch."""
_LIMIT = 40
"""Steps of an episode at most."""
_SLIP, _STEP_REWARD = 0.15, -0.02
_EPISODES = 100
"""In which a policy is judged, as many for validation as for test."""
_EXPLORING = 0.1
"""Share of random actions there."""


@cache
def maze() -> tuple[list[list[int]], list[float], int]:
    """The next state of each state and direction, the reward on arrival (0: goes on), and the first state."""
    cells = [(i, j) for i, row in enumerate(_MAZE) for j, c in enumerate(row) if c != "#"]
    at = {cell: s for s, cell in enumerate(cells)}
    ways = ((-1, 0), (0, 1), (1, 0), (0, -1))
    after = [[at.get((i + di, j + dj), s) for di, dj in ways] for s, (i, j) in enumerate(cells)]
    rewards = [{"G": 1.0, "P": -0.7}.get(_MAZE[i][j], 0.0) for i, j in cells]
    return after, rewards, next(s for s, (i, j) in enumerate(cells) if _MAZE[i][j] == "S")


def returns(q: list[list[float]], rng: np.random.Generator) -> np.ndarray:
    """Sums of rewards of episodes under the nearly greedy policy."""
    after, rewards, first = (np.array(part) for part in maze())
    greedy = np.array(q).argmax(1)
    state, going = np.full(2 * _EPISODES, first), np.ones(2 * _EPISODES, bool)
    total = np.zeros(2 * _EPISODES)
    turns = np.where(rng.random((_LIMIT, 2 * _EPISODES)) < _SLIP, rng.choice((1, 3), (_LIMIT, 2 * _EPISODES)), 0)
    turns = np.where(rng.random(turns.shape) < _EXPLORING, rng.integers(0, 4, turns.shape), turns)
    for turn in turns:
        state = np.where(going, after[state, (greedy[state] + turn) % 4], state)
        reward = rewards[state]
        total += going * (reward + _STEP_REWARD)
        going &= reward == 0.0
        if not going.any():
            break
    return total


class Learner:
    """Values of states and actions, and all outcomes of those that were tried."""

    def __init__(self, config: dict[str, Any], luck: random.Random, n_states: int) -> None:
        self.algorithm, self.rate, self.power = config["algorithm"], config["learning_rate"], config["rate_power"]
        self.discount, self.luck = 1.0 - config["one_minus_discount"], luck
        self.q = [[config["initial_value"] + 1e-3 * luck.random() for _ in range(4)] for _ in range(n_states)]
        self.visits = [[0] * 4 for _ in range(n_states)]
        self.model: dict[tuple[int, int], list[tuple[float, int, bool]]] = {}
        self.tried: list[tuple[int, int]] = []

    def act(self, state: int, epsilon: float) -> int:
        if self.luck.random() < epsilon:
            return int(4 * self.luck.random())
        values = self.q[state]
        return values.index(max(values))

    def learn(self, state: int, action: int, reward: float, then: int, ended: bool, epsilon: float) -> None:
        """A step of the value towards what came of it."""
        if ended:
            target = reward
        else:
            values = self.q[then]
            if self.algorithm == "q_learning":
                value = max(values)
            elif self.algorithm == "sarsa":
                value = values[self.act(then, epsilon)]
            else:
                value = (1.0 - epsilon) * max(values) + epsilon * 0.25 * sum(values)
            target = reward + self.discount * value
        rate = self.rate / max(1, self.visits[state][action]) ** self.power
        self.q[state][action] += rate * (target - self.q[state][action])

    def remember(self, state: int, action: int, outcome: tuple[float, int, bool]) -> None:
        self.visits[state][action] += 1
        if (state, action) not in self.model:
            self.tried.append((state, action))
            self.model[state, action] = []
        self.model[state, action].append(outcome)


def train(config: dict[str, Any], seed: int, epochs: int) -> np.ndarray:
    """(epochs, 2) one minus the mean return for validation and for test; the first do not depend on how many follow."""
    rng, luck = np.random.default_rng(seed), random.Random(seed)
    after, rewards, first = maze()
    learner = Learner(config, luck, len(after))
    curve = np.empty((epochs, 2), np.float32)
    state, length = first, 0
    for epoch in range(epochs):
        epsilon = config["epsilon"] * 0.5 ** (epoch / config["epsilon_halving"])
        for _ in range(_STEPS):
            action = learner.act(state, epsilon)
            turn = (1 if luck.random() < 0.5 else 3) if luck.random() < _SLIP else 0
            then = after[state][(action + turn) % 4]
            ended, reward = rewards[then] != 0.0, rewards[then] + _STEP_REWARD
            learner.remember(state, action, (reward, then, ended))
            learner.learn(state, action, reward, then, ended, epsilon)
            for _ in range(config["planning_steps"]):
                pair = learner.tried[int(luck.random() * len(learner.tried))]
                outcomes = learner.model[pair]
                learner.learn(*pair, *outcomes[int(luck.random() * len(outcomes))], epsilon)
            length += 1
            state = then
            if ended or length == _LIMIT:
                state, length = first, 0
        total = returns(learner.q, rng)
        curve[epoch] = 1.0 - total[:_EPISODES].mean(), 1.0 - total[_EPISODES:].mean()
    return curve
