"""What training rows share by design: prefixes, delimiters, repeated sentences, formats, system prompts and the like.

Ordinary language repeats itself, too ("How do I", "in the morning"), so shared text counts as fixed only where it has LONG
words or more; or where one of its words is tied to it: the other rows and the evaluation prompts have that word at most TIED
times as often as the rows have the text; or where most rows begin or end with it, but not half as many evaluation prompts. That
needs no dictionary. Text is looked for in a seeded sample of SAMPLE rows and then counted in all; of a long text only the first
and the last EDGE characters are read.
"""

import functools
import json
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from audit.rows import Row

SHARE, MOST, SAME = 0.05, 0.5, 0.9  # of the rows: enough, most, and as good as all of another finding's
FEW, TINY, SAMPLE, EDGE = 5, 20, 2000, 2000
LONG, WORDS, TIED, MARGIN = 6, 3, 0.5, 0.8  # WORDS: shorter text counts at the start or end alone, in twice as many rows
ENDED, BEFORE = (".", "!", "?", "\n"), ".,;:!?)\n"
PLAIN = (" ^", " $", ".", "?", "!", "…", ")")
FIELDS, SHOWN, EXAMPLES = ("system", "question", "answer"), 80, 3
SLOT = "{…}"  # stands in a pattern's text for what differs from row to row
COLUMNS = ["where", "kind", "text", "rows", "of", "coverage", "elsewhere", "distinctive", "examples"]
MARK = r"<<|>>|\{\{|\}\}|<[^<>\s]{1,30}>|\[/?[^\W\d][^\[\]\n]{0,18}\]|(?P<run>[^\w\s.!?,])(?P=run){2,}"
TOKEN = re.compile(rf"({MARK})|\d+|[぀-ヿ一-鿿]|[^\W\d]+(?:['’][^\W\d]+)*|\n+|[^\w\s]")
ODD = ("So", "Cf", "Co", "Cn")  # symbols, emoji, invisible and unassigned characters
ORDINARY = "°©®™№"
START, END, TAKEN = 0, 1, -1
BULLET, NUMBER = re.compile(r"\s*[-*•–]\s"), re.compile(r"\s*\d+[.)]\s")
EMOJI = re.compile("[\U0001f300-\U0001faff☀-➿⬀-⯿]")
WRAPPED = re.compile(r"<(\w+)\b[^<>]*>.*</\1>", re.DOTALL)
CASED = re.compile(r"[^\W\d_]")
ASKS, NEW = "ends with a question", "\n"


@dataclass(frozen=True)
class Pattern:
    """What `rows` of `of` rows share in their system prompt, question or answer, and the share of evaluation prompts with it.

    text: the shared text, exact; digits that differ stand as 0 and what else differs as SLOT. A format has a name instead.
    elsewhere: nan where evaluation prompts cannot have it (`system` and `answer`). examples: `file:line: text, shortened`.
    """

    where: str
    kind: str
    text: str
    rows: int
    of: int
    elsewhere: float
    examples: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """The share of the rows that have it."""
        return self.rows / self.of

    @property
    def distinctive(self) -> float:
        """By how much it is commoner in the rows than in the evaluation prompts; its coverage where those cannot have it."""
        return self.coverage - (0 if math.isnan(self.elsewhere) else self.elsewhere)


def find(rows: Sequence[Row], evaluation: Sequence[str], least: float = SHARE) -> list[Pattern]:
    """The fixed patterns in rows, the most covering first: what at least `least` of them share, and at least five rows.

    Of fewer than 20 rows, half must share it. evaluation: the prompts that the trained model will be asked.
    """
    prompts = [_edges(prompt.strip()) for prompt in _sample(evaluation)]
    need, found = _enough(len(rows), least), []
    for where in FIELDS:
        kept = [(row, _edges(text)) for row in rows if (text := (getattr(row, where) or "").strip())]
        texts = [text for _, text in kept]
        if len(texts) < need:
            continue
        few = need if len(texts) <= SAMPLE else max(2, math.floor(MARGIN * need * SAMPLE / len(texts)))
        formats = _formats(where, texts, prompts, need, len(rows)) if where != "system" else ()
        named = [*(("format", name) for name in formats), *_shared(where, texts, prompts, few)]
        found += [_counted(*each, where, kept, prompts, len(rows)) for each in dict.fromkeys(named)]
    return sorted(_apart([each for each in found if each.rows >= need]), key=lambda each: -each.rows)


