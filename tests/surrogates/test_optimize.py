"""Several runs of L-BFGS-B whose evaluations are batched."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der
from threadpoolctl import threadpool_info, threadpool_limits

from lightning_hpo.surrogates.optimize import Array, minimize_batch

LOWER, UPPER = np.full(3, -2.0), np.full(3, 2.0)
STARTS = np.array([[-1.5, 1.0, 0.5], [0.0, 0.0, 0.0], [1.8, -1.8, 1.8]])


def rosenbrock(points: Array) -> tuple[Array, Array]:
    return np.array([rosen(x) for x in points]), np.array([rosen_der(x) for x in points])


def test_each_start_ends_where_it_would_end_alone() -> None:
    found = minimize_batch(rosenbrock, STARTS, LOWER, UPPER, 200, 1e-9)
    for start, x, value in zip(STARTS, found.x, found.value, strict=True):
        options = {"maxiter": 200, "ftol": 1e-9, "gtol": 1e-9}
        alone = minimize(rosen, start, jac=rosen_der, method="L-BFGS-B", bounds=[(-2, 2)] * 3, options=options)
        np.testing.assert_allclose(x, alone.x, atol=1e-12)
        assert value == pytest.approx(alone.fun, abs=1e-15)


def test_all_starts_that_still_run_are_evaluated_together() -> None:
    sizes = []

    def counted(points: Array) -> tuple[Array, Array]:
        sizes.append(len(points))
        return rosenbrock(points)

    found = minimize_batch(counted, np.vstack([STARTS, np.ones(3)]), LOWER, UPPER, 50)
    assert sizes[0] == 4
    assert sizes[-1] < 4
    assert sizes == sorted(sizes, reverse=True)
    assert found.evaluations == len(sizes)


def test_the_box_is_kept_and_starts_are_clipped_into_it() -> None:
    def plane(points: Array) -> tuple[Array, Array]:
        assert (points >= LOWER).all()
        assert (points <= UPPER).all()
        return points.sum(1), np.ones_like(points)

    found = minimize_batch(plane, 10.0 * STARTS, LOWER, UPPER, 50)
    np.testing.assert_allclose(found.x, -2.0)


def test_where_the_function_is_not_finite_the_search_steps_back() -> None:
    def barrier(points: Array) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            value, gradient = points - np.log(points + 0.5), 1.0 - 1.0 / (points + 0.5)
        return value.sum(1), gradient

    found = minimize_batch(barrier, np.array([[1.9], [-1.0]]), np.array([-2.0]), np.array([2.0]), 100)
    assert found.x[0] == pytest.approx(0.5, abs=1e-4)
    assert found.value[1] == np.inf
    assert found.x[1] == [-1.0]


@pytest.mark.parametrize("starts", [STARTS[:1], STARTS])
def test_an_error_reaches_the_caller_and_leaves_no_thread(starts: Array) -> None:
    calls = 0

    def failing(points: Array) -> tuple[Array, Array]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("no third time")
        return rosenbrock(points)

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no third time"):
        minimize_batch(failing, starts, LOWER, UPPER, 50)
    assert threading.active_count() == before
    assert calls == 3


def test_an_interrupted_evaluation_ends_every_start() -> None:
    """Whichever thread evaluates, the caller gets the interruption and no start goes on."""
    calls = 0

    def interrupted(points: Array) -> tuple[Array, Array]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return rosenbrock(points)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        minimize_batch(interrupted, STARTS, LOWER, UPPER, 50)
    assert threading.active_count() == before
    assert calls == 4


def test_linear_algebra_has_one_thread_during_the_search_and_its_own_number_after() -> None:
    def numbers() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    seen = []

    def counted(points: Array) -> tuple[Array, Array]:
        seen.append(numbers())
        return rosenbrock(points)

    with threadpool_limits(limits=2, user_api="blas"):
        outside = numbers()
        minimize_batch(counted, STARTS, LOWER, UPPER, 2)
        assert numbers() == outside
    assert seen[0] == [1] * len(outside)
