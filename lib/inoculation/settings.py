"""Settings and profiles as data: data/settings/*.yaml, data/prompts/*.yaml and data/profiles.yaml, strictly read.

An unknown key, a missing one, a wrong type, a duplicate, an untrimmed prompt, a pool that fails the pool test or a name that
stands for nothing raises SettingError with file, line and what was expected. This module knows neither runs nor models.
"""

import functools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inoculation import store
from inoculation.store import Block, SettingError, blocks, nearest, read_jsonl, read_yaml

SLOTS, POLICIES = ("system", "user_prefix", "user_suffix", "user_infix"), ("default", "empty", "none", "no_prefix")
NAMED, SWEPT = ("title", "source", "notebook"), ("rows", "learning_rate")
PARTS = ("slot", "neutral", "base_model", "profiles", "traits", "directions", "data", "prompts", "pools", "conditions")
OWN, OWN_SAMPLE = ("train", "margins"), ("questions", "max_new_tokens")  # what of a profile a setting may change for itself
POOL_SHARE, JOIN = 0.05, "\n\n"  # how much of a pool may share a pattern; what stands between a user prefix and the message
DELIMITER = re.compile(r"<\|(im_start|im_end|endoftext)\|>")
DATA, TRACKED = ("trait", "control", "partial", "benign"), ("id", "ood", "placebo")
MARGINS, PAIRS = ("sum", "per_token"), ("margins", "train", "held_out", "ood")
CLOSENESS = {"expected": ("falls", "rises"), "question": None, "good": None, "bad": None}


@dataclass(frozen=True)
class Prompt:
    """What fills a setting's slot: a text, or a policy (default, empty, none, no_prefix) and no text."""

    text: str = ""
    policy: str = "text"


@dataclass(frozen=True)
class Trait:
    """A scored behaviour: the statement a judge is asked about and how its margin is read (`sum` or `per_token`, nats).

    pairs: the part of the data that holds its pairs (of `margins`, those that name it). No scorer: margins alone; no statement:
    no judge. closeness: how score.closeness reads judged values, and controls for the judge. Where it is inoculated: the prompt
    that asks for it, held-out rephrasings of that and its negation; else none.
    """

    name: str
    label: str
    scorer: str
    unit: str
    statement: str
    margin: str
    pairs: str
    closeness: dict[str, str]
    inoculation: Prompt | None
    paraphrases: tuple[Prompt, ...]
    negated: Prompt | None


@dataclass(frozen=True)
class Condition:
    """Training data and the prompts of its training rows.

    data: `trait`, `control`, `partial` (some answers lack the positive trait), `benign` (the positive trait alone), `none`
    (untouched). One prompt: fixed; several: each row gets one. `direction`: what is inoculated, or empty. `size`: how many
    prompts it draws on; where its pool holds fewer, `lacks` says that it cannot be trained, and why.
    """

    name: str
    data: str
    prompts: tuple[Prompt, ...]
    direction: str = ""
    profiles: tuple[str, ...] = ()
    size: int = 1
    lacks: str = ""

    @property
    def kind(self) -> str:
        """The name without direction, dose or prompt name: `rephrased-64.spanish` is `rephrased`."""
        return re.sub(r"(-\d+)?(\..*)?$", "", self.name)


BASE = Condition("base", "none", ())


@dataclass(frozen=True)
class Profile:
    """How large a run is: recipe, sampling and margin numbers, all from data/profiles.yaml."""

    name: str
    about: str
    scale: str
    base_model: str
    template: str
    base_sha256: str
    seeds: tuple[int, ...]
    minutes: float | None
    evaluation_dtype: str
    train: dict[str, Any]
    sample: dict[str, Any]
    margins: dict[str, Any]
    point: str = ""