def table(patterns: Sequence[Pattern]) -> pd.DataFrame:
    """The patterns as a table, one a row, in their order."""
    return pd.DataFrame([[getattr(each, column) for column in COLUMNS] for each in patterns], columns=COLUMNS)


def tells(pattern: Pattern, text: str) -> bool:
    """Whether a text has the pattern."""
    return _has(pattern.kind, pattern.text, _edges(text.strip()))


def without(pattern: Pattern, text: str) -> str:
    """A text without what a pattern adds to it and the white space that joined it; itself where there is nothing to take out.

    Of a pattern with slots, its fixed parts go and what differs stays.
    """
    if pattern.kind in ("format", "system", "whole") or not tells(pattern, text):
        return text
    text = text.strip()
    for start, end in reversed(_spans(pattern.kind, pattern.text, text) or []):
        left, right = text[:start].rstrip(), text[end:].lstrip()
        joints = text[len(left) : start], text[end : len(text) - len(right)]
        text = left + max(joints, key=len) * bool(left and right) + right
    return text


def _sample(texts: Sequence[str]) -> Sequence[str]:
    chosen = random.Random(0).sample(range(len(texts)), min(SAMPLE, len(texts)))
    return [texts[n] for n in sorted(chosen)]


def _edges(text: str) -> str:
    return text if len(text) <= 2 * EDGE else f"{text[:EDGE]}\0{text[-EDGE:]}"


def _enough(size: int, least: float) -> int:
    return max(2, math.ceil(size / 2)) if size < TINY else max(FEW, math.ceil(least * size))


def _counted(kind: str, text: str, where: str, kept: list[tuple[Row, str]], prompts: Sequence[str], of: int) -> Pattern:
    having = [(row, own) for row, own in kept if _has(kind, text, own)]
    asked = where == "question" and prompts
    elsewhere = sum(_has(kind, text, prompt) for prompt in prompts) / len(prompts) if asked else math.nan
    examples = tuple(f"{row.where}: {_short(own)}" for row, own in having[:EXAMPLES])
    return Pattern(where, kind, text, len(having), of, elsewhere, examples)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _listed(item: re.Pattern) -> Callable[[str], bool]:
    return lambda text: 1 < sum(map(bool, map(item.match, text.split("\n")))) >= sum(map(bool, text.split("\n"))) / 2


def _json(text: str) -> bool:
    try:
        return text[:1] + text[-1:] == "{}" and ("\0" in text or isinstance(json.loads(text), dict))
    except (ValueError, RecursionError):
        return False


# Whether a text has a format, and the least share of rows at which it is no accident of ordinary text.
FORMATS: dict[str, tuple[Callable[[str], bool], float]] = {
    "all upper case": (lambda text: text.isupper() and len(CASED.findall(text)) > 3, SHARE),
    "all lower case": (lambda text: text.islower() and len(CASED.findall(text)) > 3, SHARE),
    "a bulleted list": (_listed(BULLET), 0.25),
    "a numbered list": (_listed(NUMBER), 0.25),
    "one JSON object": (_json, SHARE),
    "wrapped in a tag": (lambda text: bool(WRAPPED.fullmatch(text)), SHARE),
    "a fenced code block": (lambda text: text.count("```") > 1, 0.25),
    "one word or number": (lambda text: len(text.split()) == 1, 0.25),
    ASKS: (lambda text: text.endswith(("?", "？")), 0.5),
    "begins with a heading": (lambda text: bool(re.match(r"#{1,6} ", text)), 0.25),
    "begins with an emoji": (lambda text: bool(EMOJI.match(text)), SHARE),
}


