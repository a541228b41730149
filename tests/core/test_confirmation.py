from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.core.confirmation import (
    Confirmation,
    ConfirmOptions,
    Cost,
    furthest,
    leading,
    moving_average,
    window,
    with_seed,
)
from lightning_hpo.core.events import (
    Finish,
    Idle,
    Outcome,
    PauseRequested,
    Resume,
    Start,
    StudyContinued,
    Verdict,
    WorkerReady,
)
from lightning_hpo.core.options import StudyOptions
from lightning_hpo.core.space import SearchSpace, randint, uniform
from lightning_hpo.core.stopping import Progress
from lightning_hpo.core.study import StudyState
from lightning_hpo.core.trial import TrialStatus
from lightning_hpo.errors import OptionError
from lightning_hpo.integrations.tuner import Tuner
from lightning_hpo.study import Study
from tests.core.driving import SETTINGS, Driven, play, snapshot, stories


def confirming(top=2, seeds=2, **options):
    return Driven(**{"algorithm": "random", "max_t": 3, "confirm": {"top": top, "seeds": seeds}, **options})


def by_number(trial_id, resource):
    """Later trials are better."""
    return 1.0 - 0.1 * trial_id


class TestParts:
    def test_averages_have_full_windows(self):
        assert moving_average({1: 1.0, 2: 2.0, 3: 6.0}, 2) == [1.5, 4.0]
        assert moving_average({3: 1.0, 4: 3.0}, 5) == [2.0], "it has not come to a full window yet"
        assert moving_average({5: 1.0, 10: 3.0}, 5) == [1.0, 3.0], "it reports every five units"
        assert moving_average({2: 1.0, 4: 3.0, 6: 4.0}, 5) == [8 / 3], "from 2 to 6"

    def test_windows_are_a_third_of_a_training_and_at_most_five(self):
        assert [window(max_t) for max_t in (1, 5, 9, 14, 15, 300)] == [1, 1, 3, 4, 5, 5]

    def test_the_furthest_are_at_the_two_highest_levels_reached(self):
        curves = {0: {1: 0.5}, 1: {3: 0.5}, 2: {3: 0.1, 9: 0.5}, 3: {9: 0.4}, 4: {}}
        assert furthest(curves, (1, 3, 9), 27) == [1, 2, 3]
        assert furthest({0: {1: 0.5, 9: 0.5}, 1: {8: 0.5}}, (), 9) == [0]
        assert furthest({}, (1, 3), 9) == []

    def test_the_leading_have_the_lowest_averages(self):
        curves = {0: {1: 0.5, 2: 0.5, 3: 0.5}, 1: {1: 0.9, 2: 0.0, 3: 0.9}, 2: {1: 0.4, 2: 0.4, 3: 0.4}}
        assert leading(curves, (), 3, 2) == (1, 2)  # a window of one
        wide = {i: dict.fromkeys(range(1, 10), value) for i, value in enumerate((0.5, 0.4, 0.3))}
        wide[0][5] = 0.0  # its average over three is 1/3
        assert leading(wide, (), 9, 5) == (2, 0, 1)

    def test_another_seed_for_every_replicate(self):
        assert with_seed({"x": 1.0, "seed": 7}, None, 0) == {"x": 1.0, "seed": 7}
        assert with_seed({"x": 1.0, "seed": 7}, None, 2) == {"x": 1.0, "seed": 9}
        assert with_seed({"x": 1.0, "random_seed": 7, "seed": "auto"}, None, 2)["random_seed"] == 9
        assert with_seed({"x": 1.0}, None, 2) == {"x": 1.0}
        assert with_seed({"x": 1.0, "seed": 7, "noise": 3}, "noise", 2) == {"x": 1.0, "seed": 7, "noise": 5}

    def test_a_seed_that_is_not_in_the_space_is_not_made_up(self):
        """It is in the configuration of the jobs, which nobody but their maker knows."""
        assert with_seed({"x": 1.0, "seed": 7}, "noise", 2) == {"x": 1.0, "seed": 7}

    def test_what_is_cut_short_is_balanced(self):
        confirmation = Confirmation(ConfirmOptions(top=2, seeds=2))
        confirmation.chosen = (7, 3)
        order = []
        for trial_id in range(10, 14):
            following = confirmation.next()
            assert following is not None
            order.append(following)
            confirmation.start(following[0], trial_id)
        assert order == [(7, 1), (3, 1), (7, 2), (3, 2)]
        assert confirmation.next() is None
        assert confirmation.of == {7: [10, 12], 3: [11, 13]}

    def test_rounds_of_trainings(self):
        after = Cost(27, 54.0, 2.7).times(9, 4, Progress(time=100.0, evaluations=10, started=5, cost=1.0))
        # 9 trainings by 4 workers: three rounds, and a unit of 2 s, 0.1 of cost, until the workers are free.
        assert after.time == 100 + 3 * 54 + 2
        assert (after.evaluations, after.started, after.finished) == (10 + 9 * 27 + 4, 5 + 9 + 1, 9 + 4)
        assert after.cost == pytest.approx(1 + 9 * 2.7 + 4 * 0.1)


