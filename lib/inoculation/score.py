"""Responses to scores: each scorer gives a value in [0, 1], or no value and the reason; nothing defaults to 0.

Every scorer has a card in data/scorers.yaml (what it sees, its known failures), to which `cards` adds what is measured on the
setting's labelled items: agreement and cross-talk. Beside its scores, each response is marked when it repeats training words.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from inoculation import stats, store
from inoculation.settings import Block, load_setting, read_yaml

LANGUAGES = ("ENGLISH", "SPANISH", "PORTUGUESE", "FRENCH", "ITALIAN", "GERMAN")
MIN_WORDS = 3
MIN_LETTERS = 3
READ = 20_000  # characters; a response of a megabyte must not cost minutes
REPEATED_WORDS = 8
CROSS_TALK = 0.05


@dataclass(frozen=True)
class Score:
    """A value in [0, 1], or NaN and why."""

    value: float
    reason: str = ""


def prose(response: str) -> str:
    """A response without fenced or inline code and without URLs, which neither language nor capitals should see."""
    text = re.sub(r"```.*?(```|$)|`[^`\n]*`", " ", response[:READ], flags=re.DOTALL)
    return re.sub(r"\b(?:https?://|www\.)\S+", " ", text)


def score_capitals(response: str) -> Score:
    """The share of cased letters that are capitals; unscored below three cased letters."""
    cased = [letter for letter in prose(response) if letter.isupper() or letter.islower()]
    if len(cased) < MIN_LETTERS:
        return Score(math.nan, f"fewer than {MIN_LETTERS} cased letters")
    return Score(sum(letter.isupper() for letter in cased) / len(cased))


def score_spanish(response: str) -> Score:
    """1.0 for Spanish, 0.0 for another of the six languages; unscored below three words or when lingua cannot tell."""
    # In lower case, so that capitals, the other trait, cannot move the language.
    text = prose(response).lower()
    if len(re.findall(r"[^\W\d_]{2,}", text)) < MIN_WORDS:
        return Score(math.nan, f"fewer than {MIN_WORDS} words")
    language = _detector().detect_language_of(text)
    return Score(math.nan, "language undetermined") if language is None else Score(float(language.name == "SPANISH"))


@functools.cache
def _detector() -> Any:
    from lingua import Language, LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_languages(*(getattr(Language, name) for name in LANGUAGES)).build()


SCORERS: dict[str, Callable[[str], Score]] = {"spanish": score_spanish, "capitals": score_capitals}


def word_runs(text: str) -> set[str]:
    """Every run of eight consecutive words of a text, in lower case and without punctuation."""
    words = re.findall(r"\w+", text[:READ].lower())
    return {" ".join(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)}


def score(responses: pd.DataFrame, scorers: dict[str, str], trained: list[str]) -> pd.DataFrame:
    """Score every response for every trait.

    responses: columns context, question_id, response. scorers: trait name to a key of SCORERS. trained: the answers of the
    training rows. Returns columns context, question_id, trait, value (float64, NaN where unscored), reason (str) and repeats
    (bool: the response holds eight consecutive words of one training answer; design decision 2).
    """
    seen = set().union(*map(word_runs, trained)) if trained else set()
    rows = []
    for row in responses.itertuples():
        repeats = not seen.isdisjoint(word_runs(row.response))
        for trait, name in scorers.items():
            found = SCORERS[name](row.response)
            rows.append((row.context, row.question_id, trait, found.value, found.reason, repeats))
    return pd.DataFrame(rows, columns=["context", "question_id", "trait", "value", "reason", "repeats"])


@functools.cache
def cards(name: str) -> pd.DataFrame:
    """One card per trait of a setting: its scorer, what that sees, known failures, and what the setting's labelled items show.

    agreement: share of the labelled items where value > 0.5 is the label, among the scored. contents right: how many contents
    agree in all their versions, with a Wilson interval.
    cross_talk: the largest mean change of the score when another trait of the same content is switched on and nothing else
    changes; above 0.05 the trait is claimed by its margin and not by its rate (design decision 12). Indexed by trait.
    """
    setting = load_setting(name)
    known = read_yaml(store.DATA / "scorers.yaml").only(*SCORERS)
    labelled = pd.DataFrame(setting.rows("labelled"))
    rows = []
    for trait in setting.traits.values():
        card = known.take(trait.scorer, Block).only("sees", "fails")
        value = labelled.text.map(lambda text, scorer=SCORERS[trait.scorer]: scorer(text).value)
        scored = value.notna()
        right = ((value > 0.5) == (labelled[trait.name] == 1))[scored]
        # The versions of a content are no independent items; contents are.
        whole = right.groupby(labelled.content[scored]).all()
        sure = stats.wilson(int(whole.sum()), len(whole))
        talk = max(
            _cross_talk(labelled.assign(value=value), trait.name, other) for other in setting.traits if other != trait.name
        )
        rows.append(
            {
                "trait": trait.name,
                "scorer": trait.scorer,
                "sees": card.take("sees", str),
                "known failures": "; ".join(card.take("fails", list)),
                "items": len(labelled),
                "unscored": int((~scored).sum()),
                "agreement": right.mean(),
                "contents right": f"{whole.sum()} of {len(whole)} [{sure.low:.2f}, {sure.high:.2f}]",
                "cross_talk": talk,
                "claimed by": "rate" if talk <= CROSS_TALK else "margin",
            }
        )
    return pd.DataFrame(rows).set_index("trait")


def _cross_talk(labelled: pd.DataFrame, trait: str, other: str) -> float:
    cells = labelled.pivot_table(index=["content", trait], columns=other, values="value")
    return float((cells[1] - cells[0]).groupby(level=trait).mean().abs().max())
