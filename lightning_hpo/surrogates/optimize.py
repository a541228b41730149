"""Box-constrained minimisation of one function from several starts, evaluated together.

SciPy's L-BFGS-B runs once per start, each in a thread of its own that waits whenever it needs the function. As soon
as all wait, their points are evaluated as one batch. The composition of the batches depends on the starts alone, so the
result does not depend on the threads' timing.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

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

    together = _Together(evaluate, len(starts))
    runs = [_Start(x, functools.partial(together.ask, i)) for i, x in enumerate(starts)]

    def work(index: int) -> None:
        try:
            runs[index].run(lower, upper, max_iterations, tolerance)
        except BaseException as problem:
            together.fail(problem)
        finally:
            together.leave()

    with _one_thread():
        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(1, len(starts))]
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
    if together.failure is not None:
        raise together.failure
    return Minimum(np.stack([r.x for r in runs]), np.array([r.value for r in runs]), evaluations)


def _one_thread() -> contextlib.AbstractContextManager[Any]:
    """SciPy's linear algebra on one thread: on vectors this short its other threads only wait, which costs as much."""
    controller = _blas()
    return contextlib.nullcontext() if controller is None else controller.limit(limits=1, user_api="blas")


@functools.cache
def _blas() -> ThreadpoolController | None:
    controller = ThreadpoolController().select(user_api="blas")
    return controller if len(controller) else None


class _Cancelled(Exception):
    """The function failed for another start."""


class _Together:
    """The evaluations of all starts, as batches.

    Each start runs in a thread of its own. The last one that asks evaluates for all: then a batch costs one change of
    thread for every other start, and none if there is only one.
    """

    def __init__(self, evaluate: Callable[[Array], tuple[Array, Array]], n_starts: int) -> None:
        self.failure: BaseException | None = None
        self._evaluate = evaluate
        self._active = n_starts
        self._waiting: dict[int, Array] = {}
        self._answers: list[queue.SimpleQueue[tuple[float, Array] | None]] = [
            queue.SimpleQueue() for _ in range(n_starts)
        ]
        self._lock = threading.Lock()

    def ask(self, index: int, x: Array) -> tuple[float, Array]:
        """Value and gradient for the start ``index``; waits until all that still run have asked."""
        with self._lock:
            self._waiting[index] = x.copy()
            self._answer_if_complete()
        answer = self._answers[index].get()
        if answer is None:
            raise _Cancelled
        return answer

    def fail(self, problem: BaseException) -> None:
        """All starts are to end, because of this."""
        if not isinstance(problem, _Cancelled):
            with self._lock:
                self.failure = self.failure or problem

    def leave(self) -> None:
        """One start has ended."""
        with self._lock:
            self._active -= 1
            self._answer_if_complete()

    def _answer_if_complete(self) -> None:
        if not self._waiting or len(self._waiting) < self._active:
            return
        order = sorted(self._waiting)
        replies: list[tuple[float, Array] | None] = [None] * len(order)
        if self.failure is None:
            try:
                values, gradients = self._evaluate(np.stack([self._waiting[i] for i in order]))
                replies = [(float(v), g) for v, g in zip(values, gradients, strict=True)]
            except BaseException as problem:
                self.failure = problem
        self._waiting.clear()
        for i, reply in zip(order, replies, strict=True):
            self._answers[i].put(reply)
