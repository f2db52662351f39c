"""The story of all settings: CC's table recomputed from claims, every figure from the reference, and nothing typed by hand."""

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from inoculation import claims, settings, store
from inoculation.effects import MAIN, Effects
from inoculation.tables import reference
from narrow import plan
from narrow import tables as solutions
from planted import SETTING, planted
from summary import figures, tables


@pytest.fixture(scope="module")
def every():
    """The committed reference, whatever was run here."""
    found = {name: reference("mini").of(name) for name in settings.setting_names()}
    return tables.Everything("mini", found | {plan.FILE: solutions.read(store.RESULTS / "mini", "mini", "reference")})


def test_the_table_has_nine_settings_by_four_questions_and_says_what_claims_csv_says(every):
    drawn = tables.cells(every)
    assert drawn.groupby("setting", sort=False).question.nunique().tolist() == [4] * 9
    stored = pd.read_csv(store.RESULTS / "mini" / "claims.csv").set_index("claim").loc[drawn.claim]
    for ours, theirs in (("verdict", "verdict"), ("paper_class", "paper_class"), ("paper_words", "paper_verdict")):
        assert drawn[ours].tolist() == stored[theirs].tolist()
    for name in ("estimate", "ci_low", "ci_high", "n_seeds"):
        assert np.allclose(drawn[name], stored[name], rtol=1e-5, equal_nan=True)


def test_every_cell_says_effect_interval_seeds_and_rule_on_hover_and_in_its_footnote(every):
    page, text = (tables.rendered(every, template) for template in ("table.html", "table.md"))
    told = dict(re.findall(r'title="([^"]+)">.*?<sup>(\d+)</sup>', page))
    notes = re.findall(r"<li>(.*?)</li>", page)
    assert len(notes) == len(re.findall(r"<sup>\d+</sup>", page)) == len(re.findall(r"^\d+\. ", text, re.MULTILINE)) == 36
    for hover, number in told.items():
        assert hover in notes[int(number) - 1]
    cell = tables.cells(every).set_index("claim").loc["cc.table.spanish_vs_caps.matched_highest"]
    said = f"{cell.estimate:.2f} [{cell.ci_low:.2f}, {cell.ci_high:.2f}], {cell.n_seeds} seeds"
    assert said in page
    assert said in text
    for said in (str(claims.load()[0]), "DEMO SCALE · 135M model"):
        assert said in text
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 11
    assert not re.search(r"(?<!\\)\*", "\n".join(re.findall(r"^\d+\. .*", text, re.MULTILINE)))  # no pattern turns to italics


def test_what_a_table_says_is_text_wherever_it_came_from(every, monkeypatch):
    drawn = tables.cells(every).assign(reason="<script>alert(1)</script>")
    monkeypatch.setattr(tables, "cells", lambda every: drawn)
    page = tables.rendered(every, "table.html")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_agreement_is_counted_over_all_claims(every):
    counted = tables.tally(every)
    assert counted.iloc[-1]["all"] == len(claims.load()[1]) == len(every.verdicts)
    differ = counted[(counted.paper == "CC") & (counted.agreement == "differ")]
    ours = [v for v in every.verdicts if v.claim.paper == "CC"]
    assert differ["all"].item() == sum(claims.agreement(v.claim.paper_class, v.verdict) == "differ" for v in ours)


def test_kept_and_suppressed_are_the_two_suppressions_of_a_condition():
    suppressed = {("inoculation.spanish", "spanish"): 0.8, ("inoculation.spanish", "caps"): 0.3}
    found = planted(suppressed=suppressed)
    drawn = tables.selectivity(tables.Everything("mini", {SETTING.name: found}))
    assert not {"control", "baseline"} & set(drawn.condition)
    assert set(drawn.direction[drawn.condition == "irrelevant.shoes"]) == {"spanish", "caps"}
    row = drawn[drawn.condition == "inoculation.spanish"].iloc[0]
    assert (row.direction, row.kind, row.seeds) == ("spanish", "inoculation", 6)
    assert row.suppressed == pytest.approx(0.8, abs=0.06)
    assert row.kept == pytest.approx(0.7, abs=0.06)
    assert row.kept_low < row.kept < row.kept_high
    known = Effects(found, SETTING).suppression(["inoculation.spanish"], "caps", MAIN)
    assert row.kept == pytest.approx(1 - known.interval.estimate)


def test_a_condition_of_no_direction_stands_once_where_directions_share_their_traits(every):
    drawn = tables.selectivity(every)
    medical = drawn[drawn.setting == "bad_medical_advice"]
    assert (medical.condition.value_counts() == 1).all()
    both = drawn[(drawn.setting == "spanish_vs_caps") & (drawn.condition == "irrelevant.shoes")]
    assert set(both.direction) == {"spanish", "caps"}


def test_one_setting_more_than_there_are_markers_is_drawn(every):
    more = tables.Everything("mini", every.found)
    known = every.effects | {f"setting_{number}": every.effects["spanish_vs_caps"] for number in range(12)}
    object.__setattr__(more, "effects", known)
    assert len(figures.selectivity(more)[1]) > 40


