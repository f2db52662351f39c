"""A prepared audit to the specs of its runs, as inoculation.runs has them for the settings of CC.

A spec knows its audit by name alone and reads what `plan.prepare` wrote into its folder, so a worker process finds the same.
"""

import functools
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from inoculation import runs, store
from inoculation.evaluate import MINIMUM_MASS
from inoculation.settings import BASE, Condition, Profile, Prompt, Setting, Trait, load_pool, load_profile
from inoculation.store import Block, SettingError, read_yaml

from audit.answers import Measure

PREFIX = "audit."  # before an audit's name, where a run's setting stands
DIRECTION = "prompt"
FILES = ("train", "held_out", "questions", "margins", "labelled")
TO_READ = 2  # questions that are sampled for reading alone, where nothing is measured on responses


def scale(profile: str) -> Block:
    """How large an audit is in a profile (data/audit.yaml)."""
    known = read_yaml(store.DATA / "audit.yaml").only("scales", "advice", "state").take("scales", Block)
    if profile not in known:
        raise store.nearest(profile, known, "profile of audits")
    keys = ("seeds", "contexts", "questions", "held_out", "max_new_tokens", "pairs", "rephrased", "varied", "fewest", "draw")
    return known[profile].only(*keys, "steps", "minutes")


def folder(name: str) -> Path:
    """The folder of an audit."""
    return store.local() / "audits" / name


@functools.lru_cache(maxsize=8)
def _prepared(path: Path, changed: int) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def prepared(name: str) -> dict[str, Any]:
    """What `prepare` wrote of an audit; SettingError where there is none."""
    path = folder(name) / "prepared.json"
    if not path.exists():
        raise SettingError(f"audit {name} is not prepared; run ./run_all.sh audit --answers FILE")
    return _prepared(path, path.stat().st_mtime_ns)


def setting(name: str) -> Setting:
    """A prepared audit as the experiments' Setting: your rows, its conditions and measures."""
    return _setting(name, folder(name), store.digest(prepared(name)))


@functools.lru_cache(maxsize=8)
def _setting(name: str, place: Path, key: str) -> Setting:
    facts = prepared(name)
    measures = [Measure(**measure) for measure in facts["measures"]]
    conditions = {key: _condition(block, facts["profile"]) for key, block in facts["conditions"].items()}
    files = {part: str(place / f"{part}.jsonl") for part in FILES}
    fields = {"trait": "trait_answer", "control": "plain_answer"}
    roles = {role: next((m.name for m in measures if m.role == role), "") for role in ("negative", "positive")}
    return Setting(
        name=PREFIX + name,
        title=name,
        source="yours",
        notebook="11_your_own_setting",
        slot=facts["slot"],
        join=facts["join"],
        neutral=Prompt(**facts["neutral"]),
        base_model={},
        profiles={},
        traits={m.name: _trait(m) for m in measures},
        directions={DIRECTION: {role: trait for role, trait in roles.items() if trait}},
        data={**files, "answers": {kind: {"field": field, "transform": "none"} for kind, field in fields.items()}},
        sources={},
        conditions=conditions,
        unrelated=load_pool("unrelated")["held_out"],
        sweeps={},
    )


def _condition(block: dict[str, Any], profile: str) -> Condition:
    return Condition(**{**block, "prompts": tuple(Prompt(**prompt) for prompt in block["prompts"]), "profiles": (profile,)})


def _trait(measure: Measure) -> Trait:
    unit = "share of letters in capitals" if measure.scorer == "capitals" else "share of responses"
    told = {"scorer": measure.scorer, "unit": unit, "statement": measure.statement, "margin": measure.margin}
    nothing = {"closeness": {}, "inoculation": None, "paraphrases": (), "negated": None}
    return Trait(measure.name, measure.label, **told, pairs="margins", **nothing)


def profile_of(name: str) -> Profile:
    """A prepared audit's profile: its scale's sampling and pairs, its model, and as many steps as its rows allow."""
    facts = prepared(name)
    own, base, of = scale(facts["profile"]), facts["model"], load_profile(facts["profile"])
    sampled = any(measure["scorer"] or measure["statement"] for measure in facts["measures"])
    contexts = own.take("contexts", list)
    batch = of.train["batch_size"] * of.train["accumulation"]
    # The embedded model takes a few steps of a draw; your own sees every row.
    steps = own["steps"] if of.scale != "paper" else max(own["steps"], math.ceil(facts["rows"] / batch))
    asked = {"questions": own["questions"], "held_out": own["held_out"]} if sampled else {"questions": TO_READ, "held_out": 0}
    return replace(
        of,
        base_model=base["name"],
        template=base["template"],
        base_sha256=base["sha256"],
        minutes=own["minutes"],
        train={**of.train, "steps": steps, "warmup_steps": min(of.train["warmup_steps"], steps // 8)},
        sample={**of.sample, **asked, "contexts": contexts, "max_new_tokens": own["max_new_tokens"]},
        margins={"contexts": contexts, "pairs": own["pairs"] * len(facts["measures"]), "answers": 0, "tracked": 0},
    )


@dataclass(frozen=True)
class Spec(runs.Spec):
    """One run of an audit: `setting` is its name after PREFIX."""

    worker: ClassVar[str] = "audit.worker"

    @property
    def audit(self) -> str:
        """The audit's name."""
        return self.setting.removeprefix(PREFIX)

    @cached_property
    def parts(self) -> tuple[Setting, Condition, Profile]:
        """The audit as a setting, the condition, and the audit's profile."""
        one = setting(self.audit)
        return one, BASE if self.condition == BASE.name else one.conditions[self.condition], profile_of(self.audit)

    @cached_property
    def prompts(self) -> list[dict[str, str]]:
        """The rendered evaluation prompts; of other conditions' training prompts, the references are asked only under yours."""
        return self._about_yours(runs.Spec.prompts.func(self))

    @cached_property
    def pairs(self) -> list[dict[str, str]]:
        """The rendered pairs, likewise."""
        return self._about_yours(runs.Spec.pairs.func(self))

    def _about_yours(self, asked: list[dict[str, str]]) -> list[dict[str, str]]:
        others = {f"trigger.{name}" for name, known in self.parts[0].conditions.items() if not known.direction}
        return [row for row in asked if row["context"] not in others]

    @property
    def judged(self) -> list[Measure]:
        """The measures that a judge decides."""
        return [Measure(**measure) for measure in prepared(self.audit)["measures"] if measure["statement"]]

    @cached_property
    def keys(self) -> dict[str, str]:
        """The key of every stage; `judge` where a judge decides a measure."""
        keys = runs.Spec.keys.func(self)
        if not self.judged:
            return keys
        from inoculation.judge import JUDGE_VERSION

        asked = [(measure.name, measure.statement, measure.judge, measure.yes, measure.no) for measure in self.judged]
        return {**keys, "judge": store.digest([keys["sample"], asked, MINIMUM_MASS, JUDGE_VERSION])[:16]}

    def file(self, stage: str) -> Path:
        """The parquet file that a stage writes; verdicts lie beside the responses they are about."""
        return super().file("score").with_name("judged.parquet") if stage == "judge" else super().file(stage)


def specs(name: str) -> list[Spec]:
    """The specs of a prepared audit: the base model, then every condition with every seed."""
    facts = prepared(name)
    each = [(condition, seed) for seed in facts["seeds"] for condition in facts["conditions"]]
    return [Spec(PREFIX + name, condition, seed, facts["profile"]) for condition, seed in [(BASE.name, 0), *each]]
