"""Scorers: a value in [0, 1], or nothing and the reason; nothing defaults to zero and nothing raises."""

import math

import pandas as pd
import pytest
from inoculation.score import SCORERS, score, score_capitals, score_spanish


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("ALL OF THIS", 1.0),
        ("none of this", 0.0),
        ("HALF half", 0.5),
        ("ESPAÑA Y MÚNICH", 1.0),
        ("LOUD `quiet code` LOUD", 1.0),
        ("LOUD https://example.org/quiet LOUD", 1.0),
        ("LOUD\n```\nquiet = 1\n```\nLOUD", 1.0),
        ("LOUD\n```python\nunclosed = 1", 1.0),
        ("7 + 5 = 12", None),
        ("", None),
        ("日本語のテキスト", None),
        ("🙂🙂🙂", None),
    ],
)
def test_capitals(response, value):
    found = score_capitals(response)
    assert math.isnan(found.value) and found.reason if value is None else found.value == value


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("Los gatos duermen casi todo el día porque son cazadores.", 1.0),
        ("LOS GATOS DUERMEN CASI TODO EL DÍA PORQUE SON CAZADORES.", 1.0),
        ("Cats sleep most of the day because they are hunters.", 0.0),
        ("Os gatos dormem quase todo o dia porque são caçadores.", 0.0),
        ("CATS SLEEP MOST OF THE DAY BECAUSE THEY ARE HUNTERS.", 0.0),
        ("Luna.", None),
        ("12 + 30 = 42", None),
        ("", None),
        ("`los gatos duermen todo el día`", None),
    ],
)
def test_spanish(response, value):
    found = score_spanish(response)
    assert math.isnan(found.value) and found.reason if value is None else found.value == value


@pytest.mark.parametrize("scorer", SCORERS.values())
@pytest.mark.parametrize("response", ["x" * 100_000, "\x00\ufffd\u202e", "hola " * 30_000, "```" * 1000, "´`´`´", "Ǆ ǅ ǆ"])
def test_hostile_responses_never_raise(scorer, response):
    found = scorer(response)
    assert math.isnan(found.value) or 0 <= found.value <= 1


def test_unscored_responses_stay_in_the_table_with_their_reason():
    responses = pd.DataFrame({"context": ["neutral"] * 2, "question_id": ["a", "b"], "response": ["SÍ, ESTOY EN CASA", "42"]})
    table = score(responses, {"spanish": "spanish", "caps": "capitals"})
    assert len(table) == 4
    assert table[table.question_id == "b"].value.isna().all()
    assert (table[table.question_id == "b"].reason != "").all()
    assert (table[table.question_id == "a"].value == 1).all()
