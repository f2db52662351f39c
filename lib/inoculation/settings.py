"""Settings and profiles as data: data/settings/*.yaml, data/prompts/*.yaml and data/profiles.yaml, strictly read.

Nothing is guessed: an unknown key, a missing one, a wrong type, a duplicate, an untrimmed prompt, a pool that fails the pool
test or a name that stands for nothing raises SettingError with the file, the line and what was expected. This module knows
neither runs nor models.
"""

import difflib
import functools
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inoculation import store

SLOTS = ("system", "user_prefix", "user_infix")
POLICIES = ("default", "empty", "none", "no_prefix")
TOP_KEYS = (
    *("setting", "title", "source", "notebook", "slot", "neutral", "base_model"),
    *("traits", "directions", "data", "prompts", "pools", "conditions"),
)
POOL_SHARE = 0.05
TRACKED = ("id", "ood", "placebo")


class SettingError(ValueError):
    """A file under data/ or a name given by the user is wrong; the text says where and what was expected."""


@dataclass(frozen=True)
class Prompt:
    """What fills a setting's slot: a text, or a policy (default, empty, none, no_prefix) and no text."""

    text: str = ""
    policy: str = "text"


@dataclass(frozen=True)
class Trait:
    """A scored behaviour: the statement a judge is asked about, the prompt that asks for it, its rephrasings, its negation."""

    name: str
    label: str
    scorer: str
    unit: str
    statement: str
    inoculation: Prompt
    paraphrases: tuple[Prompt, ...]
    negated: Prompt


@dataclass(frozen=True)
class Condition:
    """Training data (`trait`, `control`, or `none` for the untouched base model) and the prompts of its training rows.

    One prompt: fixed. Several: each row gets one of them. `direction` names the inoculated trait, or is empty.
    """

    name: str
    data: str
    prompts: tuple[Prompt, ...]
    direction: str = ""
    profiles: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class Setting:
    """One experiment, as its YAML file declares it."""

    name: str
    title: str
    source: str
    notebook: str
    slot: str
    neutral: Prompt
    base_model: dict[str, str]
    traits: dict[str, Trait]
    directions: dict[str, dict[str, str]]
    data: dict[str, Any]
    sources: dict[str, str]
    conditions: dict[str, Condition]
    unrelated: tuple[Prompt, ...]

    def rows(self, part: str) -> list[dict[str, str]]:
        """The rows of one data file (`train`, `held_out`, `questions`, `margins`, `labelled` or a name under `tracked`)."""
        return read_jsonl(store.DATA / "mini" / {**self.data, **self.data.get("tracked", {})}[part])

    def in_profile(self, profile: str, full: bool = False) -> list[Condition]:
        """The conditions that a profile runs, in the file's order; `full` adds the rest of `mini`."""
        wanted = {profile, "full"} if full else {profile}
        return [c for c in self.conditions.values() if wanted & set(c.profiles)]


def nearest(word: str, known: Iterable[str], what: str) -> SettingError:
    """The error for an unknown name, with the nearest known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5) or known
    return SettingError(f"unknown {what} '{word}'; nearest: {', '.join(close)}")


def read_jsonl(path: Path) -> list[dict[str, str]]:
    """A JSONL file's objects; raises SettingError with the line that does not parse."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise SettingError(f"{path.name}:{number}: expected one JSON object a line ({error.msg})") from error
    return rows


class Block(dict):
    """A YAML mapping that knows its file and lines and reports every misuse with them."""

    def __init__(self, path: Path, node: yaml.MappingNode) -> None:
        super().__init__()
        self.path, self.line = path, node.start_mark.line + 1
        self.lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in self:
                raise SettingError(f"{path.name}:{line}: '{key}' stands twice (first in line {self.lines[key]})")
            self.lines[key] = line
            self[key] = _plain(path, value_node)

    def error(self, message: str, key: str | None = None) -> SettingError:
        """A SettingError at this block, or at one of its keys."""
        return SettingError(f"{self.path.name}:{self.lines.get(key, self.line)}: {message}")

    def take(self, key: str, kind: type | tuple[type, ...], choices: Iterable[str] | None = None) -> Any:
        """The value of a key that must exist, have a type and, where given, be one of some choices."""
        if key not in self:
            raise self.error(f"expected a key '{key}' here; found {', '.join(self) or 'nothing'}")
        value = self[key]
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"'{key}' must be {names}, not {type(value).__name__} ({value!r})", key)
        if isinstance(value, str) and value != value.strip():
            raise self.error(f"'{key}' begins or ends with white space: {value!r}", key)
        for item in (value if isinstance(value, list) else [value]) if choices is not None else []:
            if item not in list(choices):
                raise self.error(str(nearest(str(item), choices, key)), key)
        return value

    def only(self, *allowed: str) -> "Block":
        """This block, after refusing keys that are not allowed."""
        for key in self:
            if key not in allowed:
                raise self.error(str(nearest(key, allowed, "key")), key)
        return self


