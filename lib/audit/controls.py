"""The prompts of the controls: irrelevant ones matched in length and form, fixed and varied, and rephrasings of your own.

Irrelevant prompts are put together from data/irrelevant.yaml, varied ones also from the pool `unrelated`; rephrasings are yours
or those of a model that you name. What fails the pool test (settings.pool_faults) is refused, not called varied or rephrased.
"""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from inoculation import store
from inoculation.settings import DELIMITER, POOL_SHARE, load_pool, pool_faults
from inoculation.store import SettingError, read_yaml

FORMS = ("persona", "habit", "instruction", "statement", "question", "label")
WITHIN = 0.2  # of the prompt's length in characters (design decision 10)
SHORT = 24  # characters; a shorter prompt may stand beside longer ones, up to this, since hardly a sentence is as short
LONG = 600  # characters; so long a prompt is more than one sentence's form
FIXED = 4
FEWEST = 8  # prompts of a pool
TRIES = 50
ADDRESSED = re.compile(r"(?i)you(?:'re| are)\b")


def form(prompt: str) -> str:
    """Which of FORMS a prompt has, by its first sentence and its last sign.

    label: a fragment, as a prefix ends in a colon or a bracket; persona: You are ...; habit: You ...; question: ends in ?;
    instruction: begins as one of data/irrelevant.yaml, or with one of its imperatives; else a statement.
    """
    text = prompt.strip()
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text)
    if len(words) < 2 or text[-1] in ":])>-|=#":
        return "label"
    if ADDRESSED.match(text):
        return "persona"
    if words[0].lower() == "you":
        return "habit"
    if text.endswith("?"):
        return "question"
    return "instruction" if words[0].lower() in _imperatives() else "statement"


def irrelevant(prompt: str) -> tuple[list[str], str]:
    """Four fixed irrelevant prompts of the prompt's form and length (± 20 % of its characters), always the same four.

    Of a prompt below 24 characters they may be longer, up to these 24; of one from 600 on, the first sentence has its form.
    None, and why, where the sentences do not suffice.
    """
    rng, bank, own = random.Random(f"irrelevant/{prompt}"), _bank(), form(prompt)
    entries = bank[own] if len(prompt) < LONG else [text for name in FORMS[:-1] for text in bank[name]]
    found: list[str] = []
    for _ in range(TRIES * FIXED):
        left = [entry for entry in entries if not any(entry in other for other in found)]
        text = _as_long(prompt, left, rng, rng.choice(bank[own]) if len(prompt) >= LONG else "")
        found += [text] if text and text not in found else []
        if len(found) == FIXED:
            return found, ""
    made = f"{FIXED} irrelevant prompts of {_range(prompt)} characters and form '{form(prompt)}'"
    return [], f"no {made} can be made of data/irrelevant.yaml; add sentences there"


