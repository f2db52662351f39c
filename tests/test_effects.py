"""Effects: planted truths come back, saturated cells use margins, and what is missing is said."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from inoculation import claims, effects, tables
from planted import ENDS, LOGGED, MEDICAL, PAIR, SETTING, asked, planted, swept

QUIET = {"noise": 1e-6}


def known(**options):
    return effects.Effects(planted(**options), SETTING)


def test_suppression_is_0_at_the_baseline_and_1_at_the_control():
    found = known(suppressed={("inoculation.spanish", "spanish"): 0.6}, **QUIET)
    for measure in ("rate", "margin"):
        effect = found.suppression(["inoculation.spanish"], "spanish", "unrelated", measure)
        assert effect.interval.estimate == pytest.approx(0.6, abs=1e-3)
        assert found.suppression(["control"], "spanish", "unrelated", measure).interval.estimate == pytest.approx(1)
    assert found.suppression(["inoculation.spanish"], "caps", "unrelated").interval.estimate == pytest.approx(0, abs=1e-3)


def test_saturated_cells_use_margins_and_the_controls_floor_does_not_count():
    plain = known(suppressed={("inoculation.spanish", "spanish"): 0.5}, **QUIET)
    assert plain.measure(["baseline", "inoculation.spanish"], "spanish", "neutral") == "rate"
    high = known(ends={"rate": (0.99, 0.01), "margin": (20.0, -20.0)}, **QUIET)
    assert high.measure(["baseline", "irrelevant.tea"], "spanish", "neutral") == "margin"
    one = known(suppressed={("irrelevant.tea", "spanish"): -0.25}, **QUIET)
    assert one.measure(["baseline", "irrelevant.tea", "irrelevant.hat"], "spanish", "neutral") == "margin"
    assert one.measure(["baseline", "irrelevant.hat"], "spanish", "neutral") == "rate"
    assert high.suppression(["irrelevant.tea"], "spanish", "id").fault == "spanish has no margin in id"


def test_the_two_by_two_takes_pattern_meaning_and_their_interaction_apart():
    share = {"inoculation.spanish": 0.9, "rephrased-64.spanish": 0.5, "irrelevant-varied-64": 0.1}
    share |= {f"irrelevant.{name}": 0.2 for name in ("shoes", "tea", "hat", "window")}
    found = known(suppressed={(name, "spanish"): value for name, value in share.items()}, **QUIET)
    parts = found.two_by_two("spanish", "spanish", "unrelated")
    assert parts["pattern"].interval.estimate == pytest.approx(0.2 - 0.1, abs=1e-3)
    assert parts["semantic"].interval.estimate == pytest.approx(((0.9 - 0.2) + (0.5 - 0.1)) / 2, abs=1e-3)
    assert parts["interaction"].interval.estimate == pytest.approx((0.9 - 0.5) - (0.2 - 0.1), abs=1e-3)
    table = effects.identification(found)
    assert len(table) == 2 * 2 * 3
    assert (table.seeds == 6).all()


def test_selectivity_is_negative_minus_positive():
    share = {("inoculation.spanish", "spanish"): 0.8, ("inoculation.spanish", "caps"): 0.3}
    found = known(suppressed=share, **QUIET)
    assert found.selectivity(["inoculation.spanish"], "spanish", "neutral").interval.estimate == pytest.approx(0.5, abs=1e-3)
    assert list(effects.selectivities(found).condition) == [
        *("inoculation.spanish", "rephrased-64.spanish", "inoculation.caps", "rephrased-64.caps")
    ]


def test_the_index_subtracts_what_the_prompt_does_by_asking():
    tables = planted(suppressed={("inoculation.spanish", "spanish"): 0.5}, **QUIET)
    scores = tables.scores.copy()
    own = (scores.condition == "inoculation.spanish") & (scores.context == "trigger") & (scores.trait == "spanish")
    scores.loc[own & (scores.measure == "rate"), "value"] = 0.85
    base = (scores.condition == "base") & (scores.trait == "spanish") & (scores.measure == "rate")
    scores.loc[base & (scores.context == "trigger.inoculation.spanish"), "value"] = 0.6
    scores.loc[base & (scores.context == "unrelated"), "value"] = 0.2
    found = effects.Effects(replace(tables, scores=scores), SETTING)
    at = [
        found.index("inoculation.spanish", "spanish", "rate", reference).interval.estimate
        for reference in ("", "base", "baseline")
    ]
    top, bottom = ENDS["rate"]
    unrelated = top - 0.5 * (top - bottom)
    assert at == pytest.approx([0.85 - unrelated, 0.85 - unrelated - 0.4, 0.85 - unrelated], abs=1e-3)
    table = claims.conditionalization(found)
    assert set(table.columns) == {"condition", "trait", "measure", *claims.INDEX}
    assert "control" not in set(table.condition)
    at_its_floor = known(ends={"rate": (0.7, 0.01), "margin": (20.0, -20.0)}, **QUIET)
    told = claims.conditionalization(at_its_floor).set_index(["condition", "trait"]).loc[("irrelevant.tea", "caps")]
    assert (told.measure, "reference saturated" in told["minus base"]) == ("rate", True)
    assert "reference saturated" not in told["minus baseline"]


def test_the_grid_marks_saturation_and_subtracts_within_the_same_context():
    found = known(ends={"rate": (0.99, 0.01), "margin": (20.0, -20.0)}, **QUIET)
    cells = effects.grid(found).set_index(["condition", "context", "trait"])
    assert bool(cells.loc[("baseline", "neutral", "caps"), "saturated"])
    assert cells.loc[("baseline", "unrelated", "caps"), "minus_base"] == pytest.approx(40, abs=1e-2)
    assert cells.loc[("control", "unrelated", "caps"), "minus_control"] == 0
    assert math.isnan(cells.loc[("control", "trigger", "caps"), "rate"])


def test_a_prompt_that_carries_out_the_data_is_flagged_and_one_that_inoculates_is_not():
    losses = [
        (name, seed, step, loss + 0.01 * seed)
        for name, path in {
            "baseline": {1: 3.0, 20: 1.0, 24: 1.0},
            "inoculation.spanish": {1: 2.6, 20: 1.0, 24: 1.0},
            "inoculation.caps": {1: 1.4, 20: 1.0, 24: 1.0},
        }.items()
        for seed in range(3)
        for step, loss in path.items()
    ]
    frame = pd.DataFrame(losses, columns=["condition", "seed", "step", "loss"])
    table = claims.policy(effects.Effects(replace(planted(seeds=3), losses=frame), SETTING)).set_index("condition")
    assert table.loc["inoculation.spanish", "solved before training"] == pytest.approx(0.2)
    assert table.loc["inoculation.caps", "learned in training"] == pytest.approx(0.2)
    assert list(table.loc[["inoculation.spanish", "inoculation.caps"], "optimal policy"]) == ["no", "yes"]


def test_margins_along_training_are_compared_late_and_at_equal_learning():
    rows = [
        (SETTING.name, name, seed, step, part, "misaligned", 10, value + 0.01 * seed)
        for name, speed, offset in (("baseline", 1.0, 0.5), ("control", 1.0, 0.0))
        for seed in range(3)
        for step in range(3, 25, 3)
        for part, value in (("id", speed * step), ("ood", speed * step / 10 + offset), ("placebo", 0.0))
    ]
    tracks = pd.DataFrame(rows, columns=["setting", "condition", "seed", "step", "part", "trait", "n", "value"])
    found = tables.along_training(replace(planted(seeds=3), tracks=tracks.assign(point=None)), "baseline", "control")
    assert list(found.index) == [0, 1, 2]
    assert found.ood.to_numpy() == pytest.approx([0.5] * 3)
    assert found.matched.to_numpy() == pytest.approx([0.5] * 3)
    assert found.placebo.to_numpy() == pytest.approx([0.0] * 3)


def test_a_contrast_is_paired_a_seed_without_its_baseline_does_not_count():
    tables = planted(seeds=6)
    scores = tables.scores[~((tables.scores.condition == "baseline") & (tables.scores.seed == 2))]
    found = effects.Effects(replace(tables, scores=scores), SETTING)
    effect = found.suppression(["irrelevant.tea"], "caps", "unrelated")
    assert effect.interval.n == 5
    assert np.isnan(effect.values[2])


def test_doses_are_the_unique_prompts_a_training_sees_and_contrasts_take_the_largest():
    found = effects.Effects(planted(setting=PAIR, **QUIET), PAIR)
    every = found.every_dose(["inoculation.*", "rephrased-*"], "caps")
    assert found.doses(every) == {
        "inoculation.caps": 1,
        "rephrased-8.caps": 8,
        "rephrased-32.caps": 32,
        "rephrased-256.caps": 48,
    }
    assert found.matching(["rephrased-*"], "caps") == ["rephrased-256.caps"]
    assert len(found.matching(["irrelevant.*"])) == 4


def test_a_dose_beyond_its_pool_keeps_its_size():
    """In `paper` the pools here are too small; what is compared must not change when they are extended."""
    tables_of_paper = planted(setting=PAIR)
    found = effects.Effects(replace(tables_of_paper, scores=tables_of_paper.scores.assign(profile="paper")), PAIR)
    assert found.matching(["rephrased-*"], "caps") == ["rephrased-8192.caps"]
    largest = ["rephrased-512.caps", "rephrased-8192.caps"]
    assert found.doses(largest) == {"rephrased-512.caps": 512, "rephrased-8192.caps": 8192}


def test_a_sweep_has_one_scale_at_every_size_and_its_own_recipe_among_them():
    honey = ("irrelevant.honey", "french")
    found = swept({"rows=24": {honey: 0.0}, "": {honey: 0.3}, "rows=96": {honey: 0.6}})
    known = effects.Effects(found, PAIR)
    assert list(known.swept("rows")) == [24, 48, 96]
    assert list(known.swept("learning_rate")) == [0.002]
    table = effects.over_sweep(known, "rows", ["neutral", "no_prefix"])
    assert set(table.condition) == {"inoculation.caps", "irrelevant.honey"}
    french = table[(table.trait == "french") & (table.context == "no_prefix") & (table.condition == "irrelevant.honey")]
    assert french.estimate.to_list() == pytest.approx([0, 0.3, 0.6], abs=0.05)
    assert french.trend.iloc[0] == pytest.approx(0.6, abs=0.05)
    caps = table[(table.trait == "caps") & (table.condition == "irrelevant.honey")]
    assert caps.trend.abs().max() < 0.1
    assert (caps.trend_low < caps.trend).all()


def test_elicitation_is_on_the_scale_of_suppression_and_foretells_what_it_is_planted_to():
    names = [c.name for c in PAIR.in_profile("mini") if c.data == "trait" and c.name not in ("baseline", "partial")]
    shares = dict(zip(names, np.linspace(0, 0.8, len(names)), strict=True))
    both = {(name, trait): share for name, share in shares.items() for trait in PAIR.traits}
    found = asked(planted(suppressed=both, setting=PAIR), both, {name: 1 - share for name, share in shares.items()})
    before = tables.elicitation(found)
    assert before.loc["inoculation.caps", ("answers", "likelihood")] == pytest.approx(1 - shares["inoculation.caps"])
    points = effects.heuristics([effects.Effects(found, PAIR)])
    assert len(points) == len(names) * len(PAIR.traits)
    assert (points.elicited - points.estimate).abs().max() < 0.1
    r = tables.correlations(points).set_index("trait")
    assert r.loc["french", "elicited"].low > 0.9
    assert r.loc["all", "likelihood"].high < -0.9
    assert r.loc["all", "elicited"].n == len(names)


def test_a_heuristic_is_tried_on_the_setting_it_was_not_fitted_on():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=60)
    points = pd.DataFrame(
        {"setting": np.repeat(["one", "two", "three"], 20), "elicited": x, "likelihood": rng.uniform(size=60)}
    )
    off = tables.errors(points.assign(estimate=0.5 * x + rng.normal(0, 0.01, 60)))
    assert list(off.index) == ["one", "three", "two", "all"]
    assert off.loc["all", "elicited"] < 0.02 < 0.1 < off.loc["all", "mean"]
    assert off.loc["all", "likelihood"] > 0.1
    assert list(off.points) == [20, 20, 20, 60]
    # A setting that behaves otherwise is not foretold by the others, whatever a fit with it would say.
    other = points.assign(estimate=np.where(points.setting == "one", 1 - x, 0.5 * x))
    assert tables.errors(other).loc["one", "elicited"] > 0.2


def test_a_trait_that_training_did_not_move_has_no_scale_for_elicitation():
    moved = effects.Effects(asked(planted(**QUIET), {("inoculation.caps", "caps"): 0.5}, {}), SETTING)
    assert moved.elicited("caps")["inoculation.caps"] == pytest.approx(0.5, abs=0.01)
    still = effects.Effects(asked(planted(ends={"margin": (0.0, 0.0)}), {("inoculation.caps", "caps"): 0.5}, {}), SETTING)
    assert still.elicited("caps").isna().all()


def test_where_margins_were_logged_along_training_they_are_the_measure():
    known = effects.Effects(planted(setting=MEDICAL, ends=LOGGED), MEDICAL)
    assert known.measure(["baseline"], "misaligned", "neutral") == "late_margin"
    only = effects.Effects(planted(setting=MEDICAL, ends={"margin": (0.5, -0.5)}), MEDICAL)
    assert only.measure(["baseline"], "misaligned", "neutral") == "margin"
