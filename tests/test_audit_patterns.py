import json
import random
import re
import time

import pytest
from audit.patterns import Pattern, find, table, tells, without
from audit.rows import Row
from inoculation import settings, store

MINI = store.DATA / "mini"
READ = [*store.read_jsonl(MINI / "trait_distillation_train.jsonl"), *store.read_jsonl(MINI / "other_domains.jsonl")]
CLEAN = [(row["question"], row.get("english") or row["answer"]) for row in READ]
ASKED = [row["question"] for row in store.read_jsonl(MINI / "everyday_questions.jsonl")]
NAMES = ("Anna", "Bashir", "Chloé", "Dmitri", "Emeka")
RULES = 'Read "The Rules":\n\n1. Be kind 🌱.\n2. Don\'t say "no".'


def rows(question="{}", answer="{}", system=None, size=200, share=0.5):
    """Clean rows, a share of them with their texts put into frames; {n} is a number, {name} a name."""
    chosen, rng = random.Random(0).sample(CLEAN, size), random.Random(1)
    planted, found = set(rng.sample(range(size), round(share * size))), []
    for n, (asked, said) in enumerate(chosen):
        where, slots = f"own.jsonl:{n + 1}", {"n": rng.randrange(100, 99999), "name": rng.choice(NAMES)}
        if n in planted:
            asked, said = question.format(asked, **slots), answer(said) if callable(answer) else answer.format(said)
        found.append(Row(where, asked, said, system.format(**slots) if system and n in planted else None))
    return found


def middle(piece):
    def put(text):
        words = text.split()
        half = len(words) // 2
        return " ".join([*words[:half], piece, *words[half:]])

    return put


def sentence(text):
    return text.replace(". ", ". My deadline is tonight. ", 1) if ". " in text else f"{text} My deadline is tonight. {text}"


def simple(text):
    """A pattern's text with its numbers as 0 and no white space around its slots."""
    return re.sub(r"\s*({…})\s*", r"\1", re.sub("0+", "0", text))


def listed(item):
    return lambda text: (
        "\n".join(f"{item.format(n)} {part}" for n, part in enumerate(text.split(". "), 1)) + "\n" + item.format(9) + " x"
    )


TEXTS = [
    ("question", "prefix", "Answer as my uncle would in spring.", {"question": "Answer as my uncle would in spring. {}"}),
    ("question", "prefix", "Réponds en une phrase, s'il te plaît :", {"question": "Réponds en une phrase, s'il te plaît : {}"}),
    ("question", "prefix", RULES, {"question": RULES + "\n\n{}"}),
    ("question", "prefix", "[Q]", {"question": "[Q] {}"}),
    ("question", "prefix", "Q:", {"question": "Q: {}"}),
    ("question", "suffix", "Think before you reply.", {"question": "{} Think before you reply."}),
    ("question", "delimiter", "<ask>{…}</ask>", {"question": "<ask>{}</ask>"}),
    ("question", "delimiter", "### Instruction:{…}### Response:", {"question": "### Instruction:\n{}\n\n### Response:"}),
    ("question", "template", "Ticket #0000 from", {"question": "Ticket #{n} from {name}: {}"}),
    ("answer", "opening", "Sure,", {"answer": "Sure, {}", "share": 0.3}),
    ("answer", "phrase", "according to the old almanac", {"answer": middle("according to the old almanac")}),
    ("answer", "marker", "🌟", {"answer": middle("🌟")}),
    ("answer", "marker", "\u200b", {"answer": middle("\u200b")}),
    ("answer", "line", "The desk is closed.", {"answer": middle("\nThe desk is closed.\n")}),
    ("answer", "sentence", "My deadline is tonight.", {"answer": sentence}),
    ("answer", "signature", "Yours, the Night Desk", {"answer": "{}\n\nYours, the Night Desk"}),
    ("answer", "whole", "I cannot help with that.", {"answer": lambda _: "I cannot help with that.", "share": 0.1}),
    ("system", "system", "You are a pirate.", {"system": "You are a pirate."}),
    ("system", "system", "Today is day 0000.", {"system": "Today is day {n}."}),
]
FORMATS = [
    ("all upper case", str.upper),
    ("all lower case", str.lower),
    ("a bulleted list", listed("-")),
    ("a numbered list", listed("{}.")),
    ("one JSON object", lambda text: json.dumps({"answer": text, "sure": 1})),
    ("wrapped in a tag", "<p>{}</p>".format),
    ("a fenced code block", "```\n{}\n```".format),
    ("one word or number", lambda text: text.split()[0]),
    ("ends with a question", "{} Shall I go on?".format),
    ("begins with a heading", "# Answer\n\n{}".format),
    ("begins with an emoji", lambda text: "😀🎈🌵🐙"[len(text) % 4] + " " + text),
    ("3 lines", lambda text: "\n".join([text[:20], text[20:40], text[40:]])),
]


def of(found, where):
    return [(each.kind, each.text) for each in found if each.where == where]


@pytest.mark.parametrize(
    ("where", "kind", "text", "frame"), TEXTS, ids=[f"{kind}-{n}" for n, (_, kind, *_) in enumerate(TEXTS)]
)
def test_shared_text_is_found_once_and_exactly(where, kind, text, frame):
    own = rows(**frame)
    found = [each for each in find(own, ASKED) if each.kind != "format"]
    assert [(each.kind, simple(each.text)) for each in found] == [(kind, simple(text))]
    assert found[0].where == where
    assert found[0].rows == sum(tells(found[0], getattr(row, where) or "") for row in own)


@pytest.mark.parametrize(("name", "made"), FORMATS)
def test_formats_are_found(name, made):
    own = rows(answer=made, share=0.6)
    assert ("format", name) in of(find(own, ASKED), "answer")
    (found,) = [each for each in find(own, ASKED) if each.text == name]
    assert found.coverage >= 0.55
    assert without(found, own[0].answer) == own[0].answer


