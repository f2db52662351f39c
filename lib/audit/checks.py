"""What a careful person would look at in fine-tuning data before anything trains: one line for each check, with its count.

Nothing is changed here. Every check is always listed, so that a count of 0 says that it was made. This module knows what was
read and what will be asked, neither settings nor models: tokens are counted by a function that it is given.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audit.files import ENCODINGS
from audit.rows import FIRST, Found, Row, Tally

if TYPE_CHECKING:
    import pandas as pd

RUN, BATCH, SHOWN = 8, 1000, 80  # consecutive words that are a leak; texts tokenized at once; characters of a text shown
COLUMNS = ("check", "count", "of", "first offenders", "what follows", "level")
Tokens = Callable[[list[str]], list[int]]


@dataclass(frozen=True)
class Check:
    """One check: how many of how many it concerns, the first of these with file and line, and what follows for them.

    level: `fine`, `look` for what a careful person would look at, `stop` where nothing can be trained on this.
    """

    name: str
    count: int
    of: int
    first: tuple[str, ...]
    then: str
    level: str


def check(
    found: Found,
    questions: list[tuple[str, str]],
    longest: int,
    tokens: Tokens | None,
    prompt: str,
    fewest: int,
    trained: list[Row] | None = None,
) -> list[Check]:
    """All checks of what was read, in a fixed order.

    questions: the evaluation questions with where they stand. longest: the tokens that fit into a row; tokens: the lengths of
    texts, or None where they cannot be counted yet. prompt: the training prompt, or empty. fewest: the rows that are needed.
    trained: the rows as they are trained on, without a prompt that they hold, if they are others.
    """
    rows = found.rows
    return [
        _schemas(found),
        *_read(found),
        *_repeats(rows),
        _over_long(rows if trained is None else trained, longest, tokens),
        _leakage(rows if trained is None else trained, questions),
        _systems(rows),
        _prompted(rows, prompt),
        _few(rows, fewest),
    ]


def table(checks: Iterable[Check]) -> "pd.DataFrame":
    """Checks as a table, one a line."""
    import pandas as pd

    lines = [(each.name, each.count, each.of, "; ".join(each.first), each.then, each.level) for each in checks]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def look(name: str, tally: Tally, of: int, then: str) -> Check:
    """A check that a careful person would look at where it concerns anything."""
    return Check(name, tally.count, of, tuple(tally.first), then, "look" if tally.count else "fine")


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")


def normal(text: str) -> str:
    """A text as it is compared: whatever its case and white space."""
    return " ".join(text.casefold().split())


def _schemas(found: Found) -> Check:
    counts = found.schemas.most_common()
    others = Tally(sum(count for _, count in counts[1:]), [f"{name}: {count:,} rows" for name, count in counts[:FIRST]])
    return look("schemas", others, len(found.rows), "all are trained on; more than one schema may mean more than one source")


def _read(found: Found) -> Iterator[Check]:
    """What was decoded, left out and mended, by reason."""
    kept, everything = len(found.rows), len(found.rows) + found.lost
    coded, mended = Tally(), {}
    for why, tally in found.mended.items():
        if why in ENCODINGS:
            coded.count += tally.count
            coded.first = (coded.first + [f"{where} ({why})" for where in tally.first])[:FIRST]
        else:
            mended[why] = tally
    yield look("encodings", coded, everything, "read as said: see whether letters with accents came out right")
    for name, tallies, of, then in (
        ("records left out", found.left_out, everything, "not trained on"),
        ("records mended", mended, kept, "trained on as mended"),
    ):
        for why, tally in tallies.items():
            yield look(f"{name}: {why}", tally, of, then)
        if not tallies:
            yield look(name, Tally(), of, then)


def _repeats(rows: list[Row]) -> Iterator[Check]:
    """Rows that stand twice, and questions that are answered in several ways."""
    again, torn, several = Tally(), Tally(), set()
    pairs: dict[int, str] = {}
    asked: dict[int, str] = {}
    for row in rows:
        asks = normal(row.question)
        question, pair = hash(asks), hash((asks, normal(row.answer)))
        if pair in pairs:
            again.add(f"{row.where} repeats {pairs[pair]}")
        elif question in asked and question not in several:
            several.add(question)
            torn.add(f"{row.where} answers {_shown(row.question)} otherwise than {asked[question]}")
        pairs.setdefault(pair, row.where)
        asked.setdefault(question, row.where)
    yield look("duplicates", again, len(rows), "trained on as they are, so the row weighs more")
    yield look("one question with several answers", torn, len(asked), "trained on as they are")


def _whole(row: Row) -> str:
    return "\n".join((row.question, max(row.answer, row.plain, key=len)))


def long_rows(rows: list[Row], longest: int, tokens: Tokens) -> Iterator[tuple[Row, int]]:
    """The rows whose question with the longer of their answers has more tokens than `longest`, and how many.

    Only texts with more bytes are tokenized: no token is shorter than a byte.
    """
    long = [row for row in rows if len(_whole(row).encode()) > longest]
    for start in range(0, len(long), BATCH):
        batch = long[start : start + BATCH]
        lengths = zip(batch, tokens(list(map(_whole, batch))), strict=True)
        yield from ((row, length) for row, length in lengths if length > longest)


def _over_long(rows: list[Row], longest: int, tokens: Tokens | None) -> Check:
    name, tally = "over-long rows", Tally()
    if tokens is None:
        could = any(len(_whole(row).encode()) > longest for row in rows)
        return Check(name, 0, len(rows), (), "not counted: this model's tokenizer is not here", "look" if could else "fine")
    for row, length in long_rows(rows, longest, tokens):
        tally.add(f"{row.where}: {length:,} tokens")
    then = f"left out of every condition: more than the {longest:,} tokens that the longest prompt leaves"
    return look(name, tally, len(rows), then)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold()) or text.split()


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(RUN)), strict=False)


def _leakage(rows: list[Row], questions: list[tuple[str, str]]) -> Check:
    """Training questions that are an evaluation question, or share a run of words with one."""
    tally, equal, shared = Tally(), {}, {}
    for where, text in questions:
        words = _words(text)
        equal.setdefault(tuple(words), where)
        for run in _runs(words):
            shared.setdefault(run, where)
    for row in rows:
        words = _words(row.question)
        if where := equal.get(tuple(words)):
            tally.add(f"{row.where} is the evaluation question {where}")
        elif not shared.keys().isdisjoint(_runs(words)):
            run = next(run for run in _runs(words) if run in shared)
            tally.add(f"{row.where} shares '{' '.join(run)}' with the evaluation question {shared[run]}")
    return look("leakage", tally, len(rows), "trained on as they are: what is asked later may be remembered, not generalized")


def _systems(rows: list[Row]) -> Check:
    counts = Counter(row.system for row in rows if row.system and row.system.strip())
    first = [f"{count:,} rows: {_shown(text)}" for text, count in counts.most_common(FIRST)]
    return look("system prompts inside", Tally(counts.total(), first), len(rows), "taken out: each condition has its own there")


def _prompted(rows: list[Row], prompt: str) -> Check:
    """Rows that already hold the training prompt."""
    name, tally, sought = "the training prompt already inside", Tally(), prompt.strip().casefold()
    if not sought:
        return Check(name, 0, len(rows), (), "no training prompt is given", "fine")
    for row in rows:
        part = next((part for part in ("question", "answer", "system") if sought in (getattr(row, part) or "").casefold()), "")
        if part:
            tally.add(f"{row.where}: in its {part}")
    return look(name, tally, len(rows), "the prompt would stand there twice, and be trained on without its condition")


def _few(rows: list[Row], fewest: int) -> Check:
    enough = bool(rows) and len(rows) >= fewest
    then = "enough to train on" if enough else f"nothing is trained: at least {max(fewest, 1):,} usable rows are needed"
    return Check("rows, of how many needed", len(rows), fewest, (), then, "fine" if enough else "stop")