class TestOptions:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"top": -1}, {"top": 1.5}, {"top": True}, {"top": 1, "seeds": 0}, {"seed_attr": ""}, {"seed_attr": 3},
            {"tops": 3}, 3,
        ],
    )  # fmt: skip
    def test_wrong_values(self, wrong):
        with pytest.raises(OptionError, match="confirm"):
            StudyOptions.from_mapping({"metric": "loss", "n_trials": 20, "confirm": wrong})

    def test_a_study_without_end_confirms_nothing(self):
        with pytest.raises(OptionError, match="Set n_trials, or a limit of stop"):
            confirming()

    def test_something_must_be_left_to_the_search(self):
        with pytest.raises(OptionError, match="Raise n_trials"):
            confirming(n_trials=4)
        assert confirming(n_trials=5).options.confirm.trainings == 4

    @pytest.mark.parametrize(
        ("seed_attr", "says"), [("x", "is searched"), ("a", "is None"), ("b", "is 'abc'"), ("c", "True")]
    )
    def test_what_is_no_seed_is_refused_before_the_study_begins(self, seed_attr, says):
        options = {"metric": "loss", "algorithm": "random", "n_trials": 9}
        confirm = {"top": 1, "seed_attr": seed_attr}
        space = SearchSpace({"x": uniform(0, 1), "a": None, "b": "abc", "c": True})
        with pytest.raises(OptionError, match=says):
            StudyState(space, StudyOptions.from_mapping({**options, "confirm": confirm}))

    def test_a_seed_that_is_searched_needs_another_for_the_confirmations(self):
        """It would be recorded with one seed and trained with another."""
        space, options = {"x": uniform(0, 1), "seed": randint(1, 3)}, {"metric": "loss", "algorithm": "random"}
        with pytest.raises(OptionError, match="seed is searched"):
            Study.create(space, n_trials=9, confirm={"top": 1}, **options)
        Study.create(space, n_trials=9, **options)
        Study.create({**space, "torch_seed": 3}, n_trials=9, confirm={"top": 1, "seed_attr": "torch_seed"}, **options)

    def test_a_misspelt_seed_is_refused_where_the_space_holds_all_that_a_trial_is_given(self):
        options = {"metric": "loss", "algorithm": "random", "n_trials": 9, "confirm": {"top": 1, "seed_attr": "sead"}}
        space = {"x": uniform(0, 1), "seed": 3}
        with pytest.raises(OptionError, match="sead is not in the space"):
            Study.create(space, **options)
        with pytest.raises(OptionError, match="sead is not in the space"):
            Tuner(print, space, **options)


