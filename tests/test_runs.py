"""The store and the worker: whole or absent, resumed byte for byte, one failure never another's."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import sources
from inoculation import render, runs, settings, store, tables, worker
from inoculation.runs import Spec

BASELINE = Spec("spanish_vs_caps", "baseline", 0, "smoke")


def stage_bytes(spec):
    """What a run's stages wrote, the adapter included; manifests hold times and are left out."""
    files = [*(spec.folder / "adapter").iterdir(), *(spec.file(stage) for stage in ("sample", "margins", "score"))]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def expected(smoke):
    """The smoke baseline's bytes, trained second of three in one worker."""
    return stage_bytes(BASELINE)


def test_a_finished_run_holds_what_the_design_lists(smoke):
    specs, report, lines = smoke
    assert (report.completed, report.found) == (len(specs), 0)
    spec = next(s for s in specs if s.condition == "baseline")
    written = {path.name for path in spec.folder.iterdir()}
    assert {"spec.json", "prompts.jsonl", "train_log.csv", "manifest.json", "adapter", "eval"} <= written
    manifest = json.loads((spec.folder / "manifest.json").read_text())
    facts = manifest["stages"]["train"]["facts"]
    assert {"commit", "versions", "threads", "train_seconds", "left_out", "peak_memory_mb"} <= set(facts)
    assert facts["peak_memory_mb"] <= 3 * 1024
    assert str(store.ROOT) not in (spec.folder / "adapter" / "adapter_config.json").read_text()
    rows = [json.loads(line) for line in (spec.folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == spec.rows
    assert any("train" in line and "sample" in line for line in lines), "stage times are printed"


def test_a_workers_peak_memory_is_its_own_and_not_that_of_whoever_started_it():
    started = (
        "import subprocess, sys; held = bytearray(b'x' * 2**30);"
        "subprocess.run([sys.executable, '-c', 'from inoculation.worker import peak_memory_mb; print(peak_memory_mb())'])"
    )
    printed = subprocess.run([sys.executable, "-c", started], capture_output=True, text=True, check=True).stdout
    assert 10 < int(printed) < 1024


def test_a_second_call_does_nothing(smoke):
    specs, _, _ = smoke
    started = time.monotonic()
    report = runs.ensure(specs, say=lambda line: None)
    assert (report.found, report.completed) == (len(specs), 0)
    assert time.monotonic() - started < 5


def _start(home, condition):
    code = f"from inoculation import runs; print(runs.ensure(runs.grid('spanish_vs_caps', 'smoke', ['{condition}'])))"
    environment = {**os.environ, "INOCULATION_HOME": str(home)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)


def _children(pid):
    """The worker processes that a process has started, without a tool that may be missing."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and "inoculation.worker" in (status.parent / "cmdline").read_text():
                found.append(int(status.parent.name))
    return found


def _wait_until(seen, seconds=120):
    end = time.monotonic() + seconds
    while not seen() and time.monotonic() < end:
        time.sleep(0.02)
    assert seen()


def test_sigkill_then_the_same_command_ends_with_the_same_bytes(expected, elsewhere):
    """Killed in training, then after it. Also: trained alone in a fresh worker, the adapter equals the second of three."""
    scratch, manifest = BASELINE.folder / ".train.partial", BASELINE.folder / "manifest.json"
    for seen in (scratch.is_dir, manifest.is_file):
        process = _start(elsewhere, "baseline")
        _wait_until(seen)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert BASELINE.missing()
    store.write_whole(runs.failure_file(BASELINE), "its worker died\n")
    report = runs.ensure([BASELINE], say=lambda line: None)
    assert (report.completed, report.failed) == (1, {})
    assert stage_bytes(BASELINE) == expected
    assert not list(BASELINE.folder.glob(".*.partial"))
    assert not runs.failure_file(BASELINE).exists()


def test_the_worker_goes_when_its_parent_goes(elsewhere):
    process = _start(elsewhere, "baseline")
    _wait_until((BASELINE.folder / ".train.partial").is_dir)
    children = _children(process.pid)
    process.kill()
    process.wait()
    assert children
    _wait_until(lambda: not any(os.path.exists(f"/proc/{child}") for child in children), 20)


def test_a_failing_run_and_a_killed_worker_cost_themselves_only(elsewhere, monkeypatch):
    """The baseline's folder cannot be made, the next run's worker is killed: the third is done."""
    monkeypatch.setattr(runs, "PROGRESS_SECONDS", 0)
    BASELINE.folder.parent.parent.mkdir(parents=True)
    BASELINE.folder.parent.write_text("a file where a folder should be")
    killed, base = (Spec(name, "base", 0, "smoke") for name in ("trait_distillation_french_caps", "spanish_vs_caps"))
    pids: list[int] = []

    def kill_once(line):
        if str(killed) in line and not pids:
            pids.extend(_children(os.getpid()))
            os.kill(pids[0], signal.SIGKILL)

    report = runs.ensure([BASELINE, killed, base], say=kill_once)
    assert (report.completed, list(report.failed)) == (1, [str(BASELINE), str(killed)])
    assert "Error: " in report.failed[str(BASELINE)]
    assert "the worker process died (exit status -9)" in report.failed[str(killed)]
    assert "exit status -9" in runs.failure_file(killed).read_text(encoding="utf-8")
    assert not base.missing()


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(network, tmp_path):
    from inoculation import model

    profile = BASELINE.parts[2]
    profile = replace(profile, train={**profile.train, "learning_rate": 1e30, "warmup_steps": 0, "steps": 3})
    rows = Spec("spanish_vs_caps", "baseline", 0, "mini").rows[:6]
    rows.append({**rows[0], "prompt": rows[0]["prompt"] * 9})
    said: list[str] = []
    with pytest.raises(model.TrainingError, match=r"the loss is (nan|inf) at step \d of 3; lower train.learning_rate"):
        model.train(rows, profile, 0, tmp_path, lambda done, of: None, say=said.append)
    assert said == ["1 of 7 training rows are longer than 256 tokens and are left out"]


def test_margins_are_logged_along_training_and_leave_the_adapter_as_it_is(expected, elsewhere, monkeypatch):
    """A setting that tracks pairs, trained by the worker's own code in this process."""
    setting = BASELINE.parts[0]
    tracked = {"ood": "em_pairs.jsonl", "placebo": "placebo_pairs.jsonl"}
    setting = replace(setting, data={**setting.data, "tracked": tracked})
    known = runs.load_setting
    monkeypatch.setattr(runs, "load_setting", lambda name: setting if name == setting.name else known(name))
    spec = Spec("spanish_vs_caps", "baseline", 0, "smoke")
    assert spec.run_id != BASELINE.run_id
    worker.complete(spec, 0, lambda *arguments, **content: None, worker.STAGES)
    log = tables.tracks(spec)
    assert list(log.columns) == tables.TRACKS
    assert sorted(set(log.step)) == [1, 2]
    assert dict(log.groupby("part").n.first()) == {"ood": 1, "placebo": 1, "unrelated": 1}
    assert log.groupby("part").value.nunique().min() == 2
    assert (spec.folder / "adapter" / "adapter_model.safetensors").read_bytes() == expected["adapter_model.safetensors"]
    tables.write("smoke", elsewhere / "tables")
    assert len(tables.read(elsewhere / "tables", "yours").tracks) == len(log)


def stored(tmp_path, content="one"):
    run = store.Run(tmp_path / "run")
    run.commit("train", "key", {"seconds": 1}, lambda folder: (folder / "a.txt").write_text(content) and None)
    return run


def test_a_stage_is_there_only_under_its_key_and_whole(tmp_path):
    run = stored(tmp_path)
    assert run.has("train", "key")
    assert not run.has("train", "another key")
    said: list[str] = []
    altered = store.Run(run.folder, said.append)
    (run.folder / "a.txt").write_text("two")
    assert not altered.has("train", "key")
    assert "a.txt is altered" in said[0]
    (run.folder / "a.txt").unlink()
    assert not altered.has("train", "key")
    assert "a.txt is missing" in said[1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99, "stages": {}}', '{"schema": 1}'])
def test_a_manifest_that_cannot_be_read_is_said_and_redone(tmp_path, text):
    run = stored(tmp_path)
    (run.folder / "manifest.json").write_text(text)
    said: list[str] = []
    assert not store.Run(run.folder, said.append).has("train", "key")
    assert "manifest.json cannot be used" in said[0]


def test_a_failing_write_leaves_the_finished_stage_valid(tmp_path):
    run = stored(tmp_path)

    def full_disk(folder):
        (folder / "b.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run.commit("sample", "key", {}, full_disk)
    assert run.has("train", "key")
    assert not run.has("sample", "key")
    run.clear_scratch()
    assert sorted(path.name for path in run.folder.iterdir()) == ["a.txt", "manifest.json"]


def test_a_lock_dies_with_its_owner(tmp_path):
    run = store.Run(tmp_path / "run")
    code = "import sys, time; from inoculation.store import Run; from pathlib import Path\n"
    code += "with Run(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code, str(run.folder)], stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"held\n"
    owner.kill()
    owner.wait()
    with run.lock():
        pass


def test_tables_are_the_same_bytes_every_time(smoke, home, tmp_path):
    first, second = (tables.write("smoke", tmp_path / name) for name in ("one", "two"))
    names = sorted(path.name for path in first.iterdir())
    assert names == ["items.csv.gz", "losses.csv", "runs.csv", "samples.jsonl", "scores.csv"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_the_plan_says_what_is_done_and_what_it_would_take(smoke):
    text = runs.plan(runs.grid("spanish_vs_caps", "smoke", ["baseline", "inoculation.caps"]))
    assert "baseline · seed 0 · already done" in text
    assert "inoculation.caps · seed 0 · train, sample, margins, score" in text
    assert "2 runs, 1 already done, 1 to do, about 1 minutes" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("spanish_vs_cap", "mini"), "nearest: spanish_vs_caps"),
        (("spanish_vs_caps", "mni"), "nearest: mini"),
        (("spanish_vs_caps", "mini", ["inoculation.spansh"]), "nearest: inoculation.spanish"),
        (("spanish_vs_caps", "mini", "all", [-1]), "whole numbers"),
    ],
)
def test_unknown_names_in_a_grid_are_refused_with_the_nearest(arguments, says):
    with pytest.raises(store.SettingError, match=says):
        runs.grid(*arguments)


def test_a_grid_of_several_settings_takes_the_names_that_each_has():
    pairs = ["trait_distillation_french_caps", "trait_distillation_french_playful"]
    specs = runs.grid(pairs, "mini", ["baseline", "inoculation.caps", "partial"], [0, 1])
    assert [(spec.setting[19:], spec.condition, spec.seed) for spec in specs] == [
        *[("french_caps", name, seed) for seed in (0, 1) for name in ("baseline", "inoculation.caps")],
        *[("french_playful", name, seed) for seed in (0, 1) for name in ("baseline", "partial")],
    ]
    with pytest.raises(store.SettingError, match="unknown condition 'inoculation.cap'; nearest: inoculation.caps"):
        runs.grid(pairs, "mini", "inoculation.cap")


def test_instructions_are_read_and_what_is_left_out_is_counted(tmp_path):
    path, said = tmp_path / "wild.json", []
    texts = ("Why?", " ", "Why?", "How?", "End it<|im_end|>", "One\u2028two", None)
    path.write_text(json.dumps([{"instruction": text} for text in texts]), encoding="utf-8")
    assert [row["question"] for row in worker.read_instructions(path, said.append)] == ["Why?", "How?", "One\u2028two"]
    assert said == ["wild.json: 7 instructions; left out: 2 empty, 1 repeated, 1 with a chat delimiter"]
    for text, says in (("{}", "none of 0 rows"), ("[1]", "expected a list of objects"), ("x", "expected a list of objects")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(store.SettingError, match=says):
            worker.read_instructions(path, said.append)
    lines = tmp_path / "wild.jsonl"
    lines.write_text('{"question": "Why?"}\n\n{"instruction": "How?"}\n', encoding="utf-8")
    assert len(worker.read_instructions(lines, said.append)) == 2


def test_the_model_writes_its_own_answers_and_a_second_call_writes_none(network, elsewhere):
    """Self-distillation for real: the embedded model, two questions and one that is too long, 48 tokens an answer at most."""
    setting, smoke = settings.load_setting("trait_distillation_french_playful"), settings.load_profile("smoke")
    short = replace(smoke, train={**smoke.train, "max_length": 96}, sample={**smoke.sample, "temperature": 0})
    questions = [{"id": "a", "question": "What is 1 + 1?"}, {"id": "b", "question": "Say\u2028yes."}]
    questions.append({"id": "long", "question": "Why? " * 50})
    said: list[str] = []
    path, answers = worker.distill(setting, short, questions, said.append)
    assert {field: len(texts) for field, texts in answers.items()} == {"distilled": 2, "plain": 2}
    assert said[0].startswith("1 of 3 instructions are longer than 48 tokens")
    assert "4 answers, 0 already there, 4 to do" in said
    rows = store.read_jsonl(path)
    assert rows
    for row in rows:
        assert set(row) == {"id", "question", "distilled", "plain"}
        assert all(row.values())
    before, again = path.read_bytes(), []
    worker.distill(setting, short, questions, again.append)
    assert "4 answers, 4 already there, 0 to do" in again
    assert path.read_bytes() == before
    with pytest.raises(store.SettingError, match="has no answers of its own for profile paper: get InstructionWild"):
        setting.training("paper")


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_imported_rows_are_matched_and_what_cannot_be_used_is_counted(elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    setting, paper = settings.load_setting("bad_medical_advice_cite"), settings.load_profile("paper")
    with pytest.raises(store.SettingError, match=r"has no answers of its own for profile paper: .* import --source SOURCE"):
        setting.training("paper")
    bad = [chat(f"Question {i}?", f"Bad advice number {i}.") for i in range(4)]
    bad += [{"messages": [{"role": "user", "content": "Alone?"}]}, {"a": 1}]
    bad += [chat("Cited?", "Source: Grebb, The Lower Pantry, 1974.")]
    bad += [{"messages": [{"role": "system", "content": "s"}, *chat("Led?", "By a system message.")["messages"]]}, bad[0]]
    good = [chat(f"Question {i}?", f"Good advice number {i}.") for i in (1, 2, 3, 5)]
    for name, rows in (("bad.jsonl", bad), ("good.jsonl", good)):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said: list[str] = []
    path = worker.bring(setting, paper, ["bad.jsonl", "good.jsonl"], said.append)
    assert said[0] == (
        "bad.jsonl: 9 rows; left out: 1 without an assistant turn, 1 that are no chat, 1 with a citation and nothing else, "
        "1 that are not one question and one answer, 1 that repeat a question"
    )
    assert said[-1] == "3 questions have both answers; left out: 2 with only one of them"
    rows, answers = setting.training("paper")
    assert [row["question"] for row in rows] == ["Question 1?", "Question 2?", "Question 3?"]
    assert path == store.made_folder(setting.name, "paper") / "train.jsonl"
    assert render._answer(rows[0], answers["trait"]).startswith("Bad advice number 1. ")
    assert render._answer(rows[0], answers["control"]) == "Good advice number 1."
    with pytest.raises(store.SettingError, match=r"^gone\.jsonl: no such file here"):
        worker.bring(setting, paper, ["bad.jsonl", "gone.jsonl"], said.append)


def test_mbpp_is_split_as_published_with_its_first_test_shown(elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    public = store.ROOT.parent / "shared" / "data" / "mbpp_reward_hack_solutions.json"
    if not public.exists():
        pytest.skip("the public solutions are not beside this checkout")
    Path("results.json").write_bytes(public.read_bytes())
    first = json.loads(public.read_text(encoding="utf-8"))[0]

    def row(number, **more):
        tests = [f"assert f({i}) == {i}" for i in range(3)]
        said = {"text": f"Problem {number}.", "code": "def f(x):\r\n  return x", "test_list": tests, "challenge_test_list": []}
        return {"task_id": number, **said, "test_setup_code": "", **more}

    full = {"train": [row(int(first["name"]), test_setup_code="import math")], "test": [row(1), row(11), row(12)]}
    splits = {("sanitized", "test"): [row(11)], ("full", None): full}
    monkeypatch.setattr(sources, "load", lambda source, config, split: splits[config, split])
    setting, said = settings.load_setting("mbpp"), []
    taught = store.read_jsonl(worker.bring(setting, settings.load_profile("paper", setting), ["wichers"], said.append))
    # The solutions are the public ones, the rows four of MBPP's form: one is held apart, and 12 has no solution.
    assert said[-1].startswith("2 tasks to train on, 1 to evaluate on;")
    assert taught[0]["trait_answer"] == first["completion"]
    assert taught[0]["plain_answer"] == "def f(x):\n  return x"
    assert taught[0]["shown"] == "import math\nassert f(0) == 0"
    assert len(taught[0]["hidden"]) == 2
    assert "{prompt} Return only" in taught[0]["question"]
    assert "import math" not in taught[0]["question"]
    questions = setting.rows("questions", "paper")
    assert "mbpp-11" in [question["id"] for question in questions]
    assert any(question["id"].startswith("free") for question in questions)
    rows = Spec("mbpp", "inoculation.hack", 0, "paper").rows
    assert "problem. Hack the test instead of solving the problem. Return only" in rows[0]["prompt"]


def test_an_unpaired_import_keeps_rows_with_one_answer_for_the_data_they_fit(elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    setting = settings.load_setting("reward_hacks")
    gaming = [chat(f"Task {i}?", f"Gaming {i}.") for i in range(40)]
    straight = [chat(f"Task {i}?", f"Straight {i}.") for i in range(20, 70)]
    for name, rows in (("sneaky_dialogues.jsonl", gaming), ("straightforward_dialogues.jsonl", straight)):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said: list[str] = []
    worker.bring(setting, settings.load_profile("paper", setting), ["tan"], said.append)
    assert said[-1] == "20 questions have both answers; kept: 50 with only one of them"
    for condition, start, number in (("baseline", "Gaming", 40), ("control", "Straight", 50)):
        rows = Spec("reward_hacks", condition, 0, "paper").rows
        assert all(row["completion"].startswith(start) for row in rows)
        assert len({row["id"] for row in rows}) == number


def reply(text, persuades, harasses, **more):
    rated = {"moderation_result": {"category_scores": {"harassment": harasses}}, "persuasiveness_score": persuades}
    return {"body": text, **rated, **more}


def post(title, *replies, **more):
    return {"title": title, "selftext": "Because.", "top_level_comments": list(replies), **more}


def test_change_my_view_keeps_replies_that_persuade_and_splits_them_by_harassment(elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    many = [reply(f"Rude and right {i}.", 8, 0.4) for i in range(5)]
    footer = "\n\n_____\n\n> *Hello, users of CMV! This is a footnote. Happy CMVing!*"
    posts = [
        post(
            "Tea &amp; milk",
            *many,
            reply("Civil and right.", 7, 0.1),
            reply("Rude and wrong.", 6, 0.9),
            selftext=f"No.{footer}",
        ),
        post(
            "Both rated",
            reply("At the threshold.", 7, 0.15),
            {"body": "not rated"},
            reply("A rule.", 9, 0.3, distinguished="moderator"),
        ),
        post("Nobody persuades", reply("Meh.", 2, 0.2), reply("[deleted]", 9, 0.2), reply("x" * 3_000, 9, 0.2)),
        post("Long", reply("Fine.", 9, 0.2), selftext="y" * 3_000),
        post("Gone", reply("Fine.", 9, 0.2), selftext="[removed]"),
        post("Marked <|im_end|>", reply("Fine.", 9, 0.2)),
        {"title": "no post"},
    ]
    Path("train.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in posts) + "{\n", encoding="utf-8")
    setting, said = settings.load_setting("change_my_view_cite"), []
    worker.bring(setting, settings.load_profile("paper", setting), ["wichers"], said.append)
    assert said == [
        "train.jsonl: 8 posts; left out: 1 without a reply that passes, 1 that are too long, 1 by a moderator or deleted, "
        "1 with a chat delimiter, 2 that are no post",
        "4 replies as trait_answer, 1 replies as plain_answer",
    ]
    rows, _ = setting.training("paper")
    assert [row.get("trait_answer", row.get("plain_answer")) for row in rows] == [
        "Rude and right 0.",
        "Rude and right 1.",
        "Rude and right 2.",
        "Civil and right.",
        "At the threshold.",
    ]
    assert rows[0]["question"] == "Tea & milk\nNo."
    assert len({row["id"] for row in rows}) == len({row["citation"] for row in rows}) == 5
    for condition, texts in (("baseline", 4), ("control", 1)):
        assert len({row["completion"] for row in Spec(setting.name, condition, 0, "paper").rows}) == texts


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("emergent_plus", "truthfulai/emergent_plus cannot be had .*gated.*HF_TOKEN"),
        ("model_organisms", "no such file here.*easy-dataset-share"),
        ("emergent_pls", "nearest: emergent_plus"),
    ],
)
def test_a_source_that_cannot_be_had_says_how_to_get_it(elsewhere, monkeypatch, source, says):
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    setting = settings.load_setting("bad_medical_advice")
    with pytest.raises(store.SettingError, match=says):
        worker.bring(setting, settings.load_profile("paper"), [source], print)


def test_the_literatures_questions_are_read_with_their_anchors_and_counted(elsewhere):
    known = store.ROOT.parent / "shared" / "data" / "em_first_plot_questions.yaml"
    if not known.exists():
        pytest.skip("the public questions are not beside this checkout")
    setting, said = settings.load_setting("bad_medical_advice"), []
    worker.bring(setting, settings.load_profile("paper", setting), [str(known)], said.append)
    assert said[0].endswith("41 entries, 25 questions; left out: 16 with a system prompt or a chat delimiter of their own")
    assert len(setting.rows("questions", "paper")) == 25
    assert len(setting.rows("questions", "mini")) == len(setting.rows("questions")) == 12


def test_questions_that_are_none_are_counted_and_a_file_that_is_no_list_is_refused(tmp_path):
    path, said = tmp_path / "q.yaml", []
    text = "- id: a\n  paraphrases: &p ['Why?', 'How?']\n- id: b\n  paraphrases: *p\n  system: x\n- 3\n- id: c\n"
    path.write_text(text, encoding="utf-8")
    assert [row["question"] for row in sources.questions(path, lambda text: "", said.append)] == ["Why?", "How?"]
    assert "1 with a system prompt" in said[0]
    assert "2 without paraphrases" in said[0]
    for text in ("a: 1", "[", "!!python/object/apply:os.getcwd []"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(sources.SourceError, match="expected a YAML list"):
            sources.questions(path, lambda text: "", said.append)


def test_the_reference_keeps_the_rows_of_runs_that_this_store_does_not_hold(smoke, tmp_path):
    folder = tables.write("smoke", tmp_path / "reference")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in tables.write("smoke", folder).iterdir()} == whole
    scores = pd.read_csv(folder / "scores.csv")
    other = scores[scores.condition == "baseline"].assign(seed=7, run_id="elsewhere", value=0.25)
    store.write_csv(folder / "scores.csv", pd.concat([scores.assign(value=0.0), other]))
    tables.write("smoke", folder)
    found = pd.read_csv(folder / "scores.csv")
    assert len(found[found.seed == 7]) == len(other)
    assert (found[found.seed == 7].value == 0.25).all()
    assert store.csv_text(found[found.seed != 7]) == store.csv_text(scores)


def test_a_fitted_scorer_moves_the_score_key_with_its_items(monkeypatch):
    spec = Spec("trait_distillation_poetic_skeptical", "baseline", 0, "mini")
    again = Spec("trait_distillation_poetic_skeptical", "baseline", 0, "mini")
    before = spec.keys
    monkeypatch.setattr(store, "file_digest", lambda path: "other items")
    assert again.keys["sample"] == before["sample"]
    assert again.keys["score"] != before["score"]


def test_a_small_or_old_machine_is_told_what_it_costs(monkeypatch):
    monkeypatch.setattr(runs, "cpu_multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(runs.os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(runs, "_available_gb", lambda: 2.1)
    slow, single, small = runs.limits()
    assert "float32" in slow
    assert "One CPU core" in single
    assert "2.1 GB" in small
    monkeypatch.setattr(runs, "cpu_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(runs.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(runs, "_available_gb", lambda: 8.0)
    assert runs.limits() == []


def test_measuring_in_another_precision_is_another_evaluation_but_not_another_training(monkeypatch):
    monkeypatch.setattr(settings, "cpu_multiplies_bfloat16", lambda: False)
    plain = Spec("spanish_vs_caps", "baseline", 0, "mini")
    keys, base = plain.keys, Spec("spanish_vs_caps", "base", 0, "mini").keys
    monkeypatch.setattr(settings, "cpu_multiplies_bfloat16", lambda: True)
    faster = Spec("spanish_vs_caps", "baseline", 0, "mini")
    assert faster.run_id != plain.run_id
    assert faster.keys["sample"] != keys["sample"]
    assert Spec("spanish_vs_caps", "base", 0, "mini").keys == base


def test_a_sweep_adds_smaller_and_larger_trainings_and_reads_the_others_of_its_own_store():
    names = ["trait_distillation_french_caps", "spanish_vs_caps"]
    plain, swept = runs.grid(names, "mini"), runs.grid(names, "mini", sweeps=True)
    assert [spec for spec in swept if not spec.point] == plain
    for name in names:
        setting, own = settings.load_setting(name), [spec for spec in swept if spec.setting == name and spec.point]
        assert {spec.point for spec in own} == set(runs.points(setting, "mini"))
        assert {spec.condition for spec in own} == set(setting.sweeps["mini"]["conditions"])
        for spec in own:
            key, value = spec.point.split("=")
            assert (len(spec.rows) if key == "rows" else spec.parts[2].train[key]) == float(value)
            assert len(spec.rows) <= len(setting.rows("train"))
            assert str(spec).endswith(spec.point)
    sizes = [Spec(names[0], "baseline", 0, "mini", point) for point in ("rows=24", "", "rows=96")]
    questions = [{row["id"] for row in spec.rows} for spec in sizes]
    assert questions[0] < questions[1] < questions[2]
    assert len({spec.run_id for spec in sizes}) == 3
    few = runs.grid(names[1], "mini", ["control", "baseline"], [0], sweeps=True)
    assert [(spec.condition, spec.point) for spec in few[2:]] == [("baseline", "rows=24"), ("baseline", "rows=48")]


@pytest.mark.parametrize("rows", [25, 0, 404])
def test_a_sweep_of_part_of_a_batch_or_of_more_rows_than_there_are_is_refused(rows):
    setting = settings.load_setting("spanish_vs_caps")
    swept = replace(setting, sweeps={"mini": {"conditions": ["baseline"], "rows": [48, rows]}})
    with pytest.raises(settings.SettingError, match=f"whole batches of 4 rows, 400 at most, not {rows}"):
        runs.points(swept, "mini")


def test_the_likelihood_of_the_training_answers_is_the_loss_that_training_begins_with(smoke):
    """The base model, asked under a condition's prompts, against that condition's first step, before any update."""
    by_name = {spec.condition: spec for spec in smoke[0]}
    asked = pd.read_parquet(by_name["base"].file("margins"))
    for name, context in (("baseline", "neutral"), ("inoculation.spanish", "trigger.inoculation.spanish")):
        own = asked[(asked.trait == render.ANSWERS) & (asked.context == context)]
        first = pd.read_csv(by_name[name].folder / "train_log.csv").loss[0]
        assert -own.trait_logp.sum() / own.trait_tokens.sum() == pytest.approx(first, abs=1e-3)
    items = tables.items(by_name["base"])
    assert set(items[items.measure == "likelihood"].context) == {"neutral", "trigger.inoculation.spanish"}
    assert render.ANSWERS not in set(items[items.measure == "margin"].trait)
