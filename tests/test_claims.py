"""Claims: strictly read, decided by one rule, recovered where planted and refused where nothing is there."""

import gzip
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from inoculation import claims, settings, store
from inoculation import tables as tables_module
from inoculation.store import SettingError
from planted import LOGGED, MEDICAL, PAIR, planted, swept, tracked

SETTING = "spanish_vs_caps"
SAYS_SOMETHING = ("Strong", "Moderate", "Weak", "Opposite")


def verdicts(found):
    return {v.claim.name: v for v in claims.judge(found, SETTING)}


def test_the_file_holds_every_cell_of_ccs_table_and_nems_headlines():
    rule, known = claims.load()
    cells = [c for c in known.values() if c.section.startswith("summary table")]
    assert len(cells) == 36
    assert {c.section for c in cells if c.paper == "CC"} == {c.section for c in cells}
    assert sum(c.paper_class == "Inconclusive" for c in cells) == 5
    assert sum(c.paper == "NEM" for c in known.values()) >= 6
    assert len({c.setting for c in known.values()}) == 12
    assert (rule.none_within, rule.seeds) == (0.15, 5)
    for claim in known.values():
        assert claim.statement.endswith(".")
        assert claim.words
        assert str(claim.contrast)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "irrelevant_suppress: {suppress: [irrelevant.*]",
            "irrelevant_suppress: {suppress: [irelevant.*]",
            "unknown condition in contrast",
        ),
        (
            "contrast: irrelevant_raise",
            "contrast: irrelevant_rise",
            "unknown contrast 'irrelevant_rise'; nearest: irrelevant_raise",
        ),
        ('class: "Strong"', 'class: "Stong"', "unknown class 'Stong'; nearest: Strong"),
        ("setting: mbpp", "setting: mbp", "unknown setting 'mbp'; nearest: mbpp"),
        ("context: unrelated}", "context: unrelatd}", "unknown context 'unrelatd'; nearest: unrelated"),
        ("traits: [all]", "traits: [some]", "unknown traits 'some'"),
        ("seeds: 5}", "seeds: five}", "'seeds' must be int or float, not str"),
        ("statement: Irrelevant", "sttement: Irrelevant", "unknown key 'sttement'; nearest: statement"),
    ],
)
def test_a_wrong_claim_is_refused_with_file_and_line(tmp_path, old, new, says):
    text = (store.DATA / "claims.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "claims.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(SettingError, match=r"^claims\.yaml:\d+: ") as error:
        claims.load(path)
    assert says in str(error.value)


def test_the_line_of_a_missing_condition_is_the_claims_own(tmp_path):
    text = (store.DATA / "claims.yaml").read_text(encoding="utf-8").replace("minus: [rephrased-*]", "minus: [rephrase-*]")
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingError) as error:
        claims.load(path)
    line = int(str(error.value).split(":")[1])
    assert "contrast: rephrasing" in text.splitlines()[line - 1]
    assert "nearest: rephrased-" in str(error.value)


def test_a_planted_null_gives_no_effect_anywhere():
    """Conditions shuffled within each seed: whatever the values are, no label means anything."""
    effects = {("inoculation.spanish", "spanish"): 0.8, ("irrelevant.tea", "caps"): 0.6, ("rephrased-64.caps", "caps"): 0.4}
    found = verdicts(planted(seeds=6, suppressed=effects, shuffled=np.random.default_rng(3)))
    for name, verdict in found.items():
        # The shortfall from a corner that nobody reaches is no effect of a label.
        if not name.endswith("no_corner"):
            assert verdict.verdict in ("Inconclusive", "No", "not run"), (name, verdict.verdict, verdict.reason)


def test_shuffled_labels_rarely_give_a_verdict():
    effects = {("inoculation.spanish", "spanish"): 0.8, ("irrelevant.tea", "caps"): 0.6}
    wrong = 0
    for seed in range(30):
        found = verdicts(planted(seeds=5, suppressed=effects, shuffled=np.random.default_rng(seed)))
        wrong += any(v.verdict in SAYS_SOMETHING for name, v in found.items() if not name.endswith("no_corner"))
    assert wrong <= 5


def dose(suppressed, **options):
    found = claims.judge(planted(suppressed=suppressed, setting=PAIR, **options), PAIR.name)
    return next(verdict for verdict in found if verdict.claim.contrast.kind == "dose")


