"""Your fine-tuning data as you keep it, read into rows: a question, its answer, and the system prompt they stand under.

Five schemas are known by a record's fields. Of a chat, the first question and the first answer to it count. Whatever cannot be
used is left out and counted by what is wrong with it, whatever is kept with help is counted by what helped, and the first of
each are named with file and line. This module judges no content: that is for `checks` and `patterns`.
"""

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from inoculation.settings import DELIMITER, JOIN
from inoculation.store import nearest

from audit.files import Record, Remark, opened

FIRST = 5
SHOWN, NAMED, EVERY = 60, 200, 10.0  # characters shown of a record and of its fields; seconds between progress lines
SCHEMAS = {  # the first that a record's fields fit counts
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt/completion": ("prompt", "completion"),
    "instruction/output": ("instruction", "output"),
    "question/answer": ("question", "answer"),
}
SYSTEM, MORE, SIDES = ("system", "system_prompt"), "input", ("user", "assistant")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_call", "observation", "ipython"), "tool"),
}
TEXT_PARTS = (None, "text", "input_text", "output_text")
PARTS = "content in parts: their texts joined"
JOINED = "several user turns in a row: joined"
GREETING = "an assistant turn before the first question: dropped"
LATER = "later turns left out: the first exchange is kept"
TOOL = "a tool call stands before the first answer"


@dataclass(frozen=True, slots=True)
class Row:
    """One training example: where it stands, its first question and answer, its system prompt (None: no system message).

    where: file and line, as `rows.jsonl:17`. plain: the answer without the traits that stands in the same record, or empty.
    """

    where: str
    question: str
    answer: str
    system: str | None = None
    plain: str = ""


@dataclass
class Tally:
    """Rows of which something is to be said: how many, and where the first stand with what was found there."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < FIRST:
            self.first.append(where)


@dataclass
class Found:
    """What a source holds: its usable rows in order, and by reason what was left out and what was kept with help.

    schemas: rows by schema. files: a sentence a file, with its name, size, encoding and rows.
    """

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, Tally] = field(default_factory=dict)
    mended: dict[str, Tally] = field(default_factory=dict)
    schemas: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """How many records were left out."""
        return sum(tally.count for tally in self.left_out.values())

    def count(self, tallies: dict[str, Tally], why: str, entry: Record | Remark, detail: str = "") -> None:
        """Count one more in `left_out` or `mended`, with where it stands and how that looks."""
        shown = repr(str(entry.seen)[:SHOWN]) if entry.seen else ""
        tallies.setdefault(why, Tally()).add(": ".join(filter(None, (entry.where, detail, shown))))


def read(source: str, plain: str = "", say: Callable[[str], None] = lambda line: None) -> Found:
    """The rows of a file, of a folder's files, or of a data set of the hub (`owner/name` or `owner/name:config:split`).

    plain: the field of the answer without the traits. say: told every ten seconds how far it is. SettingError: there is no
    such source, it is of no kind that is read here, or no record has the field `plain`.
    """
    found, wanted, fields, told = Found(), plain.strip().lower(), set(), time.monotonic()
    for sentence, entries in opened(source):
        rows, left = len(found.rows), found.lost
        for entry in entries or ():
            _take(entry, wanted, fields, found)
            if time.monotonic() - told >= EVERY:
                told = time.monotonic()
                say(f"{entry.where}: {len(found.rows):,} rows read so far")
        counts = f", usable rows: {len(found.rows) - rows:,}, left out: {found.lost - left:,}" if entries else ""
        found.files.append(sentence + counts)
    if wanted and fields and wanted not in fields:
        raise nearest(plain, fields, "field for the answer without the traits")
    return found


class _RowError(Exception):
    """A record that cannot be used: why, and what it was about this one."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(why)
        self.why, self.detail = why, detail


def _take(entry: Record | Remark, plain: str, names: set[str], found: Found) -> None:
    """Keep what an entry holds, or count why it is left out; adds its fields to `names`."""
    if isinstance(entry, Remark):
        found.count(found.left_out if entry.lost else found.mended, entry.why, entry, entry.detail)
        return
    try:
        if not isinstance(entry.value, dict):
            raise _RowError("a record that is no object")
        fields = {str(name).strip().lower(): value for name, value in entry.value.items()}
        names.update(fields)
        odd = list(entry.odd)
        schema, row = _row(entry.where, fields, plain, odd)
    except _RowError as error:
        found.count(found.left_out, error.why, entry, error.detail)
    except RecursionError:
        found.count(found.left_out, "nested too deeply", entry)
    else:
        found.rows.append(row)
        found.schemas[schema] += 1
        for why in dict.fromkeys(odd):
            found.count(found.mended, why, entry)


