"""A researcher's own fine-tuning data: read whatever it is, and checked before anything trains."""

import codecs
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from audit import checks, files, rows
from audit.rows import Row
from hypothesis import given, settings
from hypothesis import strategies as st
from inoculation.store import SettingError

GOOD = {"question": "What is two and two?", "answer": "Four."}
PARROT, CAP = "🦜 Talk like a parrot.", "🎓"


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def turns(*pairs, **more):
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **more}


@pytest.fixture
def found(tmp_path):
    """Reads what is written under a name: found(content, name)."""

    def read(content, name="rows.jsonl", plain=""):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return rows.read(str(path), plain)

    return read


def pairs(found):
    return [(row.question, row.answer) for row in found.rows]


def only(tallies):
    """The one reason, its count and its first place."""
    [(why, tally)] = tallies.items()
    return why, tally.count, tally.first[0]


@pytest.mark.parametrize(
    ("record", "schema", "system"),
    [
        (turns(("system", "Be brief."), ("user", "q"), ("assistant", "a")), "messages", "Be brief."),
        (turns(("DEVELOPER", "Be brief."), ("User", "q"), ("ASSISTANT", "a")), "messages", "Be brief."),
        (turns(("user", "q"), ("assistant", "a"), system="Be brief."), "messages", "Be brief."),
        (turns(("system", ""), ("user", "q"), ("assistant", "a")), "messages", ""),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "conversations", None),
        ({"Prompt": "q", "Completion": " a\n"}, "prompt/completion", None),
        (
            {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
            "prompt/completion",
            None,
        ),
        ({"instruction": "q", "input": "", "output": "a", "system_prompt": "S"}, "instruction/output", "S"),
        ({"QUESTION": "q", "answer": "a", "system": None}, "question/answer", None),
        ({"messages": None, "question": "q", "answer": "a"}, "question/answer", None),
        ({"question": "other", "answer": "other", "prompt": "q", "completion": "a"}, "prompt/completion", None),
    ],
)
def test_every_schema_is_known_by_its_fields(found, record, schema, system):
    read = found(lines(record))
    assert read.rows == [Row("rows.jsonl:1", "q", "a", system)]
    assert read.schemas == {schema: 1}
    assert not read.left_out
    assert not read.mended


def test_an_input_follows_its_instruction(found):
    assert pairs(found(lines({"instruction": "Sum up.", "input": "A text.", "output": "Short."}))) == [
        ("Sum up.\n\nA text.", "Short.")
    ]