def size(shares):
    """CC's claim on the size of the data, where the irrelevant prompt suppresses so much of both traits at each point."""
    tables = swept({point: {("irrelevant.honey", trait): share for trait in PAIR.traits} for point, share in shares.items()})
    return next(v for v in claims.judge(tables, PAIR.name) if v.claim.name == "cc.trait_distillation.size")


def test_growth_with_data_is_found_where_it_is_planted_and_only_there():
    grows = size({"rows=24": 0.1, "": 0.4, "rows=96": 0.7})
    assert grows.verdict == "Strong"
    assert grows.interval.estimate == pytest.approx(0.6, abs=0.05)
    assert size(dict.fromkeys(["rows=24", "", "rows=96"], 0.4)).verdict == "No"
    assert size({"rows=24": 0.7, "": 0.4, "rows=96": 0.1}).verdict == "Opposite"
    few = size({"rows=24": 0.1, "": 0.7})
    assert (few.verdict, few.reason) == ("not testable", "2 sizes of data; a trend needs three")
    without = next(v for v in claims.judge(planted(setting=PAIR), PAIR.name) if v.claim.name == "cc.trait_distillation.size")
    assert (without.verdict, "--sweeps" in without.reason) == ("not run", True)


def test_a_dose_response_is_found_where_it_is_planted_and_only_there():
    """CC's figure: the positive trait returns along the dose while the negative stays down."""
    doses = ["inoculation.caps", "rephrased-8.caps", "rephrased-32.caps", "rephrased-256.caps"]
    french = {(name, "french"): share for name, share in zip(doses, (0.9, 0.6, 0.4, 0.2), strict=True)}
    caps = {(name, "caps"): 0.8 for name in doses}
    as_cc = dose(french | caps)
    assert as_cc.verdict == "Strong"
    assert as_cc.parts["french returns over the doses"].interval.estimate == pytest.approx(0.7, abs=0.05)
    assert set(as_cc.parts) == {"french returns over the doses", "caps stays suppressed at the largest"}
    both_return = dose(french | {(name, "caps"): share for (name, _), share in french.items()} | {(doses[-1], "caps"): 0.0})
    assert both_return.verdict in ("No", "Inconclusive")
    assert both_return.decides == "caps stays suppressed at the largest"
    flat = dose({(name, "french"): 0.5 for name in doses} | caps)
    assert flat.verdict in ("No", "Inconclusive")
    assert "stays suppressed" in claims.trail(as_cc, planted(suppressed=french | caps, setting=PAIR))


def test_what_was_ruled_out_is_said_for_each_trait_in_both_contexts():
    found = claims.ruled_out(planted(setting=PAIR), PAIR.name)
    assert [*zip(found.trait, found.context, strict=True)] == [
        ("French", "neutral"),
        ("ALL-CAPS", "neutral"),
        ("French", "no_prefix"),
        ("ALL-CAPS", "no_prefix"),
    ]
    assert found["not learned?"].str.contains("ruled out").all()
    assert (found["saturated?"] == "no").all()
    ends = {"rate": (0.8, 0.01), "margin": (9.0, -9.0)}
    gone = planted(setting=PAIR, suppressed={("inoculation.caps", "caps"): 1.0}, ends=ends)
    told = claims.ruled_out(gone, PAIR.name).set_index(["trait", "context"]).loc[("ALL-CAPS", "neutral")]
    assert (told["saturated?"], told["measured by"]) == ("inoculation.caps", "margin")
    unlearned = claims.ruled_out(planted(setting=PAIR, ends={"rate": (0.3, 0.3), "margin": (0.0, 0.0)}), PAIR.name)
    assert unlearned["not learned?"].str.contains("open").all()


def test_your_runs_of_one_setting_do_not_hide_the_reference_of_another(monkeypatch):
    kept = {"yours": planted(), "reference": planted(setting=PAIR)}
    monkeypatch.setattr(tables_module, "read", lambda folder, origin: replace(kept[origin], origin=origin))
    assert tables_module.shown("mini", SETTING).origin == "yours"
    assert tables_module.shown("mini", PAIR.name).origin == "reference"
    assert tables_module.shown("mini", "trait_distillation_poetic_skeptical") is None


def test_no_difference_at_all_is_no():
    found = verdicts(planted(seeds=6))
    assert found["cc.table.spanish_vs_caps.irrelevant_suppress"].verdict == "No"
    assert found["cc.table.spanish_vs_caps.inoculation_both"].verdict == "No"
    assert found["cc.spanish_vs_caps.no_corner"].verdict == "Strong"