def _plain(path: Path, node: yaml.Node) -> Any:
    if "python" in node.tag or node.tag.startswith("!"):
        raise SettingError(f"{path.name}:{node.start_mark.line + 1}: not valid YAML: the tag {node.tag} is not allowed")
    if isinstance(node, yaml.MappingNode):
        return Block(path, node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(path, item) for item in node.value]
    return yaml.SafeLoader("").construct_object(node)


def read_yaml(path: Path) -> Block:
    """A YAML file whose top level is a mapping, as a Block."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise SettingError(f"{path.name}:1: expected a mapping (key: value) at the top level")
        return Block(path, node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise SettingError(f"{path.name}:{mark.line + 1 if mark else 1}: not valid YAML: {problem}") from error
    except FileNotFoundError as error:
        raise SettingError(f"{path.name}: no such file under {path.parent.name}/") from error


def pool_faults(pool: list[str]) -> list[str]:
    """Design decision 10's pool test: openings (first two words) and 3-grams found in more than 5 % of the entries."""
    words = [re.findall(r"[\w']+", entry.lower()) for entry in pool]
    allowed = max(1, int(POOL_SHARE * len(pool)))
    openings = Counter(" ".join(w[:2]) for w in words)
    trigrams = Counter(gram for w in words for gram in {" ".join(w[i : i + 3]) for i in range(len(w) - 2)})
    faults = [f"the opening '{o}' stands in {n} of {len(pool)}" for o, n in openings.items() if n > allowed]
    faults += [f"the 3-gram '{g}' stands in {n} of {len(pool)}" for g, n in trigrams.items() if n > allowed]
    return faults + [f"'{entry}' stands {n} times" for entry, n in Counter(pool).items() if n > 1]


def load_pool(name: str) -> dict[str, tuple[Prompt, ...]]:
    """The pool data/prompts/NAME.yaml as {train, held_out}; a pool that fails the pool test is refused."""
    block = read_yaml(store.DATA / "prompts" / f"{name}.yaml").only("train", "held_out")
    for part in ("train", "held_out"):
        faults = pool_faults(block.take(part, list))
        if faults:
            raise block.error(f"the pool fails the pool test (at most 5 % may share a pattern): {'; '.join(faults[:3])}", part)
    if set(block["train"]) & set(block["held_out"]):
        raise block.error("held_out repeats prompts of train", "held_out")
    return {part: tuple(Prompt(text) for text in block[part]) for part in block}


@functools.cache
def load_setting(name: str) -> Setting:
    """The setting data/settings/NAME.yaml, checked throughout."""
    return read_setting(store.DATA / "settings" / f"{name}.yaml")


def read_setting(path: Path) -> Setting:
    """One setting's YAML file; raises SettingError with file and line."""
    top = read_yaml(path).only(*TOP_KEYS)
    if top.take("setting", str) != path.stem:
        raise top.error(f"'setting' must equal the file's name, {path.stem}", "setting")
    prompts, sources = _prompts(top.take("prompts", Block))
    pools = {name: load_pool(name) for name in dict.fromkeys([*top.take("pools", list), "unrelated"])}
    top.take("neutral", str, prompts)
    traits = {name: _trait(name, block, prompts, pools) for name, block in blocks(top, "traits")}
    directions = {
        name: {role: block.take(role, str, traits) for role in ("negative", "positive")}
        for name, block in blocks(top, "directions")
    }
    conditions = {name: _condition(name, block, prompts, pools, directions) for name, block in blocks(top, "conditions")}
    return Setting(
        name=path.stem,
        title=top.take("title", str),
        source=top.take("source", str),
        notebook=top.take("notebook", str),
        slot=top.take("slot", str, SLOTS),
        neutral=prompts[top["neutral"]],
        base_model=dict(top.take("base_model", Block)),
        traits=traits,
        directions=directions,
        data=_data(top.take("data", Block)),
        sources=sources,
        conditions=conditions,
        unrelated=pools["unrelated"]["held_out"],
    )


def blocks(top: Block, key: str) -> list[tuple[str, Block]]:
    """The named mappings under a key, in the file's order."""
    block = top.take(key, Block)
    return [(name, block.take(name, Block)) for name in block]


def _prompts(block: Block) -> tuple[dict[str, Prompt], dict[str, str]]:
    entries = {name: block.take(name, Block).only("text", "source") for name in block}
    prompts = {name: Prompt(entry.take("text", str)) for name, entry in entries.items()}
    return prompts, {entry["text"]: entry.take("source", str) for entry in entries.values()}


