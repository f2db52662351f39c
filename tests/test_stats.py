"""Statistics: known answers, no interval where none is known, and a coverage that the committed table proves."""

import importlib.util
import math

import numpy as np
import pandas as pd
import pytest
from inoculation import stats, store


def close(interval, estimate, low, high):
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((estimate, low, high), abs=2e-4)


def test_student_prediction_and_p_are_the_textbooks():
    values = [1, 2, 3, 4, 5]
    close(stats.student(values), 3, 1.0368, 4.9632)
    close(stats.prediction(values), 3, -1.8088, 7.8088)
    close(stats.prediction(values, new=5), 3, 0.2237, 5.7763)
    assert stats.p_value(values) == pytest.approx(0.01324, abs=1e-5)
    close(stats.student([*values, math.nan]), 3, 1.0368, 4.9632)


@pytest.mark.parametrize(
    ("values", "estimate", "says"),
    [([], math.nan, "0 seeds"), ([0.4], 0.4, "1 seed, and two"), ([0.5, 0.5, 0.5], 0.5, "all 3 seeds are equal")],
)
def test_there_is_no_interval_without_a_spread_and_it_says_why(values, estimate, says):
    for found in (stats.student(values), stats.prediction(values)):
        assert found.estimate == pytest.approx(estimate, nan_ok=True)
        assert not found.known
        assert says in found.rule
    assert math.isnan(stats.p_value(values))


def test_a_trend_is_the_rise_over_the_whole_range_of_log_doses():
    doses = [1, 8, 32, 96]
    rise = np.log(doses) / np.log(96)
    values = np.array([0.2 + 0.6 * rise, 0.5 - 0.1 * rise, np.where(rise == rise[1], np.nan, rise)]).T
    assert stats.trend(doses, values) == pytest.approx([0.6, -0.1, math.nan], nan_ok=True)


def test_wilson_is_wilsons():
    close(stats.wilson(8, 10), 0.8, 0.4902, 0.9433)
    close(stats.wilson(0, 10), 0.0, 0.0, 0.2775)
    assert not stats.wilson(0, 0).known


def test_holm_is_holms_and_leaves_missing_tests_out():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.02, math.nan]) == pytest.approx([0.02, math.nan], nan_ok=True)
    assert stats.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_a_share_is_the_ratio_of_means_one_value_per_seed():
    values, fault = stats.share([0.4, 0.5, 0.6], [0.8, 1.0, 1.2])
    assert values == pytest.approx([0.5, 0.5, 0.5])
    assert fault == ""
    values, _ = stats.share([0.2, 0.4, math.nan], [1.0, 1.0, 1.0])
    assert np.nanmean(values) == pytest.approx(0.3)
    assert math.isnan(values[2])


def test_a_share_is_not_computed_over_a_denominator_that_may_be_zero():
    values, fault = stats.share([0.4, 0.5, 0.6], [-1.0, 0.5, 1.0])
    assert np.isnan(values).all()
    assert "is not distinguishable from 0 with 3 seeds" in fault
    assert "no seed has all" in stats.share([math.nan, 1], [1, math.nan])[1]


def test_the_max_test_pays_for_every_look():
    strong = np.array([[0.5, 0.0], [0.6, 0.1], [0.4, -0.1], [0.5, 0.0], [0.6, 0.1]])
    assert stats.max_test(strong) == (0, 1 / 32)
    noise = np.random.default_rng(0).normal(size=(5, 40))
    largest = noise.mean(axis=0).argmax()
    alone = stats.max_test(noise[:, [largest]])[1]
    assert stats.max_test(noise)[1] > 2 * alone
    assert math.isnan(stats.max_test(strong[:1])[1])


def test_bootstraps_name_what_they_are_for(proof):
    values = np.random.default_rng(0).normal(1, 1, (8, 24))
    both, questions = proof.hierarchical(values), stats.question_bootstrap(values)
    assert both.low < values.mean() < both.high
    assert both.high - both.low > questions.high - questions.low
    assert "measurement error" in questions.rule
    assert not proof.hierarchical(values[:5]).known
    assert "needs 8" in proof.hierarchical(values[:5]).rule
    assert not stats.question_bootstrap(values[:, :1]).known


@pytest.mark.filterwarnings("error")
def test_a_question_without_a_value_does_not_count():
    values = np.random.default_rng(0).normal(1, 1, (5, 9))
    assert stats.question_bootstrap(np.hstack([values, np.full((5, 2), np.nan)])) == stats.question_bootstrap(values)