def varied(prompt: str, number: int, without: Iterable[str] = ()) -> tuple[list[str], str]:
    """Up to `number` irrelevant prompts of a prompt's length in any form, that pass the pool test; or none, and why.

    without: fixed ones, whose sentences are not used again.
    """
    rng = random.Random(f"varied/{prompt}")
    entries = [entry.text for entry in load_pool("unrelated")["train"]] + [text for texts in _bank().values() for text in texts]
    entries = [entry for entry in entries if not any(entry in fixed for fixed in without)]
    while number >= FEWEST:
        # Patterns may be shared by 5 % of the pool, so a smaller pool is another pool.
        pool = _pool(prompt, number, entries, rng)
        if len(pool) == number:
            return pool, ""
        number = min(number - 1, max(len(pool), number // 2))
    return [], f"fewer than {FEWEST} irrelevant prompts of {_range(prompt)} characters pass the pool test"


def _pool(prompt: str, number: int, entries: list[str], rng: random.Random) -> list[str]:
    """Up to `number` prompts of a prompt's length, in none of which a pattern stands that 5 % of so many have already."""
    pool, seen, used, allowed = [], Counter(), Counter(), max(1, int(POOL_SHARE * number))
    for _ in range(TRIES + number):
        fresh = sorted((entry for entry in entries if used[entry] < allowed), key=lambda entry: (used[entry], rng.random()))
        text = _as_long(prompt, fresh, rng, shuffled=False)
        shared = _patterns(text)
        used.update(entry for entry in fresh if entry in text)
        if text and text not in pool and all(seen[pattern] < allowed for pattern in shared):
            pool.append(text)
            seen.update(shared)
        if not text or len(pool) == number:
            break
    return pool


def _bank() -> dict[str, list[str]]:
    top = read_yaml(store.DATA / "irrelevant.yaml").only(*FORMS, "imperatives")
    return {name: top.take(name, list) for name in FORMS}


def _imperatives() -> set[str]:
    known = read_yaml(store.DATA / "irrelevant.yaml").take("imperatives", list)
    return {text.split()[0].lower() for text in [*known, *_bank()["instruction"]]}


def _limits(prompt: str) -> tuple[float, float]:
    return (1 - WITHIN) * len(prompt), max((1 + WITHIN) * len(prompt), SHORT)


def _range(prompt: str) -> str:
    return "{:.0f} to {:.0f}".format(*_limits(prompt))


def _as_long(prompt: str, entries: list[str], rng: random.Random, text: str = "", shuffled: bool = True) -> str:
    """A text, and entries after it, joined as the prompt's own lines or sentences are; empty where none is of its length.

    Entries are taken in a random order, or, not `shuffled`, in their own.
    """
    (low, high), join = _limits(prompt), "\n" if "\n" in prompt else " "
    left = [entry for entry in entries if entry != text]
    left = rng.sample(left, len(left)) if shuffled else left
    while left:
        longer = {entry: f"{text}{join}{entry}" if text else entry for entry in left}
        fits = {entry: whole for entry, whole in longer.items() if len(whole) <= high}
        if whole := [whole for whole in fits.values() if len(whole) >= low]:
            return whole[0]
        if not fits:
            return ""
        entry, text = next(iter(fits.items()))
        left = [other for other in left if other != entry]
    return ""


def _patterns(text: str) -> set[str]:
    words = re.findall(r"[\w']+", text.lower())
    return {"^" + " ".join(words[:2])} | {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}


def given_rephrasings(path: Path, prompt: str) -> list[str]:
    """Your rephrasings, one a line, without the prompt itself; SettingError where one holds a chat delimiter."""
    if not path.is_file():
        raise SettingError(f"{path}: no such file of rephrasings")
    lines = store.read_lines(path)
    for number, line in enumerate(lines, 1):
        if DELIMITER.search(line):
            raise SettingError(f"{path.name}:{number}: holds a chat delimiter, which would end the message: {line!r}")
    return [line for line in dict.fromkeys(filter(None, lines)) if line != prompt]


def written_rephrasings(model: str, prompt: str, number: int, kept: Path, say: Callable[[str], None]) -> list[str]:
    """Rephrasings by a model (inspect's name, as openai/gpt-4o), kept in a file, to be read and asked for once.

    They are written in a process of their own, as a local model needs torch. SettingError where the model cannot be asked.
    """
    asked = {"model": model, "prompt": prompt, "number": number}
    noted = kept.with_suffix(".json")
    if not (kept.exists() and noted.exists() and json.loads(noted.read_text(encoding="utf-8")) == asked):
        say(f"asking {model} for {number} rephrasings; they are kept in {kept.name}")
        done = subprocess.run(
            [sys.executable, "-m", "audit.reword"], input=json.dumps(asked), capture_output=True, text=True, cwd=store.ROOT
        )
        if done.returncode:
            raise SettingError(f"{model} wrote no rephrasings: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
        store.write_whole(kept, done.stdout)
        store.write_whole(noted, json.dumps(asked))
    return given_rephrasings(kept, prompt)


def usable(pool: list[str]) -> str:
    """Why a pool of rephrasings cannot be used, or empty: too few, or patterns in more than 5 % of them (a template bank)."""
    if len(pool) < FEWEST:
        return f"{len(pool)} rephrasings; {FEWEST} are needed"
    faults = pool_faults(pool)
    told = f"the {len(pool)} rephrasings fail the pool test (at most 5 % may share a pattern) {len(faults)} times: "
    return told + "; ".join(faults[:3]) if faults else ""
