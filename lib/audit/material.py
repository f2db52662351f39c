"""What an answer file names, read: rows without the prompt that they hold, control answers, evaluation questions, pairs.

Nothing vanishes: what is not trained on is counted as a Check, with the reason. Files of questions and pairs are read like
data; whatever is wrong in them raises SettingError with file and line, as they are few and yours.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inoculation import store
from inoculation.settings import DELIMITER, JOIN
from inoculation.store import SettingError, read_jsonl

from audit import patterns
from audit.answers import Answers, Measure
from audit.checks import Check, long_rows, look, normal
from audit.files import Remark, opened
from audit.rows import Row, Tally, read

EVERYDAY = store.DATA / "mini" / "everyday_questions.jsonl"
SLOT_OF = {"prefix": "user_prefix", "opening": "user_prefix", "suffix": "user_suffix", "signature": "user_suffix"}
HALF = 0.5  # of the rows must hold what is to be audited as a prompt that is in the rows already
PAIR = ("question", "trait_answer", "plain_answer")


@dataclass(frozen=True)
class Lifted:
    """The training prompt, its slot, what joins it to the message, the rows without it, and how many rows held it."""

    prompt: str
    slot: str
    join: str
    rows: list[Row]
    held: int


def lift(answers: Answers, rows: list[Row], shared: list[patterns.Pattern]) -> Lifted | None:
    """The training prompt, and the rows to be trained on under it; None where it is to be in the rows and is not.

    In the rows it is the commonest system prompt, or a prefix or suffix of the questions, that half of the rows hold. Only
    these are trained on, so that the prompt is the one thing in which conditions differ.
    """
    if answers.prompt:
        return Lifted(answers.prompt, answers.slot, JOIN, rows, len(rows))
    systems = [(row.system or "").strip() for row in rows]
    system, count = next(iter(Counter(filter(None, systems)).most_common(1)), ("", 0))
    if system and count >= HALF * len(rows):
        return Lifted(system, "system", JOIN, [row for row, own in zip(rows, systems, strict=True) if own == system], count)
    usable = [p for p in shared if p.where == "question" and p.kind in SLOT_OF and p.rows >= HALF * len(rows)]
    return next(filter(None, (_without(pattern, rows) for pattern in usable)), None)


def _without(pattern: patterns.Pattern, rows: list[Row]) -> Lifted | None:
    """The rows without a prefix or suffix; None where it is no text that stands there word for word."""
    text, slot = pattern.text.strip(), SLOT_OF[pattern.kind]
    at = str.startswith if slot == "user_prefix" else str.endswith
    held = [row for row in rows if at(row.question, text) and patterns.tells(pattern, row.question)]
    if len(held) < HALF * len(rows):
        return None
    rest = [patterns.without(pattern, row.question) for row in held]
    gaps = [row.question.replace(text, "", 1).replace(part, "", 1) for row, part in zip(held, rest, strict=True) if part]
    kept = [replace(row, question=part) for row, part in zip(held, rest, strict=True) if part]
    return Lifted(text, slot, Counter(gaps).most_common(1)[0][0], kept, len(held)) if kept else None


def dropped(before: list[Row], after: list[Row], name: str, then: str) -> Check:
    """A check of the rows that are in `before` and not in `after`."""
    there, gone = {row.where for row in after}, Tally()
    for row in before:
        if row.where not in there:
            gone.add(row.where)
    return look(name, gone, len(before), then)


def fitting(rows: list[Row], room: int, tokens: Callable[[list[str]], list[int]] | None) -> list[Row]:
    """The rows that fit beside the longest prompt of all conditions, so that every condition trains on the same."""
    long = {row.where for row, _ in long_rows(rows, room, tokens)} if tokens else set()
    return [row for row in rows if row.where not in long]


def _bare(question: str, lifted: Lifted) -> str:
    """A question without the prompt that was lifted from the others, where it has it."""
    cut = {"user_prefix": question.removeprefix, "user_suffix": question.removesuffix}.get(lifted.slot, lambda text: question)
    return cut(lifted.prompt).strip() or question


def control(answers: Answers, lifted: Lifted, fewest: int) -> tuple[list[Row], list[dict[str, str]], list[Check], str]:
    """The rows to train on, the control's own where these are a file, checks about them, and why there is no control.

    Of a field, rows without such an answer are left out of every condition, so that all train on the same questions.
    """
    rows = lifted.rows
    if not answers.control:
        return rows, [], [], "no answers without the traits were given (`control`); the untouched model stands in its place"
    if not answers.is_file(answers.control):
        both = [row for row in rows if row.plain]
        then = "left out, so that the control trains on the same questions as the others"
        few = f"{len(both)} rows have an answer under `{answers.control}`; {fewest} are needed" * (len(both) < fewest)
        return rows if few else both, [], [] if few else [dropped(rows, both, "rows without a control answer", then)], few
    return rows, *_control_file(answers, lifted, fewest)


def _control_file(answers: Answers, lifted: Lifted, fewest: int) -> tuple[list[dict[str, str]], list[Check], str]:
    """The control's rows, checks about them, and why they are not enough."""
    own = read(answers.place(answers.control))
    own.rows = [replace(row, question=_bare(row.question, lifted)) for row in own.rows]
    asked = {normal(row.question) for row in lifted.rows}
    alien = Tally(sum(normal(row.question) not in asked for row in own.rows))
    lost = Tally(own.lost, [f"{why}: {tally.first[0]}" for why, tally in own.left_out.items()])
    found = [
        look("control: records left out", lost, own.lost + len(own.rows), "not trained on"),
        look("control: questions of their own", alien, len(own.rows), "control and others then differ in questions, too"),
    ]
    few = f"{len(own.rows)} rows of the control can be used; {fewest} are needed" * (len(own.rows) < fewest)
    given = [{"id": row.where, "question": row.question, "plain_answer": row.answer} for row in own.rows]
    return [] if few else given, found, few