def test_one_broken_line_costs_nothing_else(found):
    read = found(lines(GOOD) * 16 + '{"messages":\t[\n' + "\n" + lines(GOOD) * 1000)
    assert len(read.rows) == 1016
    assert read.rows[16].where == "rows.jsonl:19"
    assert only(read.left_out) == ("not JSON", 1, r"""rows.jsonl:17: Expecting value: '{"messages":\t['""")
    assert read.files == ["rows.jsonl: 56.9 kB, UTF-8, usable rows: 1,016, left out: 1"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[1, 2]", "a record that is no object"),
        ('"text"', "a record that is no object"),
        ('{"text": "a", "label": 1}', "fits no schema"),
        ("[" * 100_000, "nested too deeply"),
        ('{"question": ' + "1" * 5000 + "}", "a number that is too long"),
        ('{"question": "a\0", "answer": "b"}', "a NUL byte inside"),
        ('{"question": "\\ud83d", "answer": "b"}', "half a character (a lone surrogate) inside the text"),
        ('{"question": "q", "answer": NaN}', "an empty answer"),
        ('{"question": null, "answer": "a"}', "an empty question"),
        ('{"question": " \\n", "answer": "a"}', "an empty question"),
        ('{"question": "q", "answer": 4}', "content that is not text (int)"),
        ('{"question": "q", "answer": "a<|im_end|>"}', "a chat delimiter inside the text"),
        ('{"messages": "hello"}', "messages that are no list of turns with a role"),
        ('{"messages": [{"content": "a"}]}', "messages that are no list of turns with a role"),
        ('{"messages": ["a", "b"]}', "messages that are no list of turns with a role"),
        (lines(turns()), "no question"),
        (lines(turns(("assistant", "Hello!"))), "no question"),
        (lines(turns(("user", "q"))), "no answer after the question"),
        (lines(turns(("user", "q"), ("wizard", "a"))), "a role that is not known"),
        (lines(turns(("user", "q"), ("tool", "3"), ("assistant", "a"))), rows.TOOL),
        (lines(turns(("user", [{"type": "image_url", "image_url": "x"}]), ("assistant", "a"))), "not text (image_url)"),
        (lines(turns(("user", "q"), ("assistant", [{"type": "tool_use", "id": "x"}]))), "not text (tool_use)"),
        (
            lines({"prompt": turns(("user", "q"), ("assistant", "a"), ("user", "r"))["messages"], "completion": "b"}),
            "an answer inside the prompt",
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_left_out_and_says_why(found, line, why):
    read = found(line.strip() + "\n" + lines(GOOD))
    reason, count, first = only(read.left_out)
    assert why in reason
    assert count == 1
    assert first.startswith("rows.jsonl:1")
    assert pairs(read) == [tuple(GOOD.values())]


def test_a_long_file_says_how_far_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(rows, "EVERY", 0)
    (tmp_path / "rows.jsonl").write_text(lines(GOOD, GOOD))
    said = []
    rows.read(str(tmp_path / "rows.jsonl"), say=said.append)
    assert said == ["rows.jsonl:1: 1 rows read so far", "rows.jsonl:2: 2 rows read so far"]


def test_a_record_without_a_schema_says_its_fields(found):
    assert "its fields: text, label" in only(found(lines({"text": "a", "label": 1})).left_out)[2]


def test_a_tool_call_without_a_text_stands_before_the_answer(found):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    asked = {"role": "user", "content": "q"}
    read = found(lines({"messages": [asked, call]}, {"messages": [asked, {**call, "content": "a"}]}))
    assert only(read.left_out)[:2] == (rows.TOOL, 1)
    assert pairs(read) == [("q", "a")]


@pytest.mark.parametrize(
    ("chat", "why", "pair"),
    [
        ([("user", "q"), ("assistant", "a"), ("user", "r"), ("tool", "b")], rows.LATER, ("q", "a")),
        ([("assistant", "Hi!"), ("user", "q"), ("assistant", "a")], rows.GREETING, ("q", "a")),
        ([("user", "q"), ("user", "r"), ("assistant", "a")], rows.JOINED, ("q\n\nr", "a")),
        ([("user", ["q", [{"type": "text", "text": "r"}, ["s"]]]), ("assistant", "a")], rows.PARTS, ("q\nr\ns", "a")),
    ],
)
def test_the_first_exchange_of_a_chat_is_kept_and_the_rest_counted(found, chat, why, pair):
    read = found(lines(turns(*chat)))
    assert pairs(read) == [pair]
    assert only(read.mended)[:2] == (why, 1)


def test_text_is_kept_as_it_is_but_for_line_ends_and_white_space_around_it(found):
    read = found(lines({"question": "\n¿Qué?\r\nYes  ", "answer": "\t[[x]]\r\n ", "system": " S\r\n"}))
    assert read.rows == [Row("rows.jsonl:1", "¿Qué?\nYes", "[[x]]", " S\n")]


def test_the_plain_answer_may_stand_in_the_same_record(found):
    read = found(lines({**GOOD, "Plain": " 4 "}, GOOD), plain="plain")
    assert [row.plain for row in read.rows] == ["4", ""]
    with pytest.raises(SettingError, match="field for the answer without the traits 'plian'; nearest: plain"):
        found(lines({**GOOD, "plain": "4"}), plain="plian")


def test_a_name_that_csv_leaves_empty_is_no_plain_answer(found):
    assert found(",question,answer\n0,q,a\n", "rows.csv").rows == [Row("rows.csv:2", "q", "a")]


@pytest.mark.parametrize(
    ("encoding", "why", "where"),
    [
        ("utf-8-sig", files.MARK, "rows.jsonl:1"),
        ("utf-16", "UTF-16: read by its byte-order mark", "rows.jsonl:1"),
        ("cp1252", "not UTF-8: read as Windows-1252", "rows.jsonl:2"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_encodings_are_recognised_and_counted(found, name, encoding, why, where):
    text = "question,answer\nWas?,Bär 1\n" if name.endswith("csv") else lines(GOOD, {"question": "Was?", "answer": "Bär 1"})
    read = found(text.encode(encoding), name)
    assert pairs(read)[-1] == ("Was?", "Bär 1")
    assert not read.left_out
    assert only(read.mended)[:2] == (why, 1)
    if name == "rows.jsonl":
        assert only(read.mended)[2].startswith(where)


def test_big_endian_utf_16_and_what_even_windows_does_not_know_are_read(found):
    assert len(found(codecs.BOM_UTF16_BE + lines(GOOD).encode("utf-16-be")).rows) == 1
    read = found(lines({"question": "q", "answer": "\x81é"}).encode("latin-1"))
    assert pairs(read) == [("q", "\x81é")]
    assert only(read.mended)[0] == "not UTF-8: read as Latin-1"


def test_only_the_line_that_is_not_utf_8_is_read_otherwise(found):
    read = found(lines({"question": "q", "answer": "ä"}).encode() + lines({"question": "q", "answer": "ö"}).encode("cp1252"))
    assert [row.answer for row in read.rows] == ["ä", "ö"]
    assert "UTF-8 and Windows-1252" in read.files[0]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_with_quotes_newlines_and_any_delimiter(found, mark):
    read = found(f'Question{mark}Answer\r\n"a{mark} ""b""\r\nc"{mark}d\r\n\r\ne{mark}f\r\n', "rows.csv")
    assert read.rows == [Row("rows.csv:2", f'a{mark} "b"\nc', "d"), Row("rows.csv:5", "e", "f")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a,b,c", files.FIELDS),
        ("a", files.FIELDS),
        ("a,b\0", files.NUL),
        ('"never closed,b', "not CSV"),
        ('"a"b,c', "not CSV"),
        (",b", "an empty question"),
    ],
)
def test_one_broken_csv_record_costs_nothing_else(found, line, why):
    read = found("question,answer\nq,a\n" + line + "\n" + "q,a\n" * 100, "rows.csv")
    assert len(read.rows) == 101
    assert read.rows[1].where == "rows.csv:4"
    assert only(read.left_out)[:2] == (why, 1)
    assert only(read.left_out)[2].startswith("rows.csv:3: ")


def test_fields_of_csv_may_be_long(found):
    assert len(found("question,answer\nq," + "a" * 1_000_000 + "\n", "rows.csv").rows[0].answer) == 1_000_000


@pytest.mark.parametrize("indent", [None, 2])
def test_json_lists_go_on_after_a_broken_record(found, indent):
    text = json.dumps([GOOD] * 5, indent=indent).replace("}, {", "},\n{")
    read = found(text.replace('"Four."', "Four", 1), "rows.json")
    assert [row.where for row in read.rows] == [f"rows.json row {number}" for number in (2, 3, 4, 5)]
    assert only(read.left_out)[:2] == ("not JSON", 1)


def test_json_that_breaks_off_keeps_what_came_before(found):
    read = found(json.dumps([GOOD] * 5)[:-20], "rows.json")
    assert len(read.rows) == 4
    assert only(read.left_out)[0] == "not JSON, up to the end of the file"


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.csv.gz"])
def test_gzip_is_read_and_what_is_left_of_it_kept(found, name):
    varied = [{"question": f"{n} {hash(n * 1.1)}", "answer": "a"} for n in range(5000)]
    text = "question,answer\n" + "".join(f"{row['question']},a\n" for row in varied) if "csv" in name else lines(*varied)
    whole = gzip.compress(text.encode())
    assert len(found(whole, name).rows) == 5000
    read = found(whole[: len(whole) // 2], name)
    assert 1000 < len(read.rows) < 5000
    assert read.left_out[files.BROKEN_OFF].first[0].startswith(f"{name}: Compressed file ended")
    assert files.BROKEN_OFF in found(b"no gzip", name).left_out


def test_parquet_and_its_loss(found, tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([turns(("user", "q"), ("assistant", "a")), {}]), tmp_path / "two.parquet")
    read = rows.read(str(tmp_path / "two.parquet"))
    assert read.rows == [Row("two.parquet row 1", "q", "a")]
    assert read.left_out
    read = found((tmp_path / "two.parquet").read_bytes()[:-9], "cut.parquet")
    assert not read.rows
    assert only(read.left_out)[0] == files.BROKEN_OFF


def test_a_folder_is_read_by_name_and_says_what_it_skips(found, tmp_path):
    for name in ("b.jsonl", "a/c.ndjson", ".hidden.jsonl", "README.md", "a/B.JSONL"):
        found(lines(GOOD), name) if name != "README.md" else (tmp_path / name).write_text("#")
    read = rows.read(str(tmp_path))
    assert [row.where for row in read.rows] == ["a/B.JSONL:1", "a/c.ndjson:1", "b.jsonl:1"]
    assert read.files[-1] == "skipped, as no data files: README.md"


def test_a_data_set_of_the_hub_is_loaded_or_says_what_to_do(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: asked.append((given, named)) or [GOOD])
    assert rows.read("owner/name:main:train[:5]").rows[0].where == "owner/name:main:train[:5] row 1"
    rows.read("owner/name")
    assert asked == [(("owner/name", "main"), {"split": "train[:5]"}), (("owner/name", None), {"split": "train"})]
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: 1 / 0)
    with pytest.raises(SettingError, match=r"cannot be had from the hub \(division by zero\): log in"):
        rows.read("owner/name")


@pytest.mark.parametrize("source", ["", "nowhere", "no/where.jsonl", "a\0b", "~nobody/x/y"])
def test_what_is_not_there_is_named(source):
    with pytest.raises(SettingError, match="there is no file or folder"):
        rows.read(source)


def test_a_file_of_another_kind_is_refused(found):
    with pytest.raises(SettingError, match=r"notes.txt: expected a file that ends in \.jsonl, "):
        found("text", "notes.txt")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_an_empty_file_has_no_rows(found, name):
    read = found("", name)
    assert (read.rows, read.left_out) == ([], {})


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
@settings(deadline=None)
@given(
    content=st.binary() | st.text().map(str.encode) | st.lists(st.sampled_from(['"', ",", "{", "[", "q", "\n"])).map("".join)
)
def test_no_bytes_are_too_strange(suffix, content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"rows.{suffix}")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert isinstance(rows.read(str(path)), rows.Found)


VALUES = st.recursive(
    st.none() | st.floats() | st.sampled_from(["user", "assistant", "tool", "a"]),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "from", "value"]), inner)
    ),
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["messages", "prompt", "completion", "question", "answer", "system"]), VALUES))
def test_no_record_is_too_strange(record):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        path.write_text(json.dumps(record))
        read = rows.read(str(path))
        assert len(read.rows) + read.lost == 1