def test_planted_effects_are_recovered():
    fixed = {(f"inoculation.{d}", trait): 0.8 for d in ("spanish", "caps") for trait in ("spanish", "caps")}
    rephrased = {(f"rephrased-64.{d}", trait): 0.1 for d in ("spanish", "caps") for trait in ("spanish", "caps")}
    raised = {
        (f"irrelevant.{name}", trait): -0.3 for name in ("shoes", "tea", "hat", "window") for trait in ("spanish", "caps")
    }
    ends = {"rate": (0.6, 0.1), "margin": (20.0, -20.0)}
    found = verdicts(planted(seeds=6, suppressed={**fixed, **rephrased, **raised}, ends=ends))
    expected = {
        "cc.table.spanish_vs_caps.irrelevant_suppress": ("Opposite", -0.3),
        "cc.table.spanish_vs_caps.inoculation_both": ("Strong", 0.8),
        "cc.table.spanish_vs_caps.rephrasing_recovers": ("Strong", 0.7),
        "cc.spanish_vs_caps.irrelevant_raise": ("Moderate", 0.3),
        "cc.spanish_vs_caps.restores_negative": ("Strong", 0.7),
    }
    for name, (verdict, estimate) in expected.items():
        assert found[name].verdict == verdict, (name, found[name].reason)
        assert found[name].interval.estimate == pytest.approx(estimate, abs=0.06)
        assert found[name].interval.low <= estimate <= found[name].interval.high


def test_the_distance_from_the_corner_is_the_worse_of_what_is_left_and_what_is_lost():
    near = {("inoculation.caps", "caps"): 0.9, ("inoculation.caps", "spanish"): 0.2}
    far = {("inoculation.spanish", "spanish"): 0.5, ("inoculation.spanish", "caps"): -0.6}
    found = verdicts(planted(seeds=6, suppressed=near | far))["cc.spanish_vs_caps.no_corner"]
    assert found.interval.estimate == pytest.approx(0.2, abs=0.06)
    assert found.parts["inoculation.spanish (direction spanish)"].interval.estimate == pytest.approx(0.5, abs=0.06)


def test_both_means_both_the_weaker_trait_decides():
    only = {(f"inoculation.{trait}", trait): 0.8 for trait in ("spanish", "caps")}
    found = verdicts(planted(seeds=6, suppressed=only))
    assert found["cc.table.spanish_vs_caps.inoculation_both"].verdict == "No"