def test_paths_are_compared_at_equal_in_distribution_margin():
    slow, fast = np.array([[0, 0], [1, 1], [2, 2.0]]), np.array([[0, 0], [2, 2], [4, 4.0]])
    assert stats.matched(fast, slow) == pytest.approx(0)
    assert stats.matched(fast + [0, 0.5], slow) == pytest.approx(0.5)
    assert math.isnan(stats.matched(fast + [10, 0], slow))


def test_a_misalignment_effect_must_leave_zero_and_the_placebo_behind():
    def interval(low, high):
        return stats.Interval((low + high) / 2, low, high, 5, "")

    alike = interval(0.1, 0.3)
    assert stats.beyond_placebo(interval(0.4, 0.6), interval(-0.1, 0.1), alike)[0]
    assert "register" in stats.beyond_placebo(interval(0.4, 0.6), interval(0.3, 0.5), alike)[1]
    assert "register" in stats.beyond_placebo(interval(0.4, 0.6), interval(0.7, 0.9), alike)[1]
    assert stats.beyond_placebo(interval(0.4, 0.6), interval(-0.9, -0.7), alike)[0]
    assert "includes 0" in stats.beyond_placebo(interval(-0.1, 0.6), interval(-0.1, 0.1), alike)[1]
    assert "matched" in stats.beyond_placebo(interval(0.4, 0.6), interval(-0.1, 0.1), interval(-0.3, -0.1))[1]
    assert "1 seed" in stats.beyond_placebo(stats.student([1.0]), interval(0, 1), alike)[1]


def test_a_correlation_resamples_prompts_and_not_points():
    rng = np.random.default_rng(0)
    prompts = np.repeat([f"p{i}" for i in range(12)], 8)
    x, y = np.repeat(rng.normal(size=12), 8), np.repeat(rng.normal(size=12), 8)
    alone, together = stats.correlation(x, y, np.arange(96)), stats.correlation(x, y, prompts)
    assert alone.estimate == pytest.approx(together.estimate)
    assert (alone.n, together.n) == (96, 12)
    # Eight copies of a prompt are no eight prompts: the interval must not shrink.
    assert together.high - together.low > 2 * (alone.high - alone.low)
    few = stats.correlation(x[:32], y[:32], prompts[:32])
    assert (few.known, few.n) == (False, 4)
    assert not stats.correlation(x, np.zeros(96), prompts).known


def test_what_others_foretell_never_sees_the_group_itself():
    x, groups = np.arange(9.0)[:, None], list("aaabbbccc")
    assert stats.foretold(x, 2 * x[:, 0] + 1, groups) == pytest.approx(2 * x[:, 0] + 1)
    y = np.array([0, 0, 0, 1, 1, 1, 5, 5, 5.0])
    assert stats.foretold(np.empty((9, 0)), y, groups) == pytest.approx([3] * 3 + [2.5] * 3 + [0.5] * 3)


@pytest.fixture(scope="module")
def proof():
    spec = importlib.util.spec_from_file_location("coverage_proof", store.ROOT / "proofs" / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_coverage_table_is_whole_and_its_figure_intervals_cover(proof):
    table = pd.read_csv(proof.TABLE)
    used = table[table["in figures"]]
    assert set(used.seeds) >= {3, 5, 8}
    assert set(used.design) >= set(proof.DESIGNS)
    assert used.coverage.between(0.93, 0.97).all()


def test_coverage_holds_on_a_small_seeded_slice(proof):
    table = proof.coverage(repeats=400, seed=1)
    used = table[table["in figures"]]
    # Four standard errors of a coverage of 0.95 from 400 repeats.
    assert (used.coverage - 0.95).abs().max() < 4 * math.sqrt(0.95 * 0.05 / 400)
    apart = table[table.interval.str.startswith("bootstrap over questions") & (table.design == "seed-dominated")]
    assert (apart.coverage < 0.8).all()


def test_the_smallest_effect_that_seeds_could_have_shown_is_shown_in_four_of_five_repetitions():
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 1, (4000, 5))
    # For each repetition its own sd: the power at a true mean of the typical detectable effect.
    typical = np.median([stats.detectable(values) for values in spread])
    shown = [stats.p_value(values + typical) < 0.05 for values in spread]
    assert 0.7 < np.mean(shown) < 0.9
    assert math.isnan(stats.detectable([1.0]))