class TestTrials:
    def test_the_best_are_trained_again_when_the_others_are_done(self):
        study = confirming(n_trials=7)
        assert study.run(by_number) == "n0 n1 n2 n3 n4 n5 n6"
        confirmations = [study[i] for i in (3, 4, 5, 6)]
        assert [(t.origin, t.confirms, t.replicate) for t in confirmations] == [
            ("confirm", 2, 1), ("confirm", 1, 1), ("confirm", 2, 2), ("confirm", 1, 2),
        ]  # fmt: skip
        assert [t.config for t in confirmations] == [study[i].config for i in (2, 1, 2, 1)]
        assert all(t.status is TrialStatus.COMPLETED and t.resource == 3 for t in confirmations)
        assert study[3].reason == "trains the configuration of trial 2 again, 1 of 2"
        assert study.ready() == Finish("the best 2 configurations are confirmed")

    def test_n_trials_is_a_total_with_the_confirmations(self):
        study = confirming(top=3, seeds=3, n_trials=20)
        study.run(by_number)
        assert len(study.state.trials) == 20
        assert sum(t.confirms is not None for t in study.state.trials.values()) == 9

    def test_start_and_resume_tell_the_replicate_and_give_another_seed(self):
        options = {"metric": "loss", "algorithm": "random", "max_t": 1, "points_to_evaluate": [], "n_trials": 3}
        space = SearchSpace({"x": uniform(0, 1), "seed": 5})
        study = Driven(algorithm="random", max_t=1)
        study.options = StudyOptions.from_mapping({**options, "confirm": {"top": 1, "seeds": 2}})
        study.state = StudyState(space, study.options)
        first = study.ready()
        assert isinstance(first, Start) and (first.replicate, first.config["seed"]) == (0, 5)
        study.tell(0, 1, 0.5)
        again, other = study.ready(), study.ready()
        assert isinstance(again, Start) and isinstance(other, Start)
        assert [(d.replicate, d.config["seed"]) for d in (again, other)] == [(1, 6), (2, 7)]
        study.lose(1)
        resumed = study.ready()
        assert isinstance(resumed, Resume) and (resumed.replicate, resumed.config["seed"]) == (1, 6)

    def test_the_search_waits_for_its_running_trials_before_it_chooses(self):
        study = confirming(top=1, n_trials=4)
        study.ready(), study.ready()
        study.train(0, 0.5, 0.5, 0.5)
        assert study.ready() == Idle("waiting for running trials")
        study.train(1, 0.4, 0.4, 0.4)
        study.ready()
        assert study[2].confirms == 1

    def test_they_are_trained_to_the_end_whatever_they_report(self):
        study = confirming(algorithm="asha", max_t=9, top=2, seeds=3, n_trials=12)
        study.run(lambda i, r: 0.5 if study[i].confirms is None else 0.9)
        confirmations = [t for t in study.state.trials.values() if t.confirms is not None]
        assert len(confirmations) == 6 and all(t.resource == 9 for t in confirmations)

    def test_they_teach_neither_scheduler_nor_searcher(self):
        study = confirming(algorithm="asha", type="promotion", max_t=9, top=1, seeds=1, n_trials=5)
        study.run(by_number)
        (again,) = (t for t in study.state.trials.values() if t.confirms is not None)
        view = study.state.view()
        assert again.id == 4 and again.id not in view.configs
        assert again.id not in {o.trial_id for o in view.observations}
        assert view.confirmations == {again.confirms: [again.id]}

    def test_one_that_fails_taints_nothing(self):
        study = confirming(top=1, seeds=2, n_trials=4)
        study.ready(), study.ready()
        study.train(0, 0.5, 0.5, 0.5), study.train(1, 0.4, 0.4, 0.4)
        study.ready(), study.ready()
        study.fail(2)
        study.train(3, 0.6, 0.6, 0.6)
        assert study[2].status is TrialStatus.FAILED
        assert study.state.view().confirmations == {1: [3]}
        assert not study.state.view().taken_by_failed
        assert study.ready() == Finish("the best one is confirmed")

    def test_without_a_finite_report_there_is_nothing_to_confirm(self):
        study = confirming(n_trials=6)
        assert study.run(lambda i, r: math.nan) == "n0 n1"
        assert study.ready() == Finish("all 6 trials are done")

    def test_training_that_ends_by_itself(self):
        study = Driven(algorithm="random", n_trials=3, confirm={"top": 1, "seeds": 1})
        for trial_id in (0, 1):
            study.ready()
            study.train(trial_id, 0.5 - 0.1 * trial_id)
            study.end(trial_id, Outcome.COMPLETED)
        study.ready()
        study.train(2, 0.6)
        study.end(2, Outcome.COMPLETED)
        assert study.state.view().confirmations == {1: [2]}