def held_out(rows: list[Row], name: str, size: int) -> tuple[list[Row], list[Row]]:
    """Rows to be asked about as in distribution, and the others: seeded, and no question on both sides."""
    order = random.Random(f"{name}/held out").sample(rows, len(rows))
    chosen = list(dict.fromkeys(row.question for row in order))[: min(size, len(rows) // 10)]
    first = {question: next(row for row in order if row.question == question) for question in chosen}
    return list(first.values()), [row for row in order if row.question not in first]


def questions(answers: Answers) -> list[dict[str, str]]:
    """The evaluation questions (id, question): yours (records with `question`, or one a line), else the everyday ones."""
    if not answers.questions:
        return [{"id": row["id"], "question": row["question"]} for row in read_jsonl(EVERYDAY)]
    path = _there(answers, answers.questions, "evaluation questions")
    if path.suffix == ".txt":
        texts = {f"{path.name}:{number}": line for number, line in enumerate(store.read_lines(path), 1)}
    else:
        texts = {where: _field(where, record, "question") for where, record in _records(path)}
    for where, text in texts.items():
        _check(where, text)
    known = list(dict.fromkeys(text.strip() for text in texts.values() if text.strip()))
    if not known:
        raise SettingError(f"{path.name}: holds no question (records with `question`, or a question a line in a .txt file)")
    return [{"id": f"{path.stem}-{number:04d}", "question": text} for number, text in enumerate(known, 1)]


def pairs(answers: Answers, measure: Measure) -> list[dict[str, str]]:
    """A measure's written pairs (id, trait, and PAIR); of a file for several measures, those whose `trait` names it."""
    if not measure.pairs:
        return []
    path, found = _there(answers, measure.pairs, f"pairs (for {measure.name})"), []
    for where, record in _records(path):
        if record.get("trait", measure.name) == measure.name:
            texts = {key: _field(where, record, key) for key in PAIR}
            found.append({"id": f"{measure.name}-{len(found) + 1:03d}", "trait": measure.name, **texts})
    if not found:
        raise SettingError(f"{path.name}: holds no pair of {measure.name}")
    return found


def _there(answers: Answers, name: str, what: str) -> Path:
    path = Path(answers.place(name))
    if not path.is_file():
        raise SettingError(f"{name}: no such file of {what}; paths are relative to {answers.path.name}")
    return path


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a file with where they stand; SettingError for one that cannot be read."""
    for _, entries in opened(str(path)):
        for entry in entries or ():
            if isinstance(entry, Remark):
                if entry.lost:
                    raise SettingError(f"{entry.where}: {entry.why} {entry.detail}".strip())
            elif not isinstance(entry.value, dict):
                raise SettingError(f"{entry.where}: expected a record with fields, not {type(entry.value).__name__}")
            else:
                yield entry.where, entry.value


def _field(where: str, record: dict[str, Any], key: str) -> str:
    text = record.get(key)
    if not isinstance(text, str) or not text.strip():
        raise SettingError(f"{where}: expected a text under `{key}`, not {text!r}")
    return _check(where, text)


def _check(where: str, text: str) -> str:
    if found := DELIMITER.search(text):
        raise SettingError(f"{where}: holds {found[0]}, which would end the message")
    return text