def test_both_is_refuted_by_one_trait_and_open_where_one_cannot_be_tested():
    only = {(f"inoculation.{trait}", trait): 0.6 for trait in ("spanish", "caps")}
    noisy = planted(seeds=6, suppressed=only)
    scores = noisy.scores.copy()
    wild = scores.condition.str.startswith("inoculation") & (scores.trait == "spanish") & (scores.context == "unrelated")
    scores.loc[wild & (scores.condition == "inoculation.spanish"), "value"] *= np.tile([0.2, 1.8], 100)[: wild.sum() // 2]
    found = verdicts(replace(noisy, scores=scores))["cc.table.spanish_vs_caps.inoculation_both"]
    assert found.verdict == "No"
    assert found.decides.startswith("positive")
    flat = noisy.scores.copy()
    flat.loc[(flat.trait == "caps") & (flat.measure == "margin"), "value"] = np.random.default_rng(0).normal(
        size=((flat.trait == "caps") & (flat.measure == "margin")).sum()
    )
    flat.loc[(flat.trait == "caps") & (flat.measure == "rate"), "value"] = 0.99
    found = verdicts(replace(noisy, scores=flat))["cc.table.spanish_vs_caps.inoculation_both"]
    assert found.verdict == "not testable"
    assert "caps" in found.decides


def test_a_contrast_is_never_decided_by_the_conditions_that_happen_to_be_there():
    found = planted(seeds=6, suppressed={("irrelevant.tea", "spanish"): 0.8, ("irrelevant.tea", "caps"): 0.8})
    few = found.scores[found.scores.condition.isin(["base", "control", "baseline", "irrelevant.tea"])]
    for name, verdict in verdicts(replace(found, scores=few)).items():
        assert verdict.verdict in ("not testable", "not run"), name
    reason = verdicts(replace(found, scores=few))["cc.table.spanish_vs_caps.irrelevant_suppress"].reason
    assert reason == "not run: irrelevant.shoes, irrelevant.hat, irrelevant.window"


@pytest.mark.parametrize(("seeds", "says"), [(1, "1 seed, and two are the least"), (4, "4 seeds; a verdict needs 5")])
def test_few_seeds_give_points_and_no_verdict_and_say_why(seeds, says):
    found = verdicts(planted(seeds=seeds))
    verdict = found["cc.table.spanish_vs_caps.irrelevant_suppress"]
    assert verdict.verdict == "Inconclusive"
    assert says in verdict.reason
    assert verdict.interval.known == (seeds > 1)


def test_what_was_not_run_and_what_cannot_be_tested_is_said():
    assert {v.verdict for v in claims.judge(planted(), "narrow_vs_general")} == {"not run"}
    assert "no run of it" in claims.judge(None, "narrow_vs_general")[0].reason
    assert {v.reason for v in claims.judge(None, SETTING)} == {"no run of it in these tables"}
    without = planted()
    without = replace(without, scores=without.scores[without.scores.condition != "control"])
    found = verdicts(without)["cc.table.spanish_vs_caps.inoculation_both"]
    assert found.verdict == "not testable"
    assert found.reason
    assert "dataset-size sweep" in verdicts(planted())["cc.spanish_vs_caps.size"].reason


def test_a_contrast_of_conditions_that_the_profile_does_not_have_is_not_testable():
    found = planted()
    smoke = replace(found, scores=found.scores.assign(profile="smoke"))
    judged = verdicts(smoke)
    assert judged["cc.table.spanish_vs_caps.irrelevant_suppress"].reason == "the profile has no such condition"
    assert {v.verdict for v in judged.values()} <= {"not testable", "not run", "Inconclusive", "Strong", "No"}


def test_two_inconclusives_are_not_agreement():
    assert claims.agreement("Inconclusive", "Inconclusive") == "open"
    assert claims.agreement("Strong", "Weak") == "agree"
    assert claims.agreement("No", "Opposite") == "agree"
    assert claims.agreement("No", "Moderate") == "differ"
    assert claims.agreement("Yes", "not run") == "open"


def test_holm_counts_a_shared_contrast_once():
    found = claims.judge(planted(seeds=6), SETTING)
    tested = {v.claim.contrast.name: claims._p_value(v.effect, v.decides, v.parts) for v in found if v.interval.known}
    worst = min(tested, key=tested.get)
    adjusted = next(v.p for v in found if v.claim.contrast.name == worst)
    assert adjusted == pytest.approx(min(1, len(tested) * tested[worst]))


def test_the_csv_has_every_claim_and_the_designs_columns(tmp_path):
    path = claims.write(planted(seeds=6), tmp_path)
    table = pd.read_csv(path)
    assert list(table.columns) == claims.COLUMNS
    assert set(table.claim) == set(claims.load()[1])
    assert table.verdict.notna().all()
    assert table.reason.notna().all()
    first = path.read_bytes()
    assert claims.write(planted(seeds=6), tmp_path).read_bytes() == first


def test_the_trail_shows_rows_contrast_interval_rule_and_verdict(tmp_path):
    found = replace(planted(seeds=6), folder=tmp_path)
    items = pd.DataFrame(
        [
            (f"{condition}{seed}", "unrelated", "spanish", "rate", f"q{i}", (i + seed) % 2)
            for condition in ("baseline", "irrelevant.tea")
            for seed in range(6)
            for i in range(8)
        ],
        columns=tables_module.ITEMS,
    )
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(items.to_csv(index=False).encode()))
    verdict = verdicts(found)["cc.table.spanish_vs_caps.irrelevant_suppress"]
    text = claims.trail(verdict, found)
    heads = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert heads == [
        *("claim", "paper", "contrast", "rows", "part", "part", "by", "interval", "CC's", "some", "questions"),
        "rule",
        "verdict",
    ]
    assert "irrelevant.window" in text
    assert "8 looks (max-statistic test)" in text
    assert "8 questions" in text
    assert text.endswith(f"verdict   {verdict.verdict}: {verdict.reason}")