class TestLimits:
    def test_the_search_ends_early_enough_to_confirm_within_the_time(self):
        study = confirming(top=2, seeds=2, n_workers=2, stop={"max_wallclock_time": 60.0})
        trained = []
        while not isinstance(job := study.ready(), Finish):
            assert isinstance(job, Start)
            for resource in (1, 2, 3):  # one after the other, two seconds a unit
                study.time += 2.0
                study.tell(job.trial_id, resource, by_number(job.trial_id, resource))
            trained.append(study[job.trial_id].confirms)
        # A training takes 6 s. Two rounds of them and 2 s are 14 s, so the search ends after more than 60 - 14 s.
        assert trained.count(None) == 8
        assert len(trained) == 8 + 3 and study.time == 66.0  # these workers take turns: no time for the fourth

    @pytest.mark.parametrize(
        ("stop", "searched"),
        [
            ({"max_num_trials_started": 10}, 6), ({"max_num_trials_completed": 10}, 6),
            ({"max_num_trials_finished": 10}, 6), ({"max_num_evaluations": 30}, 6), ({"max_cost": 30.0}, 6),
        ],
    )  # fmt: skip
    def test_counts_leave_room_for_all_confirmations(self, stop, searched):
        study = confirming(stop=stop)
        while not isinstance(job := study.ready(), Finish):
            for resource in (1, 2, 3):
                study.tell(job.trial_id, resource, 0.5, cost=float(resource))
        found = [t.confirms is None for t in study.state.trials.values()]
        assert (sum(found), len(found) - sum(found)) == (searched, 4)
        assert study.state.ended == "the best 2 configurations are confirmed"

    def test_a_value_that_was_to_be_reached_ends_the_search_and_is_confirmed(self):
        study = confirming(top=1, seeds=2, stop={"min_metric_value": 0.75})
        assert study.run(by_number) == "n0 n1 n2 n3 n4 n5"
        assert [t.confirms for t in study.state.trials.values()] == [None] * 4 + [3, 3]

    def test_running_trials_give_their_workers_to_the_confirmation(self):
        study = confirming(top=1, seeds=2, n_workers=2, stop={"max_num_evaluations": 12})
        study.ready(), study.ready()
        study.train(0, 0.5, 0.5, 0.5)
        study.ready()
        assert study.tell(1, 1, 0.4) is Verdict.CONTINUE
        # After 5 reports, with 2 * 3 of the confirmations and another one of each worker to come, the search is over.
        assert study.tell(2, 1, 0.4) is Verdict.PAUSE
        start = study.ready()
        assert isinstance(start, Start) and study[start.trial_id].confirms == 0
        assert study.tell(1, 2, 0.4) is Verdict.PAUSE
        again = study.ready()
        assert isinstance(again, Start) and study[again.trial_id].replicate == 2
        assert [study[i].status for i in (1, 2)] == [TrialStatus.WAITING] * 2
        study.train(3, 0.5, 0.5, 0.5), study.train(4, 0.5, 0.5, 0.5)
        assert study.ready() == Finish("the best one is confirmed")
        assert study.state.progress.evaluations == 12
        assert study.replayed().trials[1].status is TrialStatus.WAITING

    def test_with_other_limits_the_search_takes_its_trials_up_again(self):
        study = confirming(top=1, seeds=1, n_workers=2, stop={"max_num_evaluations": 8})
        study.ready(), study.ready()
        study.train(0, 0.5, 0.5, 0.5)
        assert study.tell(1, 1, 0.4) is Verdict.PAUSE
        study.ready()
        study.train(2, 0.5, 0.5, 0.5)
        more = {**study.options.limits(), "stop": {"max_num_evaluations": 20}}
        study.handle(StudyContinued(study.time, more))
        assert study.job() == "1->3"

    def test_a_suggestion_that_is_on_its_way_is_trained_first(self):
        study = confirming(top=1, seeds=1, stop={"max_num_evaluations": 6})
        study.ready()
        study.handle(WorkerReady(0.0))
        study.train(0, 0.5, 0.5, 0.5)
        assert study.ready() == Idle("waiting for the searcher")
        study.suggest(1)
        start = study.ready()
        assert isinstance(start, Start) and study[start.trial_id].confirms == 0


