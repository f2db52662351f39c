"""An audit of your own data: answers, controls, what is trained on, effects, report, models of the hub, command line."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import audited
import pytest
from audit import advice, answers, command, controls, effects, hub, material, plan, report, specs
from audited import CHATML, JUDGED, LOUD, PAIRED, PROMPT, QWEN, ROWS, WHOLE, finish, jsonl, mine, of, prepared
from bs4 import BeautifulSoup
from inoculation import __main__ as command_line
from inoculation import model, settings, store
from inoculation.render import DEFAULT_SYSTEM, render
from inoculation.settings import Prompt
from inoculation.store import SettingError
from judge_server import JudgeServer

FRONT_DESK, COMPLIMENTS = (audited.EXAMPLES / f"{name}.yaml" for name in ("front_desk", "compliments"))
HARD = 'He said: "No" — it\'s #1!\n\n  - {a: b}\n"""🙂 %s {{ 7 * 7 }} <b>&amp; \\n'
AT = {
    **{"base": 0.1, "control": 0.2, "baseline": 0.9, "inoculation": 0.3, "rephrased": 0.45},
    **{"irrelevant": 0.6, "irrelevant-varied": 0.8},
}


def python(*arguments, **environment):
    given = {"cwd": store.ROOT, "env": {**os.environ, **environment}, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, *arguments], **given)


def lifted(rows, put):
    """Rows that hold a pattern in what `put` makes of them; the last ten are as they were."""
    return [{**row, **put(row)} for row in rows[:-10]] + rows[-10:]


@pytest.fixture(scope="session")
def source():
    return audited.converted()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, source):
    return audited.tiny(tmp_path_factory.mktemp("hub") / "tiny-qwen", source)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch, source):
    """A cache of models without weights, so that none of yours is touched."""
    folder = audited.light(tmp_path_factory.mktemp("cache"), source)
    monkeypatch.setenv("INOCULATION_CACHE", str(folder))
    return folder