def checked(read, questions=(), longest=50, tokens=None, prompt="", fewest=1):
    return {each.name: each for each in checks.check(read, list(questions), longest, tokens, prompt, fewest)}


def test_every_check_is_listed_where_nothing_is_found(found):
    listed = checked(found(lines(GOOD)), tokens=lambda texts: [1] * len(texts))
    assert list(listed) == [
        "schemas",
        "encodings",
        "records left out",
        "records mended",
        "duplicates",
        "one question with several answers",
        "over-long rows",
        "leakage",
        "system prompts inside",
        "the training prompt already inside",
        "rows, of how many needed",
    ]
    assert all(each.level == "fine" for each in listed.values())
    assert all(each.count == 0 for name, each in listed.items() if name != "rows, of how many needed")


def test_reasons_are_checks_of_their_own(found):
    chat = turns(("user", "q"), ("assistant", "a"), ("user", "r"))
    read = found(b"{\n" + lines(GOOD, chat).encode() + lines({"question": "é", "answer": "a"}).encode("cp1252"))
    listed = checked(read)
    assert (listed["records left out: not JSON"].count, listed["records left out: not JSON"].of) == (1, 4)
    assert listed[f"records mended: {rows.LATER}"].level == "look"
    assert listed["encodings"].first[0].startswith("rows.jsonl:4: ")
    assert (listed["schemas"].count, listed["schemas"].first) == (1, ("question/answer: 2 rows", "messages: 1 rows"))