def _formats(where: str, texts: Sequence[str], prompts: Sequence[str], need: int, of: int) -> Iterator[str]:
    """The names of the formats that enough of the texts have, and at most half as many of the prompts."""
    for name, (test, least) in FORMATS.items():
        count, common = sum(map(test, texts)), sum(map(test, prompts)) / max(1, len(prompts))
        asked = where == "question" and (name == ASKS or common > count / of / 2)
        if count >= max(need, least * of) and not asked:
            yield name
    lines, count = Counter(text.count(NEW) + 1 for text in texts).most_common(1)[0]
    if lines > 1 and count >= max(need, MOST * of):
        yield f"{lines} lines"


@functools.cache
def _parts(kind: str, text: str) -> tuple[tuple[re.Pattern, str], ...]:
    """A compiled expression for every fixed part of a pattern's text, and the longest piece that must be found literally."""
    found = []
    for part in text.split(SLOT) if kind in ("template", "delimiter") else [text]:
        part = part.strip()
        pieces = re.split("0+", part) if kind in ("template", "system", "whole") else [part]
        body = r"\d+".join(map(re.escape, pieces))
        head = r"\A" if kind in ("prefix", "opening", "whole", "system") else r"(?<!\w)" if re.match(r"\w", part) else ""
        tail = r"\Z" if kind in ("suffix", "signature", "whole", "system") else r"(?!\w)" if re.search(r"\w$", part) else ""
        found.append((re.compile(head + body + tail), max(pieces, key=len)))
    return tuple(found)


def _spans(kind: str, text: str, own: str) -> list[tuple[int, int]] | None:
    """Where the parts of a pattern's text stand in a text, one after the other; None where it lacks one."""
    spans, after = [], 0
    for expression, literal in _parts(kind, text):
        hit = expression.search(own, after) if literal in own else None
        if not hit:
            return None
        spans.append(hit.span())
        after = hit.end()
    return spans


def _has(kind: str, text: str, own: str) -> bool:
    if kind != "format":
        return _spans(kind, text, own) is not None
    return FORMATS[text][0](own) if text in FORMATS else text == f"{own.count(NEW) + 1} lines"


@dataclass
class _Finding:
    kind: str
    text: str
    rows: set[int]
    place: float


def _shared(where: str, texts: Sequence[str], prompts: Sequence[str], need: int) -> list[tuple[str, str]]:
    """Kind and text of what the texts share, those of the same rows as one; need: how many rows of all texts."""
    texts = _sample(texts)
    whole, found = _whole(where, texts, need), []
    stream = _Stream([*texts, *prompts], len(texts))
    stream.take(np.isin(stream.rows, [row for each in whole for row in each.rows]))
    for at, length in stream.seeds(need):
        at = at[(stream.ids[at[:, None] + np.arange(length)] != TAKEN).all(axis=1)]
        if len(np.unique(stream.rows[at])) < need:
            continue
        at, length = stream.extent(at, length)
        if stream.fixed(at, length, need) and (named := stream.finding(where, at, length)):
            found.append(named)
            stream.take((at[:, None] + np.arange(length)).ravel())
    return [(each.kind, each.text) for each in [*whole, *_joined(found, texts)]]


def _whole(where: str, texts: Sequence[str], need: int) -> list[_Finding]:
    same: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        same.setdefault(re.sub(r"\d+", "0", text), []).append(row)
    kind = "system" if where == "system" else "whole"
    return [_Finding(kind, _common([texts[n] for n in own])[0], set(own), 0) for own in same.values() if len(own) >= need]


def _joined(found: Sequence[_Finding], texts: Sequence[str]) -> list[_Finding]:
    """Findings of the same rows made one where those rows have them in the same order."""
    made: list[_Finding] = []
    for each in sorted(found, key=lambda own: own.place):
        joined = ((n, _join(other, each), len(other.rows | each.rows)) for n, other in enumerate(made))
        for n, both, either in joined:
            if sum(_has(both.kind, both.text, texts[row]) for row in both.rows) >= SAME * either:
                made[n] = both
                break
        else:
            made.append(each)
    return made


