"""Figures: same tables, same bytes; provenance beside each; drawn without torch."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
from inoculation import figures, settings, store, tables
from planted import CONTEXTS, LOGGED, MEDICAL, PAIR, asked, planted, swept, tracked


@pytest.fixture(scope="module")
def found(smoke):
    tables.write("smoke")
    return tables.shown("smoke", "spanish_vs_caps")


def test_two_drawings_are_equal_bytes_and_carry_their_provenance(found, tmp_path):
    first, second = (figures.redraw("smoke", {"spanish_vs_caps": found}, tmp_path / name) for name in ("one", "two"))
    # No dose without a prefix, no sweep in this profile, and one setting is not all of them.
    assert len(first) == len(figures.FIGURES) - 1 - len(figures.COURSES)
    for one, two in zip(first, second, strict=True):
        for suffix in (".png", ".csv", ".json"):
            assert one.with_suffix(suffix).read_bytes() == two.with_suffix(suffix).read_bytes()
        record = json.loads(one.with_suffix(".json").read_text(encoding="utf-8"))
        assert record["inputs"]["scores.csv"] == store.file_digest(found.folder / "scores.csv")
        assert set(record["run_ids"]) == set(found.runs.run_id)
        assert record["commits_of_runs"]


def test_the_figure_marks_its_scale_and_names_n_and_the_interval_rule(found):
    _, drawn, caption = figures.traits_by_condition(found, settings.load_setting("spanish_vs_caps"), "smoke")
    assert set(drawn.context) == {"neutral", "trigger"}
    for said in ("SMOKE TEST", "2 everyday questions", "no interval is drawn", "seed"):
        assert said in caption


def test_a_figure_of_what_was_never_run_says_so(elsewhere, capsys):
    figures.show("traits_by_condition", "spanish_vs_caps", "smoke")
    figures.show("heuristics", "all", "smoke")
    assert not list(elsewhere.iterdir())


def test_every_condition_has_a_colour():
    for name in settings.setting_names():
        for condition in ["base", *settings.load_setting(name).conditions]:
            assert figures.kind(condition) in figures.palette()


def test_one_seed_draws_points_and_says_why_there_is_no_interval():
    setting = settings.load_setting("spanish_vs_caps")
    for seeds, said in (
        (1, "n = 1 seed: no interval is drawn, since one seed shows no spread"),
        (4, "95 % Student t over seeds"),
    ):
        _, drawn, caption = figures.two_by_two(planted(seeds=seeds), setting, "mini")
        assert said in caption
        assert drawn.estimate.notna().all()
        assert drawn.low.isna().all() == (seeds == 1)
        _, drawn, _ = figures.claim_verdicts(planted(seeds=seeds), setting, "mini")
        yours = drawn[(drawn.origin == "yours") & (drawn.n_seeds > 0)]
        assert len(yours) >= 8
        assert yours.ci_low.isna().all() == (seeds == 1)


def test_the_heat_map_shows_every_condition_in_every_context_and_marks_saturation():
    setting = settings.load_setting("spanish_vs_caps")
    high = planted(seeds=2, ends={"rate": (0.99, 0.01), "margin": (20.0, -20.0)})
    figure, drawn, caption = figures.context_grid(high, setting, "mini")
    assert set(drawn.condition) == {"base", *(c.name for c in setting.in_profile("mini"))}
    assert set(drawn.context) == set(CONTEXTS)
    written = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert "(99)" in written
    assert "saturated" in caption


def test_the_dose_response_shows_both_traits_in_both_contexts_on_a_log_axis():
    figure, drawn, caption = figures.dose_response(planted(seeds=3, setting=PAIR), PAIR, "mini")
    assert set(drawn.context) == {"no_prefix", "neutral"}
    assert set(drawn.prompts.dropna()) == {1, 8, 32, 48}
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}
    for said in ("DEMO SCALE", "rephrased-256.caps (48 seen)", "95 % Student t over seeds", "n = 3 seeds"):
        assert said in caption


def test_a_trait_that_is_claimed_by_its_margin_is_drawn_and_captioned_by_it():
    setting = settings.load_setting("trait_distillation_french_playful")
    found = planted(seeds=3, setting=setting)
    _, drawn, caption = figures.traits_by_condition(found, setting, "mini")
    assert set(drawn[drawn.trait == "playful"].measure) == {"margin"}
    assert set(drawn[drawn.trait == "french"].measure) == {"rate"}
    assert "French, the mean over 24 everyday questions" in caption
    assert "Playful, the mean over 24 pairs of answers" in caption


def test_a_figure_of_few_runs_is_drawn_and_says_what_is_missing():
    found = planted(seeds=1, setting=PAIR)
    few = replace(found, scores=found.scores[found.scores.condition == "irrelevant.honey"])
    _, drawn, caption = figures.dose_response(few, PAIR, "mini")
    assert drawn.empty
    assert "Doses: none" in caption
    assert "nothing could be computed" in caption


def test_claims_stand_beside_the_reference_and_are_judged_from_the_tables():
    setting = settings.load_setting("spanish_vs_caps")
    _, drawn, caption = figures.claim_verdicts(planted(seeds=6), setting, "mini")
    assert set(drawn.origin) == {"reference", "yours"}
    assert "DEMO SCALE" in caption
    yours = drawn[drawn.origin == "yours"].set_index("claim")
    assert yours.loc["cc.table.spanish_vs_caps.irrelevant_suppress", "verdict"] == "No"


def test_a_sweep_is_drawn_by_size_with_trends_and_the_gate_along_training():
    honey = {("irrelevant.honey", trait): 0.3 for trait in PAIR.traits}
    found = swept({"rows=24": {}, "": honey, "rows=96": honey})
    figure, drawn, caption = figures.FIGURES["sweep_rows"](found, PAIR, "mini")
    assert sorted(set(drawn.rows)) == [24, 48, 96]
    assert drawn[drawn.condition == "irrelevant.honey"].trend_low.notna().all()
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}
    for said in ("DEMO SCALE", "control of 48 rows", "n = 6 seeds"):
        assert said in caption
    steps = [
        ("baseline", seed, step, part, "caps") for seed in range(3) for step in (8, 16, 24) for part in ("trigger", "no_prefix")
    ]
    tracks = pd.DataFrame(steps, columns=["condition", "seed", "step", "part", "trait"])
    tracks = tracks.assign(setting=PAIR.name, point="rows=96", n=4, value=tracks.step / 10 + tracks.seed)
    _, drawn, caption = figures.FIGURES["gate"](replace(found, tracks=tracks), PAIR, "mini")
    assert sorted(set(drawn.step)) == [8, 16, 24]
    assert drawn[drawn.step == 24].estimate.to_list() == pytest.approx([3.4, 3.4])
    assert "96 rows" in caption


def test_margins_along_training_are_drawn_by_part_and_kind():
    found = tracked(planted(seeds=3, setting=MEDICAL, ends=LOGGED), {"baseline": 0.6}, {"baseline": 0.1})
    assert "along_training" in figures._figures(MEDICAL, found, "mini")
    assert "along_training" not in figures._figures(MEDICAL, planted(seeds=3, setting=MEDICAL, ends=LOGGED), "mini")
    figure, drawn, caption = figures.course(found, MEDICAL, "mini", x="along")
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == [figures.word(p).split("\n")[0] for p in figures.PARTS]
    assert set(drawn.condition) == {c.kind for c in MEDICAL.in_profile("mini")}
    last = drawn[(drawn.context == "ood") & (drawn.step == 6)].set_index("condition").estimate
    assert last["baseline"] == pytest.approx(0.6, abs=0.02)
    assert "second half" in caption
    assert "n = 3 seeds" in caption


def test_the_heuristics_are_drawn_over_all_settings_with_their_errors():
    names = [c.name for c in PAIR.in_profile("mini") if c.data == "trait" and c.name not in ("baseline", "partial")]
    both = {(name, trait): 0.1 * number for number, name in enumerate(names) for trait in PAIR.traits}
    told = asked(planted(suppressed=both, setting=PAIR), both, dict.fromkeys(names, 0.1))
    other = asked(planted(), {("inoculation.spanish", "spanish"): 0.3}, {"inoculation.spanish": 0.2, "irrelevant.tea": 0.0})
    _, drawn, caption = figures.ACROSS["heuristics"]({PAIR.name: told, "spanish_vs_caps": other}, "mini")
    assert set(drawn.setting) == {PAIR.name, "spanish_vs_caps"}
    for said in ("DEMO SCALE", "(elicited)", "by the mean alone", "intervals over prompts"):
        assert said in caption


def _command(*arguments, home):
    code = "import sys; from inoculation import __main__ as m; s = m.main(); print('torch' in sys.modules); sys.exit(s)"
    environment = {**os.environ, "INOCULATION_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)


def test_figures_only_draws_yours_without_torch_in_time(found, home):
    started = time.monotonic()
    done = _command("--figures-only", "--profile", "smoke", home=home)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 20
    assert done.stdout.splitlines()[-1] == "False"
    assert (home / "figures/local/smoke/spanish_vs_caps.traits_by_condition.png").exists()


def test_figures_only_draws_the_reference_where_you_have_nothing(tmp_path):
    done = _command("--figures-only", "--notebook", "02", home=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "figures/local/mini/spanish_vs_caps.traits_by_condition.json").read_text(encoding="utf-8"))
    assert record["origin"] == "reference"


def test_a_figure_of_all_settings_takes_them_in_one_order(monkeypatch, tmp_path):
    """Or a redrawing would not look like the reference, whose markers follow the settings' order."""
    found = {name: tables.reference("mini").of(name) for name in reversed(settings.setting_names())}
    monkeypatch.setattr(figures, "FIGURES", {})
    (path,) = figures.redraw("mini", found, tmp_path)
    reference = store.REFERENCE_FIGURES / "mini" / path.name
    assert path.with_suffix(".csv").read_bytes() == reference.with_suffix(".csv").read_bytes()


@pytest.mark.parametrize("profile", [path.name for path in store.RESULTS.iterdir() if path.is_dir()])
def test_committed_figures_are_drawn_from_the_committed_tables(profile):
    for path in sorted((store.REFERENCE_FIGURES / profile).glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        # An experiment of a package beside the library keeps its tables in a folder of its name.
        apart = store.RESULTS / profile / path.name.split(".")[0]
        inputs = [p for p in (apart if apart.is_dir() else store.RESULTS / profile).iterdir() if p.is_file()]
        assert record["inputs"] == {p.name: store.file_digest(p) for p in inputs}
        assert path.with_suffix(".png").exists()
        assert path.with_suffix(".csv").exists()