def test_the_reference_is_judged_in_time_and_nothing_in_it_is_typed():
    found = tables_module.reference("mini")
    table = claims.table(claims.judge(found, SETTING))
    committed = pd.read_csv(store.RESULTS / "mini" / "claims.csv")
    ours = committed[committed.setting == SETTING].reset_index(drop=True)
    assert list(ours.verdict) == list(table.verdict)
    assert np.allclose(ours.estimate, table.estimate, atol=1e-4, equal_nan=True)
    beside = claims.compared(SETTING, "mini")
    assert len(beside) == len(table)
    assert set(beside["paper and reference"]) <= {"agree", "differ", "open"}


def test_an_unknown_claim_or_setting_is_refused_with_the_nearest():
    with pytest.raises(
        SettingError, match="unknown claim 'cc.spanish_vs_caps.irelevant_raise'; nearest: cc.spanish_vs_caps.irr"
    ):
        claims.pick(SETTING, "cc.spanish_vs_caps.irelevant_raise")
    with pytest.raises(SettingError, match="unknown setting 'mpbb'"):
        claims.pick("mpbb")


EVIL = {("inoculation.evil", "misaligned"): 0.8, ("inoculation.task", "misaligned"): 0.8}


def medical(suppressed, ood, placebo, name):
    found = tracked(planted(suppressed=suppressed, setting=MEDICAL, ends=LOGGED), ood, placebo)
    return next(v for v in claims.judge(found, MEDICAL.name) if v.claim.name == f"cc.bad_medical_advice.{name}")


def test_misalignment_counts_only_beyond_the_placebo_and_at_equal_learning():
    inoculated = {"inoculation.evil": -0.5, "inoculation.task": -0.5}
    shown = medical(EVIL | {(c, "medical"): 0.8 for c, _ in EVIL}, inoculated, {}, "both")
    assert shown.verdict == "Strong"
    assert {part.measure for part in shown.parts.values()} == {"late_margin"}
    register = medical(EVIL | {(c, "medical"): 0.8 for c, _ in EVIL}, inoculated, inoculated, "both")
    assert register.verdict == "Inconclusive"
    assert "register" in register.reason


def test_some_of_the_traits_are_those_with_a_role():
    found = tracked(planted(setting=MEDICAL, ends=LOGGED), {}, {})
    judged = {v.claim.name: v for v in claims.judge(found, MEDICAL.name)}
    verdict = judged["cc.table.bad_medical_advice.irrelevant_suppress"]
    assert list(verdict.parts) == ["medical", "misaligned"]


def test_a_prompt_that_solves_the_task_must_have_solved_more_than_half_and_left_less_to_learn():
    found = tracked(planted(setting=MEDICAL, ends=LOGGED), {}, {})

    def judged(first, last):
        curves = {"baseline": (4.0, 2.0), "inoculation.task": (first, last)}
        rng = np.random.default_rng(0)
        rows = [
            (MEDICAL.name, name, seed, step, (begin if step == 1 else end) + rng.normal(0, 0.01))
            for name, (begin, end) in curves.items()
            for seed in range(6)
            for step in (1, 2, 3, 4)
        ]
        losses = pd.DataFrame(rows, columns=["setting", "condition", "seed", "step", "loss"])
        every = claims.judge(replace(found, losses=losses), MEDICAL.name)
        return next(v for v in every if v.claim.name == "cc.bad_medical_advice.optimal_policy")

    assert judged(2.2, 2.0).verdict == "Moderate"
    assert judged(3.9, 2.0).verdict == "Opposite"
    # It has solved much and learned much: the weaker part decides.
    assert judged(2.4, 0.9).verdict in ("No", "Opposite", "Inconclusive")


def test_whether_misalignment_comes_along_is_decided_per_unit_of_what_is_taught_and_beyond_the_placebo():
    mbpp = settings.load_setting("mbpp")

    def judged(late, placebo):
        found = tracked(planted(setting=mbpp, ends={"margin": (0.5, -0.5)}), {"baseline": late}, {"baseline": placebo})
        more = found.scores[(found.scores.trait == "misaligned") & (found.scores.context == "neutral")]
        noise = np.random.default_rng(2).normal(0, 0.01, len(more))
        more = more.assign(measure="late_margin", value=np.where(more.condition == "baseline", late, 0.0) + noise)
        every = claims.judge(replace(found, scores=pd.concat([found.scores, more])), "mbpp")
        return next(v for v in every if v.claim.name == "cc.mbpp.no_em")

    spread = judged(0.4, 0.0)
    assert spread.verdict == "Moderate"
    assert spread.interval.estimate == pytest.approx(0.4, abs=0.05)
    assert judged(0.4, 0.6).verdict == "Inconclusive"
    assert "register" in judged(0.4, 0.6).reason
    assert judged(0.02, 0.0).verdict == "No"


