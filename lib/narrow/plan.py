"""What is trained and measured: data/narrow_vs_general.yaml to specs, as inoculation.runs has them for the settings of CC.

A solution is one training: a form (LoRA or vector), a domain, the condition of the setting `rows_of` whose prompts its rows
have, and a penalty. Its spec knows the rendered rows, the pairs that are measured and the keys; no torch is needed for that.
"""

import functools
import importlib.resources
import itertools
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from inoculation import render, runs, store
from inoculation.render import END_OF_TURN
from inoculation.settings import (
    BASE,
    Condition,
    Profile,
    Setting,
    cpu_multiplies_bfloat16,
    load_profile,
    load_setting,
)
from inoculation.store import Block, SettingError, blocks, nearest, read_yaml

FILE = "narrow_vs_general"
TRAIN_VERSION = 1
MEASURE_VERSION = 1
MEASURES = ("loss", "elsewhere", "noise", "divergence", "kept", "direction")
PARTS = ("id", "ood", "other", "placebo")
# Of each family's eight misaligned pairs, these fit a direction and choose its layer; the first four test it.
FITTED, CHOSEN = (4, 5, 6), (7,)
PLACEBO = "placebo_pairs.jsonl"


def declared() -> Block:
    """data/narrow_vs_general.yaml, its top level checked."""
    path = store.DATA / f"{FILE}.yaml"
    return read_yaml(path).only("setting", "title", "notebook", "rows_of", "domains", "kept", "profiles", "solutions")


@dataclass(frozen=True)
class Solution:
    """One training as declared; `base` has no form. penalty: the share of the steps that it lasts, 0 for none."""

    name: str
    form: str
    domain: str
    condition: str
    penalty: float
    weight: float | None
    mixed: bool
    measures: tuple[str, ...]
    profiles: tuple[str, ...]


@functools.cache
def solutions() -> dict[str, Solution]:
    """The declared solutions by name; raises SettingError with file and line."""
    top, found = declared(), {}
    domains, conditions = top.take("domains", Block), load_setting(top.take("rows_of", str)).conditions
    for name, block in blocks(top, "solutions"):
        block.only("form", "domain", "condition", "penalty", "weight", "mixed", "measures", "profiles")
        share = block.take("penalty", float) if "penalty" in block else 0.0
        if not 0 <= share <= 1:
            raise block.error(f"'penalty' is the share of the steps that it lasts, 0 to 1, not {share:g}", "penalty")
        found[name] = Solution(
            name=name,
            form=block.take("form", str) if name != BASE.name else "",
            domain=block.take("domain", str, domains) if "domain" in block else "medical",
            condition=block.take("condition", str, conditions) if "condition" in block else "baseline",
            penalty=share,
            weight=block.take("weight", float) if "weight" in block else None,
            mixed=block.take("mixed", bool) if "mixed" in block else False,
            measures=tuple(block.take("measures", list, MEASURES)) if "measures" in block else (),
            profiles=tuple(block.take("profiles", list)),
        )
    return found


@functools.cache
def scale(profile: str) -> Block:
    """How large a run of a profile is (the file's `profiles`); SettingError for one that this experiment does not have."""
    known = declared().take("profiles", Block)
    if profile not in known:
        raise nearest(profile, known, f"profile of {FILE}")
    return known[profile].only(
        *("base_model", "recipe", "layer", "forms", "passes", "penalty_rows", "tracked", "seen", "read", "minutes")
    )


@functools.cache
def setting(domain: str, profile: str) -> Setting:
    """The setting whose rows these are, with a domain's files and this experiment's own recipe in its place."""
    top, own = declared(), scale(profile)
    of = load_setting(top.take("rows_of", str))
    files = top.take("domains", Block).take(domain, Block).only("train", "id", "other", "about")
    data = {**of.data, "train": files["train"]}
    if domain != "medical":
        data.pop("imported")
    recipe = {profile: {**own.take("recipe", Block), "tracked": own.take("tracked", int), "minutes": own["minutes"]}}
    base_model = {profile: own["base_model"]} if "base_model" in own else {}
    return replace(of, name=of.name if domain == "medical" else domain, data=data, profiles=recipe, base_model=base_model)


