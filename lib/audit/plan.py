"""From an answer file to what is trained: your rows, the four controls as conditions, and checks that come before all.

`prepare` trains nothing. It writes data/local/audits/NAME: prepared.json and the rows that runs draw on, which is all that
audit.specs reads. Nothing here needs torch.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from inoculation import render, store
from inoculation.settings import Condition, Prompt, load_profile
from inoculation.store import Block, SettingError

from audit import checks, controls, hub, material, patterns
from audit.answers import IN_ROWS, Answers
from audit.material import Lifted
from audit.rows import Found, Row, read
from audit.specs import DIRECTION, FILES, Spec, folder, profile_of, scale, specs

TEST, EMBEDDED, OWN = "smoke", "mini", "paper"  # the profiles of tests, of the embedded model and of any other
HELPFUL = "You are a helpful assistant."
LEAST_ROOM = 32  # tokens that a prompt must leave for question and answer


@dataclass(frozen=True)
class Audit:
    """What is known before anything trains.

    prompt and slot: what is audited and where it stands; held: how many rows held it, where it was in the rows (else None).
    counts: rows at each step from what was read to what a run sees. refused: what is not run, and why. stop: why nothing can be
    trained, or empty.
    """

    answers: Answers
    profile: str
    model: str
    found: Found
    patterns: list[patterns.Pattern]
    checks: list[checks.Check]
    prompt: str
    slot: str
    held: int | None
    conditions: dict[str, Condition]
    counts: dict[str, int]
    refused: dict[str, str]
    stop: str

    @property
    def folder(self) -> Path:
        """Where everything of this audit is written."""
        return folder(self.answers.name)

    def specs(self) -> list[Spec]:
        """The base model, then every condition with every seed; SettingError where nothing can be trained."""
        if self.stop:
            raise SettingError(f"nothing can be trained on this: {self.stop}")
        return specs(self.answers.name)


def prepare(answers: Answers, profile: str = EMBEDDED, say: Callable[[str], None] = print, ask: bool = True) -> Audit:
    """Read, look for patterns, choose the controls, check, and write what runs draw on; trains nothing.

    A model of the hub is fetched first, if it is not here. It decides the profile, OWN, else EMBEDDED, but for a TEST. ask:
    whether a model may be asked for rephrasings now. Raises SettingError where an answer cannot be used.
    """
    profile = profile if profile == TEST else OWN if answers.model else EMBEDDED
    base = hub.located(answers.place(answers.model)) if answers.model else hub.embedded(profile)
    if not base.embedded:
        answers = replace(answers, name=f"{answers.name}.{base.slug}")
    own, asked = scale(profile), material.questions(answers)
    pairs = [row for measure in answers.measures for row in material.pairs(answers, measure)]
    column = "" if answers.is_file(answers.control) else answers.control
    found = read(answers.place(answers.data), column, say)
    shared = patterns.find(found.rows, [row["question"] for row in asked])
    lifted = material.lift(answers, found.rows, shared)
    fewest = own.take("fewest", int)
    rows, given, told, lacks = material.control(answers, lifted, fewest) if lifted else ([], [], [], "")
    conditions, refused = _conditions(answers, lifted, own, lacks, ask, say) if lifted else ({}, {})
    counter = hub.counter(base, say)
    longest = load_profile(profile).train["max_length"]
    room = longest - _longest_prompt(lifted, conditions, base, counter) if lifted else longest
    fit = material.fitting(rows, room, counter)
    seen = [(row["id"], row["question"]) for row in [*asked, *pairs]]
    every = checks.check(found, seen, room, counter, answers.prompt, fewest, rows or None)
    if lifted and not answers.prompt:
        then = "not trained on: in every row of the training the prompt is to be the same"
        every.append(material.dropped(found.rows, lifted.rows, "rows without the training prompt", then))
    stop = _stop([*every, *told], lifted, fit, shared, room, fewest)
    audit = Audit(
        **{"answers": answers, "profile": profile, "model": base.name, "found": found, "patterns": shared},
        checks=[*every, *told],
        prompt=lifted.prompt if lifted else "",
        slot=lifted.slot if lifted else answers.slot,
        held=lifted.held if lifted and not answers.prompt else None,
        conditions=conditions,
        counts={"read": len(found.rows) + found.lost, "usable": len(found.rows), "to train on": len(fit)},
        refused=refused,
        stop=stop,
    )
    return audit if stop else _written(audit, base, lifted, fit, given, asked, pairs)


def _stop(
    told: list[checks.Check], lifted: Lifted | None, fit: list[Row], shared: list[patterns.Pattern], room: int, fewest: int
) -> str:
    """Why nothing can be trained, or empty."""
    if stops := [f"{check.name}: {check.count} of {check.of}, {check.then}" for check in told if check.level == "stop"]:
        return stops[0]
    if lifted is None:
        seen = "; ".join(f"{p.kind} of {p.where}s in {p.coverage:.0%}: {p.text[:40]!r}" for p in shared[:3]) or "none"
        nowhere = "no system prompt, and no prefix or suffix of questions, stands in half of the rows"
        return f"'prompt' is {IN_ROWS}, but {nowhere} (found: {seen}); write the prompt's text instead"
    if room < LEAST_ROOM:
        return f"beside the longest prompt {max(room, 0)} tokens are left of a row; shorten the prompt, or take a larger model"
    return f"{len(fit)} rows can be trained on; {fewest} are needed" if len(fit) < fewest else ""


def _longest_prompt(lifted: Lifted, conditions: dict[str, Condition], base: hub.Base, tokens: Callable | None) -> int:
    """The tokens that the longest prompt of any condition takes of a row, with everything around question and answer."""
    chat = [{"role": "user", "content": "."}]
    prompts = {prompt for condition in conditions.values() for prompt in condition.prompts}
    texts = [render.render(chat, lifted.slot, prompt, base.template, lifted.join) + render.END_OF_TURN for prompt in prompts]
    return max(tokens(texts)) if tokens else 0


def _conditions(
    answers: Answers, lifted: Lifted, own: Block, lacks: str, ask: bool, say: Callable[[str], None]
) -> tuple[dict[str, Condition], dict[str, str]]:
    """The conditions by name, and the controls that cannot be run, with the reason; lacks: why there is no control."""
    neutral, prompt = (neutral_prompt(answers, lifted.slot),), lifted.prompt
    refused = {"control": lacks} if lacks else {}
    found = [] if lacks else [_condition("control", neutral, "control")]
    found += [_condition("baseline", neutral), _condition(f"inoculation.{DIRECTION}", [prompt])]
    pool, fault = _rephrasings(answers, prompt, own.take("rephrased", int), ask, say)
    if fault:
        refused["rephrased"] = fault
    else:
        found.append(_condition(f"rephrased-{len(pool)}.{DIRECTION}", pool))
    fixed, fault = controls.irrelevant(prompt)
    if fault:
        refused["irrelevant"] = fault
    found += [_condition(f"irrelevant.{number}", [text]) for number, text in enumerate(fixed, 1)]
    pool, fault = controls.varied(prompt, own.take("varied", int), fixed)
    if fault:
        refused["irrelevant-varied"] = fault
    else:
        found.append(_condition(f"irrelevant-varied-{len(pool)}", pool))
    return {condition.name: condition for condition in found}, refused


def _condition(name: str, prompts: list[str] | tuple[Prompt, ...], data: str = "trait") -> Condition:
    texts = tuple(each if isinstance(each, Prompt) else Prompt(each) for each in prompts)
    return Condition(name, data, texts, DIRECTION if name.endswith(f".{DIRECTION}") else "", (), len(texts))


def _rephrasings(answers: Answers, prompt: str, number: int, ask: bool, say: Callable[[str], None]) -> tuple[list[str], str]:
    """The rephrasings, or none and why they cannot be used."""
    given = answers.rephrased
    if not given:
        return [], "no rephrasings were given (`rephrased`: a file, or a model that writes them)"
    if "file" in given:
        pool = controls.given_rephrasings(Path(answers.place(given["file"])), prompt)[:number]
    elif ask:
        pool = controls.written_rephrasings(given["model"], prompt, number, folder(answers.name) / "rephrasings.txt", say)
    else:
        return [], f"{given['model']} would be asked for {number} of them, which is not done now"
    return pool, controls.usable(pool)


def neutral_prompt(answers: Answers, slot: str) -> Prompt:
    """The baseline's prompt: the answer file's, else a helpful assistant's as system prompt, and nothing in the user's turn."""
    if answers.neutral:
        return Prompt(answers.neutral)
    return Prompt(HELPFUL) if slot == "system" else Prompt(policy="no_prefix")


def _written(
    audit: Audit,
    base: hub.Base,
    lifted: Lifted,
    rows: list[Row],
    control: list[dict[str, str]],
    asked: list[dict[str, str]],
    pairs: list[dict[str, str]],
) -> Audit:
    """The audit with all its counts, after prepared.json and the rows are written; equal answers and data give equal files."""
    answers, own = audit.answers, scale(audit.profile)
    apart, taught = material.held_out(rows, answers.name, own.take("held_out", int))
    taught = taught[: own.take("draw", int)]
    hidden = {row.question for row in apart}
    examples = [({m.name: 1, "text": m.yes}, {m.name: 0, "text": m.no}) for m in answers.measures if m.statement]
    parts = {
        "train": [*map(_training_row, taught), *(row for row in control if row["question"] not in hidden)],
        "held_out": [{"id": row.where, "question": row.question} for row in apart],
        "questions": asked,
        "margins": pairs,
        "labelled": [example for both in examples for example in both],
    }
    for name in FILES:
        store.write_jsonl(audit.folder / f"{name}.jsonl", parts[name])
    facts = {
        **{"name": answers.name, "profile": audit.profile, "slot": audit.slot, "join": lifted.join},
        "neutral": dataclasses.asdict(neutral_prompt(answers, audit.slot)),
        "conditions": {name: dataclasses.asdict(condition) for name, condition in audit.conditions.items()},
        "measures": [dataclasses.asdict(measure) for measure in answers.measures],
        "model": dataclasses.asdict(base),
        "rows": len(taught),
        "seeds": list(answers.seeds) or own.take("seeds", list),
    }
    store.write_whole(audit.folder / "prepared.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    recipe = profile_of(answers.name).train
    seen = min(len(taught), recipe["steps"] * recipe["batch_size"] * recipe["accumulation"])
    return replace(audit, counts={**audit.counts, "held out": len(apart), "drawn on": len(taught), "in a run": seen})


def _training_row(row: Row) -> dict[str, str]:
    plain = {"plain_answer": row.plain} if row.plain else {}
    return {"id": row.where, "question": row.question, "trait_answer": row.answer, **plain}