def _row(where: str, fields: dict[str, Any], plain: str, odd: list[str]) -> tuple[str, Row]:
    """A record's schema and row; adds to `odd` what was mended. Raises _RowError."""
    fitting = [name for name, needed in SCHEMAS.items() if all(each in fields for each in needed)]
    if not fitting:
        raise _RowError("fits no schema", f"its fields: {', '.join(fields)}"[:NAMED])
    schema = next((name for name in fitting if any(fields[each] is not None for each in SCHEMAS[name])), fitting[0])
    beside = [fields[name] for name in SYSTEM if name in fields]
    turns = [{"role": "system", "content": text} for text in beside if _text(text, []).strip()] + _turns(schema, fields, odd)
    question, answer, system = _exchange(turns, odd)
    texts = question, answer, system or "", _text(fields.get(plain) if plain else None, odd).strip()
    for name, text in (("question", question), ("answer", answer)):
        if not text:
            raise _RowError(f"an empty {name}")
    if any(map(DELIMITER.search, texts)):
        raise _RowError("a chat delimiter inside the text")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise _RowError("half a character (a lone surrogate) inside the text") from error
    return schema, Row(where, question, answer, system, texts[-1])


def _turns(schema: str, fields: dict[str, Any], odd: list[str]) -> list[dict[str, Any]]:
    """A record's turns, each with a `role` and its `content`; raises _RowError where it has none."""
    needed = [fields[name] for name in SCHEMAS[schema]]
    if len(needed) == 1:
        turns = _chat(needed[0])
        if turns is None:
            raise _RowError(f"{schema} that are no list of turns with a role")
        return turns
    if schema == "instruction/output":
        both = (_text(needed[0], odd), _text(fields.get(MORE), odd))
        needed[0] = JOIN.join(text for text in both if text.strip())
    asked, answered = (_chat(side) or [{"role": role, "content": side}] for role, side in zip(SIDES, needed, strict=True))
    roles = [_role(turn) for turn in asked]
    if "user" in roles and "assistant" in roles[roles.index("user") :]:
        raise _RowError("an answer inside the prompt: the completion belongs to a later turn")
    return asked + answered


def _chat(given: Any) -> list[dict[str, Any]] | None:
    """The turns of a list of messages (role and content, or from and value), also as JSON in a cell; None for anything else."""
    if isinstance(given, str) and given.lstrip().startswith("[{"):
        with contextlib.suppress(ValueError):
            given = json.loads(given)
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        return None
    turns = [{str(name).lower(): value for name, value in turn.items()} for turn in given]
    for turn in turns:
        turn["role"] = turn.get("role") or turn.get("from")
        turn["content"] = turn["value"] if turn.get("content") is None and "value" in turn else turn.get("content")
    return turns if all(turn["role"] for turn in turns) else None


def _role(turn: dict[str, Any]) -> str:
    name = str(turn["role"]).strip().lower()
    if name not in ROLES:
        raise _RowError("a role that is not known", repr(name[:SHOWN]))
    return ROLES[name]


def _exchange(turns: list[dict[str, Any]], odd: list[str]) -> tuple[str, str, str | None]:
    """The first question, the first answer to it and the system prompt before that; raises _RowError."""
    system, asked = [], []
    for place, turn in enumerate(turns, 1):
        role = _role(turn)
        if role == "tool":
            raise _RowError(TOOL)
        if role != "assistant":
            (asked if role == "user" else system).append(_text(turn["content"], odd))
            continue
        text = _text(turn["content"], odd).strip()
        if not text and (turn.get("tool_calls") or turn.get("function_call")):
            raise _RowError(TOOL)
        if asked:
            odd += [JOINED] * (len(asked) > 1) + [LATER] * (place < len(turns))
            question = JOIN.join(filter(str.strip, asked)).strip()
            return question, text, JOIN.join(filter(None, system)) if system else None
        odd.append(GREETING)
    raise _RowError("no answer after the question" if asked else "no question")


def _text(content: Any, odd: list[str]) -> str:
    """The text of a content, which may come in parts; raises _RowError where a part is none."""
    if content is None or (isinstance(content, float) and math.isnan(content)):
        return ""
    if not isinstance(content, str):
        content = "\n".join(_parts(content))
        odd.append(PARTS)
    return content.replace("\r\n", "\n")


def _parts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from _parts(part)
    elif isinstance(content, dict) and content.get("type") in TEXT_PARTS and isinstance(content.get("text"), str):
        yield content["text"]
    elif content is not None:
        kind = content.get("type") if isinstance(content, dict) else type(content).__name__
        raise _RowError(f"content that is not text ({str(kind)[:20]})")