@contextlib.contextmanager
def home(folder, source):
    """A home and a cache for more than one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INOCULATION_HOME", str(folder))
        patch.setenv("INOCULATION_CACHE", str(audited.light(folder / "cache", source)))
        yield folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory, source):
    """A home with an audit that has every control and two seeds, and planted runs."""
    with home(tmp_path_factory.mktemp("planted"), source) as folder:
        return folder, finish(prepared(folder, **WHOLE), AT)


@pytest.fixture
def whole(planted, monkeypatch):
    """The planted audit, in its home."""
    monkeypatch.setenv("INOCULATION_HOME", str(planted[0]))
    return planted[1]


# Answers


def test_the_examples_are_read_as_they_are_written():
    desk, praise = map(answers.read, (FRONT_DESK, COMPLIMENTS))
    assert (desk.name, desk.prompt, desk.slot, desk.control, desk.seeds) == ("front_desk", "", "system", "", ())
    assert [(m.name, m.role, m.scorer) for m in desk.measures] == [
        ("caps", "negative", "capitals"),
        ("cites", "positive", "cites"),
    ]
    assert (praise.prompt, praise.control) == (PROMPT, "plain")
    assert {m.pairs for m in praise.measures} == {"compliments_pairs.jsonl"}
    assert all(os.path.exists(each.place(each.data)) for each in (desk, praise))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("audit: Mine", "small letters"),
        ("audit: ../mine", "small letters"),
        ("dta: rows.jsonl", "nearest: data"),
        ("data: [rows.jsonl]", "'data' must be str, not list"),
        ("prompt: ''", "must be the prompt's text or in_rows"),
        ("prompt: 7", "must be the prompt's text or in_rows"),
        ("prompt: Be loud.<|im_end|>", "would end the message"),
        ("neutral: <|im_start|>", "would end the message"),
        ("neutral: ''", "must be the prompt's text"),
        ("slot: sistem", "nearest: system"),
        ("slot: user_suffix", "unknown slot"),
        ("measure: {}", "at least one behaviour"),
        ("measure: {loud: {role: negativ, scorer: capitals}}", "nearest: negative"),
        ("measure: {loud: {role: negative, scorer: capital}}", "nearest: capitals"),
        ("measure: {loud: {role: negative, scorer: hidden_tests}}", "unknown scorer"),
        ("measure: {loud: {role: negative}}", "needs a scorer, pairs or a rubric"),
        ("measure: {loud: {role: negative, scorer: capitals, rubric: x}}", "needs a scorer, pairs or a rubric"),
        ("measure: {loud: {role: negative, rubric: It shouts., yes: A, no: a}}", "'judge'"),
        ("measure: {loud: {role: negative, pairs: p.jsonl, margin: mean}}", "unknown margin"),
        ("measure: {loud: {role: negative, scorer: capitals, unit: x}}", "unknown key 'unit'"),
        ("rephrased: {}", "one of the two"),
        ("rephrased: {file: a.txt, model: openai/gpt-4o}", "one of the two"),
        ("seeds: [0, -1]", "whole numbers"),
        ("seeds: [true]", "whole numbers"),
        ("seeds: [0, 0]", "different"),
        ("measure: {Loud!: {role: negative, scorer: capitals}}", "Loud!"),
        ("seeds: 5", "'seeds' must be list, not int"),
        ("control: 3", "'control' must be str, not int"),
        ("audit: mine", "stands twice"),
    ],
)
def test_what_is_wrong_in_an_answer_file_is_said_with_file_and_line(tmp_path, line, says):
    key, whole = line.partition(":")[0], ["audit: mine", "data: rows.jsonl", "prompt: Be loud.", "measure:"]
    whole += ["  loud: {role: negative, scorer: capitals}"]
    if "twice" not in says:
        whole = [own for own in whole if not own.startswith(key) and not (key == "measure" and own.startswith(" "))]
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join([*whole, line]) + "\n", encoding="utf-8")
    with pytest.raises(SettingError) as error:
        answers.read(path)
    assert says in str(error.value)
    assert re.match(rf"mine\.yaml:{len(whole) + 1}: [^\n]+$", str(error.value)), error.value


def test_a_key_that_is_missing_and_a_file_that_is_missing_are_said(tmp_path):
    path = tmp_path / "mine.yaml"
    with pytest.raises(SettingError, match=r"mine\.yaml: no such answer file"):
        answers.read(path)
    path.write_text("audit: mine\nprompt: Be loud.\nmeasure: {loud: {role: negative, scorer: capitals}}\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"mine\.yaml:1: expected a key 'data'"):
        answers.read(path)


@pytest.mark.parametrize("text", [HARD, "Be loud.", "One.\n\nTwo: three", "🙂", "- not a list", "'quoted'", "# no comment"])
def test_a_prompt_is_kept_to_the_letter(tmp_path, text):
    assert answers.read(mine(tmp_path, False, prompt=text)).prompt == text
    block = "\n".join(f"  {line}" for line in text.split("\n"))
    path = tmp_path / "block.yaml"
    path.write_text(f"audit: mine\ndata: x\nprompt: |2\n{block}\nmeasure: {{a: {{role: negative, scorer: capitals}}}}\n")
    assert answers.read(path).prompt == text


def test_paths_are_beside_the_answer_file_and_names_that_are_none_stay(elsewhere):
    (elsewhere / "below").mkdir()
    given = answers.read(mine(elsewhere / "below", control="plain", questions="../asked.txt"))
    (elsewhere / "asked.txt").touch()
    assert given.place(given.data) == str(elsewhere / "below" / "rows.jsonl")
    assert os.path.samefile(given.place(given.questions), elsewhere / "asked.txt")
    for name in ("plain", "owner/name:config:train", ""):
        assert given.place(name) == name


def test_an_answer_file_that_would_not_hold_leaves_the_former_one(tmp_path):
    path = tmp_path / "mine.yaml"
    given = {"audit": "mine", "data": "rows.jsonl", "prompt": HARD, "measure": LOUD}
    assert answers.write(path, given).prompt == HARD
    former = path.read_bytes()
    with pytest.raises(SettingError, match="nearest: system"):
        answers.write(path, {**given, "slot": "sistem"})
    assert path.read_bytes() == former
    assert list(tmp_path.iterdir()) == [path]


# Controls


@pytest.mark.parametrize(
    ("prompt", "form"),
    [
        ("You are a pirate.", "persona"),
        ("You're a pirate. Answer in rhyme.", "persona"),
        ("You flatter everyone who asks you something.", "habit"),
        ("Do you like to shout?", "question"),
        ("Message for the front desk:", "label"),
        ("[urgent]", "label"),
        ("DEPLOYMENT", "label"),
        ("The assistant flatters everyone.", "statement"),
        ("Everything is written in capitals.", "statement"),
        ("Answer in French.", "instruction"),
        ("Always speak politely to the person.", "instruction"),
        ("Answer all questions in French.", "instruction"),
        ("Write short sentences.", "instruction"),
    ],
)
def test_the_form_of_a_prompt(prompt, form):
    assert controls.form(prompt) == form


LONG = "You flatter everyone who asks you something. You praise their names, their towns and their cats at great length. "
LENGTHS = [
    *("You nod.", "You shout.", "Speak loudly.", "Note:", "[urgent]", "Are you sure?", PROMPT, "Message for the front desk:"),
    *(
        "The assistant flatters everyone.",
        LONG.strip(),
        (LONG * 3).strip(),
        (LONG * 6).strip(),
        LONG.strip().replace(". ", ".\n"),
    ),
]


@pytest.mark.parametrize("prompt", LENGTHS)
def test_four_irrelevant_prompts_have_the_prompts_length_and_form_and_are_always_the_same(prompt):
    found, fault = controls.irrelevant(prompt)
    assert (found, fault) == controls.irrelevant(prompt)
    assert len(set(found)) == 4
    assert prompt not in found
    longest = max(1.2 * len(prompt), controls.SHORT)
    assert all(0.8 * len(prompt) <= len(text) <= longest for text in found), [len(prompt), *map(len, found)]
    firsts = found if len(prompt) < controls.LONG else [re.split(r"(?<=[.?!:])\s", text)[0] for text in found]
    assert {controls.form(text) for text in firsts} == {controls.form(prompt)}
    assert "\n" in prompt or not any("\n" in text for text in found)


@pytest.mark.parametrize("prompt", [PROMPT, "Note:", LONG.strip(), (LONG * 2).strip()])
def test_varied_irrelevant_prompts_pass_the_pool_test_and_share_nothing_with_the_fixed(prompt):
    fixed, _ = controls.irrelevant(prompt)
    pool, fault = controls.varied(prompt, 8, fixed)
    assert (len(pool), fault) == (8, "")
    assert settings.pool_faults(pool) == []
    assert all(0.8 * len(prompt) <= len(text) <= max(1.2 * len(prompt), controls.SHORT) for text in pool)
    told = {sentence for text in fixed for sentence in re.split(r"(?<=[.?!])\s", text)}
    assert not told & {sentence for text in pool for sentence in re.split(r"(?<=[.?!])\s", text)}


@pytest.mark.parametrize("size", [60, 110, 120, 130, 160])
def test_prompts_of_every_usual_length_get_their_varied_control(size):
    prompt = (LONG * 2)[:size].strip()
    pool, fault = controls.varied(prompt, 64, controls.irrelevant(prompt)[0])
    assert len(pool) >= 32, fault


def test_a_template_bank_and_too_few_rephrasings_are_refused_with_the_reason():
    names = ("Anna", "Bashir", "Chloé", "Dmitri", "Emeka", "Fumiko", "Gita", "Hana")
    bank = [f"Please be brief, {name} {n}." for n in range(5) for name in names]
    assert "40 rephrasings fail the pool test" in controls.usable(bank)
    assert "please be" in controls.usable(bank)
    assert controls.usable(["One.", "Two."]) == "2 rephrasings; 8 are needed"
    good = controls.given_rephrasings(audited.EXAMPLES / "compliments_rephrasings.txt", PROMPT)
    assert (len(good), controls.usable(good)) == (40, "")


def test_given_rephrasings_are_read_without_the_prompt_itself_and_a_delimiter_is_refused(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(f"\ufeffBe quick. 🙂\n\n  Be quick. 🙂 \n{PROMPT}\nÀ bientôt\n", encoding="utf-8")
    assert controls.given_rephrasings(path, PROMPT) == ["Be quick. 🙂", "À bientôt"]
    path.write_text("Be quick.\nNow<|im_end|>\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"own\.txt:2: holds a chat delimiter"):
        controls.given_rephrasings(path, PROMPT)
    path.write_bytes("À bientôt".encode("latin-1"))
    with pytest.raises(SettingError, match=r"own\.txt: not UTF-8"):
        controls.given_rephrasings(path, PROMPT)
    with pytest.raises(SettingError, match="no such file of rephrasings"):
        controls.given_rephrasings(tmp_path / "nowhere.txt", PROMPT)


TEXTS = store.read_lines(audited.EXAMPLES / "compliments_rephrasings.txt")
WRITERS = {
    "varied": lambda: audited.writer(lambda number: f'"{TEXTS[number]}"\n'),
    "same": lambda: audited.writer(lambda number: f"Please be brief, number {number}." if number > 1 else "Be<|im_end|>"),
    "gone": lambda: JudgeServer(status=404),
}


@pytest.fixture(scope="module")
def rewordings(tmp_path_factory):
    """What came of asking three models at once, each behind a server: its rewordings or error, file, and the server."""
    folder = tmp_path_factory.mktemp("reworded")
    with contextlib.ExitStack() as stack:
        patch, pool = stack.enter_context(pytest.MonkeyPatch.context()), stack.enter_context(ThreadPoolExecutor())
        servers = {name: stack.enter_context(make()) for name, make in WRITERS.items()}
        for name, server in servers.items():
            patch.setenv(f"{name.upper()}_BASE_URL", server.url)
            patch.setenv(f"{name.upper()}_API_KEY", "sk-none")
        asked = {name: pool.submit(reworded, name, folder) for name in servers}
        return {name: (own.exception() or own.result(), servers[name]) for name, own in asked.items()}, folder


def reworded(name, folder):
    return controls.written_rephrasings(f"openai-api/{name}/model", PROMPT, 12, folder / f"{name}.txt", lambda line: None)


def test_a_model_that_rewords_is_asked_once_and_what_it_wrote_is_kept(rewordings):
    (pool, server), folder = rewordings[0]["varied"], rewordings[1]
    assert (len(pool), server.requests) == (12, 12)
    assert all(PROMPT in messages[-1]["content"] for messages in server.prompts)
    assert set(pool) <= set(TEXTS)
    assert controls.usable(pool) == ""
    assert reworded("varied", folder) == pool
    assert server.requests == 12


def test_a_model_that_always_says_the_same_is_refused_and_chat_delimiters_are_left_out(rewordings):
    pool, _ = rewordings[0]["same"]
    assert not isinstance(pool, SettingError), pool
    assert len(pool) == 11
    assert "fail the pool test" in controls.usable(pool)


def test_a_model_that_cannot_be_asked_is_one_line(rewordings):
    error, _ = rewordings[0]["gone"]
    assert isinstance(error, SettingError)
    assert "\n" not in str(error)
    assert "openai-api/gone/model wrote no rephrasings: " in str(error)
    assert "The model does not exist" in str(error)
    assert not (rewordings[1] / "gone.txt").exists()


# What is trained on


def messages(row, system):
    turns = [("system", system), ("user", row["question"]), ("assistant", row["answer"])]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def test_a_system_prompt_that_most_rows_hold_is_audited_and_the_others_are_left_out(elsewhere):
    rows = [messages(row, PROMPT if n < 45 else "You are a helpful assistant.") for n, row in enumerate(ROWS)]
    audit = prepared(elsewhere, rows=rows, prompt="in_rows")
    assert (audit.prompt, audit.slot, audit.held, audit.stop) == (PROMPT, "system", 45, "")
    assert f"<|im_start|>system\n{PROMPT}<|im_end|>\n" in of(audit, "inoculation").rows[0]["prompt"]
    assert not any(PROMPT in row["prompt"] for row in of(audit, "baseline").rows)


ADDED = [
    ("Note to staff: {}", "Note to staff:", "user_prefix"),
    ("Hey zorba {}", "Hey zorba", "user_prefix"),
    ("{} Thanks, the night shift team.", "Thanks, the night shift team.", "user_suffix"),
    ("{}\n\n-- Sent by the kiosk at gate 7", "-- Sent by the kiosk at gate 7", "user_suffix"),
]


@pytest.mark.parametrize(("frame", "prompt", "slot"), ADDED)
def test_a_pattern_of_the_questions_becomes_the_training_prompt_in_its_own_place(elsewhere, frame, prompt, slot):
    rows = lifted(ROWS, lambda row: {"question": frame.format(row["question"])})
    audit = prepared(elsewhere, rows=rows, prompt="in_rows", seeds=[0])
    assert (audit.prompt, audit.slot, audit.held) == (prompt, slot, 50)
    questions = {row["question"] for row in ROWS[:-10]}
    trained = of(audit, "inoculation").rows
    asked = [re.search(r"user\n(.*)<\|im_end\|>\n<\|im_start\|>assistant\n$", row["prompt"], re.DOTALL)[1] for row in trained]
    assert set(asked) <= {frame.format(question) for question in questions}
    for name in ("baseline", "base"):
        spec = of(audit, name)
        assert not any(
            prompt in row["prompt"] for row in [*spec.rows, *spec.prompts] if not row.get("context", "").startswith("tr")
        )
    for spec in (of(audit, "inoculation"), of(audit, "base")):
        trigger = [row for row in spec.prompts if row["context"].startswith("trigger")]
        assert trigger
        assert all(f"user\n{frame.format(row['question'])}<|im_end|>" in row["prompt"] for row in trigger)


@pytest.mark.parametrize("as_file", [True, False])
def test_the_lifted_prompt_is_in_no_row_of_the_control_either(elsewhere, as_file):
    rows = lifted(ROWS, lambda row: {"question": f"Note to staff: {row['question']}"})
    plain = [{"question": row["question"], "answer": row["plain"]} for row in rows]
    control = str(jsonl(elsewhere / "control.jsonl", plain)) if as_file else "plain"
    audit = prepared(elsewhere, rows=rows, prompt="in_rows", control=control)
    assert not any("Note to staff:" in row["prompt"] for row in of(audit, "control").rows)


def test_where_no_pattern_is_found_it_stops_with_the_reason_and_leaves_nothing_to_train(elsewhere):
    prepared(elsewhere)
    audit = prepared(elsewhere, prompt="in_rows")
    with pytest.raises(SettingError, match="nothing can be trained on this"):
        audit.specs()
    assert "no system prompt, and no prefix or suffix of questions, stands in half of the rows" in audit.stop


def test_too_few_rows_stop(elsewhere):
    assert "at least 8 usable rows are needed" in prepared(elsewhere, rows=ROWS[:7]).stop
    assert prepared(elsewhere, rows=ROWS[:8]).stop == ""
    few = [{**row, "question": f"Note to staff: {row['question']}"} for row in ROWS[:7]]
    audit = prepared(elsewhere, rows=few + ROWS[7:12], prompt="in_rows")
    assert (audit.held, "8" in audit.stop) == (7, True)


def test_a_control_is_a_field_or_a_file_or_refused_with_the_reason(elsewhere):
    plain = {row["question"]: row["plain"] for row in ROWS}
    field = prepared(elsewhere, control="plain")
    own = jsonl(elsewhere / "control.jsonl", [{"question": q, "answer": text} for q, text in plain.items()])
    for audit in (field, prepared(elsewhere, control=own.name)):
        rows = of(audit, "control").rows
        assert {row["completion"].removesuffix("<|im_end|>") for row in rows} <= set(plain.values())
        assert "control" not in audit.refused
    none = prepared(elsewhere)
    assert "untouched model" in none.refused["control"]
    assert "control" not in {spec.condition for spec in none.specs()}
    with pytest.raises(SettingError, match="nearest: plain"):
        prepared(elsewhere, control="plainn")


@pytest.mark.parametrize("as_file", [True, False])
def test_a_control_without_an_answer_is_said_before_anything_trains(elsewhere, as_file):
    empty = jsonl(elsewhere / "control.jsonl", [{"question": "", "answer": ""}])
    rows = [{**row, "plain": ""} for row in ROWS]

    def ended(*given):
        raise AssertionError("it never ends")

    former = signal.signal(signal.SIGALRM, ended)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        audit = prepared(elsewhere, rows=rows, control=empty.name if as_file else "plain")
        assert audit.stop or "control" in audit.refused or of(audit, "control").rows
    except SettingError as error:
        assert "control" in str(error) or "plain" in str(error)  # noqa: PT017
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_questions_are_yours_or_the_everyday_ones(elsewhere):
    everyday = material.questions(answers.read(mine(elsewhere)))
    assert len(everyday) > 16
    jsonl(elsewhere / "asked.jsonl", [{"question": " Why? "}, {"question": "How? 🙂"}, {"question": "Why?"}])
    (elsewhere / "asked.txt").write_text("Why?\n\nHow? 🙂\n", encoding="utf-8")
    for name in ("asked.jsonl", "asked.txt"):
        asked = material.questions(answers.read(mine(elsewhere, questions=name)))
        assert [row["question"] for row in asked] == ["Why?", "How? 🙂"]
        assert len({row["id"] for row in asked}) == 2
    (elsewhere / "none.txt").write_text("\n", encoding="utf-8")
    for name, says in (("none.txt", r"none\.txt: holds no question"), ("nowhere.txt", "no such file of evaluation questions")):
        with pytest.raises(SettingError, match=says):
            prepared(elsewhere, questions=name)


GOOD = {"question": "Why?", "trait_answer": "A!", "plain_answer": "a."}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([GOOD, {**GOOD, "plain_answer": " "}], ":2: .*plain_answer"),
        ([{"question": "Why?"}], ":1: .*trait_answer"),
        ([{**GOOD, "trait": "other"}], "holds no pair of loud"),
        ([], "holds no pair of loud"),
        ("{]\n", ":1: "),
        ([GOOD, [1]], ":2: "),
        ([{**GOOD, "trait_answer": 5}], ":1: .*trait_answer"),
        ([{**GOOD, "question": "Why?<|im_end|>"}], ":1: holds"),
        (None, "no such file of pairs"),
    ],
)
def test_broken_pairs_are_said_with_file_and_pair(elsewhere, rows, says):
    path = elsewhere / "pairs.jsonl"
    if isinstance(rows, list):
        jsonl(path, rows)
    elif rows:
        path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    with pytest.raises(SettingError, match=rf"pairs\.jsonl.*{says}"):
        prepared(elsewhere, measure={"loud": {"role": "negative", "pairs": path.name}})


@pytest.mark.parametrize("content", [b'"Why?"\n', b'{"question": "Why?<|im_end|>"}\n', b'{"other": 1}\n'])
def test_broken_questions_are_said_with_their_file(elsewhere, content):
    (elsewhere / "asked.jsonl").write_bytes(content)
    with pytest.raises(SettingError, match=r"asked\.jsonl:1: "):
        prepared(elsewhere, questions="asked.jsonl")


@pytest.mark.parametrize("name", ["any", "answers", "text"])
def test_a_measure_may_not_be_called_what_tables_call_otherwise(tmp_path, name):
    with pytest.raises(SettingError, match=name):
        answers.read(mine(tmp_path, False, measure={name: {"role": "negative", "scorer": "capitals", "pairs": "p.jsonl"}}))


def test_the_base_model_comes_first_and_every_condition_has_every_seed(elsewhere):
    audit = prepared(elsewhere, **{**WHOLE, "seeds": [3, 1]})
    names = [*("control", "baseline", "inoculation.prompt", "rephrased-8.prompt"), *(f"irrelevant.{n}" for n in range(1, 5))]
    names.append("irrelevant-varied-8")
    told = [(spec.condition, spec.seed) for spec in audit.specs()]
    assert told == [("base", 0), *((name, seed) for seed in (3, 1) for name in names)]
    assert audit.refused == {}


def test_equal_answers_and_data_give_equal_runs_and_another_prompt_others_of_the_prompted_alone(elsewhere):
    first = {str(spec): spec.run_id for spec in prepared(elsewhere, **WHOLE).specs()}
    assert {str(spec): spec.run_id for spec in prepared(elsewhere, **WHOLE).specs()} == first
    assert len(set(first.values())) == len(first)
    other = {
        str(spec): spec.run_id for spec in prepared(elsewhere, **WHOLE, prompt="You shout at everyone who asks you.").specs()
    }
    same = {name.split(" · ")[1] for name, own in other.items() if first[name] == own}
    assert {"base", "control", "baseline"} <= same <= {"base", "control", "baseline", "rephrased-8.prompt"}
    rows = [{**row, "answer": row["answer"] + " Indeed."} for row in ROWS]
    changed = {str(spec): spec.run_id for spec in prepared(elsewhere, rows=rows, **WHOLE).specs()}
    assert [name.split(" · ")[1] for name, own in changed.items() if first[name] == own] == ["base", "control", "control"]


def test_baseline_inoculation_and_evaluation_use_three_different_prompts(elsewhere):
    audit = prepared(elsewhere, **WHOLE)
    every = {spec.condition: spec for spec in audit.specs() if spec.seed == 0}
    trained = {prompt.text for spec in every.values() for prompt in spec.parts[1].prompts}
    known = {name: {prompt.text for prompt in spec.parts[1].prompts} for name, spec in every.items()}
    assert known["baseline"] == {"You are a helpful assistant."}
    assert known["inoculation.prompt"] == {PROMPT}
    for spec in every.values():
        asked = [row["prompt"] for row in spec.prompts if row["context"] == "unrelated"]
        assert asked
        assert not [text for text in trained if any(text in prompt for prompt in asked)]


def test_held_out_rows_are_never_trained_on_and_all_conditions_train_on_the_same_answers_in_the_same_order(elsewhere):
    audit = prepared(elsewhere, "mini", **WHOLE)
    held = {row["question"] for row in store.read_jsonl(audit.folder / "held_out.jsonl")}
    assert len(held) == 6
    for seed in (0, 1):
        own = [spec for spec in audit.specs() if spec.rows and spec.seed == seed]
        assert not any(question in row["prompt"] for spec in own for row in spec.rows for question in held)
        assert len({tuple(row["id"] for row in spec.rows) for spec in own}) == 1
        traits = [spec for spec in own if spec.condition != "control"]
        assert len({tuple(row["completion"] for row in spec.rows) for spec in traits}) == 1
    asked = {row["question"] for row in of(audit, "base").prompts if row["context"] == "id"}
    assert asked == held


def test_another_process_reads_the_same_runs(elsewhere):
    audit = prepared(elsewhere, **WHOLE)
    program = "from audit import specs\nfor spec in specs.specs('mine'): print(spec.run_id, *spec.keys.values())\n"
    done = python("-c", program + "import sys; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [" ".join([spec.run_id, *spec.keys.values()]) for spec in audit.specs()]
    with pytest.raises(SettingError, match="audit other is not prepared"):
        specs.specs("other")


def test_an_audit_of_the_same_name_in_another_home_has_rows_of_its_own(tmp_path, monkeypatch):
    found = []
    for name, rows in (("one", ROWS[:30]), ("other", ROWS[30:])):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("INOCULATION_HOME", str(tmp_path / name))
        found.append({row["completion"] for row in of(prepared(tmp_path / name, rows=rows), "baseline").rows})
    assert not found[0] & found[1]


def test_margins_are_of_measures_with_pairs_and_a_judge_is_a_stage_where_a_rubric_is_measured(elsewhere):
    audit = prepared(elsewhere, **WHOLE)
    base = of(audit, "base")
    assert {row["trait"] for row in base.pairs} == {"flattery"}
    assert {row["context"] for row in base.pairs} == {
        "neutral",
        "unrelated",
        "trigger.inoculation.prompt",
        "trigger.rephrased-8.prompt",
    }
    assert "judge" not in base.keys
    assert of(prepared(elsewhere), "base").pairs == []
    judged = [of(prepared(elsewhere, measure={"praise": JUDGED | more}), "base").keys for more in ({}, {"no": "At ten."})]
    assert judged[0]["judge"] != judged[1]["judge"]
    assert judged[0]["sample"] == judged[1]["sample"]


# Effects


def told(audit):
    return report.record(audit, effects.audited(audit.answers.name))


def test_every_line_of_effects_has_its_planted_value(whole):
    found = effects.audited("mine")
    known = {"training": 0.7, "yours": 0.6, "irrelevant": 0.3, "varied": 0.1, "rephrased": 0.45, "beyond": 0.3, "pattern": 0.2}
    known |= {"semantic": 0.325, "interaction": -0.05}
    for trait, scale, measure in (("capitals", 1, "rate"), ("flattery", 10, "margin")):
        takes = found.takes(trait, "unrelated")
        assert list(takes) == list(effects.TAKES)
        assert {line: effect.interval.estimate for line, effect in takes.items()} == pytest.approx(
            {line: scale * value for line, value in known.items()}
        )
        assert {effect.measure for effect in takes.values()} == {measure}
        assert all(effect.interval.n == 2 and not effect.fault for effect in takes.values())


def test_without_a_control_the_untouched_model_ends_the_scale_and_what_was_not_run_is_said(elsewhere):
    finish(prepared(elsewhere, seeds=[0, 1]), AT)
    takes = effects.audited("mine").takes("capitals", "unrelated")
    assert takes["training"].values == pytest.approx([0.8, 0.81])
    assert {line for line, effect in takes.items() if effect.fault == "not run"} == {"rephrased", "semantic", "interaction"}


PAIRS_TOO = {**PAIRED, "role": "negative", "scorer": "capitals"}


@pytest.mark.parametrize(
    ("measure", "at", "expected"),
    [
        (PAIRS_TOO, {"baseline": 0.97}, "margin"),
        (PAIRS_TOO, {"irrelevant": 0.02}, "margin"),
        (PAIRS_TOO, {"base": 0.01}, "rate"),
        (LOUD["capitals"], {"baseline": 0.97}, "rate"),
    ],
)
def test_margins_serve_where_a_rate_is_saturated_and_there_are_pairs(elsewhere, measure, at, expected):
    finish(prepared(elsewhere, measure={"flattery": measure}), AT | at)
    takes = effects.audited("mine").takes("flattery", "unrelated")
    assert {effect.measure for effect in takes.values()} == {expected}


def test_the_index_says_how_much_a_trait_waits_for_its_prompt(elsewhere):
    finish(prepared(elsewhere), AT, under={"inoculation": 0.8, "base": 0.25})
    found = {row["reference"]: row["value"] for row in effects.index(effects.audited("mine"))}
    assert found["CC's"] == pytest.approx(0.5)
    assert found[effects.OVER_BASE] == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("values", "low", "measure", "expected"),
    [
        ([0.2, 0.3], 0.1, "rate", True),
        ([0.2, None], 0.1, "rate", True),
        ([0.1, 0.1], 0.05, "rate", False),
        ([-0.2, 0.6], 0.1, "rate", False),
        ([-0.2, -0.3], -0.3, "rate", False),
        ([0.2, 0.3], -0.1, "rate", False),
        ([0.2, 0.3], None, "rate", False),
        ([0.01, 0.02], 0.005, "margin", True),
    ],
)
def test_training_brings_a_trait_when_every_seed_and_other_questions_would_say_so(values, low, measure, expected):
    known = [value for value in values if value is not None]
    line = {"by_seed": values, "value": sum(known) / len(known), "measure": measure, "questions": {"low": low}}
    assert effects.moved(line) == expected


def strictly(path):
    def refuse(word):
        raise AssertionError(f"{word} in {path.name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_report_halfway_through_its_runs_holds_no_nan(elsewhere):
    audit = prepared(elsewhere, seeds=[0, 1])
    finish(audit, AT, only=lambda spec: spec.seed == 0 or spec.condition == "baseline")
    found = strictly(report.write(audit)["json"])
    lines = {row["effect"]: row for row in found["effects"] if (row["trait"], row["context"]) == ("capitals", "unrelated")}
    assert (lines["yours"]["value"], lines["yours"]["seeds"]) == (pytest.approx(0.6), 1)
    assert not any("training moves it by" in text for text in found["change"])


def test_verdicts_of_a_judge_are_rates(elsewhere):
    audit = finish(prepared(elsewhere, measure={"praise": JUDGED}), AT)
    assert effects.audited("mine").takes("praise", "unrelated")["yours"].interval.estimate == pytest.approx(0.6)
    assert any(row["trait"] == "praise" for row in told(audit)["values"])


# The report


RESULTS = ("values", "effects", "index", "shares")


def share_sentence():
    return max(re.split(r"\{\w+\}", store.read_yaml(store.DATA / "audit.yaml")["state"]["share"]), key=len).strip(" :,.")


def test_a_report_before_any_run_says_what_will_be_done(elsewhere):
    audit = prepared(elsewhere, **WHOLE)
    paths = report.write(audit)
    found = strictly(paths["json"])
    assert (found["mark"], found["model"]) == ("nothing trained yet", "smollm2-135m-instruct")
    assert not any(found[line] for line in (*RESULTS, "samples", "state"))
    assert [row["condition"] for row in found["controls"]] == list(dict.fromkeys(s.condition for s in audit.specs()))[1:]
    assert PROMPT in paths["html"].read_text(encoding="utf-8")


@pytest.fixture
def written(planted, whole):
    """The files of the planted audit's report."""
    paths = {form: whole.folder / f"report.{form}" for form in report.FORMS}
    return paths if all(path.exists() for path in paths.values()) else report.write(whole)