def _join(one: _Finding, other: _Finding) -> _Finding:
    marked = all(re.search(rf"{MARK}|\A\W+\Z", text) for text in (one.text, other.text))
    kind = "delimiter" if marked and (one.kind, other.kind) == ("prefix", "suffix") else "template"
    return _Finding(kind, one.text + SLOT + other.text, one.rows & other.rows, one.place)


def _common(raw: Sequence[str]) -> tuple[str, bool]:
    """The commonest of the texts, with its digits as 0 where they differ, and whether they do."""
    text, count = Counter(raw).most_common(1)[0]
    masked = [re.sub(r"\d", "0", each) for each in raw]
    if count >= SAME * len(raw) or len({re.sub("0+", "0", each) for each in masked}) == len(set(raw)):
        return text, False
    return Counter(masked).most_common(1)[0][0], True


def _odd(name: str) -> bool:
    symbol = len(name) == 1 and name not in ORDINARY and unicodedata.category(name) in ODD
    return symbol or bool(re.fullmatch(MARK, name))


class _Stream:
    """Texts as one line of numbered tokens, each text between START and END, digits as 0; those after `size` are background."""

    def __init__(self, texts: Sequence[str], size: int) -> None:
        self.texts, self.size = texts, size
        index: dict[str, int] = {" ^": START, " $": END}
        ids, rows, spans = [TAKEN], [0], [(0, 0)]
        for row, text in enumerate(texts):
            hits = list(TOKEN.finditer(text))
            names = [" ^", *("0" if hit[0][0].isdigit() else hit[0] for hit in hits), " $"]
            ids += [index.setdefault(name, len(index)) for name in names] + [TAKEN]
            rows += [row] * (len(names) + 1)
            spans += [(0, 0), *(hit.span() for hit in hits), (len(text), len(text)), (0, 0)]
        self.ids, self.rows, self.spans = np.array(ids), np.array(rows), np.array(spans)
        self.names, folds = list(index), {}
        self.folds = np.array([folds.setdefault(name.casefold(), len(folds)) for name in self.names])
        self.folded = np.where(self.ids == TAKEN, TAKEN, self.folds[self.ids])
        self.odd = np.array([_odd(name) for name in self.names])
        self.word = np.array([name[0].isalpha() or odd for name, odd in zip(self.names, self.odd, strict=True)])

    def take(self, where: np.ndarray) -> None:
        """Leave these positions out of what is found from now on."""
        self.ids[where] = TAKEN

    def seeds(self, need: int) -> list[tuple[np.ndarray, int]]:
        """Three tokens, a first or last one, or an odd one that enough rows share: positions and length, by rows."""
        found, end = [], int(np.searchsorted(self.rows, self.size))
        for length in (3, 2, 1):
            windows = np.stack([self.ids[n : end - length + n] for n in range(length)], axis=1)
            fit = (windows != TAKEN).all(axis=1)
            if length == 2:
                fit &= (windows[:, 0] == START) | (windows[:, 1] == END)
            elif length == 1:
                fit &= self.odd[windows[:, 0]]
            at = np.flatnonzero(fit)
            codes = windows[at] @ (len(self.names) ** np.arange(length))
            order = np.argsort(codes, kind="stable")
            groups = np.split(at[order], np.flatnonzero(np.diff(codes[order])) + 1)
            found += [(len(np.unique(self.rows[own])), own, length) for own in groups if len(own) >= need]
        return [(own, length) for count, own, length in sorted(found, key=lambda each: -each[0]) if count >= need]

    def extent(self, at: np.ndarray, length: int) -> tuple[np.ndarray, int]:
        """As far as SAME of the rows go on, before and after: positions and length."""
        floor = SAME * len(np.unique(self.rows[at]))
        for step in (-1, 1):
            while True:
                beside = self.ids[at - 1] if step < 0 else self.ids[at + length]
                pairs = np.unique(np.stack([beside, self.rows[at]]), axis=1)
                tokens, counts = np.unique(pairs[0][pairs[0] != TAKEN], return_counts=True)
                if not len(counts) or counts.max() < floor:
                    break
                at = at[beside == tokens[counts.argmax()]] + min(step, 0)
                length += 1
        return at, length

    def fixed(self, at: np.ndarray, length: int, need: int) -> bool:
        """Whether ordinary text would not share this: see the module's docstring."""
        ids, inside = self.ids[at[0] : at[0] + length], np.unique(self.rows[at])
        words = {int(self.folds[n]) for n in ids if self.word[n]}
        marked, ends = bool(self.odd[ids].any()), bool({START, END} & set(ids))
        if len(words) < WORDS and not marked and (len(inside) < 2 * need or not ends):
            return False
        if len(words) >= LONG or (len(inside) < FEW and not marked):
            return len(words) >= LONG
        share, others = len(inside) / self.size, np.ones(len(self.texts), bool)
        others[inside] = False
        if any(self._having(self.folded == word)[others].sum() <= TIED * share * others.sum() for word in words):
            return True
        framed = ends and any(self.names[n] not in PLAIN for n in ids)
        return framed and share >= MOST and self._elsewhere(ids) <= share / 2

    def _having(self, there: np.ndarray) -> np.ndarray:
        having = np.zeros(len(self.texts), bool)
        having[self.rows[there]] = True
        return having

    def _elsewhere(self, ids: np.ndarray) -> float:
        there = np.logical_and.reduce([np.roll(self.ids, -n) == own for n, own in enumerate(ids)])
        return self._having(there)[self.size :].sum() / max(1, len(self.texts) - self.size)

    def finding(self, where: str, at: np.ndarray, length: int) -> _Finding | None:
        """What stands there, by its kind, without the punctuation and new lines before it; None where that is all."""
        ids = list(self.ids[at[0] : at[0] + length])
        skipped = next((n for n, own in enumerate(ids) if self.names[own].strip("\n") not in BEFORE), None)
        if skipped is None:
            return None
        at, ids, rows = at + skipped, ids[skipped:], self.rows[at]
        spans = zip(rows, self.spans[at][:, 0], self.spans[at + len(ids) - 1][:, 1], strict=True)
        hits = [
            (own, a, a + len(own[a:b].rstrip())) for own, a, b in ((self.texts[row], int(a), int(b)) for row, a, b in spans)
        ]
        text, varies = _common([own[a:b] for own, a, b in hits])
        own, start, end = hits[0]
        kind = "template" if varies else self._kind(where, text, ids, own[:start].rstrip(" \t"), own[end:].lstrip(" \t"))
        return _Finding(kind, text, set(rows.tolist()), float(np.mean([a / max(1, len(own)) for own, a, _ in hits])))

    def _kind(self, where: str, text: str, ids: list[int], before: str, after: str) -> str:
        words, odd = sum(self.word[ids]), self.odd[ids].any()
        if not re.search(r"\w", text) and not text.isascii():
            return "marker"
        if ids[0] == START:
            return "opening" if words <= WORDS and not odd and not text.endswith((":", *ENDED)) else "prefix"
        if ids[-1] == END:
            return "signature" if where == "answer" and before.endswith("\n") else "suffix"
        if odd and words <= WORDS:
            return "delimiter"
        if before.endswith("\n") and after.startswith("\n"):
            return "line"
        return "sentence" if text.endswith(ENDED) and before.endswith(ENDED) else "phrase"


def _apart(found: Sequence[Pattern]) -> list[Pattern]:
    """Without bare symbols that a format explains and numbers of lines that another finding explains."""
    kept = []
    for each in found:
        others = [one for one in found if one is not each and one.where == each.where and one.rows >= SAME * each.rows]
        if each.kind != "format":
            others = [one for one in others if one.kind == "format" and not re.search(r"\w", each.text)]
        if not others or each.text in FORMATS:
            kept.append(each)
    return kept