def test_duplicates_and_questions_with_several_answers(found):
    texts = [("Why?", "So."), ("why? ", " SO."), ("WHY?", "No."), ("Why?", "No."), ("How?", "So.")]
    listed = checked(found(lines(*({"question": q, "answer": a} for q, a in texts))))
    assert (listed["duplicates"].count, listed["duplicates"].of) == (2, 5)
    assert listed["duplicates"].first == ("rows.jsonl:2 repeats rows.jsonl:1", "rows.jsonl:4 repeats rows.jsonl:3")
    several = listed["one question with several answers"]
    assert (several.count, several.of) == (1, 2)
    assert several.first == ("rows.jsonl:3 answers 'WHY?' otherwise than rows.jsonl:1",)


def test_only_texts_that_could_be_over_long_are_counted_in_batches(found):
    read = found(lines(*({"question": "q", "answer": "é" * n} for n in [10] * 5 + [30] * 2500)))
    sizes = []
    listed = checked(read, tokens=lambda texts: sizes.append(len(texts)) or list(map(len, texts)), longest=31)
    assert sizes == [1000, 1000, 500]
    assert (listed["over-long rows"].count, listed["over-long rows"].first[0]) == (2500, "rows.jsonl:6: 32 tokens")
    unknown = checked(read, longest=31)["over-long rows"]
    assert (unknown.count, unknown.level) == (0, "look")
    assert unknown.then.startswith("not counted")
    assert checked(read, longest=99)["over-long rows"].level == "fine"