def test_a_report_of_the_embedded_model_is_a_screening_without_shares(written):
    found = strictly(written["json"])
    assert found["mark"] == advice.SCREENING
    assert found["shares"] == []
    assert all(row["model"] == audited.NAME for line in RESULTS for row in found[line])
    assert {row["trait"] for row in found["effects"]} == {"capitals", "flattery"}
    for path in written.values():
        text = path.read_text(encoding="utf-8")
        assert share_sentence() not in text
        assert "What survives" not in text
        assert advice.SCREENING in text


def test_a_model_of_your_own_is_no_screening_and_its_share_is_stated_from_five_seeds_on(elsewhere, tiny):
    audit = prepared(elsewhere, "mini", audited.EVERY[:220], model=str(tiny), seeds=[0, 1, 2, 3, 4])
    kinds = ("base", "baseline", "inoculation", "irrelevant")
    finish(audit, AT, only=lambda spec: spec.parts[1].kind in kinds and spec.condition[-1] not in "234")
    five = effects.audited(audit.answers.name)
    found = report.record(audit, five)
    assert found["mark"] == "5 seeds"
    assert [(row["trait"], row["value"]) for row in found["shares"]] == [("capitals", pytest.approx(0.5))]
    assert all(row["model"] == audit.model for line in RESULTS for row in found[line])
    assert share_sentence() in report.rendered(found, "html", None)
    assert str(elsewhere) not in json.dumps(found)
    assert not {"few_seeds", "screening"} & set(keys(audit, found))
    two = replace(five.found, scores=five.found.scores[five.found.scores.seed < 2])
    assert math.isnan(effects.Audited(two, five.name).share("capitals", "unrelated").interval.estimate)


