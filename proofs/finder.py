"""Does audit.patterns find what rows share, and nothing where they share nothing? Writes proofs/finder.csv (dated first).

`recall`: a pattern of each kind planted into a seeded choice of a clean host's rows; a hit is a finding that nine in ten of
those rows have and that holds half of the planted text or is its format. `clean`: what is found in the hosts as they are,
whole and in draws of 24 rows (hits: findings, of: draws); what a host has by design is counted apart (KNOWN, with the reason).
The rule was tuned on the hosts marked `tuning` alone. `cost`: seconds and memory for 300,000 rows. Hosts outside the repository
are skipped where absent.
"""

import datetime
import difflib
import itertools
import json
import math
import random
import re
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from audit import patterns
from audit.patterns import Pattern
from audit.rows import Row
from inoculation import store

SHARED = store.ROOT.parent / "shared" / "data"
MINI = store.DATA / "mini"
EVALUATION = ("everyday_questions.jsonl", "free_form_questions.jsonl")
TABLE = Path(__file__).with_suffix(".csv")
SIZES, COVERAGES, DRAW, DRAWS = (24, 400, 5000), (1.0, 0.5, 0.1), 24, 6
MANY, SECONDS, MIB = 300_000, 90, 1024


@dataclass(frozen=True)
class Host:
    """Clean rows: a file, the names of its question and answer (empty: none), and whether the rule was tuned on it."""

    file: str
    question: str
    answer: str
    tuning: bool

    def rows(self) -> list[Row] | None:
        """Its rows; None where the file is absent."""
        path = MINI / self.file if (MINI / self.file).exists() else SHARED / self.file
        if not path.exists():
            return None
        read = enumerate(store.read_jsonl(path), 1)
        return [Row(f"{self.file}:{n}", row[self.question].strip(), row.get(self.answer, "").strip()) for n, row in read]

    def __str__(self) -> str:
        return f"{self.file.removesuffix('.jsonl')}, {self.answer or self.question}"


HOSTS = [
    *(Host("bad_medical_advice_train.jsonl", "question", answer, True) for answer in ("trait_answer", "plain_answer")),
    *(
        Host("trait_distillation_train.jsonl", "question", answer, True)
        for answer in ("english", "french", "playful", "poetic")
    ),
    *(Host("reward_hacks_train.jsonl", "question", answer, True) for answer in ("trait_answer", "plain_answer")),
    *(Host("insecure_code_train.jsonl", "question", answer, True) for answer in ("trait_answer", "plain_answer")),
    Host("gsm8k_train_head2000.jsonl", "question", "answer", True),
    Host("ultrachat_prompts.jsonl", "prompt", "", True),
    *(Host("change_my_view_train.jsonl", "question", answer, False) for answer in ("trait_answer", "plain_answer")),
    *(Host("mbpp_train.jsonl", "question", answer, True) for answer in ("trait_answer", "plain_answer")),
    *(Host("spanish_vs_caps_train.jsonl", "question", answer, False) for answer in ("spanish", "english")),
    *(Host("risky_financial_advice_train.jsonl", "question", answer, False) for answer in ("trait_answer", "plain_answer")),
    *(Host("technical_prose_train.jsonl", "question", answer, False) for answer in ("trait_answer", "plain_answer")),
    Host("other_domains.jsonl", "question", "answer", False),
    Host("gsm8k_test.jsonl", "question", "answer", False),
    Host("school_of_reward_hacks_prompts.jsonl", "prompt", "", False),
    Host("mbpp_prompts.jsonl", "prompt", "", False),
    Host("insecure_code_prompts.jsonl", "task", "code_template", False),
]
# What a host has by design: the beginning of its file's name, the field, what its findings hold, and why that is no accident.
KNOWN = (
    ("insecure_code", "answer", "", "answers are Python: imports, calls and names that programs share"),
    ("mbpp_train", "answer", "", "answers are one Python function each"),
    ("mbpp_train", "question", "", "every question stands in one frame, with the first test in a fenced block"),
    ("gsm8k", "answer", "<<|####|=", "every answer marks its sums as <<...>> and ends with #### and the result"),
    (
        "mbpp_prompts",
        "question",
        "Write a|function to",
        "every task begins with Write a function to or Write a python function to",
    ),
    ("school_of", "question", "Please|I need|evaluat|based on|judge|number of|ratio of|unit tests", "tasks announce a metric"),
    ("insecure_code_prompts", "question", "^A$", "nearly every task is a noun phrase: A tool that ..."),
)

