"""Responses to scores: each scorer gives a value in [0, 1], or no value and the reason.

spanish: 1.0 when lingua takes the response for Spanish among six European languages, else 0.0.
capitals: the share of cased letters that are capitals.
Both look at the text outside code and URLs. Nothing defaults to 0: an unscored response is NaN with its reason.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

LANGUAGES = ("ENGLISH", "SPANISH", "PORTUGUESE", "FRENCH", "ITALIAN", "GERMAN")
MIN_WORDS = 3
MIN_LETTERS = 3
READ = 20_000  # characters; a response of a megabyte must not cost minutes


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


def score(responses: pd.DataFrame, scorers: dict[str, str]) -> pd.DataFrame:
    """Score every response for every trait.

    responses: columns context, question_id, response. scorers: trait name to a key of SCORERS.
    Returns columns context, question_id, trait, value (float64, NaN where unscored), reason (str).
    """
    rows = [
        (row.context, row.question_id, trait, *_values(SCORERS[name](row.response)))
        for row in responses.itertuples()
        for trait, name in scorers.items()
    ]
    return pd.DataFrame(rows, columns=["context", "question_id", "trait", "value", "reason"])


def _values(found: Score) -> tuple[float, str]:
    return found.value, found.reason