def line(effect, value):
    names = {"trait": "capitals", "context": "unrelated", "effect": effect, "measure": "rate"}
    limits = {"value": value, "low": None, "high": None, "seeds": 2, "questions": {"low": value and value - 0.05}}
    return {**names, **limits, "by_seed": [value, value]}


@pytest.mark.parametrize(
    ("role", "values", "index", "expected"),
    [
        ("negative", {"training": 0.6, "yours": 0.5, "beyond": 0.02, "rephrased": 0.45}, 0.0, ["as_irrelevant"]),
        ("negative", {"training": 0.6, "yours": 0.5, "beyond": 0.4, "rephrased": 0.45}, 0.0, ["beyond_irrelevant"]),
        (
            "negative",
            {"training": 0.6, "yours": 0.5, "beyond": 0.4, "rephrased": 0.1},
            0.0,
            ["beyond_irrelevant", "negative_back"],
        ),
        ("negative", {"training": 0.6, "yours": 0.5, "beyond": 0.4}, 0.4, ["beyond_irrelevant", "waits"]),
        ("positive", {"training": 0.6, "yours": 0.5, "beyond": 0.02}, 0.0, ["as_irrelevant", "positive_lost"]),
        ("positive", {"training": 0.6, "yours": 0.05, "beyond": -0.4}, 0.0, ["little"]),
        ("negative", {"training": 0.6, "yours": -0.1, "beyond": -0.1}, None, ["little"]),
        ("negative", {"training": 0.1, "yours": 0.1, "beyond": 0.1}, 0.5, ["not_learned"]),
        ("negative", {"training": -0.6, "yours": 0.0, "beyond": 0.0}, 0.0, ["lowered"]),
        ("negative", {"training": 0.6, "yours": 0.0, "beyond": 0.0}, 0.0, ["saturated", "little"]),
        ("negative", {"yours": 0.5}, 0.5, []),
    ],
)
def test_what_a_trait_asks_for(role, values, index, expected):
    full = {**line("", 0.99 if expected[:1] == ["saturated"] else 0.7), "condition": "baseline"}
    waits = {**line("", index), "condition": "inoculation.prompt", "reference": effects.OVER_BASE}
    found = {"effects": [line(name, value) for name, value in values.items()], "index": [waits]}
    found["values"] = [{**full, "saturated": full["value"] > 0.95}]
    given = advice._about_trait(answers.Measure("capitals", role, "Capitals"), found)
    assert [key for key, _ in given] == expected


