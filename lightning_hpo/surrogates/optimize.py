"""Box-constrained minimisation of one function from several starts, evaluated together.

SciPy's L-BFGS-B runs once per start, each in a thread of its own that waits whenever it needs the function. As soon
as all wait, their points are evaluated as one batch. The threads never run at the same time as the evaluation, and
the composition of the batches depends on the starts alone, so the result does not depend on the threads' timing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

Array: TypeAlias = npt.NDArray[np.float64]


class Minimum(NamedTuple):
    """What was found from ``S`` starts."""

    x: Array
    """``(S, p)``: of each start the point with the lowest value."""
    value: Array
    """``(S,)``, infinite where no evaluation was finite."""
    evaluations: int
    """Evaluations of batches."""


class _Start:
    """One run of L-BFGS-B; ``ask`` is called in its thread."""

    def __init__(self, x: Array, ask: Callable[[Array], tuple[float, Array]]) -> None:
        self.x, self.value = x, np.inf
        self._ask = ask

    def __call__(self, x: Array) -> tuple[float, Array]:
        value, gradient = self._ask(x)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return self._wall(x)
        if value < self.value:
            self.x, self.value = x.copy(), value
        return value, gradient

    def _wall(self, x: Array) -> tuple[float, Array]:
        """A parabola around the best point, in place of a value that is not finite.

        The line search steps back from it; at an infinite value it would give up.
        """
        step = x - self.x
        square = float(step @ step)
        if not (np.isfinite(self.value) and square > 0.0):
            return np.inf, np.zeros_like(x)
        height = 1.0 + abs(self.value)
        return self.value + height, 2.0 * height / square * step

    def run(self, lower: Array, upper: Array, max_iterations: int, tolerance: float) -> None:
        minimize(
            self,
            self.x,
            jac=True,
            method="L-BFGS-B",
            bounds=np.stack([lower, upper], 1),
            options={"maxiter": max_iterations, "ftol": tolerance, "gtol": tolerance},
        )


def minimize_batch(
    function: Callable[[Array], tuple[Array, Array]],
    starts: Array,
    lower: Array,
    upper: Array,
    max_iterations: int,
    tolerance: float = 1e-6,
) -> Minimum:
    """Local minima of a function within a box, one per start.

    Args:
        function: points ``(k, p)``, ``k <= S`` -> values ``(k,)`` and gradients ``(k, p)``. What is not finite
            counts as infinite.
        starts: ``(S, p)``; clipped to the box.
        lower, upper: ``(p,)``, may be infinite.
        max_iterations: of each start.
        tolerance: relative decrease of the value, and largest entry of the projected gradient, at which a start ends.

    Raises:
        whatever ``function`` raises.
    """
    starts = np.clip(np.asarray(starts, dtype=np.float64), lower, upper)
    evaluations = 0

    def evaluate(points: Array) -> tuple[Array, Array]:
        nonlocal evaluations
        evaluations += 1
        return function(points)

    if len(starts) == 1:

        def ask_alone(x: Array) -> tuple[float, Array]:
            values, gradients = evaluate(x[None])
            return float(values[0]), gradients[0]

        runs = [_Start(starts[0], ask_alone)]
        runs[0].run(lower, upper, max_iterations, tolerance)
    else:
        runs = _run_together(evaluate, starts, lower, upper, max_iterations, tolerance)
    return Minimum(np.stack([r.x for r in runs]), np.array([r.value for r in runs]), evaluations)


class _Cancelled(Exception):
    """The function failed for another start."""


def _run_together(
    evaluate: Callable[[Array], tuple[Array, Array]],
    starts: Array,
    lower: Array,
    upper: Array,
    max_iterations: int,
    tolerance: float,
) -> list[_Start]:
    inbox: queue.SimpleQueue[tuple[int, Array | BaseException | None]] = queue.SimpleQueue()
    answers: list[queue.SimpleQueue[tuple[float, Array] | None]] = [queue.SimpleQueue() for _ in starts]

    def ask(index: int, x: Array) -> tuple[float, Array]:
        inbox.put((index, x.copy()))
        answer = answers[index].get()
        if answer is None:
            raise _Cancelled
        return answer

    runs = [_Start(x, lambda x, i=i: ask(i, x)) for i, x in enumerate(starts)]  # type: ignore[misc]

    def work(index: int) -> None:
        outcome: BaseException | None = None
        try:
            runs[index].run(lower, upper, max_iterations, tolerance)
        except BaseException as problem:
            outcome = problem
        inbox.put((index, outcome))

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(starts))]
    for thread in threads:
        thread.start()
    active, failure = len(starts), None
    waiting: dict[int, Array] = {}
    while active:
        index, message = inbox.get()
        if isinstance(message, np.ndarray):
            waiting[index] = message
        else:
            active -= 1
            if message is not None and not isinstance(message, _Cancelled):
                failure = failure or message
        if waiting and len(waiting) == active:
            order = sorted(waiting)
            try:
                if failure is not None:
                    raise _Cancelled
                values, gradients = evaluate(np.stack([waiting[i] for i in order]))
                replies: list[tuple[float, Array] | None] = [
                    (float(v), g) for v, g in zip(values, gradients, strict=True)
                ]
            except BaseException as problem:
                if not isinstance(problem, _Cancelled):
                    failure = problem
                replies = [None] * len(order)
            waiting.clear()
            for i, reply in zip(order, replies, strict=True):
                answers[i].put(reply)
    for thread in threads:
        thread.join()
    if failure is not None:
        raise failure
    return runs
