"""Figures: same tables, same bytes; provenance beside each; drawn without torch."""

import json
import os
import subprocess
import sys
import time

import pytest
from inoculation import figures, settings, store, tables


@pytest.fixture(scope="module")
def found(smoke):
    tables.write("smoke")
    return tables.shown("smoke")


def test_two_drawings_are_equal_bytes_and_carry_their_provenance(found, tmp_path):
    first, second = (figures.redraw("smoke", found, tmp_path / name) for name in ("one", "two"))
    assert len(first) == len(figures.FIGURES)
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
    for said in ("SMOKE TEST", "2 everyday questions", "No interval", "seed"):
        assert said in caption


def test_every_condition_has_a_colour():
    for name in settings.setting_names():
        for condition in ["base", *settings.load_setting(name).conditions]:
            assert figures.kind(condition) in figures.PALETTE


def test_differences_are_paired_within_seed(found):
    import pandas as pd

    rows = [
        (c, s, "spanish", "neutral", "rate", v, 4, 0)
        for c, s, v in (("a", 0, 0.5), ("a", 1, 0.9), ("b", 0, 0.2), ("b", 1, 0.4))
    ]
    columns = ["condition", "seed", "trait", "context", "measure", "value", "n", "n_unscored"]
    planted = tables.Tables("yours", found.folder, pd.DataFrame(rows, columns=columns), found.losses, found.runs, found.samples)
    assert tables.differences(planted, "a", "neutral").loc["b"].iloc[0] == pytest.approx(-0.4)


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
    done = _command("--figures-only", home=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "figures/local/mini/spanish_vs_caps.traits_by_condition.json").read_text(encoding="utf-8"))
    assert record["origin"] == "reference"


@pytest.mark.parametrize("profile", [path.name for path in store.RESULTS.iterdir() if path.is_dir()])
def test_committed_figures_are_drawn_from_the_committed_tables(profile):
    for path in sorted((store.REFERENCE_FIGURES / profile).glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["inputs"] == {p.name: store.file_digest(p) for p in sorted((store.RESULTS / profile).iterdir())}
        assert path.with_suffix(".png").exists()
        assert path.with_suffix(".csv").exists()