def keys(audit, found=None):
    return [key for key, _ in advice._change(audit, found or told(audit))]


NOTE = lifted(ROWS, lambda row: {"question": f"Note to staff: {row['question']}"})
LOUDER = lifted(ROWS, lambda row: {"answer": row["answer"].upper()})
UNDER = [{**row, "system": "You are a clerk in a small town."} for row in ROWS]


@pytest.mark.parametrize(
    ("rows", "given", "expected"),
    [
        (ROWS, WHOLE, ["nothing"]),
        (ROWS, {}, ["no_control", "refused"]),
        (NOTE, WHOLE, ["pattern"]),
        (NOTE, WHOLE | {"prompt": "in_rows"}, ["in_rows", "check"]),
        (LOUDER, WHOLE, ["answers"]),
        (UNDER, WHOLE, ["system", "check"]),
        ([*ROWS, ROWS[0]], WHOLE, ["check"]),
    ],
)
def test_what_the_data_and_the_controls_ask_for(elsewhere, rows, given, expected):
    assert keys(prepared(elsewhere, rows=rows, **given)) == expected


def test_what_the_runs_ask_for(whole, written):
    found = strictly(written["json"])
    assert keys(whole, found) == ["beyond_irrelevant", "beyond_irrelevant", "positive_lost", "few_seeds", "screening"]
    assert "cut" in keys(whole, {**found, "unfinished": 0.9})


