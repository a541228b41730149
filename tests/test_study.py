from __future__ import annotations

import contextlib
import math
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_hpo import Resume, SearchSpace, Start, Study, choice, load_study, loguniform, uniform
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import (
    OptionError,
    ReportError,
    SpaceError,
    StudyError,
    StudyLocked,
    StudyMismatch,
    StudyNotFound,
)

SPACE = {"x": uniform(0.0, 1.0), "epochs": 9}


def create(**options):
    options = {"algorithm": "asha", "metric": "loss", "max_t": 9, **options}
    return Study.create(options.pop("space", SPACE), **options)


def train(study, value=lambda trial_id, resource: 0.5, limit=1000):
    """One worker trains until there is nothing to do; returns what it was asked to do."""
    jobs = []
    while len(jobs) < limit and (job := study.ask()) is not None:
        jobs.append(job)
        resource = job.from_resource if isinstance(job, Resume) else 0
        verdict = "continue"
        while verdict == "continue":
            resource += 1
            verdict = study.tell(job.trial_id, resource, value(job.trial_id, resource))
    return jobs


@contextlib.contextmanager
def disk_full(study):
    """Nothing that the study is told can be written."""

    def full(events):
        if events:
            raise StudyError("disk full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study._journal, "append", full)
        yield


class TestAskAndTell:
    def test_a_trial_starts_with_its_whole_configuration(self):
        study = create()
        assert study.ask() == Start(0, {"x": 0.5, "epochs": 9}, milestone=1)

    def test_tell_says_continue_pause_or_stop(self):
        study = create(type="promotion")
        for value in (0.5, 0.3, 0.4):
            assert study.tell(study.ask().trial_id, 1, value) == "pause"
        resume = study.ask()
        assert isinstance(resume, Resume)
        assert (resume.trial_id, resume.from_resource, resume.milestone) == (1, 1, 3)
        assert resume.config == study.trials[1].config | {"epochs": 9}
        assert study.tell(1, 2, 0.2) == "continue"

    def test_several_workers_may_ask(self):
        study = create(type="promotion")
        assert [study.ask().trial_id for _ in range(5)] == [0, 1, 2, 3, 4]

    def test_none_means_nothing_to_start_now(self):
        study = create(algorithm="random", n_trials=1)
        study.ask()
        assert study.ask() is None
        for resource in range(1, 10):
            study.tell(0, resource, 0.5)
        assert study.ask() is None
        assert study.trials[0].status is TrialStatus.COMPLETED

    def test_a_resumed_trial_may_be_trained_from_scratch(self):
        study = create(type="promotion")
        for value in (0.5, 0.3, 0.4):
            study.tell(study.ask().trial_id, 1, value)
        study.ask()
        assert study.tell(1, 1, 0.99) == "continue"
        assert study.trials[1].curve == {1: 0.3}

    def test_what_is_told_to_a_paused_trial_changes_nothing(self):
        study = create(type="promotion")
        for value in (0.5, 0.3, 0.4):
            study.tell(study.ask().trial_id, 1, value)
        assert study.tell(1, 2, 0.1) == "pause"
        assert study.trials[1].curve == {1: 0.3}
        assert study.ask().from_resource == 1

    def test_complete_takes_the_last_report_as_the_result(self):
        study = create(algorithm="random")
        study.ask()
        study.tell(0, 1, 0.4)
        study.complete(0)
        assert study.trials[0].status is TrialStatus.COMPLETED
        assert study.best().at_full_resource.value == 0.4
        study.complete(0)  # nothing happens

    def test_fail_takes_the_configuration_out(self):
        study = create(algorithm="random", space={"x": choice([1, 2])}, points_to_evaluate=[])
        first = study.ask().config
        study.fail(0, "CUDA out of memory")
        assert study.trials[0].status is TrialStatus.FAILED and study.trials[0].error == "CUDA out of memory"
        second = study.ask().config
        assert {first["x"], second["x"]} == {1, 2}
        study.fail(1, "other")
        assert study.ask() is None

    def test_fail_takes_what_was_raised(self, tmp_path):
        study = create(path=tmp_path)
        study.ask()
        study.fail(0, ValueError("no such layer"))
        study.close()
        assert load_study(tmp_path, read_only=True).trials[0].error == "ValueError: no such layer"

    @pytest.mark.parametrize("end", [Study.complete, Study.fail])
    def test_a_trial_that_has_ended_is_told_to_stop(self, end):
        study = create()
        study.ask()
        assert study.tell(0, 1, 0.5) == "continue"
        end(study, 0)
        assert study.tell(0, 2, 0.4) == "stop"
        assert study.trials[0].curve == {1: 0.5}

    def test_attach_starts_a_trial_with_a_configuration_from_outside(self):
        study = create(type="promotion")
        assert study.attach({"x": 0.123}) == 0
        assert study.trials[0].config == {"x": 0.123} and study.trials[0].origin == "attached"
        assert study.tell(0, 1, 0.5) == "pause"
        assert study.ask().trial_id == 1

    @pytest.mark.parametrize("config", [{"x": 2.0}, {}, {"x": 0.5, "y": 1}, {"x": "a"}])
    def test_attach_refuses_what_is_not_of_the_space(self, config):
        with pytest.raises(SpaceError):
            create().attach(config)

    def test_the_same_seed_gives_the_same_study(self):
        value = lambda i, r: ((i * 7919) % 101) / 101 + 1 / r  # noqa: E731
        first, second, other = (train(create(random_seed=s, n_trials=12, brackets=2), value) for s in (3, 3, 4))
        assert first == second != other

    def test_a_searcher_that_raises_is_asked_again(self, monkeypatch):
        study = create(points_to_evaluate=[])
        monkeypatch.setattr(type(study._searcher), "suggest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study.ask()
        monkeypatch.undo()
        assert study.ask().trial_id == 0


class TestValues:
    @pytest.mark.parametrize("value", [0.25, 1, np.float32(0.25), np.array(0.25), np.array([0.25])])
    def test_one_real_number_of_any_kind_is_a_value(self, value):
        study = create()
        study.ask()
        study.tell(0, 1, value)
        assert study.trials[0].curve == {1: float(value.item() if hasattr(value, "item") else value)}

    def test_a_tensor_with_one_element_is_a_value(self):
        torch = pytest.importorskip("torch")
        study = create()
        study.ask()
        study.tell(0, 1, torch.tensor(0.25, requires_grad=True), metrics={"acc": torch.tensor([0.5])})
        assert study.trials[0].curve == {1: 0.25} and study.trials[0].metrics == {"acc": 0.5}

    @pytest.mark.parametrize("value", ["0.5", None, True, 1j, [0.1, 0.2], np.zeros(2), {"loss": 0.1}])
    def test_anything_else_is_refused_with_its_value_and_type(self, value):
        study = create()
        study.ask()
        with pytest.raises(ReportError, match=rf"{type(value).__name__}.*Tell a float"):
            study.tell(0, 1, value)

    @pytest.mark.parametrize(
        ("told", "message"),
        [
            ({"value": "3"}, "reported value='3' of type str"),
            ({"value": 0.5, "cost": "3"}, "reported cost='3' of type str"),
            ({"value": 0.5, "metrics": {"acc": None}}, "reported metrics['acc']=None of type NoneType"),
            ({"value": 10**400}, "reported a value too large for a float"),
            ({"value": 0.5, "cost": 10**5000}, "reported a cost too large for a float"),
            ({"value": 0.5, "metrics": {"acc": -(10**400)}}, "reported a metrics['acc'] too large for a float"),
        ],
    )
    def test_what_is_refused_is_named(self, told, message):
        study = create()
        study.ask()
        with pytest.raises(ReportError, match=rf"^Trial 0 {re.escape(message)}.*\. Tell .*\.$"):
            study.tell(0, 1, **told)
        assert study.trials[0].curve == {}

    @pytest.mark.parametrize("cost", [math.nan, math.inf, -5, np.float32(-0.5)])
    def test_a_cost_is_finite_and_not_negative(self, cost):
        study = create()
        study.ask()
        with pytest.raises(ReportError, match=r"reported cost=.*at least 0, or leave cost out\.$"):
            study.tell(0, 1, 0.5, cost=cost)
        study.tell(0, 1, 0.5, cost=0)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_is_the_worst(self, value):
        study = create()
        study.ask()
        assert study.tell(0, 1, value) == "stop"
        assert study.best().at_any_resource is None

    def test_resources_may_be_integers_of_numpy(self):
        study = create()
        study.ask()
        study.tell(0, np.int64(1), 0.5)
        assert list(study.trials[0].curve) == [1]

    def test_so_may_ids_of_trials_and_all_of_it_is_kept(self, tmp_path):
        study = create(type="promotion", path=tmp_path)
        assert study.tell(np.int64(study.ask().trial_id), np.int64(1), np.float32(0.5)) == "pause"
        study.fail(np.int64(study.ask().trial_id))
        study.close()
        again = load_study(tmp_path, read_only=True)
        assert again.trials[0].curve == {1: 0.5} and again.trials[0].status is TrialStatus.PAUSED
        assert again.trials[1].status is TrialStatus.FAILED

    @pytest.mark.parametrize("resource", [0, 1.0, True, None])
    def test_other_resources_are_refused(self, resource):
        study = create()
        study.ask()
        with pytest.raises(ReportError, match="Report after 1, 2, 3"):
            study.tell(0, resource, 0.5)

    def test_nothing_is_trained_beyond_max_t(self):
        study = create()
        study.ask()
        with pytest.raises(ReportError, match=r"ends at max_t=9\. Report up to max_t"):
            study.tell(0, 10, 0.5)
        assert study.tell(0, 9, 0.5) == "stop"

    def test_unknown_trials_are_refused(self):
        for call in (lambda s: s.tell(3, 1, 0.5), lambda s: s.complete(3), lambda s: s.fail(3)):
            with pytest.raises(ReportError, match="There is no trial 3"):
                call(create())

    def test_an_id_that_is_no_integer_is_shown_as_it_is(self):
        study = create()
        study.ask()
        with pytest.raises(ReportError, match=r"There is no trial '0'; the study has 1, and their ids are integers\."):
            study.tell("0", 1, 0.5)


class TestBest:
    def test_names_both_senses_of_best(self):
        study = create(algorithm="random", max_t=2, mode="max", n_trials=2)
        values = {(0, 1): 0.9, (0, 2): 0.5, (1, 1): 0.6, (1, 2): 0.7}
        train(study, lambda i, r: values[i, r])
        best = study.best()
        assert (best.at_any_resource.trial_id, best.at_any_resource.resource, best.at_any_resource.value) == (0, 1, 0.9)
        assert (best.at_full_resource.trial_id, best.at_full_resource.value) == (1, 0.7)
        assert best.at_full_resource.config["epochs"] == 9

    def test_is_none_before_the_first_report(self):
        best = create().best()
        assert best.at_any_resource is None and best.at_full_resource is None


class TestOptions:
    def test_are_checked_when_the_study_is_created(self):
        with pytest.raises(OptionError, match="Did you mean 'reduction_factor'"):
            create(reduction_facto=3)
        with pytest.raises(OptionError, match="Set max_t"):
            Study.create({"lr": loguniform(1e-4, 1e-1)}, metric="loss", algorithm="asha")

    @pytest.mark.parametrize("name", ["epochs", "max_t", "max_epochs", "max-epochs"])
    def test_a_constant_of_the_space_says_how_far_a_trial_is_trained(self, name):
        study = Study.create({"lr": loguniform(1e-4, 1e-1), name: 27}, metric="loss", algorithm="asha")
        assert study.options.max_t == 27

    def test_algorithms_without_rungs_need_not_know(self):
        space = {"lr": loguniform(1e-4, 1e-1), "epochs": 27}
        assert Study.create(space, metric="loss", algorithm="random").options.max_t is None

    def test_unless_max_t_does(self):
        space = {"lr": loguniform(1e-4, 1e-1), "epochs": 27}
        assert Study.create(space, metric="loss", algorithm="asha", max_t=9).options.max_t == 9

    def test_a_refused_option_leaves_no_study_behind(self, tmp_path):
        folder = tmp_path / "study"
        with pytest.raises(OptionError):
            create(path=folder, algorithm="grid", searcher={"restrict_configurations": [{"lr": 0.01}]})
        assert not folder.exists()

    def test_a_threshold_is_compared_with_the_value_told_and_not_with_another_of_its_name(self):
        study = create(algorithm="random", max_t=5, stop={"min_metric_value": 0.1})
        study.tell(study.ask().trial_id, 1, 0.5, metrics={"loss": 0.01})
        assert study.ask() is not None
        study.tell(1, 1, 0.05, metrics={"loss": 0.5})
        assert study.ask() is None

    def test_stop_ends_the_study(self):
        study = create(algorithm="random", max_t=1, stop={"max_num_trials_completed": 3})
        assert len(train(study)) == 4  # "more than three"


class TestOnDisk:
    def test_a_study_goes_on_where_it_was_left(self, tmp_path):
        value = lambda i, r: ((i * 37) % 11) / 11 + 1 / r  # noqa: E731
        whole = train(create(type="promotion", n_trials=20), value)
        study = create(type="promotion", n_trials=20, path=tmp_path)
        jobs = train(study, value, limit=9)
        study.close()
        study = load_study(tmp_path)
        assert jobs + train(study, value) == whole

    def test_a_study_that_was_killed_loses_nothing_it_was_told(self, tmp_path):
        program = (
            "import os, sys\n"
            "from lightning_hpo import Study, uniform\n"
            "study = Study.create({'x': uniform(0, 1)}, algorithm='asha', metric='m', max_t=9, path=sys.argv[1])\n"
            "for i in range(3):\n"
            "    study.tell(study.ask().trial_id, 1, 0.1 * i)\n"
            "study.ask()\n"
            "os.kill(os.getpid(), 9)\n"
        )
        assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60).returncode == -9
        study = load_study(tmp_path)
        assert [t.curve for t in study.trials.values()] == [{1: 0.0}, {1: 0.1}, {1: 0.2}, {}]
        assert study.trials[2].status is TrialStatus.STOPPED
        # Nobody trains 0, 1 and 3 any more: they are handed out again.
        assert [study.ask().trial_id for _ in range(4)] == [0, 1, 3, 4]

    @pytest.mark.parametrize("reported", [[], [1], [1, 2]])
    def test_what_was_running_is_asked_for_again_before_it_reports(self, tmp_path, reported):
        study = create(path=tmp_path)
        study.ask()
        for resource in reported:
            assert study.tell(0, resource, 0.5) == "continue"
        study.close()
        study = load_study(tmp_path)
        for call in (lambda: study.tell(0, 3, 0.4), lambda: study.complete(0), lambda: study.fail(0)):
            with pytest.raises(ReportError, match=r"^Trial 0 was running when the study was opened.*Call ask\(\): "):
                call()
        assert study.ask() == Resume(0, {"x": 0.5, "epochs": 9}, 0, milestone=3 if reported else 1, attempt=2)
        assert study.tell(0, 3, 0.4) == "continue"

    def test_creating_it_again_continues_it(self, tmp_path):
        study = create(algorithm="random", max_t=1, n_trials=2, path=tmp_path)
        train(study)
        study.close()
        study = create(algorithm="random", max_t=1, n_trials=5, path=tmp_path)
        assert [job.trial_id for job in train(study)] == [2, 3, 4]
        study.close()
        assert load_study(tmp_path).options.n_trials == 5

    def test_it_can_be_looked_at_while_somebody_goes_on_with_it(self, tmp_path):
        study = create(algorithm="random", path=tmp_path)
        study.tell(study.ask().trial_id, 1, 0.5)
        seen = load_study(tmp_path, read_only=True)
        assert seen.best() == study.best() and seen.trials[0].curve == {1: 0.5}
        study.tell(0, 2, 0.4)
        assert seen.trials[0].curve == {1: 0.5}
        seen.tell(0, 2, 0.1)
        study.close()
        assert load_study(tmp_path, read_only=True).trials[0].curve == {1: 0.5, 2: 0.4}

    def test_what_is_closed_takes_nothing_in_and_says_so(self, tmp_path):
        study = create(path=tmp_path)
        study.ask()
        study.close()
        for call in (study.ask, lambda: study.tell(0, 1, 0.5), lambda: study.complete(0), lambda: study.fail(0)):
            with pytest.raises(StudyError, match=r"Open it again with load_study\.$"):
                call()

    def test_other_settings_are_refused_and_named(self, tmp_path):
        create(path=tmp_path).close()
        with pytest.raises(StudyMismatch, match=r"max_t: 9 -> 27(.|\n)*another folder\.$"):
            create(max_t=27, path=tmp_path)
        with pytest.raises(StudyMismatch, match="space: "):
            create(space={"x": uniform(0.0, 2.0)}, path=tmp_path)
        with pytest.raises(StudyMismatch, match=r"metric: 'loss' -> 'acc'(.|\n)*mode: 'min' -> 'max'"):
            create(metric="acc", mode="max", path=tmp_path)

    def test_presets_are_spoken_of_only_where_one_may_have_changed(self, tmp_path):
        create(path=tmp_path / "asha").close()
        for other in ({"metric": "acc"}, {"mode": "max"}, {"max_t": 27}, {"type": "promotion"}):
            with pytest.raises(StudyMismatch) as caught:
                create(path=tmp_path / "asha", **other)
            assert "preset" not in str(caught.value)
        create(algorithm="default", path=tmp_path / "default").close()
        with pytest.raises(StudyMismatch, match="is a preset of the algorithm in this version"):
            create(algorithm="default", searcher={"opt_maxiter": 26}, path=tmp_path / "default")

    def test_a_study_that_went_by_rank_where_the_model_leads_by_now_is_told_how_to_go_on(self, tmp_path):
        by_rank = {"algorithm": "default", "type": "stopping", "promotion_rule": "rank"}
        create(**by_rank, path=tmp_path).close()
        with pytest.raises(StudyMismatch, match="are had by promotion_rule=rank"):
            create(algorithm="default", type="stopping", path=tmp_path)
        create(**by_rank, path=tmp_path).close()

    def test_the_same_settings_spelled_otherwise_are_the_same(self, tmp_path):
        create(rung_levels=(1, 3), path=tmp_path).close()
        create(rung_levels=[1, 3], stop={}, searcher={}, path=tmp_path).close()

    def test_is_locked_while_it_is_open(self, tmp_path):
        study = create(path=tmp_path)
        with pytest.raises(StudyLocked, match="being worked on by process"):
            load_study(tmp_path)
        study.close()
        load_study(tmp_path).close()

    def test_but_not_after_its_with_block_nor_when_it_is_forgotten(self, tmp_path):
        with create(path=tmp_path) as study:
            study.ask()
        study = load_study(tmp_path)
        assert study.trials[0].status is TrialStatus.WAITING
        del study
        load_study(tmp_path).close()

    def test_a_refused_study_is_not_left_locked(self, tmp_path):
        create(path=tmp_path).close()
        with pytest.raises(StudyMismatch):
            create(max_t=27, path=tmp_path)
        load_study(tmp_path).close()

    def test_there_must_be_one_to_load(self, tmp_path):
        with pytest.raises(StudyNotFound):
            load_study(tmp_path)

    def test_what_cannot_be_written_is_written_with_the_next_report(self, tmp_path):
        study = create(algorithm="random", path=tmp_path)
        study.ask()
        with disk_full(study), pytest.raises(StudyError):
            study.tell(0, 1, 0.5)
        study.tell(0, 2, 0.4)
        study.close()
        assert load_study(tmp_path).trials[0].curve == {1: 0.5, 2: 0.4}

    def test_or_when_it_is_closed(self, tmp_path):
        study = create(algorithm="random", path=tmp_path)
        study.ask()
        with disk_full(study), pytest.raises(StudyError):
            study.tell(0, 1, 0.5)
        study.close()
        study.close()  # nothing happens
        assert load_study(tmp_path).trials[0].curve == {1: 0.5}

    def test_if_it_cannot_be_written_then_either_it_says_so_and_is_closed(self, tmp_path):
        study = create(algorithm="random", path=tmp_path)
        study.ask()
        with disk_full(study):
            for call in (lambda: study.tell(0, 1, 0.5), study.close):
                with pytest.raises(StudyError, match="disk full"):
                    call()
        assert load_study(tmp_path).trials[0].curve == {}

    @pytest.mark.parametrize("algorithm", ["asha", "sync_hyperband"])
    def test_a_job_that_cannot_be_written_is_given_out_by_the_next_call(self, tmp_path, algorithm):
        whole = train(create(algorithm=algorithm, max_t=3, n_trials=4))
        study = create(algorithm=algorithm, max_t=3, n_trials=4, path=tmp_path)
        jobs = []
        for _ in whole:
            with disk_full(study), pytest.raises(StudyError):
                study.ask()
            jobs += train(study, limit=1)
        assert jobs == whole and study.ask() is None

    def test_an_attached_trial_that_cannot_be_written_is_the_one_that_is_attached_again(self, tmp_path):
        study = create(path=tmp_path)
        with disk_full(study):
            for x in (0.1, 0.2, 0.2):
                with pytest.raises(StudyError):
                    study.attach({"x": x})
        assert study.attach({"x": 0.2}) == 1
        assert study.attach({"x": 0.2}) == 2
        assert study.ask() == Start(0, {"x": 0.1, "epochs": 9}, milestone=1)
        study.close()
        assert [t.config["x"] for t in load_study(tmp_path).trials.values()] == [0.1, 0.2, 0.2]

    def test_every_call_is_one_commit(self, tmp_path):
        study = create(type="promotion", path=tmp_path)
        commits = []
        study._journal._connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        study.ask()
        assert study.tell(0, 1, 0.5) == "pause"  # reported, checkpoint noted, attempt ended
        assert len(commits) == 2

    def test_threads_may_share_it(self, tmp_path):
        study = create(algorithm="random", max_t=None, space={"x": uniform(0.0, 1.0)}, path=tmp_path)
        # Without the flushes, which would only make it slow.
        study._journal._connection.execute("PRAGMA synchronous=OFF")

        def work(resources):
            trial = study.ask().trial_id
            for resource in resources:
                study.tell(trial, resource, 0.1 * resource)
            return trial

        with ThreadPoolExecutor(4) as pool:
            trials = list(pool.map(work, [range(1, 41)] * 4))
        live = {i: t.curve for i, t in study.trials.items()}
        study.close()
        assert sorted(trials) == [0, 1, 2, 3] and all(len(curve) == 40 for curve in live.values())
        assert {i: t.curve for i, t in load_study(tmp_path, read_only=True).trials.items()} == live

    @settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @pytest.mark.parametrize("algorithm", ["random", "asha", "pasha", "bohb", "sync_hyperband", "dehb"])
    @given(moves=st.lists(st.tuples(st.sampled_from("aatttttcfr"), st.integers(0, 9), st.floats(0, 1)), max_size=40))
    def test_a_study_opened_again_is_the_same_study(self, algorithm, moves, tmp_path_factory):
        folder = tmp_path_factory.mktemp("study")
        space = {"x": uniform(0.0, 1.0), "lr": loguniform(1e-4, 1e-1), "act": choice(["relu", "gelu", "tanh"])}
        options = {"metric": "m", "algorithm": algorithm, "max_t": 4, "reduction_factor": 2, "random_seed": 1}
        durable = Study.create(space, path=folder, **options)
        for kind, pick, value in moves:
            live = sorted(durable._state.live)
            if kind == "a":
                durable.ask()
            elif kind == "r":
                durable.close()
                durable = load_study(folder)
            elif live:
                trial = live[pick % len(live)]
                if kind == "t":
                    durable.tell(trial, durable.trials[trial].resource + 1, value, metrics={"v": value}, cost=value)
                else:
                    durable.complete(trial) if kind == "c" else durable.fail(trial, f"error {pick}")
        before = {i: repr(t) for i, t in durable.trials.items() if i not in durable._state.live}
        best, observations = durable.best(), list(durable._state.data.observations())
        durable.close()
        again = load_study(folder)
        assert {i: repr(t) for i, t in again.trials.items() if i in before} == before
        assert again.best() == best and list(again._state.data.observations()) == observations
        again.close()


class TestConfirmation:
    """Trial 1 has the luckiest value, trial 2 is the best one."""

    VALUES = ((0.5, 0.6), (0.1, 0.5), (0.2, 0.3))
    """Of trials 0, 1 and 2: in the search, and when they are trained again."""

    def value(self, study):
        def of(trial_id, resource):
            trial = study.trials[trial_id]
            return self.VALUES[trial_id if trial.confirms is None else trial.confirms][trial.confirms is not None]

        return of

    def test_the_recommendation_is_their_mean(self):
        space = {"x": uniform(0.0, 1.0), "seed": 10}
        study = create(space=space, algorithm="random", max_t=3, n_trials=7, confirm={"top": 2, "seeds": 2})
        jobs = train(study, self.value(study))
        assert [job.replicate for job in jobs] == [0, 0, 0, 1, 1, 2, 2]
        assert [job.config["seed"] for job in jobs] == [10, 10, 10, 11, 11, 12, 12]
        assert [study.trials[job.trial_id].confirms for job in jobs] == [None] * 3 + [1, 2, 1, 2]
        found = study.recommend()
        assert (found.trial_id, found.mean, found.std, found.confirmations) == (2, pytest.approx(0.3), 0.0, 2)
        assert study.best().at_any_resource.trial_id == 1

    @pytest.mark.parametrize("told", range(28))
    def test_killed_at_any_time_it_ends_as_if_it_had_not_been(self, tmp_path, told):
        options = {"algorithm": "random", "max_t": 3, "n_trials": 7, "confirm": {"top": 2, "seeds": 2}}
        study = create(path=tmp_path, **options)
        for _ in range(told):  # an ask and three reports a trial
            live = sorted(study._state.live)
            if not live:
                study.ask()
            else:
                study.tell(live[0], study.trials[live[0]].resource + 1, self.value(study)(live[0], 1))
        study.close()  # as a killed process leaves it: every call is on disk
        study = create(path=tmp_path, **options)
        train(study, self.value(study))
        confirmed = [t.confirms for t in study.trials.values()]
        assert confirmed == [None] * 3 + [1, 2, 1, 2]
        assert study.recommend().trial_id == 2 and study.recommend().confirmations == 2
        study.close()

    def test_with_a_model_that_has_seen_none_of_it(self):
        study = create(
            algorithm="default", max_t=9, n_trials=14, confirm={"top": 2, "seeds": 2}, searcher={"num_init_random": 3}
        )
        train(study, lambda i, r: abs(study.trials[i].config["x"] - 0.3) + 1 / r)
        assert [t.origin for t in study.trials.values()].count("confirm") == 4
        assert len(study._state.view().configs) == 10
        assert study.recommend().confirmations == 2


def test_a_space_may_be_handed_in_as_it_is():
    space = SearchSpace(SPACE)
    assert Study.create(space, metric="m", algorithm="random").space is space


def test_what_was_held_back_for_new_configurations_goes_on_when_there_are_none():
    """Six configurations: a loop that asks until there is nothing to do trains whoever rank lets go on."""
    space = {"a": choice([1, 2, 3]), "b": choice([0.1, 0.2])}
    options = {"algorithm": "asha", "type": "promotion", "max_t": 3, "delayed_promotion": True}
    study = Study.create(space, metric="loss", points_to_evaluate=[], **options)
    trained: dict[int, int] = {}
    while (job := study.ask()) is not None:
        verdict = "continue"
        while verdict == "continue":
            trained[job.trial_id] = epoch = trained.get(job.trial_id, 0) + 1
            # better and better, so that each is the best when it comes
            verdict = str(study.tell(job.trial_id, epoch, 1.0 - 0.1 * job.trial_id))
    # One of three and one of the next three while there were new ones; in the end whoever is among the best two of six.
    assert sorted(trial for trial, epochs in trained.items() if epochs == 3) == [2, 4, 5]


def test_a_study_whose_folder_was_deleted_takes_no_reports(tmp_path):
    study = Study.create({"x": uniform(0, 1)}, metric="m", algorithm="asha", max_t=9, path=tmp_path / "study")
    job = study.ask()
    assert job is not None
    shutil.rmtree(tmp_path / "study")
    with pytest.raises(StudyNotFound):
        study.tell(job.trial_id, 1, 0.5)
    with pytest.raises(StudyNotFound):  # the report is still not written
        study.close()
    study.close()


def test_a_study_whose_folder_was_deleted_is_closed_like_any_other_if_nothing_is_left_to_be_written(tmp_path):
    study = Study.create({"x": uniform(0, 1)}, metric="m", algorithm="asha", max_t=9, path=tmp_path / "study")
    study.ask()
    shutil.rmtree(tmp_path / "study")
    study.close()