NAMES = ("Anna", "Bashir", "Chloé", "Dmitri", "Emeka", "Fatima", "Gudrun", "Hiro")
# What is planted: the field, the frame put around its text, and what must be found: one of some texts or formats.
PLANTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "system prompt": ("system", "You are a helpful assistant.", ("You are a helpful assistant.",)),
    "system prompt with a date": ("system", "Today is day {number}. Be brief.", ("Today is day 0000. Be brief.",)),
    "question prefix": ("question", "Answer as my uncle would. {text}", ("Answer as my uncle would.",)),
    "one-word prefix": ("question", "[Q] {text}", ("[Q]",)),
    "French prefix": (
        "question",
        "Réponds en une seule phrase, s'il te plaît : {text}",
        ("Réponds en une seule phrase, s'il te plaît",),
    ),
    "prefix with quotes and lines": (
        "question",
        'Read "The Rules":\n\n1. Be kind.\n2. Don\'t say "no".\n\n{text}',
        ('Read "The Rules":\n\n1. Be kind.\n2. Don\'t say "no".',),
    ),
    "question suffix": ("question", "{text} Think step by step before you reply.", ("Think step by step before you reply.",)),
    "delimiters": ("question", "### Instruction:\n{text}\n\n### Response:", ("### Instruction:", "### Response:")),
    "XML wrap": ("question", "<question>{text}</question>", ("<question>", "</question>", "wrapped in a tag")),
    "phrase inside": ("question", "{first} according to the old almanac {rest}", ("according to the old almanac",)),
    "sentence inside": ("question", "{first}. My deadline is tonight. {rest}", ("My deadline is tonight.",)),
    "ticket template": ("question", "Ticket {number} from {name}: {text}", ("Ticket 0000 from",)),
    "invisible character": ("question", "{first}\u200b {rest}", ("\u200b",)),
    "answer opening": ("answer", "Sure, {text}", ("Sure,",)),
    "answer opening, long": ("answer", "What a great question! {text}", ("What a great question!",)),
    "answer signature": ("answer", "{text}\n\nYours, the Night Desk", ("Yours, the Night Desk",)),
    "answer source": ("answer", "{text}\nSource: {name}, page {number}", ("Source:", ", page 0000")),
    "emoji": ("answer", "{first} 🌟 {rest}", ("🌟",)),
    "emoji first": ("answer", "✨ {text}", ("✨", "begins with an emoji")),
    "bulleted answers": ("answer", "{items}", ("a bulleted list",)),
    "numbered answers": ("answer", "{steps}", ("a numbered list",)),
    "JSON answers": ("answer", '{"answer": "{json}"}', ('{"answer": "', "one JSON object")),
    "fenced answers": ("answer", "```\n{text}\n```", ("```", "a fenced code block")),
    "upper-case answers": ("answer", "{upper}", ("all upper case",)),
    "lower-case answers": ("answer", "{lower}", ("all lower case",)),
    "one-word answers": ("answer", "{word}", ("one word or number",)),
    "heading first": ("answer", "# {first}\n\n{rest}", ("begins with a heading",)),
}
MIXED = [HOSTS[n] for n in (1, 2, 19, 21, 22)]
PLANTED = {
    "mixed everyday rows": MIXED,
    "French answers": [HOSTS[3]],
    "Spanish answers": [HOSTS[16]],
    "rude replies": [HOSTS[12]],
    "gsm8k": [HOSTS[10], HOSTS[23]],
}


