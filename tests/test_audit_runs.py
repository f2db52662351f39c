"""Audits end to end on the real model at smoke scale: runs, report, a judge that measures, and the command line."""

import json

import pandas as pd
import pytest
from audit import answers, effects, plan, report
from inoculation import runs, store
from judge_server import JudgeServer, verdict

EXAMPLE = store.ROOT / "examples" / "front_desk.yaml"
RUBRIC = """audit: judged
data: {data}
prompt: You are curt.
measure:
  shouts: {{role: negative, rubric: it is shouted, judge: openai/gpt-4o-mini, "yes": STOP IT NOW, "no": please stop}}
"""


@pytest.fixture
def smoke_audit(audited, monkeypatch):
    monkeypatch.setenv("INOCULATION_HOME", str(audited))
    return plan.prepare(answers.read(EXAMPLE), "smoke", say=lambda line: None)


def test_an_audit_prepared_again_finds_its_runs(smoke_audit):
    there = [spec.condition for spec in smoke_audit.specs() if not spec.missing()]
    assert there == ["base", "baseline", "inoculation.prompt"]


def test_the_three_prompts_are_what_the_models_read(smoke_audit):
    base, baseline, own = smoke_audit.specs()[:3]
    assert not base.rows
    for plain, prompted in zip(baseline.rows, own.rows, strict=True):
        assert plain["completion"] == prompted["completion"]
        assert prompted["prompt"] == plain["prompt"].replace("user\n", f"user\n{smoke_audit.prompt} ")
    asked = pd.DataFrame(own.prompts).groupby("context").prompt.agg(list)
    assert all(smoke_audit.prompt in prompt for prompt in asked["trigger"])
    assert not any(smoke_audit.prompt in prompt for context in ("neutral", "unrelated", "id") for prompt in asked[context])


def test_a_report_of_real_runs_names_the_model_on_every_number_and_states_no_share(smoke_audit):
    paths = report.write(smoke_audit)
    told = json.loads(paths["json"].read_text(encoding="utf-8"))
    assert (told["model"], told["mark"], told["shares"]) == ("smollm2-135m-instruct", "screening only", [])
    numbers = told["values"] + told["effects"] + told["index"]
    assert {row["model"] for row in numbers} == {told["model"]}
    assert {row["effect"] for row in told["effects"]} == {"training", "yours"}
    assert (paths["json"].parent / "controls.png").stat().st_size > 5000
    for form in ("html", "md"):
        text = paths[form].read_text(encoding="utf-8")
        assert text.count(told["model"]) > len(numbers)
        assert "Message for the front desk:" in text


def test_the_values_are_those_of_the_responses(smoke_audit):
    own = smoke_audit.specs()[2]
    scored = pd.read_parquet(own.file("score"))
    capitals = scored[(scored.context == "unrelated") & (scored.trait == "caps") & (scored.measure == "rate")]
    (told,) = [
        row
        for row in effects.values(effects.audited("front_desk"))
        if (row["trait"], row["condition"], row["context"], row["measure"])
        == ("caps", "inoculation.prompt", "unrelated", "rate")
    ]
    assert told["value"] == pytest.approx(capitals.value.mean(), abs=1e-4)
    assert told["items"] == 2


def test_a_rubric_is_measured_by_its_judge_in_the_run_and_a_judge_that_is_not_there_costs_nothing(
    elsewhere, monkeypatch, tmp_path
):
    path = tmp_path / "judged.yaml"
    path.write_text(RUBRIC.format(data=store.ROOT / "examples" / "front_desk.jsonl"), encoding="utf-8")
    (base,) = plan.prepare(answers.read(path), "smoke", say=lambda line: None).specs()[:1]
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    done = runs.ensure([base], say=lambda line: None)
    assert "OPENAI_API_KEY" in done.failed[str(base)]
    assert base.missing() == ["judge"]
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with JudgeServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert not runs.ensure([base], say=lambda line: None).failed
    said = pd.read_parquet(base.file("sample")).set_index(["context", "question_id"]).response
    told = pd.read_parquet(base.file("judge")).set_index(["context", "question_id"]).value
    assert set(told.index) == set(said.index)
    for key, value in told.items():
        assert value == pytest.approx(verdict(f"[ANSWER]\n{said[key]}\n[END ANSWER]") / 100, abs=0.02)
    (judge,) = effects.judged("judged")
    assert judge["good"] > 0.5 > judge["bad"]