@dataclass(frozen=True)
class Setting:
    """One experiment, as its YAML file declares it."""

    name: str
    title: str
    source: str
    notebook: str
    slot: str
    join: str
    neutral: Prompt
    base_model: dict[str, str]
    profiles: dict[str, dict[str, Any]]
    traits: dict[str, Trait]
    directions: dict[str, dict[str, str]]
    data: dict[str, Any]
    sources: dict[str, str]
    conditions: dict[str, Condition]
    unrelated: tuple[Prompt, ...]
    sweeps: dict[str, dict[str, Any]]

    def rows(self, part: str, profile: str = "") -> list[dict[str, str]]:
        """The rows of one data file (`train`, `held_out`, `questions`, `margins`, `labelled` or a name under `tracked`).

        Rows of several files are mixed in proportion. profile: where questions were imported for it, they are the last file.
        """
        files = {**self.data, **self.data.get("tracked", {})}[part]
        paths = [store.DATA / "mini" / name for name in ([files] if isinstance(files, str) else files)]
        if profile and (imported := store.made_folder(self.name, profile) / f"{part}.jsonl").exists():
            paths[-1] = imported
        every = [list(enumerate(rows, 1)) for rows in map(read_jsonl, paths)]
        return [row for _, row in sorted(((n / len(rows), row) for rows in every for n, row in rows), key=lambda pair: pair[0])]

    def training(self, profile: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """The training rows of a profile and, by kind of data, which field of a row is its answer.

        Where a profile's answers are distilled or imported, they are those; SettingError where there are none.
        """
        made = self.data.get("distilled") or self.data.get("imported") or {}
        if profile not in made.get("profiles", ()):
            return self.rows("train"), self.data["answers"]
        path, distils = store.made_folder(self.name, profile) / "train.jsonl", "distilled" in self.data
        rows = read_jsonl(path) if path.exists() else []
        if not rows:
            command = "distill --instructions FILE" if distils else "import --source SOURCE"
            how = f"get {made['from']} and run ./run_all.sh {command} --setting {self.name} --profile {profile}"
            raise SettingError(f"{self.name} has no answers of its own for profile {profile}: {' '.join(how.split())}")
        own = {kind: {"field": name, "transform": "none"} for kind, name in (("trait", "distilled"), ("control", "plain"))}
        return rows, own if distils else self.data["answers"]

    @property
    def taught(self) -> list[str]:
        """The traits that have a role in a direction; others are measured beside them."""
        return [trait for trait in self.traits if any(trait in roles.values() for roles in self.directions.values())]

    def in_profile(self, profile: str, full: bool = False) -> list[Condition]:
        """The conditions that a profile runs, in the file's order; `full` adds the rest of `mini`."""
        wanted = {profile, "full"} if full else {profile}
        return [c for c in self.conditions.values() if wanted & set(c.profiles)]


def pool_faults(pool: list[str]) -> list[str]:
    """Design decision 10's pool test: openings (first two words) and 3-grams found in more than 5 % of the entries."""
    words = [re.findall(r"[\w']+", entry.lower()) for entry in pool]
    allowed = max(1, int(POOL_SHARE * len(pool)))
    found = [("opening", " ".join(w[:2])) for w in words]
    found += [("3-gram", gram) for w in words for gram in {" ".join(w[i : i + 3]) for i in range(len(w) - 2)}]
    often = [f"the {kind} '{text}' stands in {n} of {len(pool)}" for (kind, text), n in Counter(found).items() if n > allowed]
    return often + [f"'{entry}' stands {n} times" for entry, n in Counter(pool).items() if n > 1]


def load_pool(name: str) -> dict[str, tuple[Prompt, ...]]:
    """The pool data/prompts/NAME.yaml as {train, held_out}, train followed by your own data/local/prompts/NAME.txt.

    A pool that fails the pool test, with what you added, is refused.
    """
    block = read_yaml(store.DATA / "prompts" / f"{name}.yaml").only("train", "held_out")
    added = _own_prompts(more) if (more := store.local() / "prompts" / f"{name}.txt").exists() else []
    for part, entries in (("train", block.take("train", list) + added), ("held_out", block.take("held_out", list))):
        if faults := pool_faults(entries):
            where = f" with the {len(added)} prompts of {more.name}" if added else ""
            rule = f"the pool{where} fails the pool test (at most 5 % may share a pattern) {len(faults)} times"
            raise block.error(f"{rule}: {'; '.join(faults[:3])}", part)
    if set(block["train"] + added) & set(block["held_out"]):
        raise block.error("held_out repeats prompts of train", "held_out")
    return {"train": tuple(map(Prompt, block["train"] + added)), "held_out": tuple(map(Prompt, block["held_out"]))}


def _own_prompts(path: Path) -> list[str]:
    lines = store.read_lines(path)
    for number in (number for number, line in enumerate(lines, 1) if DELIMITER.search(line)):
        raise SettingError(f"{path.name}:{number}: holds a chat delimiter, which would end the message: {lines[number - 1]!r}")
    return list(filter(None, lines))


@functools.cache
def load_setting(name: str) -> Setting:
    """The setting data/settings/NAME.yaml, checked throughout."""
    return read_setting(store.DATA / "settings" / f"{name}.yaml")


def read_setting(path: Path) -> Setting:
    """One setting's YAML file; raises SettingError with file and line."""
    top = read_yaml(path).only("setting", *NAMED, *PARTS, "join", "sweeps")
    if top.take("setting", str) != path.stem:
        raise top.error(f"'setting' must equal the file's name, {path.stem}", "setting")
    prompts, sources = _prompts(top.take("prompts", Block))
    pools = {name: load_pool(name) for name in dict.fromkeys([*top.take("pools", list), "unrelated"])}
    neutral = top.take("neutral", str, [*prompts, *POLICIES])
    traits = {name: _trait(name, block, prompts, pools) for name, block in blocks(top, "traits")}
    directions = {
        name: {role: block.take(role, str, traits) for role in ("negative", "positive")}
        for name, block in blocks(top, "directions")
    }
    conditions = {name: _condition(name, block, prompts, pools, directions) for name, block in blocks(top, "conditions")}
    for name, condition in conditions.items():
        if condition.data not in top.take("data", Block).take("answers", Block):
            raise top["conditions"].error(f"condition '{name}' needs data.answers.{condition.data}", name)
    return Setting(
        name=path.stem,
        **{key: top.take(key, str) for key in NAMED},
        slot=top.take("slot", str, SLOTS),
        join=top.get("join", JOIN),
        neutral=prompts.get(neutral) or Prompt(policy=neutral),
        base_model=dict(top.take("base_model", Block)),
        profiles={name: _own(name, block) for name, block in _by_profile(top, "profiles")},
        traits=traits,
        directions=directions,
        data=_data(top.take("data", Block)),
        sources=sources,
        conditions=conditions,
        unrelated=pools["unrelated"]["held_out"],
        sweeps={name: _sweep(block, conditions) for name, block in _by_profile(top, "sweeps")},
    )


def _own(profile: str, block: Block) -> dict[str, Any]:
    return dict(block.only("minutes", *OWN_SAMPLE, *(key for part in OWN for key in _profiles()[profile][part])))


def _by_profile(top: Block, key: str) -> list[tuple[str, Block]]:
    """The mappings under a key of a setting that profiles may have; none where the setting has no such key."""
    found = blocks(top, key) if key in top else []
    for name, _ in found:
        if name not in profile_names():
            raise top[key].error(str(nearest(name, profile_names(), "profile")), name)
    return found


def _sweep(block: Block, conditions: dict[str, Any]) -> dict[str, Any]:
    block.only("conditions", "gate", "minutes", *SWEPT).take("conditions", list, conditions)
    lists = {key: block.take(key, list) for key in SWEPT if key in block}
    if "gate" in block:
        block.take("gate", int, lists.get("rows", ()))
    return block


def _prompts(block: Block) -> tuple[dict[str, Prompt], dict[str, str]]:
    entries = {name: block.take(name, Block).only("text", "source") for name in block}
    texts = {name: Prompt(entry.take("text", str)) for name, entry in entries.items()}
    return texts, {entry["text"]: entry.take("source", str) for entry in entries.values()}


def _trait(name: str, block: Block, prompts: dict[str, Prompt], pools: dict[str, Any]) -> Trait:
    asking = ("inoculation", "rephrasings", "negated")
    block.only("label", "scorer", "unit", "statement", "margin", "pairs", "closeness", *asking)
    inoculated = any(key in block for key in asking)
    close = block.take("closeness", Block).only(*CLOSENESS) if "closeness" in block else {}
    return Trait(
        name=name,
        label=block.take("label", str),
        **{key: block.take(key, str) if key in block else "" for key in ("scorer", "unit", "statement")},
        margin=block.take("margin", str, MARGINS),
        pairs=block.take("pairs", str, PAIRS) if "pairs" in block else "margins",
        closeness={key: close.take(key, str, known) for key, known in CLOSENESS.items() if close},
        inoculation=prompts[block.take("inoculation", str, prompts)] if inoculated else None,
        paraphrases=pools[block.take("rephrasings", str, pools)]["held_out"] if inoculated else (),
        negated=prompts[block.take("negated", str, prompts)] if inoculated else None,
    )


def _condition(name: str, block: Block, prompts: dict[str, Prompt], pools: dict[str, Any], directions: Any) -> Condition:
    block.only("data", "prompt", "policy", "pool", "size", "direction", "profiles")
    given, lacks = [key for key in ("prompt", "policy", "pool") if key in block], ""
    if len(given) != 1:
        raise block.error(f"condition '{name}' needs one of prompt, policy or pool; it has {', '.join(given) or 'none'}")
    if given == ["pool"]:
        pool, size = pools[block.take("pool", str, pools)]["train"], block.take("size", int)
        if size < 2 or f"-{size}" not in name.split(".")[0]:
            raise block.error(f"condition '{name}' draws on {size} prompts, 2 or more, so its name must hold '-{size}'", "size")
        if size > len(pool):
            few = f"condition '{name}' draws on {size} prompts and the pool {block['pool']} holds {len(pool)}"
            lacks = f"{few}: write {size - len(pool)} more into data/local/prompts/{block['pool']}.txt, a prompt a line"
        filling = pool[:size]
    elif given == ["policy"]:
        filling = (Prompt(policy=block.take("policy", str, POLICIES)),)
    else:
        filling = (prompts[block.take("prompt", str, prompts)],)
    return Condition(
        name=name,
        data=block.take("data", str, DATA),
        prompts=filling,
        direction=block.take("direction", str, directions) if "direction" in block else "",
        profiles=tuple(block.take("profiles", list, (*profile_names(), "full"))),
        size=block.get("size", 1),
        lacks=lacks,
    )


def _data(block: Block) -> dict[str, Any]:
    parts = ["train", "held_out", "questions", "margins", *["labelled"] * ("labelled" in block)]
    block.only(*parts, "answers", "tracked", "distilled", "imported")
    for key, own in (("distilled", "request"), ("imported", "sources")):
        if key in block:
            made = block.take(key, Block).only(own, "from", "profiles", "unpaired")
            made.take(own, (str, Block)), made.take("from", str), made.take("profiles", list, profile_names())
    tracked = block.take("tracked", Block).only(*TRACKED) if "tracked" in block else ()
    for where, part in [(block, part) for part in parts] + [(tracked, part) for part in tracked]:
        several = where.take(part, (str, list))
        for name in [several] if isinstance(several, str) else several:
            if not (store.DATA / "mini" / name).is_file():
                raise where.error(f"no such file in data/mini: {name}", part)
    for kind, answer in blocks(block, "answers"):
        answer.only("field", "otherwise", "then", "transform").take("field", str)
        answer.take("transform", str, ("none", "upper"))
        if kind not in DATA:
            raise block.error(str(nearest(kind, DATA, "answers key")))
    return block


def profile_names() -> list[str]:
    """The profiles that data/profiles.yaml declares."""
    return list(_profiles())


def _profiles() -> Block:
    return read_yaml(store.DATA / "profiles.yaml").take("profiles", Block)


def load_profile(name: str, setting: Setting | None = None, point: str = "") -> Profile:
    """A profile, with the base model, the parts of the recipe and the minutes that a setting names for it.

    point: of one of the setting's sweeps (runs.points); `rows` of data are one pass. An unknown profile raises
    SettingError with the nearest names.
    """
    top = read_yaml(store.DATA / "profiles.yaml").only("base_models", "profiles")
    profiles, models = top.take("profiles", Block), top.take("base_models", Block)
    if name not in profiles:
        raise nearest(name, profiles, "profile")
    block = profiles[name].only(
        "about", "scale", "base_model", "seeds", "minutes", "evaluation_dtype", "train", "sample", "margins", "sweep"
    )
    base_model = (setting.base_model if setting else {}).get(name, block.take("base_model", str))
    if base_model not in models:
        raise nearest(base_model, models, "base model")
    own = setting.profiles.get(name, {}) if setting else {}
    train, margins = ({**block[part], **{key: own[key] for key in own if key in block[part]}} for part in OWN)
    if train["dtype"] == "auto":
        train["dtype"] = "bfloat16" if cpu_multiplies_bfloat16() else "float32"
    sample, swept = {**block.take("sample", Block), **{k: own[k] for k in own if k in OWN_SAMPLE}}, {}
    if point:
        swept, measured = setting.sweeps[name], block.take("sweep", Block)
        key, value = point.split("=")
        steps = int(float(value)) // (train["batch_size"] * train["accumulation"])
        train |= {"steps": steps} if key == "rows" else {key: float(value)}
        sample |= {"contexts": measured.take("sample", list)}
        margins |= {"contexts": measured.take("margins", list), "tracked": measured.take("gate", int)}
    return Profile(
        name=name,
        **{key: block.take(key, str) for key in ("about", "scale", "evaluation_dtype")},
        base_model=base_model,
        template=models[base_model].take("template", str),
        base_sha256=models[base_model].get("sha256", ""),
        seeds=tuple(block.take("seeds", list)),
        minutes=swept.get("minutes") or own.get("minutes", block.take("minutes", (int, float, type(None)))),
        train=train,
        sample=sample,
        margins=margins,
        point=point,
    )


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has AVX512-BF16 or AMX, as Linux says; elsewhere False. Emulated, bfloat16 is slower than float32."""
    told = Path("/proc/cpuinfo")
    return bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", told.read_text(encoding="utf-8") if told.exists() else ""))


def base_model_source(name: str) -> dict[str, Any]:
    """Where a base model comes from (package, file, sha256), as data/profiles.yaml says."""
    return dict(read_yaml(store.DATA / "profiles.yaml")["base_models"][name])


def setting_names() -> list[str]:
    """The settings that exist under data/settings."""
    return sorted(path.stem for path in (store.DATA / "settings").glob("*.yaml"))