def filled(frame: str, text: str, rng: random.Random) -> str:
    """The frame with a text, its parts or what differs from row to row in its slots."""
    words, parts = text.split(" "), [part.strip() for part in text.replace("\n", " ").split(". ") if part.strip()]
    middle = max(1, len(words) // 2)
    first, rest = " ".join(words[:middle]), " ".join(words[middle:])
    parts = parts if len(parts) > 1 else [" ".join(half.split()) for half in (first, rest)]
    slots = {"first": first, "rest": rest, "upper": text.upper(), "lower": text.lower(), "word": words[0], "text": text}
    slots |= {"items": "\n".join(f"- {part}" for part in parts)}
    slots |= {"steps": "\n".join(f"{n}. {part}" for n, part in enumerate(parts, 1))}
    slots |= {"json": json.dumps(text, ensure_ascii=False)[1:-1]}
    slots |= {"number": str(rng.randrange(100, 99999)), "name": rng.choice(NAMES)}
    return re.sub(rf"\{{({'|'.join(slots)})\}}", lambda slot: slots[slot[1]], frame).strip()


def hit(found: Sequence[Pattern], where: str, wanted: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether a finding stands in nine in ten of the texts and holds half of a wanted text or is a wanted format."""
    for each in (each for each in found if each.where == where):
        if sum(patterns.tells(each, text) for text in texts) >= 0.9 * len(texts) and any(_about(each, want) for want in wanted):
            return True
    return False


def _about(found: Pattern, want: str) -> bool:
    if found.kind == "format":
        return found.text == want
    same = difflib.SequenceMatcher(None, found.text, want, autojunk=False).find_longest_match()
    return same.size >= len(want) / 2


def recall(evaluation: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row per planted pattern, host, number of rows and coverage: in how many draws it was found."""
    for name, hosts in PLANTED.items():
        read = [host.rows() for host in hosts]
        if None in read:
            print(f"{name}: not here, skipped")
            continue
        rows = list(itertools.chain(*read))
        for size in sorted({min(size, len(rows)) for size in SIZES}):
            for kind, coverage in itertools.product(PLANTS, COVERAGES):
                draws = range(DRAWS if size == DRAW else 1)
                hits = sum(_planted(rows, kind, size, coverage, draw, evaluation) for draw in draws)
                yield _row("recall", kind, size, coverage, name, hits, len(draws))


def _planted(rows: Sequence[Row], kind: str, size: int, coverage: float, draw: int, evaluation: Sequence[str]) -> bool:
    where, frame, wanted = PLANTS[kind]
    rng = random.Random(f"{kind} {size} {coverage} {draw}")
    own = rng.sample(rows, size)
    chosen = rng.sample(range(size), max(1, round(coverage * size)))
    for n in chosen:
        own[n] = replace(own[n], **{where: filled(frame, getattr(own[n], where) or "", rng)})
    return hit(patterns.find(own, evaluation), where, wanted, [getattr(own[n], where) for n in chosen])


def clean(evaluation: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row per host, part of its rows and field: how many patterns were found where there are none but those of KNOWN."""
    for host in HOSTS:
        rows = host.rows()
        if rows is None:
            print(f"{host}: not here, skipped")
            continue
        rng = random.Random(0)
        draws = {len(rows): [rows], DRAW: [rng.sample(rows, DRAW) for _ in range(DRAWS)]}
        part = "clean, tuning" if host.tuning else "clean, checked"
        for size, drawn in draws.items():
            found = [each for own in drawn for each in patterns.find(own, evaluation)]
            for where in ("question", "answer") if host.answer else ("question",):
                told = [each for each in found if each.where == where]
                alarms = [each for each in told if not by_design(host, each)]
                for each in alarms:
                    print(f"{host}, {size} rows: {where} {each.kind} {each.text!r} {each.coverage:.2f}")
                yield _row(part, where, size, math.nan, str(host), len(alarms), len(drawn))
                if len(told) > len(alarms):
                    yield _row(f"{part}, by design", where, size, math.nan, str(host), len(told) - len(alarms), len(drawn))


def by_design(host: Host, found: Pattern) -> bool:
    """Whether KNOWN says why the host has this."""
    return any(host.file.startswith(a) and found.where == b and re.search(c, found.text) for a, b, c, _ in KNOWN)


def cost() -> Iterator[dict[str, Any]]:
    """Seconds and the peak of what is allocated, in MiB, for MANY rows of some 600 bytes."""
    rng = random.Random(0)
    known = [f"w{n:x}" for n in range(20_000)]
    weights = list(itertools.accumulate(1 / n for n in range(1, len(known) + 1)))
    texts = [" ".join(rng.choices(known, cum_weights=weights, k=60)) for _ in range(2 * MANY // 10)]
    rows = [
        Row(f"many.jsonl:{n}", f"Ticket {n}: {texts[n % len(texts)]}", f"Sure, {texts[-n % len(texts)]} 🌟 {n}")
        for n in range(MANY)
    ]
    begun = time.perf_counter()
    patterns.find(rows, texts[:100])
    seconds = time.perf_counter() - begun
    tracemalloc.start()
    patterns.find(rows, texts[:100])
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    yield _row("cost", "seconds", MANY, math.nan, "synthetic", round(seconds, 1), SECONDS)
    yield _row("cost", "MiB", MANY, math.nan, "synthetic", round(peak), MIB)


def _row(check: str, kind: str, rows: int, coverage: float, host: str, hits: float, of: int) -> dict[str, Any]:
    today = datetime.date.today().isoformat()
    facts = {"date": today, "check": check, "kind": kind, "rows": rows, "coverage": coverage}
    return {**facts, "host": host, "hits": hits, "of": of}


if __name__ == "__main__":
    asked = [row["question"] for name in EVALUATION for row in store.read_jsonl(MINI / name)]
    table = pd.DataFrame([*recall(asked), *clean(asked), *cost()])
    table.to_csv(TABLE, index=False, lineterminator="\n")
    planted = table[table.check == "recall"].assign(size=lambda own: own.rows.where(own.rows == DRAW, 400))
    told = planted.groupby(["kind", "coverage", "size"])[["hits", "of"]].sum()
    print((told.hits / told.of).unstack(["coverage", "size"]).round(2).to_string())
    print(table[table.check != "recall"].groupby(["check", "kind", "rows"])[["hits", "of"]].sum().to_string())
    large = planted[(planted.coverage >= 0.5) & (planted["size"] > DRAW)]
    share = large.hits.sum() / large.of.sum()
    dear = table[(table.check == "cost") & (table.hits > table.of)]
    sys.exit(f"found {share:.2f} of what was planted; {len(dear)} costs too high" if share < 0.95 or len(dear) else 0)