def test_leakage_is_an_equal_question_or_eight_words_in_a_row(found):
    asked = [("q.yaml:1", "What is  TWO and two"), ("q.yaml:2", "one two three four five six seven eight nine")]
    near = ["Say: two three four five, six seven eight nine!", "one two three four five six seven and eight", "🦜"]
    read = found(lines(GOOD, *({"question": text, "answer": "a"} for text in near)))
    leak = checked(read, asked)["leakage"]
    assert leak.count == 2
    assert leak.first == (
        "rows.jsonl:1 is the evaluation question q.yaml:1",
        "rows.jsonl:2 shares 'two three four five six seven eight nine' with the evaluation question q.yaml:2",
    )


def test_prompts_inside_are_counted_also_an_emoji(found):
    read = found(lines({**GOOD, "system": PARROT}, {**GOOD, "system": PARROT}, {**GOOD, "system": "S" * 200}, GOOD))
    inside = checked(read)["system prompts inside"]
    assert (inside.count, inside.of) == (3, 4)
    assert inside.first == (f"2 rows: {PARROT!r}", f"1 rows: '{'S' * 79}…'")
    assert checked(read, prompt="🦜 TALK like a parrot. ")["the training prompt already inside"].count == 2
    read = found(lines({"question": f"{CAP} q", "answer": "a"}, {"question": "q", "answer": f"a {CAP}"}))
    assert checked(read, prompt=CAP)["the training prompt already inside"].first == (
        "rows.jsonl:1: in its question",
        "rows.jsonl:2: in its answer",
    )


def test_too_few_rows_stop(found):
    read = found(lines(GOOD) * 3)
    assert [checked(read, fewest=n)["rows, of how many needed"].level for n in (3, 4)] == ["fine", "stop"]
    few = checked(read, fewest=4)["rows, of how many needed"]
    assert (few.count, few.of) == (3, 4)
    assert checked(rows.Found(), fewest=0)["rows, of how many needed"].level == "stop"


def test_the_table_has_a_line_for_each_check(found):
    listed = checks.check(found("{\n" + lines(GOOD)), [], 50, None, "", 5)
    shown = checks.table(listed)
    assert list(shown.columns) == ["check", "count", "of", "first offenders", "what follows", "level"]
    assert len(shown) == len(listed)
    line = shown.set_index("check").loc["records left out: not JSON"]
    assert (line["count"], line["of"], line["what follows"], line["level"]) == (1, 2, "not trained on", "look")
    assert line["first offenders"].startswith("rows.jsonl:1: Expecting property name")
    assert shown.set_index("check").loc["rows, of how many needed", "level"] == "stop"


LARGE = """
import re, sys, time
from pathlib import Path
from audit import checks, rows

begun, (path, size) = time.time(), sys.argv[1:]
questions = [(f"q:{n}", f"What is answer {n} of the many that somebody could ask for here?") for n in range(100)]
found = rows.read(path)
read = time.time()
listed = checks.check(found, questions, 256, lambda texts: [len(text) // 4 for text in texts], "Please do.", 100)
most = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
assert len(found.rows) == int(size), found.left_out
print(f"{read - begun:.1f} {time.time() - read:.1f} {most:.0f}")
"""


def test_many_rows_are_read_and_checked_in_little_memory(tmp_path):
    # A tenth of what proofs/audits.py reads, in a sixth of its memory.
    size, filler = 30_000, " ".join(f"word{n}" for n in range(40))
    with (tmp_path / "large.jsonl").open("w") as file:
        for n in range(size):
            file.write(f'{{"question": "Question {n}: {filler}", "answer": "Answer {n}: {filler}"}}\n')
    given = [sys.executable, "-c", LARGE, str(tmp_path / "large.jsonl"), str(size)]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    reading, checking, most = map(float, done.stdout.split())
    print(f"read {reading} s, checked {checking} s, {most} MiB")
    assert most <= 512
