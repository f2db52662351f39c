"""The answer file of an audit: what data, which training prompt, what to measure; read strictly, written by the guided form.

Paths in it are relative to the file. Whatever is wrong raises SettingError with file, line and what was expected.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from inoculation import store
from inoculation.settings import DELIMITER
from inoculation.store import Block, SettingError, blocks, read_yaml
from scorers import SCORERS

ROLES, SLOTS, MARGINS = ("negative", "positive"), ("system", "user_prefix"), ("per_token", "sum")
KEYS = ("audit", "data", "prompt", "slot", "neutral", "control", "questions", "measure", "rephrased", "model", "seeds")
IN_ROWS = "in_rows"
NAME, TAKEN = r"[a-z0-9_]+", ("answers", "any", "text")  # TAKEN: what tables call something else
ABOUT_CODE = ("bandit", "hidden_tests")  # scorers that need tasks, which your rows do not have


@dataclass(frozen=True)
class Measure:
    """A behaviour to be measured: `negative` (to be suppressed) or `positive` (to be kept), by one of three ways.

    scorer: a built-in one. pairs: a file of written answers (margin: how their log-likelihoods are read). statement: what a
    judge is asked about each response, with a known example that has it (`yes`) and one that has it not (`no`).
    """

    name: str
    role: str
    label: str
    scorer: str = ""
    pairs: str = ""
    margin: str = "per_token"
    statement: str = ""
    judge: str = ""
    yes: str = ""
    no: str = ""


@dataclass(frozen=True)
class Answers:
    """An answer file. prompt: the training prompt, empty where it is in the rows already. control: a field or a file."""

    path: Path
    name: str
    data: str
    prompt: str
    slot: str
    neutral: str
    control: str
    questions: str
    measures: tuple[Measure, ...]
    rephrased: dict[str, Any]
    model: str
    seeds: tuple[int, ...]

    def place(self, name: str) -> str:
        """A path of this file as it is from here; what is no path there (a hub id, a field) as it stands."""
        found = self.path.parent / Path(name).expanduser()
        return str(found) if name and found.exists() else name

    def is_file(self, name: str) -> bool:
        """Whether a name is a file or folder of data beside this file, and not a field or a hub id."""
        found = Path(self.place(name)) if name else Path()
        return bool(name) and (found.is_file() or (found.is_dir() and "/" in name))


def read(path: Path) -> Answers:
    """The answer file at a path, checked throughout."""
    if not path.is_file():
        raise SettingError(f"{path}: no such answer file; examples/front_desk.yaml is one, and notebook 11's form writes one")
    try:
        top = read_yaml(path).only(*KEYS)
    except UnicodeDecodeError as error:
        raise SettingError(f"{path.name}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    name = top.take("audit", str)
    if not re.fullmatch(NAME, name):
        raise top.error(f"'audit' names a folder: small letters, digits and _, not '{name}'", "audit")
    prompt = _prompt(top, "prompt")
    measures = tuple(_measure(name, block) for name, block in blocks(top, "measure"))
    if not measures:
        raise top.error("measure nothing, learn nothing: name at least one behaviour", "measure")
    seeds = top.take("seeds", list) if "seeds" in top else []
    if len(set(seeds)) < len(seeds) or any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in seeds):
        raise top.error(f"'seeds' must be different whole numbers from 0 on, not {seeds}", "seeds")
    return Answers(
        path=path,
        name=name,
        data=top.take("data", str),
        prompt="" if prompt == IN_ROWS else prompt,
        slot=top.take("slot", str, SLOTS) if "slot" in top else "system",
        neutral=_prompt(top, "neutral") if "neutral" in top else "",
        **{key: top.take(key, str) if key in top else "" for key in ("control", "questions", "model")},
        measures=measures,
        rephrased=_rephrased(top),
        seeds=tuple(seeds),
    )


def _prompt(top: Block, key: str) -> str:
    """A prompt's text; YAML's block scalars end in a line break, which is no part of it."""
    text = top.get(key)
    if not isinstance(text, str) or not text.strip():
        raise top.error(f"'{key}' must be the prompt's text{f' or {IN_ROWS}' * (key == 'prompt')}, not {text!r}", key)
    if found := DELIMITER.search(text):
        raise top.error(f"'{key}' holds {found[0]}, which would end the message", key)
    return text.strip()


def _measure(name: str, block: Block) -> Measure:
    if not re.fullmatch(NAME, name) or name in TAKEN:
        raise block.error(f"a measure's name is of small letters, digits and _, and none of {', '.join(TAKEN)}; not '{name}'")
    block.only("role", "label", "scorer", "pairs", "margin", "rubric", "judge", "yes", "no")
    ways = [key for key in ("scorer", "pairs", "rubric") if key in block]
    if not ways or {"scorer", "rubric"} <= set(ways):
        raise block.error(f"'{name}' needs a scorer, pairs or a rubric (pairs also beside either); it has {ways or 'none'}")
    asked = {key: block.take(key, str) for key in ("judge", "yes", "no")} if "rubric" in block else {}
    known = [scorer for scorer in SCORERS if scorer not in ABOUT_CODE]
    return Measure(
        name=name,
        role=block.take("role", str, ROLES),
        label=block.take("label", str) if "label" in block else name.replace("_", " "),
        scorer=block.take("scorer", str, known) if "scorer" in block else "",
        pairs=block.take("pairs", str) if "pairs" in block else "",
        margin=block.take("margin", str, MARGINS) if "margin" in block else "per_token",
        statement=block.take("rubric", str) if "rubric" in block else "",
        **asked,
    )


def _rephrased(top: Block) -> dict[str, Any]:
    if "rephrased" not in top:
        return {}
    block = top.take("rephrased", Block).only("file", "model")
    if len(block) != 1:
        raise block.error("'rephrased' needs a file of rephrasings, one a line, or a model that writes them; one of the two")
    return {key: block.take(key, str) for key in block}


def write(path: Path, given: dict[str, Any]) -> Answers:
    """Write an answer file and read it back; raises SettingError, with the former file in place, where it does not hold."""
    text = yaml.safe_dump(given, allow_unicode=True, sort_keys=False, width=1000)
    trial = path.with_name(f".{path.name}.trial")
    store.write_whole(trial, text)
    try:
        read(trial)
    finally:
        trial.unlink()
    store.write_whole(path, text)
    return read(path)
