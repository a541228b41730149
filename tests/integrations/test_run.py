"""The order in which a run ends: the screen is given back, results are written, then it says how it ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_hpo import loguniform
from lightning_hpo.core.events import AttemptEnded, Outcome, Reported, WorkerReady
from lightning_hpo.core.space import SearchSpace
from lightning_hpo.core.study import StudyState
from lightning_hpo.errors import MetricMissing
from lightning_hpo.integrations import run
from lightning_hpo.integrations.config import LauncherOptions
from lightning_hpo.integrations.run import StudySetup, run_study
from lightning_hpo.integrations.settings import changed_settings, note_on_settings
from lightning_hpo.integrations.sweep import script_settings
from lightning_hpo.runtime.coordinator import RunResult


class Observer:
    """Notes when it gives the screen back."""

    def __init__(self, happened: list[str]) -> None:
        self.happened = happened

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self.happened.append("the screen is free")

    def header(self, *_: object, **__: object) -> None:
        pass

    say = header


@pytest.fixture(autouse=True)
def foreground() -> Iterator[None]:
    """Ctrl-C interrupts the tests' process, as in a terminal; a shell starts background jobs that ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``end(result)``: a run in which one trial reported and that ended so; returns what happened in which order."""

    def run_to(
        result: RunResult,
        reports: int = 1,
        starts: bool = True,
        late: signal.Signals | None = None,
        ends: Outcome | None = None,
    ) -> list[str]:
        happened: list[str] = []

        def coordinator(*, state: StudyState, **_: Any) -> Any:
            if starts:
                state.handle(WorkerReady(0.0))
            for resource in range(1, reports + 1):
                state.handle(Reported(1.0, 0, 1, resource, 0.5))
            if ends is not None:
                state.handle(AttemptEnded(2.0, 0, 1, ends, "KeyError: 'x'"))
            return SimpleNamespace(run=lambda: result)

        def write_results(*_: object, **__: object) -> None:
            if late is not None:
                os.kill(os.getpid(), late)
                happened.append(late.name)
            happened.append("results")

        backend = SimpleNamespace(capacity=1, start_method="fork", reason="", close=lambda: happened.append("closed"))
        monkeypatch.setattr(run, "_backend", lambda _: backend)
        monkeypatch.setattr(run, "make_observer", lambda *_, **__: Observer(happened))
        monkeypatch.setattr(run, "Coordinator", coordinator)
        monkeypatch.setattr(run, "write_results", write_results)
        monkeypatch.setattr(run, "summary", lambda *_, **__: happened.append("summary") or "")
        jobs = SimpleNamespace(folder=lambda trial_id, config: tmp_path / str(trial_id))
        options = LauncherOptions.from_mapping({"metric": "loss", "algorithm": "random"})
        assert isinstance(options, LauncherOptions)
        setup = StudySetup(
            space=SearchSpace({"lr": loguniform(1e-4, 1e-1)}),
            options=options,
            max_t=9,
            folder=tmp_path,
            entry=lambda job: None,
            jobs=lambda _: jobs,  # type: ignore[arg-type, return-value]
        )
        try:
            run_study(setup)
        except BaseException as raised:
            happened.append(f"{type(raised).__name__} {raised}".strip())
        return happened

    return run_to


def test_the_summary_comes_after_the_live_table_is_gone(end: Callable[..., list[str]]) -> None:
    assert end(RunResult("all 4 trials are done")) == [
        "the screen is free", "closed", "results", "summary",
    ]  # fmt: skip


@pytest.mark.parametrize(("late", "raised"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "SystemExit 143")])
@pytest.mark.parametrize("result", [RunResult("all trials are done"), RunResult("interrupted", signal.SIGHUP)])
def test_a_signal_at_the_end_cannot_lose_the_results(
    end: Callable[..., list[str]], result: RunResult, late: signal.Signals, raised: str
) -> None:
    before = signal.getsignal(late)
    happened = end(result, late=late)
    assert happened[2:5] == [late.name, "results", "summary"]
    assert happened[5:] == ["SystemExit 129" if result.is_interrupted else raised]
    assert signal.getsignal(late) is before


def test_after_ctrl_c_the_program_ends_by_it(end: Callable[..., list[str]]) -> None:
    assert end(RunResult("interrupted", signal.SIGINT))[-1] == "KeyboardInterrupt"


def test_another_signal_ends_the_program_with_its_number(end: Callable[..., list[str]]) -> None:
    assert end(RunResult("interrupted", signal.SIGTERM))[-1] == "SystemExit 143"


def test_an_error_has_the_last_word(end: Callable[..., list[str]]) -> None:
    problem = MetricMissing("Log it.")
    assert end(RunResult("x", problem=problem))[-2:] == ["summary", "MetricMissing Log it."]
    assert end(RunResult("x", signal.SIGINT, problem))[-1] == "MetricMissing Log it."


def test_a_study_of_which_every_trial_failed_is_no_success(end: Callable[..., list[str]]) -> None:
    last = end(RunResult("all trials are done"), reports=0, ends=Outcome.FAILED)[-1]
    assert last.startswith("AllFailed Every trial of the study failed (1), the first with: KeyError: 'x'.")
    assert end(RunResult("interrupted", signal.SIGINT), ends=Outcome.FAILED)[-1] == "KeyboardInterrupt"
    assert end(RunResult("all trials are done"), ends=Outcome.COMPLETED)[-1] == "summary"


def test_nothing_is_summed_up_if_nothing_was_reported(end: Callable[..., list[str]]) -> None:
    assert end(RunResult("x", problem=MetricMissing("Log it.")), reports=0)[-2:] == ["results", "MetricMissing Log it."]


def test_a_study_without_trials_says_why(end: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert end(RunResult("all 0 trials are done"), reports=0, starts=False) == ["the screen is free", "closed"]
    assert capsys.readouterr().out == "The study ended before its first trial: all 0 trials are done.\n"


def noted(now: dict[str, Any], header: dict[str, Any]) -> str | None:
    return note_on_settings(changed_settings(now, header))


def test_changed_settings_are_named_in_short() -> None:
    long = ["data"] * 100
    note = noted({"a": 1, "paths": str(long)}, {"settings": {"a": "1", "paths": str(long[1:])}})
    assert note is not None and "a: '1' -> 1;" in note and len(note) < 500
    assert noted({"a": 1}, {"settings": {"a": 1}}) is None
    assert noted({"a": 1}, {"options": {}}) is None, "studies of before did not keep them"


def test_secrets_are_neither_kept_nor_shown() -> None:
    written = {"db": {"password": "x", "host": "y"}, "hydra": {"job": 1}, "lr": 0.1, "wandb_api_key": "z"}
    written |= {"hf_token": "x", "aws": {"secret_access_key": "x", "token": {"value": "x"}}, "Secrets": {"a": 1}}
    assert script_settings(written, {"lr"}) == {"db.host": "y"}


def test_what_only_sounds_like_a_secret_is_a_setting() -> None:
    written = {"model": {"tokenizer": "bpe", "max_tokens": 128, "token_dropout": 0.1}, "data": {"secretary": "x"}}
    assert script_settings(written, set()) == {
        "model.tokenizer": "bpe", "model.max_tokens": 128, "model.token_dropout": 0.1, "data.secretary": "x",
    }  # fmt: skip