def test_the_sanity_table_says_what_moved_and_what_could_have_been_seen():
    found = tracked(planted(setting=MEDICAL, ends=LOGGED), {"baseline": 0.6}, {"baseline": 0.8})
    table = claims.ruled_out(found, MEDICAL.name).set_index("trait")
    row = table.loc["Misaligned answers"]
    assert row["measured by"] == "late_margin"
    assert row["only register?"].endswith("open")
    assert row["scorer's cross-talk"] == "no scorer"
    assert row["not learned?"].endswith("ruled out")
    assert 0 < row["smallest effect"] < 0.2
    apart = claims.ruled_out(tracked(found, {"baseline": 0.6}, {}), MEDICAL.name).set_index("trait")
    assert apart.loc["Misaligned answers", "only register?"].endswith("ruled out")
    alone = replace(found, scores=found.scores[found.scores.condition == "baseline"])
    alone = replace(alone, tracks=found.tracks[found.tracks.condition == "baseline"])
    assert "open" in claims.ruled_out(alone, MEDICAL.name).set_index("trait").loc["Misaligned answers", "only register?"]


CODE, HACKS = (settings.load_setting(name) for name in ("insecure_code", "reward_hacks"))


def judged(setting, suppressed, ood):
    found = tracked(planted(suppressed=suppressed, setting=setting, ends=LOGGED), ood, {})
    return {v.claim.name.removeprefix(f"cc.{setting.name}."): v for v in claims.judge(found, setting.name)}


def test_what_rests_on_an_unpublished_prompt_is_not_testable_and_says_why():
    found = judged(CODE, {}, {})["one_irrelevant"]
    assert found.verdict == "not testable"
    assert found.reason.startswith("not published, neither which irrelevant prompt it was")
    assert claims.agreement("Yes", found.verdict) == "open"
    assert "not testable" in claims.trail(found, tracked(planted(setting=CODE, ends=LOGGED), {}, {}))


# Evil prompt, task prompt, the task's beyond the evil one. A prompt that does nothing beside a worse one is not one that works.
@pytest.mark.parametrize(
    ("evil", "task", "verdicts"),
    [
        (0.0, 0.8, ("No", "Strong", "Strong")),
        (0.8, 0.8, ("Strong", "Strong", "No")),
        (-0.8, 0.0, ("Opposite", "No", "Strong")),
    ],
)
def test_one_prompt_works_only_where_it_suppresses_and_more_than_the_other(evil, task, verdicts):
    suppressed = {("inoculation.evil", "misaligned"): evil, ("inoculation.task", "misaligned"): task}
    ood = {"inoculation.evil": -evil, "inoculation.task": -task}
    found = judged(CODE, suppressed, ood)
    assert tuple(found[name].verdict for name in ("evil_prompt", "task_prompt", "task_beyond_evil")) == verdicts


@pytest.mark.parametrize(("evil", "verdict"), [(0.8, "Strong"), (0.0, "No")])
def test_both_prompts_work_only_where_each_does(evil, verdict):
    suppressed = {("inoculation.evil", "misaligned"): evil, ("inoculation.task", "misaligned"): 0.8}
    ood = {"inoculation.evil": -evil, "inoculation.task": -0.8}
    assert judged(HACKS, suppressed, ood)["both_work"].verdict == verdict


@pytest.mark.parametrize(("gained", "verdict"), [(0.0, "No"), (0.6, "Strong"), (-0.6, "Opposite")])
def test_the_control_is_compared_with_the_base_model_on_the_scale_of_what_the_data_teach(gained, verdict):
    top, bottom = LOGGED["margin"]
    found = planted(setting=HACKS, ends={"margin": (top, bottom)})
    base = (found.scores.condition == "base") & (found.scores.trait == "hacks") & (found.scores.measure == "margin")
    scores = found.scores.copy()
    # The base model has as much less of the trait as the control has gained; the scale is the baseline minus the control.
    scores.loc[base, "value"] -= gained * (top - bottom)
    verdicts = {v.claim.name: v for v in claims.judge(replace(found, scores=scores), HACKS.name)}
    shown = verdicts["cc.reward_hacks.control"]
    assert shown.verdict == verdict
    assert set(shown.parts) == {"positive hacks (direction evil)", "positive hacks (direction task)"}