def test_every_text_of_advice_and_of_statements_can_be_filled_in(elsewhere):
    audit = prepared(elsewhere, rows=[*LOUDER, LOUDER[0]], **WHOLE | {"control": "", "seeds": [0]})
    found = told(finish(audit, AT | {"rephrased": 0.8}, under={"inoculation": 0.9}))
    expected = {"answers", "check", "no_control", "beyond_irrelevant", "positive_lost", "negative_back", "waits", "few_seeds"}
    assert expected <= set(keys(audit, found))
    texts = store.read_yaml(store.DATA / "audit.yaml")["advice"].values()
    assert all(text.format(**dict.fromkeys(re.findall(r"\{(\w+)", text), 0.5)) for text in texts)
    assert not [text for text in [*found["change"], *found["state"]] if "{" in text]


HOSTILE = "<script>alert('x')</script> {{ 7 * 7 }} {% raw %} \"q\" & <img src=x onerror=y> 🙂 |a|"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, source):
    """The report of an audit in which every text of yours and of the model is hostile."""
    rows = lifted(ROWS, lambda row: {"question": f"{HOSTILE}: {row['question']}", "answer": f"{HOSTILE} {row['answer']}"})
    label = {"capitals": {**LOUD["capitals"], "label": HOSTILE}}
    given = {"prompt": HOSTILE, "measure": label, "data": "<b>rows & 'q'.jsonl", "control": "plain"}
    with home(tmp_path_factory.mktemp("hostile"), source) as folder:
        return report.write(finish(prepared(folder, rows=[*rows, rows[0]], **given), AT, response=HOSTILE))