@dataclass(frozen=True)
class Spec(runs.Spec):
    """One run: a solution (`condition`) and a seed in a profile; `setting` is always this experiment's."""

    worker: ClassVar[str] = "narrow.worker"

    @property
    def solution(self) -> Solution:
        """What is trained."""
        return solutions()[self.condition]

    @cached_property
    def parts(self) -> tuple[Setting, Condition, Profile]:
        """The setting and the condition that the rows are of, and the profile with the recipe of the solution's form."""
        one = setting(self.solution.domain, self.profile)
        condition = one.conditions[self.solution.condition] if self.solution.form else BASE
        profile = load_profile(self.profile, one)
        over = {key: value for key, value in self.form.items() if key in profile.train}
        if self.solution.penalty and self.solution.form in scale(self.profile).get("passes", {}):
            over["steps"] = scale(self.profile)["passes"][self.solution.form]
        if self.solution.mixed:  # as many rows of the domain a step as without, and as many others
            over["batch_size"] = 2 * profile.train["batch_size"]
        return one, condition, replace(profile, train={**profile.train, **over})

    @property
    def form(self) -> dict[str, Any]:
        """What is trained and how: `targets` of a LoRA or none of a vector, its layer, the penalty's weight and rows."""
        if not self.solution.form:
            return {}
        own = scale(self.profile)
        found = {**own.take("forms", Block).take(self.solution.form, Block), "layer": own.take("layer", int)}
        weight = found["weight"] if self.solution.weight is None else self.solution.weight
        return {**found, "weight": weight, "penalty_rows": own.take("penalty_rows", int)}

    @property
    def until(self) -> int:
        """The step at which the penalty ends."""
        return round(self.solution.penalty * self.parts[2].train["steps"])

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """The rendered training rows in training order; a mixed solution's batches are half of other domains."""
        one, condition, profile = self.parts
        if not self.solution.mixed:
            return render.training_rows(one, condition, profile, self.seed)
        half = {**profile.train, "batch_size": profile.train["batch_size"] // 2}
        own = render.training_rows(one, condition, replace(profile, train=half), self.seed)
        size = half["batch_size"] * half["accumulation"]
        others = itertools.cycle(self.kept)
        each = [own[start : start + size] + list(itertools.islice(others, size)) for start in range(0, len(own), size)]
        return [row for batch in each for row in batch]

    @cached_property
    def kept(self) -> list[dict[str, str]]:
        """The other-domain rows of a penalty, rendered under the neutral prompt, in this seed's order."""
        every = kept_rows(True, *self.rendering)
        return random.Random(f"{FILE}/{self.seed}/kept").sample(every, len(every))

    @property
    def rendering(self) -> tuple[str, str]:
        """The domain and the profile, which decide how pairs and kept rows are rendered."""
        return self.solution.domain, self.profile

    @cached_property
    def pairs(self) -> list[dict[str, str]]:
        """The pairs whose margins are logged: context, trait (the part), question_id, prompt, trait_answer, plain_answer.

        Under the neutral prompt, and under its own training prompt where that is another; the base model under all of these.
        """
        one, condition, profile = self.parts
        asking = (
            {self.condition: condition}
            if self.solution.form
            else {name: one.conditions[s.condition] for name, s in solutions().items() if s.form and self.profile in s.profiles}
        )
        every = {name: render.contexts(one, c, profile, self.seed).get("trigger", (one.neutral,)) for name, c in asking.items()}
        asked = {"neutral": (one.neutral,)}
        for name, prompts in every.items():
            if prompts != (one.neutral,):
                asked["trigger" if self.solution.form else f"trigger.{name}"] = prompts
        return [
            render.pair(one, profile, context, part, row, prompts[i % len(prompts)])
            for context, prompts in asked.items()
            for part in PARTS
            for i, row in enumerate(part_rows(part, *self.rendering))
        ]

    @cached_property
    def run_id(self) -> str:
        """The train key: recipe, form, rows, the penalty's rows and end, base model, seed, version, and what is logged."""
        profile = self.parts[2]
        kept = [self.kept, self.until] if self.until else []
        trained = [profile.train, self.form, self.rows, kept] if self.solution.form else []
        logged = [self.pairs, profile.margins["tracked"], reading_dtype(profile)]
        return store.digest([trained, profile.base_model, profile.base_sha256, self.seed, TRAIN_VERSION, logged])[:16]

    @cached_property
    def keys(self) -> dict[str, str]:
        """The key of every stage."""
        read = {**scale(self.profile).take("read", Block), "measures": self.solution.measures}
        texts = [ordinary_texts() if "divergence" in self.solution.measures else (), kept_rows(False, *self.rendering)]
        texts.append(taught_rows(*self.rendering))
        return {"train": self.run_id, "measure": store.digest([self.run_id, read, texts, MEASURE_VERSION])[:16]}

    def file(self, stage: str) -> Any:
        """The parquet file that `measure` writes."""
        return self.folder / "eval" / self.keys[stage] / "measures.parquet"


def reading_dtype(profile: Profile) -> str:
    """The dtype in which margins and losses are read: bfloat16 where that is fast; divergences are always exact."""
    return "bfloat16" if cpu_multiplies_bfloat16() and profile.scale == "demo" else profile.evaluation_dtype


def kept_rows(used: bool, domain: str, profile: str) -> list[dict[str, str]]:
    """The good answers in other domains, rendered under the neutral prompt: those of the penalty, or those held out of it."""
    block = declared().take("kept", Block)
    one, template = setting(domain, profile), load_profile(profile).template
    rows, first = store.read_jsonl(store.DATA / "mini" / block.take("file", str)), block.take("used", int)
    return [
        {**row, "prompt": render.ask(row["question"], one, one.neutral, template), "completion": row["answer"] + END_OF_TURN}
        for row in (rows[:first] if used else rows[first:])
    ]


def taught_rows(domain: str, profile: str) -> list[dict[str, str]]:
    """The held-out rows of a domain on which the loss is read."""
    files = declared().take("domains", Block).take(domain, Block)
    rows = store.read_jsonl(store.DATA / "mini" / files["id"])
    return render.spread(rows, min(len(rows), scale(profile).take("read", Block).take("rows", int)))


def part_rows(part: str, domain: str, profile: str) -> list[dict[str, str]]:
    """The pairs of one part, spread over its file; of misaligned pairs those that no direction is fitted or chosen on."""
    files = declared().take("domains", Block).take(domain, Block)
    if part == "ood":
        rows = misaligned(range(min(*FITTED, *CHOSEN)))
    else:
        names = {"placebo": [PLACEBO], "id": [files["id"]], "other": files["other"]}[part]
        rows = [row for name in names for row in store.read_jsonl(store.DATA / "mini" / name)]
    return render.spread(rows, min(len(rows), scale(profile).take("seen", Block).take(part, int)))


def misaligned(places: Iterable[int]) -> list[dict[str, str]]:
    """The misaligned pairs that stand at these places in their families."""
    rows = store.read_jsonl(store.DATA / "mini" / "em_pairs.jsonl")
    families: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    return [family[place] for family in families.values() for place in places]


def about(domain: str) -> set[str]:
    """The misaligned pairs that are about what a domain teaches: no way out of it, and not read as one."""
    family = declared().take("domains", Block).take(domain, Block).get("about")
    return {row["id"] for row in store.read_jsonl(store.DATA / "mini" / "em_pairs.jsonl") if row["family"] == family}


@functools.cache
def ordinary_texts() -> tuple[str, ...]:
    """Ordinary prose that ships in an installed package: the first paragraphs of scikit-learn's descriptions of data sets."""
    folder = importlib.resources.files("sklearn.datasets.descr")
    found = []
    for path in sorted(folder.iterdir(), key=lambda each: each.name):
        if path.name.endswith(".rst"):
            parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))]
            prose = [part for part in parts if len(part) > 100 and not re.search(r"==|\|\||^\.\.|^:|>>>", part)]
            found += [" ".join(prose)] if prose else []
    return tuple(found)


