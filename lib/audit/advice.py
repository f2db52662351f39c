"""What a report says to change and to state in a paper: texts of data/audit.yaml, chosen by what was found.

Nothing here computes: it reads the record that report.record makes. Below the seeds of a verdict what it says of effects are
hints, and it says so.
"""

from collections.abc import Iterator
from typing import Any

from inoculation import store
from inoculation.effects import BASELINE, MAIN
from inoculation.settings import Prompt
from inoculation.store import read_yaml

from audit import effects
from audit.answers import Measure
from audit.plan import Audit, neutral_prompt
from audit.specs import prepared, profile_of, setting

SCREENING = "screening only"
MOST = 0.5  # of the rows or responses: what so many share is named
APART = 0.5  # of a judge's scale: so far its examples must be from each other, and an injected verdict from being taken
WHERE = {"system": "system", "question": "pattern", "answer": "answers"}  # what is said of a pattern, by where it stands
Told = dict[str, Any]


def change(audit: Audit, told: Told) -> list[str]:
    """What to change, by a report's record."""
    texts = read_yaml(store.DATA / "audit.yaml")["advice"]
    return [texts[key].format(**facts) for key, facts in _change(audit, told)]


def state(audit: Audit, told: Told) -> list[str]:
    """What to state in a paper, by the record of a report with results."""
    texts = read_yaml(store.DATA / "audit.yaml")["state"]
    return [texts[key].format(**facts) for key, facts in _state(audit, told)]


def number(found: Told | None) -> str:
    """A value with its interval and seeds, as it stands in a sentence; `not run` where there is none."""
    if found is None or found["value"] is None:
        return "(not run)"
    seeds = counted(found["seeds"])
    limits = f"[{found['low']:.2f}, {found['high']:.2f}], {seeds}" if found["low"] is not None else f"{seeds}, no interval"
    return f"{found['value']:.2f} ({limits})"


def counted(seeds: int) -> str:
    """A number of seeds in words."""
    return f"{seeds} seed{'s' * (seeds != 1)}"


def _lines(told: Told, trait: str) -> dict[str, Told]:
    own = [row for row in told["effects"] if (row["trait"], row["context"]) == (trait, MAIN)]
    return {row["effect"]: row for row in own}


def _change(audit: Audit, told: Told) -> Iterator[tuple[str, Told]]:
    """The keys of data/audit.yaml's advice that apply, with what they say."""
    found = [*_about_data(audit, told), *_about_controls(audit, told)]
    for measure in audit.answers.measures:
        found += _about_trait(measure, told)
    sampled = any(measure.scorer or measure.statement for measure in audit.answers.measures)
    if sampled and (told["unfinished"] or 0) > MOST:
        found.append(("cut", {"share": told["unfinished"], "tokens": profile_of(audit.answers.name).sample["max_new_tokens"]}))
    seeds = max((row["seeds"] for row in told["effects"]), default=0)
    found += [("few_seeds", {"seeds": counted(seeds), "needed": effects.fewest()})] if 0 < seeds < effects.fewest() else []
    found += [("screening", {"model": told["model"], "profile": audit.profile})] if told["mark"] == SCREENING else []
    yield from found or [("nothing", {})]


def _about_data(audit: Audit, told: Told) -> Iterator[tuple[str, Told]]:
    if audit.held is not None:
        yield "in_rows", _held(audit, told)
    for row in told["patterns"]:
        if row["coverage"] >= MOST and not row["audited"] and row["distinctive"] >= MOST:
            yield WHERE[row["where"]], {**row, "elsewhere": row["elsewhere"] or 0.0}
    for check in told["checks"]:
        if check["level"] == "look":
            yield "check", check


def _held(audit: Audit, told: Told) -> Told:
    shared = next((row for row in told["patterns"] if row["audited"]), None)
    elsewhere = (shared or {}).get("elsewhere") or 0.0
    return {"rows": audit.held, "of": told["rows"], "elsewhere": elsewhere}


def _about_controls(audit: Audit, told: Told) -> Iterator[tuple[str, Told]]:
    for name, reason in audit.refused.items():
        yield ("no_control" if name == "control" else "refused"), {"name": name, "reason": reason}
    if told["left_out"]:
        yield "left_out", {"counts": ", ".join(f"{name} {count}" for name, count in told["left_out"].items())}
    for row in told["judges"]:
        good, bad, injected = (row[side] for side in ("good", "bad", "injected"))
        if None in (good, bad) or good - bad < APART or (injected or 0) > APART:
            yield "judge", row