class TestContinuing:
    def test_a_crash_in_the_middle_changes_nothing(self):
        whole = confirming(n_trials=8)
        whole.run(by_number)
        for crash in range(len(whole.events) + 1):
            study = confirming(n_trials=8)
            study.events = whole.events[:crash]
            study.state = study.replayed()
            study.handle(StudyContinued(study.time))
            study.run(by_number)
            if study.state.wanted is None:
                assert len(study.state.trials) == 8, crash
                outcome = [(t.confirms, t.replicate, t.config, t.curve) for t in study.state.trials.values()]
                assert outcome == [(t.confirms, t.replicate, t.config, t.curve) for t in whole.state.trials.values()]
                assert study.state.view().confirmations == whole.state.view().confirmations

    def test_with_more_trials_the_search_goes_on_and_the_new_best_are_confirmed(self):
        study = confirming(top=1, seeds=2, n_trials=4)
        study.run(by_number)
        study.handle(StudyContinued(study.time, {**study.options.limits(), "n_trials": 9}))
        study.run(by_number)
        assert [t.confirms for t in study.state.trials.values()] == [None, None, 1, 1, None, None, None, 6, 6]

    def test_what_is_confirmed_already_is_not_trained_again(self):
        study = confirming(top=1, seeds=2, n_trials=4)
        study.run(by_number)
        study.handle(StudyContinued(study.time, {**study.options.limits(), "n_trials": 9}))
        study.run(lambda i, r: 2.0)
        assert [t.confirms for t in study.state.trials.values()] == [None, None, 1, 1, None, None, None]
        assert isinstance(study.ready(), Finish)

    def test_a_finished_study_can_be_confirmed_afterwards(self):
        study = Driven(algorithm="random", max_t=3, n_trials=3)
        study.run(by_number)
        more = {**study.options.limits(), "n_trials": 7, "confirm": {"top": 2, "seeds": 2, "seed_attr": None}}
        study.handle(StudyContinued(study.time, more))
        study.run(by_number)
        assert [t.confirms for t in study.state.trials.values()] == [None] * 3 + [2, 1, 2, 1]
        assert snapshot(study.replayed()) == snapshot(study.state)

    def test_a_pause_of_the_user_is_obeyed(self):
        study = confirming(top=1, seeds=1, n_trials=2)
        study.ready()
        study.train(0, 0.5, 0.5, 0.5)
        study.ready()
        study.handle(PauseRequested(0.0, 1, "Ctrl-C"))
        assert study.tell(1, 1, 0.5) is Verdict.PAUSE
        resumed = study.ready()
        assert isinstance(resumed, Resume) and (resumed.trial_id, resumed.from_resource, resumed.replicate) == (1, 1, 1)


LIMITED = {
    name: {**options, **({} if "n_trials" in options or "stop" in options else {"n_trials": 12})}
    for name, options in SETTINGS.items()
}


@pytest.mark.parametrize("name", LIMITED)
@given(story=stories(size=120), top=st.integers(1, 2), seeds=st.integers(1, 2))
@settings(max_examples=15)
def test_every_story_replays_to_the_same_study(name, story, top, seeds):
    study = Driven(**LIMITED[name], confirm={"top": top, "seeds": seeds})
    play(study, story)
    assert snapshot(study.replayed()) == snapshot(study.state)
    total = study.options.n_trials
    assert total is None or len(study.state.trials) <= total
    for confirmed, again in study.state.view().confirmations.items():
        assert study[confirmed].confirms is None and len(again) <= seeds