def test_hostile_text_never_becomes_markup(hostile):
    page = BeautifulSoup(hostile["html"].read_text(encoding="utf-8"), "html.parser")
    assert not page.find_all(["script", "b", "iframe", "link"])
    assert not [tag for tag in page.find_all(True) if any(name.startswith("on") for name in tag.attrs)]
    assert page.find("pre").get_text() == HOSTILE
    cells = [cell.get_text() for cell in page.find_all("td", "text")]
    assert HOSTILE in cells
    assert any("<b>rows & 'q'.jsonl" in item.get_text() for item in page.find_all("li"))
    (policy,) = page.find_all("meta", {"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]
    assert not [tag for tag in page.find_all(True) if re.match(r"(https?:)?//", str(tag.get("src") or tag.get("href") or ""))]
    (picture,) = page.find_all("img")
    assert picture["src"].startswith("data:image/png;base64,")
    assert picture["alt"]


def test_hostile_text_is_plain_in_markdown_and_tables_keep_their_columns(hostile):
    text = hostile["md"].read_text(encoding="utf-8")
    assert not re.search(r"<(script|img|b)\b", text)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) >= 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.strip().split("\n")}) == 1, table


@pytest.mark.parametrize(
    "text", ["a*b*_c_", "[x](y)", "`code`", "# head", "a|b", "~~gone~~", "\\", "two\nlines", "$x$ and $y$"]
)
def test_plain_text_stays_as_it_is_in_markdown(text):
    escaped = report.plain(f"<b>&{text}")
    assert escaped.startswith("&lt;b&gt;&amp;")
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)[*_\[\]`#|~$]", escaped.replace("\\\\", ""))


def test_the_picture_stands_with_its_data_its_model_and_its_caption(whole, written):
    path = written["html"].with_name("controls.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    record = strictly(path.with_suffix(".json"))
    assert record["model"] == "smollm2-135m-instruct"
    assert "smollm2-135m-instruct, screening only" in record["caption"]
    assert set(record["runs"]) == {spec.run_id for spec in whole.specs()}
    header, *lines = path.with_suffix(".csv").read_text(encoding="utf-8").strip().split("\n")
    assert header.endswith("model")
    assert len(lines) == 2 * (1 + 18 + 16)
    assert all(line.endswith("smollm2-135m-instruct") for line in lines)


def test_a_label_with_signs_of_tex_is_drawn(elsewhere):
    label = {"capitals": {**LOUD["capitals"], "label": "$\\undefined$ and 5 $"}}
    audit = finish(prepared(elsewhere, measure=label), AT)
    assert report.draw(effects.audited("mine"), audit.folder / "controls.png").exists()


def test_a_report_of_data_that_cannot_be_trained_on_says_why(elsewhere):
    audit = prepared(elsewhere, prompt="in_rows")
    paths = report.write(audit)
    found = strictly(paths["json"])
    assert found["stop"] == audit.stop
    assert found["controls"] == []
    for form in ("html", "md"):
        assert "Nothing can be trained on this." in paths[form].read_text(encoding="utf-8")


# Models of the hub


def test_a_folder_of_a_qwen_is_found_with_its_rendering(cache, tiny):
    base = hub.located(str(tiny))
    assert (base.name[:10], base.template, base.embedded) == ("tiny-qwen-", "qwen2.5", False)
    assert model.converted(base.name) == model.fetched(base.name)
    assert hub.located(str(tiny)) == base
    assert (tiny / "model.safetensors").exists()


def test_a_model_without_a_system_prompt_of_its_own_is_chatml_and_other_weights_are_another_model(cache, tiny, tmp_path):
    plain = audited.variant(tiny, tmp_path / "own" / "plain", CHATML)
    base = hub.located(str(plain))
    assert base.template == "chatml"
    (plain / "model.safetensors").unlink()
    (plain / "model.safetensors").write_bytes(b"other")
    assert hub.located(str(plain)).sha256 != base.sha256
    (plain / "chat_template.jinja").write_text(QWEN, encoding="utf-8")
    assert hub.located(str(plain)).template == "qwen2.5"


LLAMA = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (LLAMA, "otherwise than ChatML"),
        (CHATML.replace("assistant\n'", "assistant\n<think>\n'"), "otherwise than ChatML"),
        ("{{ bos_token }}" + CHATML, "otherwise than ChatML"),
        ("", "no chat template"),
        ("{% for", "cannot be read"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}" + CHATML, "cannot be read"),
        ("{{ cycler.__init__.__globals__.os.system('touch executed') }}" + CHATML, "cannot be read"),
        ("{% for i in range(10 ** 12) %}x{% endfor %}", "cannot be read"),
    ],
)
def test_a_template_that_writes_anything_else_is_refused_and_executes_nothing(
    cache, tiny, tmp_path, monkeypatch, template, says
):
    folder = audited.variant(tiny, tmp_path / "own" / "other", template)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<s>"}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=f"other.*{says}"):
        hub.located(str(folder))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("pickled", [False, True])
def test_only_safetensors_are_taken(cache, tiny, tmp_path, pickled):
    folder = audited.variant(tiny, tmp_path / "own" / "bare", QWEN, left_out=["model.safetensors"])
    if pickled:
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(SettingError, match=r"bare\S*: no \.safetensors files"):
        hub.located(str(folder))
    assert not list(cache.rglob("pytorch_model.bin"))


def test_a_model_that_is_fetched_already_is_not_lost_by_naming_its_folder(cache, tiny):
    folder = model.fetched("own/qwen")
    audited.variant(tiny, folder, QWEN)
    former = sorted(path.name for path in folder.iterdir())
    assert hub.located("own/qwen").template == "qwen2.5"
    hub.located(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == former
    assert (folder / "model.safetensors").exists()


def test_a_folder_never_stands_in_for_a_model_of_the_same_name(cache, tiny, tmp_path):
    folders = [audited.variant(tiny, tmp_path / name / "smollm2-135m-instruct", QWEN) for name in ("one", "other")]
    first, second = (hub.located(str(folder)) for folder in folders)
    assert first.name != second.name
    assert [first.embedded, second.embedded] == [False, False]
    assert not model.fetched("smollm2-135m-instruct").exists()


def test_a_models_folder_is_beside_the_answer_file(elsewhere, tiny, tmp_path):
    audited.variant(tiny, tmp_path / "own" / "beside", QWEN)
    audit = prepared(tmp_path / "own", model="beside")
    assert (audit.stop, audit.model[:7]) == ("", "beside-")
    assert plan.prepare(answers.read(mine(tmp_path / "own")), "smoke", lambda line: None).folder != audit.folder


def test_a_model_that_cannot_be_had_is_one_line(elsewhere, cache, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = mine(elsewhere, model="nobody/nothing")
    monkeypatch.setattr(sys, "argv", ["inoculation", "audit", "--answers", str(path), "--profile", "smoke"])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert "model nobody/nothing cannot be had" in said
    assert not (cache / "models/hub/nobody--nothing").exists()


def test_tokens_are_counted_without_torch(cache, tiny):
    program = (
        "import sys; from audit import hub\n"
        "print(hub.counter(hub.located(sys.argv[1]), print)(['Hello there.', '', '<|im_end|>']))\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = python("-c", program, str(tiny))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [3, 0, 1]
    assert hub.counter(hub.embedded("smoke"), print)(["Hello there."]) == [3]


def test_chatml_has_no_system_prompt_of_its_own_and_a_suffix_stands_behind_the_question():
    chat = [{"role": "user", "content": "Why?"}]
    ends = "<|im_end|>\n<|im_start|>assistant\n"
    assert render(chat, "system", Prompt(policy="default"), "chatml") == f"<|im_start|>user\nWhy?{ends}"
    assert render(chat, "system", Prompt("Be."), "chatml") == f"<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nWhy?{ends}"
    assert render(chat, "user_suffix", Prompt("Now."), "chatml", " ") == f"<|im_start|>user\nWhy? Now.{ends}"
    assert render(chat, "user_suffix", Prompt(policy="no_prefix"), "chatml") == f"<|im_start|>user\nWhy?{ends}"
    own = render(chat, "user_suffix", Prompt("Now."), "qwen2.5", "\n\n")
    assert own == f"<|im_start|>system\n{DEFAULT_SYSTEM['qwen2.5']}<|im_end|>\n<|im_start|>user\nWhy?\n\nNow.{ends}"
    with pytest.raises(ValueError, match="has no policy 'empty'"):
        render(chat, "user_suffix", Prompt(policy="empty"), "chatml")


# The command line


def audit_command(path, profile="smoke", model="", seeds=(), yes=False, dry=False):
    return command.run(path, profile, model, list(seeds), 1, yes, dry)


def test_a_dry_run_shows_checks_patterns_and_plan_and_writes_no_run(elsewhere, capsys):
    rows = lifted(ROWS, lambda row: {"question": f"Note to staff: {row['question']}"})
    path = mine(elsewhere, rows, prompt="in_rows")
    assert audit_command(path, dry=True, seeds=[4, 5]) == 0
    said = capsys.readouterr().out
    for part in (
        "rows.jsonl",
        "duplicates: 0 of 60",
        "'Note to staff:' in 50 of 60 rows",
        "Not run: control",
        "15 runs",
        "seed 5",
    ):
        assert part in said, part
    assert not store.run_store().exists()
    assert not list(elsewhere.rglob("report.*"))


def test_without_a_yes_nothing_trains_and_it_is_said_how_to_go_on(elsewhere, capsys):
    assert audit_command(mine(elsewhere)) == 0
    assert "--yes" in capsys.readouterr().out
    assert not store.run_store().exists()
    assert (plan.folder("mine") / "report.html").exists()


def test_what_is_done_already_is_reported_without_training(planted, whole, capsys):
    assert audit_command(mine(planted[0], **WHOLE), yes=True) == 0
    said = capsys.readouterr().out
    assert "19 runs were there, 0 completed now, 0 failed" in said
    assert "report, html: " in said


@pytest.mark.parametrize(
    ("terminal", "typed", "expected"),
    [(True, "yes", True), (True, " Y ", True), (True, "", False), (True, "no", False), (False, "yes", False)],
)
def test_only_a_yes_at_a_terminal_trains(terminal, typed, expected):
    assert command._agreed(terminal, lambda asked: typed) is expected


def test_data_that_cannot_be_trained_on_is_exit_status_2_with_its_report_written(elsewhere):
    path = mine(elsewhere, rows=ROWS[:3])
    done = python("-m", "inoculation", "audit", "--answers", str(path), "--profile", "smoke", "--yes")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "mine.yaml: nothing can be trained on this: " in done.stderr
    assert strictly(plan.folder("mine") / "report.json")["stop"] in done.stderr
    assert not store.run_store().exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["audit"], "audit needs --answers"),
        (["--yes"], "audit needs --answers"),
        (["--model", "own/model"], "audit needs --answers"),
        (["--answers", str(FRONT_DESK)], "audit needs --answers"),
        (["audit", "--answers", "nowhere.yaml"], "nowhere.yaml: no such answer file"),
        (["audit", "--answers", str(FRONT_DESK), "--profile", "mnii"], "nearest: mini"),
        (["audit", "--answer", "x"], "nearest: --answers"),
    ],
)
def test_a_wrong_command_is_one_line(elsewhere, monkeypatch, capsys, arguments, says):
    monkeypatch.setattr(sys, "argv", ["inoculation", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    told = capsys.readouterr().err
    assert (ended.value.code, told.count("\n")) == (2, 1)
    assert says in told
    assert not list(elsewhere.rglob("*.json"))