def test_few_seeds_of_yours_stand_beside_the_reference_and_enough_of_them_instead(elsewhere, monkeypatch):
    def planted_here(seeds):
        found = planted(seeds=seeds)
        folder = store.local_tables("mini")
        for name in ("scores", "losses", "runs", "tracks", "sweeps"):
            store.write_csv(folder / f"{name}.csv", getattr(found, name))
        return tables.gather("mini")

    few = planted_here(1)
    assert few.origins["spanish_vs_caps"] == "reference"
    assert "beside it, with fewer seeds, yours: spanish_vs_caps" in str(few)
    cell = tables.cells(few).set_index("claim").loc["cc.table.spanish_vs_caps.matched_highest"]
    assert (cell.verdict, cell.yours.split(":")[0]) == ("No", "Inconclusive")
    assert f"yours: {cell.yours}" in tables.rendered(few, "table.md")
    enough = planted_here(5)
    assert enough.origins["spanish_vs_caps"] == "yours"
    assert not enough.yours


def test_a_no_where_nothing_was_taken_says_so(every):
    drawn = tables.cells(every).set_index("claim").remark
    assert "so there is little to restore" in drawn["cc.table.bad_medical_advice.rephrasing_recovers"]
    assert drawn["cc.table.bad_medical_advice.irrelevant_suppress"] == ""
    assert drawn["cc.table.spanish_vs_caps.rephrasing_recovers"] == ""


def test_the_two_by_two_is_that_of_every_setting(every):
    drawn = tables.identification(every)
    assert set(drawn.setting) == set(settings.setting_names())
    assert set(drawn.effect) == {"pattern", "semantic", "interaction"}
    assert set(drawn.context) == {MAIN}


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_the_committed_figures_are_drawn_from_the_committed_tables(every, name, tmp_path):
    path, caption = figures.draw(name, every, tmp_path)
    kept = store.REFERENCE_FIGURES / "mini" / f"{name}.png"
    assert path.with_suffix(".csv").read_bytes() == kept.with_suffix(".csv").read_bytes()
    record = json.loads(kept.with_suffix(".json").read_text(encoding="utf-8"))
    assert (record["caption"], record["origin"]) == (caption, "reference")
    for said in ("DEMO SCALE", "95 % Student t over seeds", "seeds"):
        assert said in caption
    assert record["run_ids"]


def test_the_committed_table_is_the_one_that_the_reference_gives(every, tmp_path):
    for path in tables.write(every, tmp_path):
        assert path.read_bytes() == (store.REFERENCE_FIGURES / "mini" / path.name).read_bytes()


def test_one_seed_has_a_point_and_no_interval():
    alone = tables.Everything("mini", {SETTING.name: planted(seeds=1)})
    for draws in (figures.selectivity, figures.identification):
        _, drawn, facts = draws(alone)
        assert "no interval is drawn" in facts["seeds"]
        assert (drawn.seeds == 1).any()


def test_where_nothing_was_run_everything_says_so(elsewhere):
    nothing = tables.gather("smoke")
    warnings.simplefilter("error")
    assert set(nothing.origins.values()) == {"not run"}
    assert {verdict.verdict for verdict in nothing.verdicts} == {"not run"}
    for draws in figures.FIGURES.values():
        assert len(draws(nothing)) == 3
    assert "not run" in tables.rendered(nothing, "table.html")


def test_the_published_numbers_have_a_question_a_source_and_a_caveat_each():
    drawn = tables.published()
    assert drawn.question.nunique() == 4
    assert drawn.question.str.endswith("?").all()
    assert set(drawn.says) <= {"yes", "partly", "no", "mixed"}
    # Both sides are listed where both were published.
    assert {"yes", "no"} <= set(drawn.says[drawn.question.str.contains("rephrasing")])
    for column in ("source", "measured", "compared", "caveat"):
        assert (drawn[column].str.len() > 1).all(), column
    assert (drawn["with"] + drawn["without"]).str.contains(r"\d").all()


def test_the_map_names_every_notebook_that_follows_a_section():
    books = sorted(path.stem for path in store.NOTEBOOKS.glob("*.ipynb"))
    assert sorted(tables.sections().notebook) == [name for name in books if name not in ("00_start_here", "10_summary")]
    assert all(text.startswith(("CC", "NEM")) for text in tables.sections().follows)


def test_minutes_and_runs_are_the_plans_own(elsewhere):
    drawn = tables.minutes().set_index("notebook")
    assert drawn.loc["02_spanish_vs_caps", "mini"] == "12 runs, 26 minutes"
    assert drawn.loc["02_spanish_vs_caps", "paper"].endswith("minutes not measured")
    done = tables.done("mini").set_index("setting")
    assert done.loc["spanish_vs_caps", "your runs"] == "0 of 12"
    assert done.loc["spanish_vs_caps", "runs in the reference"] == len(reference("mini").of("spanish_vs_caps").runs)
    assert done.loc[plan.FILE, "runs in the reference"] == len(pd.read_csv(store.RESULTS / "mini" / plan.FILE / "runs.csv"))


def test_the_words_are_explained_and_the_citation_names_both_write_ups():
    words = tables.words().set_index("word").meaning
    for word in ("setting", "condition", "context", "trait", "run", "claim", "seed", "margin", "verdict", "saturated"):
        assert len(words[word]) > 20
    for said in ("Riché", "2602.07852", "Apache-2.0"):
        assert said in tables.citation()