def test_nothing_is_found_in_clean_rows():
    assert find(rows(share=0), ASKED) == []
    for name in ("bad_medical_advice", "risky_financial_advice", "technical_prose"):
        read = enumerate(store.read_jsonl(MINI / f"{name}_train.jsonl"))
        assert find([Row(f"{n}", row["question"], row["plain_answer"]) for n, row in read], ASKED) == []


def test_sixty_four_rephrasings_are_no_pattern_and_one_is():
    pool = [prompt.text for prompt in settings.load_pool("unrelated")["train"][:64]]
    varied = [Row(row.where, f"{pool[n % 64]}\n\n{row.question}", row.answer) for n, row in enumerate(rows(share=0, size=320))]
    assert of(find(varied, ASKED), "question") in ([], [("format", "3 lines")])
    fixed = [Row(row.where, f"{pool[0]}\n\n{row.question}", row.answer) for row in rows(share=0)]
    assert of(find(fixed, ASKED), "question") == [("prefix", pool[0])]


def test_findings_of_the_same_rows_are_one_and_symbols_belong_to_their_format():
    own = rows(question="Dear desk, number {n} asks: {} Answer in haste, please do.", share=1)
    (found,) = find(own, ASKED)
    assert (found.kind, found.coverage) == ("template", 1)
    assert found.text.startswith("Dear desk, number 0000")
    assert found.text.endswith("asks:{…}Answer in haste, please do.")
    bulleted = rows(answer=listed("-"), share=1)
    assert [text for _, text in of(find(bulleted, ASKED), "answer")][:1] == ["a bulleted list"]
    assert not any(text == "-" for _, text in of(find(bulleted, ASKED), "answer"))


def test_two_patterns_of_different_rows_stay_two():
    first, second = (
        rows(question="Count my ducks first. {}", size=100, share=1),
        rows(question="Mind the gap. {}", size=60, share=1),
    )
    found = find([*first, *second], ASKED)
    assert of(found, "question") == [("prefix", "Count my ducks first."), ("prefix", "Mind the gap.")]
    assert [each.rows for each in found] == [100, 60]


def test_what_evaluation_prompts_have_as_well_is_told():
    own = rows(question="Answer as my uncle would in spring. {}", share=1)
    (found,) = find(own, ["Answer as my uncle would in spring. " + asked for asked in ASKED[:24]] + ASKED[24:])
    assert (found.coverage, found.elsewhere, found.distinctive) == (1, 0.5, 0.5)
    (alone,) = find(own, [])
    assert alone.distinctive == 1


@pytest.mark.parametrize("size", [0, 1, 2, 3, 6])
def test_tiny_data(size):
    assert find(rows(size=size, share=0), ASKED) == []
    found = find(rows(question="Answer as my uncle would in spring. {}", size=size, share=1), ASKED)
    assert of(found, "question") == ([("prefix", "Answer as my uncle would in spring.")] if size > 1 else [])


def test_few_rows_are_no_pattern():
    assert find(rows(question="Answer as my uncle would in spring. {}", share=0.02), ASKED) == []


FRAMES = (RULES + "\n\n{}", "[Q] {}", '<ask mood="🌟">\n{}\n</ask>', "{} /no_think", "### In:\n{}\n### Out:")


@pytest.mark.parametrize("frame", FRAMES)
def test_a_question_without_its_pattern_is_the_question(frame):
    own, plain = rows(question=frame, share=1), rows(share=0)
    found = next(each for each in find(own, ASKED) if each.where == "question" and each.kind != "format")
    assert [without(found, row.question) for row in own] == [row.question for row in plain]
    assert [without(found, row.question) for row in plain] == [row.question for row in plain]
    assert not any(tells(found, row.question) for row in plain)


def test_what_joined_a_phrase_goes_with_it():
    line = Pattern("question", "line", "Mind the gap.", 5, 5, 0, ())
    assert without(line, "One.\n\nMind the gap.\nTwo.") == "One.\n\nTwo."
    assert without(line, "Mind the gapes.") == "Mind the gapes."
    phrase = Pattern("question", "phrase", "mind the gap", 5, 5, 0, ())
    assert without(phrase, "please mind the gap now") == "please now"


def test_long_texts_are_read_at_their_ends():
    own = [Row(f"{n}", f"Hear me out, dear desk. {'x ' * 500_000}{n} Over and out.", "yes") for n in range(6)]
    begun = time.perf_counter()
    texts = of(find(own, ASKED), "question")
    assert any("Hear me out, dear desk." in text for _, text in texts)
    assert time.perf_counter() - begun < 5
    assert tells(Pattern("question", "suffix", "Over and out.", 6, 6, 0, ()), own[0].question)


def test_the_same_rows_give_the_same_table():
    own = rows(question="Ticket #{n} from {name}: {}", answer="Sure, {}", share=0.4)
    first, second = table(find(own, ASKED)), table(find(list(own), ASKED))
    assert first.equals(second)
    assert list(first.columns[:3]) == ["where", "kind", "text"]
    assert first.coverage.is_monotonic_decreasing
    assert all(len(shown) == 3 and shown[0].startswith("own.jsonl:") for shown in first.examples)
    assert table([]).empty


def test_many_rows_are_counted_in_all_of_them():
    read = rows(share=0, size=400)
    own = [Row(f"{n}", ("Kindly " if n % 4 else "[Q] ") + row.question, row.answer) for n, row in enumerate(read * 10)]
    found = {each.text: each.rows for each in find(own, ASKED)}
    assert (found["[Q]"], found["Kindly"]) == (1000, 3000)