def _about_trait(measure: Measure, told: Told) -> Iterator[tuple[str, Told]]:
    """What the effects on one trait ask for, in the unrelated context; by point estimates, which few_seeds calls hints."""
    lines = _lines(told, measure.name)
    if "training" not in lines or "yours" not in lines:
        return
    facts = {line: number(lines.get(line)) for line in effects.TAKES} | {"label": measure.label}
    taught, yours = (lines[line]["value"] for line in ("training", "yours"))
    bound = effects.least() * taught
    if not effects.moved(lines["training"]):
        yield ("lowered" if taught < 0 else "not_learned"), facts
        return
    full = _value(told, measure.name, lines["training"]["measure"])
    if full and full["saturated"]:
        yield "saturated", {**facts, "value": number(full)}
    yield from _about_taking(measure.role, lines, facts) if yours > bound else [("little", facts)]
    waits = _index(told, measure.name)
    if waits and waits["value"] is not None and waits["value"] > bound:
        yield "waits", {**facts, "index": number(waits)}


def _about_taking(role: str, lines: dict[str, Told], facts: Told) -> Iterator[tuple[str, Told]]:
    """What is said where your prompt takes something of a trait."""
    yours, rephrased = (lines.get(line, {}).get("value") for line in ("yours", "rephrased"))
    if "beyond" in lines:
        yield ("beyond_irrelevant" if _above_zero(lines["beyond"]) else "as_irrelevant"), facts
    if role == "positive":
        yield "positive_lost", facts
    elif rephrased is not None and rephrased < yours / 2:
        yield "negative_back", facts


def _above_zero(line: Told) -> bool:
    """Whether a line is above 0: by its interval over seeds where there are enough, else by that over questions, a hint."""
    limits = line if line["seeds"] >= effects.fewest() else line["questions"]
    return limits["low"] is not None and limits["low"] > 0


def _value(told: Told, trait: str, measure: str) -> Told | None:
    """The baseline's value of a trait under unrelated prompts."""
    wanted = (trait, measure, BASELINE, MAIN)
    return next((v for v in told["values"] if (v["trait"], v["measure"], v["condition"], v["context"]) == wanted), None)


def _index(told: Told, trait: str) -> Told | None:
    own = [row for row in told["index"] if row["trait"] == trait and row["condition"].startswith("inoculation")]
    return next((row for row in own if row["reference"] == effects.OVER_BASE), None)


def _state(audit: Audit, told: Told) -> Iterator[tuple[str, Told]]:
    """The sentences for a paper: what was done, with the numbers, and what was not."""
    name, facts = audit.answers.name, prepared(audit.answers.name)
    recipe = profile_of(name).train
    batch, seeds = recipe["batch_size"] * recipe["accumulation"], ", ".join(map(str, facts["seeds"]))
    trained = {"rank": recipe["lora_rank"], "rate": recipe["learning_rate"], "steps": recipe["steps"], "batch": batch}
    yield "trained", {**trained, "model": told["model"], "rows": facts["rows"], "seeds": seeds}
    neutral = neutral_prompt(audit.answers, audit.slot)
    said = {"baseline": quoted(neutral), "prompt": quoted(Prompt(audit.prompt)), "slot": audit.slot}
    yield "prompts", {**said, "unrelated": len(setting(name).unrelated)}
    if audit.held is not None:
        yield "held", _held(audit, told)
    kinds = {kind: [c for c in audit.conditions.values() if c.kind == kind] for kind in effects.KINDS.values()}
    named = {"fixed": len(kinds["irrelevant"])}
    named |= {
        key: sum(c.size for c in kinds[kind]) for key, kind in (("varied", "irrelevant-varied"), ("rephrased", "rephrased"))
    }
    yield "controls", named
    against = "the control" if "control" in audit.conditions else "the untouched model"
    for measure in audit.answers.measures:
        if lines := _lines(told, measure.name):
            shown = {line: number(lines.get(line)) for line in effects.TAKES}
            own = {"unit": lines["training"]["unit"], "measure": lines["training"]["measure"], "against": against}
            yield "taken", {**shown, **own, "label": measure.label}
        if found := _index(told, measure.name):
            yield "index", {"label": measure.label, "index": number(found)}
    labels = {measure.name: measure.label for measure in audit.answers.measures}
    yield from (("share", {"label": labels[row["trait"]], "share": row["why"] or number(row)}) for row in told["shares"])
    if audit.refused:
        yield "without", {"what": "; ".join(f"{name} ({reason})" for name, reason in audit.refused.items())}


def quoted(prompt: Prompt) -> str:
    """A prompt as a sentence names it: its text in quotes, or its policy."""
    return f"“{prompt.text}”" if prompt.text else f"none (policy {prompt.policy})"