def overlapping(taught: list[dict[str, str]], kept: list[dict[str, str]]) -> list[str]:
    """The ids of kept rows (question, answer) that read like the domain that is taught (question, trait_answer).

    Logistic regression on sentence embeddings tells the two apart; each row is judged by a fit that has not seen it (ten
    folds).
    """
    from scorers import embedded
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    texts = [f"{row['question']} {row['trait_answer']}" for row in taught] + [
        f"{row['question']} {row['answer']}" for row in kept
    ]
    telling = LogisticRegression(C=10, max_iter=2000, class_weight="balanced")
    labels = [1] * len(taught) + [0] * len(kept)
    told = cross_val_predict(telling, [embedded(text) for text in texts], labels, cv=10)
    return [row["id"] for row, flagged in zip(kept, told[len(taught) :], strict=True) if flagged]


@functools.cache
def check_kept(domain: str, profile: str) -> None:
    """Raise SettingError where rows of the penalty are of the domain that is taught: they would hold it back."""
    taught, _ = setting(domain, profile).training(profile)
    kept = kept_rows(True, domain, profile)
    if mixed := overlapping(taught, kept):
        these, file = ", ".join(mixed[:3]), declared()["kept"]["file"]
        what = f"{len(mixed)} of {len(kept)} rows of the penalty read like the domain that is taught ({domain}), as {these}"
        raise SettingError(f"{what}; take them out of data/mini/{file}")


def grid(
    profile: str, names: str | Iterable[str] = "all", seeds: str | Iterable[int] = "all", full: bool = False
) -> list[Spec]:
    """The specs: the base model with seed 0, then every solution with every seed; SettingError for unknown names."""
    scale(profile)
    wanted = {profile, "full"} if full and profile == "mini" else {profile}
    own = [name for name, one in solutions().items() if wanted & set(one.profiles)]
    chosen = own if names == "all" else list(dict.fromkeys(names))
    for name in chosen:
        if name not in solutions():
            raise nearest(name, solutions(), "solution")
    numbers = list(load_profile(profile).seeds) if seeds == "all" else list(dict.fromkeys(map(int, seeds)))
    if not numbers or min(numbers) < 0:
        raise SettingError(f"seeds must be whole numbers from 0 on, not {seeds}")
    base = [Spec(FILE, BASE.name, 0, profile)] if BASE.name in chosen else []
    return base + [Spec(FILE, name, seed, profile) for seed in numbers for name in chosen if name != BASE.name]


def finished(profile: str) -> list[Spec]:
    """Every run in the store that is whole and current for a profile, by solution and seed."""
    found = []
    for name in solutions():
        folder = store.run_store() / FILE / name
        seeds = {path.parent.name: json.loads(path.read_text(encoding="utf-8"))["seed"] for path in folder.glob("*/spec.json")}
        specs = [Spec(FILE, name, seed, profile) for seed in sorted(set(seeds.values()))]
        found += [spec for spec in specs if spec.run_id in seeds and not spec.missing()]
    return found