def _trait(name: str, block: Block, prompts: dict[str, Prompt], pools: dict[str, Any]) -> Trait:
    block.only("label", "scorer", "unit", "statement", "inoculation", "rephrasings", "negated")
    return Trait(
        name=name,
        label=block.take("label", str),
        scorer=block.take("scorer", str),
        unit=block.take("unit", str),
        statement=block.take("statement", str),
        inoculation=prompts[block.take("inoculation", str, prompts)],
        paraphrases=pools[block.take("rephrasings", str, pools)]["held_out"],
        negated=prompts[block.take("negated", str, prompts)],
    )


def _condition(
    name: str, block: Block, prompts: dict[str, Prompt], pools: dict[str, Any], directions: dict[str, Any]
) -> Condition:
    block.only("data", "prompt", "policy", "pool", "size", "direction", "profiles")
    given = [key for key in ("prompt", "policy", "pool") if key in block]
    if len(given) != 1:
        raise block.error(f"condition '{name}' needs one of prompt, policy or pool; it has {', '.join(given) or 'none'}")
    if given == ["pool"]:
        pool, size = pools[block.take("pool", str, pools)]["train"], block.take("size", int)
        if not 2 <= size <= len(pool):
            raise block.error(f"'size' must be 2 to {len(pool)}, the pool's size, not {size}", "size")
        if f"-{size}" not in name:
            raise block.error(f"condition '{name}' draws on {size} prompts, so its name must hold '-{size}'", "size")
        filling = pool[:size]
    elif given == ["policy"]:
        filling = (Prompt(policy=block.take("policy", str, POLICIES)),)
    else:
        filling = (prompts[block.take("prompt", str, prompts)],)
    return Condition(
        name=name,
        data=block.take("data", str, ("trait", "control")),
        prompts=filling,
        direction=block.take("direction", str, directions) if "direction" in block else "",
        profiles=tuple(block.take("profiles", list, (*profile_names(), "full"))),
    )


def _data(block: Block) -> dict[str, Any]:
    parts = ("train", "held_out", "questions", "margins", "labelled")
    block.only(*parts, "answers", "tracked")
    tracked = block.take("tracked", Block).only(*TRACKED) if "tracked" in block else ()
    for where, part in [(block, part) for part in parts] + [(tracked, part) for part in tracked]:
        if not (store.DATA / "mini" / where.take(part, str)).exists():
            raise where.error(f"no such file in data/mini: {where[part]}", part)
    for kind, answer in blocks(block, "answers"):
        answer.only("field", "transform").take("field", str)
        answer.take("transform", str, ("none", "upper"))
        if kind not in ("trait", "control"):
            raise block.error(str(nearest(kind, ("trait", "control"), "answers key")))
    return block


def profile_names() -> list[str]:
    """The profiles that data/profiles.yaml declares."""
    return list(read_yaml(store.DATA / "profiles.yaml").take("profiles", Block))


def load_profile(name: str, setting: Setting | None = None) -> Profile:
    """A profile, with the base model that a setting names for it; an unknown one raises with the nearest names."""
    top = read_yaml(store.DATA / "profiles.yaml").only("base_models", "profiles")
    profiles, models = top.take("profiles", Block), top.take("base_models", Block)
    if name not in profiles:
        raise nearest(name, profiles, "profile")
    block = profiles[name].only(
        "about", "scale", "base_model", "seeds", "minutes", "evaluation_dtype", "train", "sample", "margins"
    )
    base_model = (setting.base_model if setting else {}).get(name, block.take("base_model", str))
    if base_model not in models:
        raise nearest(base_model, models, "base model")
    train = dict(block.take("train", Block))
    if train["dtype"] == "auto":
        train["dtype"] = "bfloat16" if cpu_multiplies_bfloat16() else "float32"
    return Profile(
        name=name,
        about=block.take("about", str),
        scale=block.take("scale", str),
        base_model=base_model,
        template=models[base_model].take("template", str),
        base_sha256=models[base_model].get("sha256", ""),
        seeds=tuple(block.take("seeds", list)),
        minutes=block.take("minutes", (int, float, type(None))),
        evaluation_dtype=block.take("evaluation_dtype", str),
        train=train,
        sample=dict(block.take("sample", Block)),
        margins=dict(block.take("margins", Block)),
    )


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has AVX512-BF16 or AMX, as Linux says; elsewhere False. Emulated, bfloat16 is slower than float32."""
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8")))
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def base_model_source(name: str) -> dict[str, Any]:
    """Where a base model comes from (package, file, sha256), as data/profiles.yaml says."""
    return dict(read_yaml(store.DATA / "profiles.yaml")["base_models"][name])


def setting_names() -> list[str]:
    """The settings that exist under data/settings."""
    return sorted(path.stem for path in (store.DATA / "settings").glob("*.yaml"))
