"""The sample browser and the claim pages: what they show is what the tables hold, and no response is ever more than text."""

import dataclasses
import html
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from inoculation import claims as verdicts
from inoculation import effects, runs, settings, store, tables
from narrow import plan
from readalong import claims, pages, samples

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HOSTILE = '</script><script>stolen = 1</script><img src=x onerror="stolen = 1"> \' " \\ ${1} <!-- \u2028 \u2029 é'
# A claim of every kind of contrast: averaged, every part, a difference, the corner, data sizes, losses, spread, doses, unknown,
# and two of another package.
CLAIMS = (
    "cc.table.spanish_vs_caps.irrelevant_suppress",
    "cc.table.spanish_vs_caps.inoculation_both",
    "cc.spanish_vs_caps.restores_positive",
    "cc.spanish_vs_caps.no_corner",
    "cc.spanish_vs_caps.size",
    "cc.mbpp.optimal_policy",
    "cc.mbpp.no_em",
    "cc.trait_distillation_dose.returns",
    "nem.narrow_exists",
    "nem.harmless",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The samples of the whole reference and the pages of CLAIMS, in a home without runs."""
    folder = tmp_path_factory.mktemp("readalong")
    rule, every = verdicts.load()
    unknown = [name for name, claim in every.items() if claim.contrast.kind == "unknown"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INOCULATION_HOME", str(folder))
        patch.setattr(verdicts, "load", lambda: (rule, {name: every[name] for name in (*CLAIMS, *unknown)}))
        pages.copy_static(folder / "mini")
        assert claims.build("mini", folder / "mini") == len(CLAIMS) + len(unknown)
        assert samples.build("mini", folder / "mini") == len(tables.reference("mini").samples)
    return folder / "mini"


@pytest.fixture(scope="module")
def browser():
    """Chromium, as a reader opens it."""
    if not CHROMIUM:
        pytest.skip("/usr/bin/chromium is not there, and the pages are tried in it")
    driven = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, and the pages are tried with it")
    with driven.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """An empty page; what its scripts do wrong fails the test."""
    faults, opened = [], browser.new_page()
    opened.on("pageerror", lambda error: faults.append(str(error)))
    yield opened
    opened.close()
    assert not faults


def index(site):
    return json.loads((site / "samples" / "index.js").read_text(encoding="ascii").removeprefix("const samplesIndex = ")[:-2])


def shelf(site, name):
    call = (site / "samples" / f"{name}.js").read_text(encoding="ascii")
    return json.loads(call.removeprefix(f'addSamples("{name}", ')[:-3])


def text_of(site, claim):
    content = (site / "claims" / f"{claim}.html").read_text(encoding="utf-8")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", content)).split())


def test_a_claims_page_says_what_claims_csv_says(site):
    known = pd.read_csv(store.RESULTS / "mini" / "claims.csv").set_index("claim")
    listed = (site / "claims.html").read_text(encoding="utf-8")
    for path in (site / "claims").glob("*.html"):
        row, text = known.loc[path.stem], text_of(site, path.stem)
        assert path.stat().st_size < 150_000
        assert f'href="claims/{path.name}"' in listed
        for told in (row.statement, f"Reference: {row.verdict}.", str(row.contrast), row.paper_verdict[1:]):
            assert told in text
        if row.n_seeds:
            interval = f"{row.estimate:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"
            assert f"{interval}, {row.n_seeds} seeds" in text
            assert interval in listed
            assert pd.read_csv(path.with_suffix(".csv")).query("decides").estimate.iloc[0] == pytest.approx(
                row.estimate, abs=1e-5
            )


def test_a_claims_page_shows_how_it_came_about(site):
    name = "cc.table.spanish_vs_caps.inoculation_both"
    text = text_of(site, name)
    assert f"./run_all.sh claims --setting spanish_vs_caps --claim {name}" in text
    assert "inoculation_suppresses_both: {suppress: [inoculation.*]" in text
    assert "contrast: inoculation_suppresses_both" in text
    with pytest.MonkeyPatch.context() as patch:
        rule, every = verdicts.load()
        patch.setattr(verdicts, "load", lambda: (rule, {key: every[key] for key in CLAIMS}))
        found = tables.reference("mini")
        judged = verdicts.judge(found, "spanish_vs_caps")
        trail = verdicts.trail(next(each for each in judged if each.claim.name == name), found)
    assert " ".join(trail.split()) in text


@pytest.mark.parametrize("setting", ["spanish_vs_caps", "trait_distillation_french_caps", "mbpp"])
def test_the_rows_behind_a_verdict_are_all_that_it_takes(elsewhere, setting):
    compared = 0
    for case in claims.judged("mini", setting):
        (finding,) = case.findings
        rows, contrast = finding.rows, finding.verdict.claim.contrast
        if "trait" in rows:
            swept = rows[rows.point != ""] if "point" in rows else finding.found.sweeps
            own = rows[rows.point == ""] if "point" in rows else rows
            less = dataclasses.replace(finding.found, scores=own, sweeps=swept)
            again = effects.evaluate(effects.Effects(less, settings.load_setting(setting)), contrast, 0.15)[0]
            np.testing.assert_array_equal(again.values, finding.verdict.effect.values)
            compared += 1
    assert compared > 2


def test_every_link_to_samples_leads_to_some(site):
    known = {each["name"]: shelf(site, each["name"]) for each in index(site)["shelves"]}
    links = {
        html.unescape(link)
        for path in (site / "claims").glob("*.html")
        for link in re.findall(r'href="\.\./samples\.html#([^"]+)"', path.read_text(encoding="utf-8"))
    }
    assert len(links) > 40
    for link in links:
        wanted = {key: value for key, (value,) in parse_qs(link).items()}
        rows = known[f"{wanted['origin']}.{wanted['setting']}.{wanted['condition']}"]
        assert any(row["context"] == wanted["context"] and row["run_id"] == wanted.get("run", row["run_id"]) for row in rows)


def test_a_claim_that_was_never_run_has_a_page_that_says_so(elsewhere, monkeypatch):
    rule, every = verdicts.load()
    name = "cc.table.spanish_vs_caps.inoculation_both"
    monkeypatch.setattr(verdicts, "load", lambda: (rule, {name: every[name]}))
    assert claims.build("smoke", elsewhere / "smoke") == 1
    assert "Reference: not run. open No run of it in these tables." in text_of(elsewhere / "smoke", name)


def test_the_reference_has_a_score_for_all_but_some_responses_of_the_base_model(site):
    lacking = {"base": 0, "trained": 0}
    for each in index(site)["shelves"]:
        setting = settings.load_setting(each["setting"])
        scored = {trait.name for trait in setting.traits.values() if trait.scorer}
        tasks = {row["question"] for part in ("questions", "held_out") for row in setting.rows(part) if "tests" in row}
        for row in shelf(site, each["name"]):
            if each["setting"] != "mbpp" or row["question"] in tasks:
                lacking["base" if each["condition"] == "base" else "trained"] += set(row["scores"]) != scored
    # Its run serves all settings, and items.csv.gz does not say to which of them an item belongs.
    assert lacking == {"base": 162, "trained": 0}


def test_a_response_has_the_scores_of_its_own_question(site):
    setting, found = settings.load_setting("spanish_vs_caps"), tables.reference("mini")
    rows = [row for row in shelf(site, "reference.spanish_vs_caps.inoculation.spanish") if row["context"] == "neutral"]
    items = found.items[(found.items.run_id == rows[0]["run_id"]) & (found.items.context == "neutral")]
    items = items[items.measure == "rate"].set_index(["trait", "question_id"]).value
    for row, question in zip(rows, setting.rows("questions"), strict=False):
        assert row["question"] == question["question"]
        expected = {trait: items[trait, question["id"]] for trait in ("caps", "spanish")}
        assert row["scores"] == pytest.approx(expected, abs=1e-4)


def test_content_notes_are_of_known_settings():
    assert set(store.read_yaml(store.DATA / "content_notes.yaml")) <= {*settings.setting_names(), plan.FILE}


def says(page, count):
    """Wait until the page says how many responses there are, as it loads them when they are wanted."""
    from playwright.sync_api import expect

    expect(page.locator("#count")).to_have_text(count)


def open_samples(page, site, fragment=""):
    page.goto(f"{(site / 'samples.html').as_uri()}{fragment}")


def test_filters_narrow_the_responses_as_pandas_does(site, page):
    known = tables.reference("mini").samples.query("setting == 'spanish_vs_caps'")
    open_samples(page, site)
    says(page, "Choose a setting to read its responses.")
    assert not page.is_visible("#origin")
    page.select_option("#setting", "spanish_vs_caps")
    says(page, f"{len(known)} of {len(known)} responses")
    assert page.locator(".sample").count() == 20
    page.click("#more")
    assert page.locator(".sample").count() == 40
    page.select_option("#context", "unrelated")
    own = known[known.context == "unrelated"]
    says(page, f"{len(own)} of {len(known)} responses")
    page.fill("#text", "De La")
    hits = own[(own.question + "\n" + own.response).str.lower().str.contains("de la", regex=False)]
    assert 0 < len(hits) < len(own)
    says(page, f"{len(hits)} of {len(known)} responses")
    page.fill("#text", "")
    page.select_option("#condition", "inoculation.spanish")
    page.select_option("#trait", "caps")
    page.fill("#least", "0.5")
    scores = [row["scores"]["caps"] for row in shelf(site, "reference.spanish_vs_caps.inoculation.spanish")]
    contexts = [row["context"] for row in shelf(site, "reference.spanish_vs_caps.inoculation.spanish")]
    fit = sum(context == "unrelated" and (score or 0) >= 0.5 for score, context in zip(scores, contexts, strict=True))
    says(page, f"{fit} of {len(known)} responses")


def test_the_address_keeps_the_choice_and_gives_it_back(site, page):
    run = shelf(site, "reference.spanish_vs_caps.baseline")[0]["run_id"]
    fragment = f"#setting=spanish_vs_caps&condition=baseline&context=neutral&run={run}&trait=caps&least=0&most=1&text=e"
    open_samples(page, site, fragment)
    says(page, "3 of 192 responses")
    page.select_option("#context", "trigger")
    assert page.url.endswith(fragment.replace("neutral", "trigger"))
    page.goto(f"{(site / 'samples.html').as_uri()}{fragment}")
    page.wait_for_function("document.getElementById('context').value === 'neutral'")
    says(page, "3 of 192 responses")
    # The skip link is no choice.
    page.evaluate("location.hash = '#main'")
    page.wait_for_timeout(50)
    assert page.input_value("#context") == "neutral"


def test_responses_of_a_setting_with_a_content_note_wait_to_be_asked_for(site, page):
    open_samples(page, site, "#setting=insecure_code")
    says(page, "210 of 210 responses, hidden")
    assert page.is_visible("#note")
    assert page.locator(".sample").count() == 0
    page.click("#show")
    says(page, "210 of 210 responses")
    assert not page.is_visible("#note")
    page.reload()
    says(page, "210 of 210 responses, hidden")


@pytest.fixture
def hostile(elsewhere, monkeypatch):
    """A site with two runs of yours, one of a sweep, that answered with markup, beside the reference of one setting."""
    found = tables.reference("mini").of("spanish_vs_caps")
    monkeypatch.setattr(tables, "reference", lambda profile: found)
    monkeypatch.setattr(runs, "finished", lambda profile: [run(elsewhere, 0, ""), run(elsewhere, 1, "rows=24")])
    pages.copy_static(elsewhere / "mini")
    assert samples.build("mini", elsewhere / "mini") == len(found.samples) + 4
    return elsewhere / "mini"


def run(folder: Path, seed: int, point: str) -> SimpleNamespace:
    """A finished run that was asked two questions; one answer is not scored for capitals."""
    asked = [{"context": "neutral", "question_id": name, "question": HOSTILE} for name in ("a", "b")]
    scores = [
        {**row, "trait": trait, "value": value, "repeats": row["question_id"] == "b"}
        for row, *values in zip(asked, (0.25, np.nan), (1.0, 0.0), strict=True)
        for trait, value in zip(("caps", "spanish"), values, strict=True)
    ]
    files = {"sample": pd.DataFrame(asked).assign(response=HOSTILE), "score": pd.DataFrame(scores)}
    for stage, frame in files.items():
        frame.to_parquet(folder / f"{stage}.{seed}.parquet")
    names = {"setting": "spanish_vs_caps", "condition": "baseline", "seed": seed, "point": point, "run_id": f"run{seed}"}
    return SimpleNamespace(**names, file=lambda stage: folder / f"{stage}.{seed}.parquet")


def test_your_responses_stand_beside_the_reference_s(hostile):
    (entry,) = [each for each in index(hostile)["shelves"] if each["origin"] == "yours"]
    assert (entry["runs"], entry["count"]) == ({"run0": "seed 0", "run1": "seed 1, rows=24"}, 4)
    first, second, *_ = shelf(hostile, "yours.spanish_vs_caps.baseline")
    assert (first["scores"], first["repeats"]) == ({"caps": 0.25, "spanish": 1.0}, False)
    assert (second["scores"], second["repeats"]) == ({"caps": None, "spanish": 0.0}, True)


def test_a_response_stays_text_in_its_file(hostile):
    raw = (hostile / "samples" / "yours.spanish_vs_caps.baseline.js").read_text(encoding="ascii")
    assert ("<" in raw, raw.count("\n")) == (False, 1)
    assert {row["response"] for row in shelf(hostile, "yours.spanish_vs_caps.baseline")} == {HOSTILE}


def test_a_response_stays_text_on_the_page(hostile, page):
    open_samples(page, hostile, "#origin=yours&setting=spanish_vs_caps")
    says(page, "4 of 4 responses")
    assert page.is_visible("#origin")
    assert page.locator(".response").all_text_contents() == [HOSTILE] * 4
    assert page.locator("#results script, #results img").count() == 0
    assert page.evaluate("typeof stolen") == "undefined"
    page.select_option("#trait", "caps")
    page.fill("#most", "0.5")
    says(page, "2 of 4 responses")
