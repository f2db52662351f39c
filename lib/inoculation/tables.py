"""Finished runs to tidy tables, yours under data/local/tables or the committed reference under data/results.

scores.csv: one row per run, context, trait and measure (see `scores`); sweeps.csv: the same of a sweep's runs, with their
point. items.csv.gz: one row per response or pair. samples.jsonl: three responses per condition and context, of its first seed.
losses.csv and runs.csv: the training losses and the commit of each run. tracks.csv: margins along training, where logged.
Same store, same bytes: rows are sorted, nothing holds a time.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inoculation import stats, store
from inoculation.render import ANSWERS, TAUGHT, WHY
from inoculation.runs import Spec, finished, vars_of
from inoculation.settings import BASE, load_setting
from inoculation.stats import Effect

SCORES = [
    *("profile", "setting", "condition", "data", "context", "trait", "direction"),
    *("measure", "seed", "step", "n", "n_unscored", "value", "run_id"),
]
ITEMS = ["run_id", "context", "trait", "measure", "question_id", "value"]
TRACKS = ["setting", "condition", "seed", "point", "step", "part", "trait", "n", "value"]
HEURISTICS = ("elicited", "likelihood")
RUN = ["setting", "condition", "seed"]
SAMPLED = [*RUN, "run_id", "context", "question", "response"]
SAMPLES = 3
TAUGHT_ROWS = 100
LATE = "late_margin"
LOGGED = {"neutral": "ood", "unrelated": "unrelated"}  # context: the part of the margins along training that is asked in it


@dataclass(frozen=True)
class Tables:
    """The tables of one profile as frames, items read when first needed; `origin` is yours or reference."""

    origin: str
    folder: Path
    scores: pd.DataFrame
    losses: pd.DataFrame
    runs: pd.DataFrame
    samples: pd.DataFrame
    tracks: pd.DataFrame
    sweeps: pd.DataFrame

    @property
    def items(self) -> pd.DataFrame:
        """Every scored response and pair (columns ITEMS)."""
        path = self.folder / "items.csv.gz"
        return _items(path, path.stat().st_mtime_ns)

    def of(self, setting: str) -> "Tables":
        """The rows of one setting."""
        frames = (self.scores, self.losses, self.runs, self.samples, self.tracks, self.sweeps)
        return Tables(self.origin, self.folder, *(frame[frame.setting == setting] for frame in frames))

    def at(self, point: str) -> "Tables":
        """The same with the runs of one sweep's point as scores, and the base model and the control, which no sweep trains."""
        kept = self.scores[self.scores.condition.isin([BASE.name, "control"])]
        return replace(self, scores=pd.concat([kept, self.sweeps[self.sweeps.point == point]])) if point else self


def items(spec: Spec) -> pd.DataFrame:
    """Every scored response (measure rate), every pair (margin, nats or nats per token), the same as logged along training
    (late_margin, the mean over its second half; design decision 8), whether a response repeats training words (repeats), and
    the base model's training answers (likelihood, nats per token). A response without a score counts under `unscored: REASON`.

    NaN where unscored; `repeats` is 0 or 1 and belongs to no single trait, so its trait is `any`.
    """
    rates = pd.read_parquet(spec.file("score")).assign(measure=lambda rows: rows.get("measure", "rate"))
    each = rates.drop_duplicates(["context", "question_id"])
    repeats = each.assign(measure="repeats", trait="any", value=each.repeats.astype(float))
    rates = rates[rates.trait != "any"]
    unscored = rates[rates.reason != ""].assign(measure=WHY + rates.reason, value=1.0)
    pairs = pd.read_parquet(spec.file("margins")).assign(measure="margin")
    taught = pairs[pairs.trait == ANSWERS].assign(measure="likelihood", value=pairs.trait_logp / pairs.trait_tokens)
    pairs = pairs[pairs.trait != ANSWERS]
    whole = pairs.trait.map({trait.name: trait.margin == "sum" for trait in spec.parts[0].traits.values()})
    # Runs of an earlier version hold no margin per token, and their traits need none.
    pairs["value"] = pairs.margin if whole.all() else pairs.margin.where(whole, pairs.margin_per_token)
    every = [part for part in (rates, unscored, repeats, pairs, _late(spec), taught) if len(part)]
    return pd.concat(every).assign(run_id=spec.run_id)[ITEMS].sort_values(ITEMS[1:5], kind="stable")


def _logged(spec: Spec) -> pd.DataFrame:
    path = spec.folder / "margins_log.csv"
    columns = ["context", "trait", "question_id", "margin_per_token", "step"]
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=columns)


def _late(spec: Spec) -> pd.DataFrame:
    log, contexts = _logged(spec), {} if spec.point else {part: context for context, part in LOGGED.items()}
    kept = log[(log.step > log.step.max() / 2) & log.context.isin(list(contexts))]
    means = kept.groupby(["context", "trait", "question_id"]).margin_per_token.mean().rename("value").reset_index()
    return means.assign(measure=LATE, context=means.context.map(contexts))


def scores(spec: Spec, rows: pd.DataFrame) -> pd.DataFrame:
    """A run's items averaged by context, trait and measure, over what is scored.

    Measures: those of `items`, and rate_without_repeats (the rate over the other responses).
    """
    _, condition, profile = spec.parts
    own = rows[rows.measure == "rate"].merge(
        rows[(rows.measure == "repeats") & (rows.value == 0)][["context", "question_id"]], on=["context", "question_id"]
    )
    every = pd.concat([rows, own.assign(measure="rate_without_repeats")])
    grouped = every.groupby(["context", "trait", "measure"], sort=True).value
    table = grouped.agg(n="count", size="size", value="mean").reset_index()
    facts = {**vars_of(spec), "data": condition.data, "direction": condition.direction, "run_id": spec.run_id}
    return table.assign(**facts, step=profile.train["steps"] if spec.rows else 0, n_unscored=table["size"] - table["n"])[SCORES]


def tracks(spec: Spec) -> pd.DataFrame:
    """A run's margins along training, nats per token: means over the pairs of a part (id, ood, placebo; a gate's contexts)."""
    log = _logged(spec).rename(columns={"context": "part", "margin_per_token": "value"})
    means = log.groupby(["step", "part", "trait"]).value.agg(n="count", value="mean").reset_index()
    return means.assign(setting=spec.setting, condition=spec.condition, seed=spec.seed, point=spec.point)[TRACKS]


def samples(spec: Spec) -> list[dict[str, Any]]:
    """The first responses of each context of a run."""
    responses = pd.read_parquet(spec.file("sample")).groupby("context", sort=True).head(SAMPLES)
    facts = {"setting": spec.setting, "condition": spec.condition, "seed": spec.seed, "run_id": spec.run_id}
    return [{**facts, **row} for row in responses[["context", "question", "response"]].to_dict("records")]


def write(profile: str, folder: Path | None = None) -> Path | None:
    """Write a profile's tables from the store; returns their folder, or None when no run is finished.

    folder: of a reference, where the rows of runs that this store does not hold stay as they are.
    """
    put = store.keep_csv if folder else lambda path, frame, by: store.write_csv(path, frame)
    every = finished(profile)
    specs, swept = [spec for spec in every if not spec.point], [spec for spec in every if spec.point]
    if not specs:
        return None
    folder = folder or store.local_tables(profile)
    rows = {spec: items(spec) for spec in specs}
    first = {(spec.setting, spec.condition): spec for spec in reversed(specs)}
    logs = [(spec, pd.read_csv(spec.folder / "train_log.csv")) for spec in specs if spec.rows]
    losses = [log.assign(**{name: getattr(spec, name) for name in RUN}) for spec, log in logs]
    shown = [sample for spec in specs if spec in first.values() for sample in samples(spec)]
    put(folder / "scores.csv", pd.concat([scores(spec, found) for spec, found in rows.items()]), RUN)
    put(folder / "losses.csv", pd.DataFrame(pd.concat(losses) if losses else None, columns=[*RUN, "step", "loss"]), RUN)
    put(folder / "runs.csv", pd.DataFrame([facts(spec) for spec in every]), [*RUN, "point"])
    if swept:
        found = pd.concat([scores(spec, items(spec)).assign(point=spec.point) for spec in swept])
        put(folder / "sweeps.csv", found, [*RUN, "point"])
    if any(spec.tracked for spec in every):
        put(folder / "tracks.csv", pd.concat([tracks(spec) for spec in every if spec.tracked]), [*RUN, "point"])
    # The base model's run is one for all settings, so its items are told apart by what was asked.
    put(folder / "items.csv.gz", pd.concat(rows.values()), ["run_id", "context", "trait"])
    kept = store.read_jsonl(path) if (path := folder / "samples.jsonl").exists() and put is store.keep_csv else []
    kept = [sample for sample in kept if (sample["setting"], sample["condition"]) not in first]
    shown = sorted([*kept, *shown], key=lambda sample: sample["setting"])
    store.write_jsonl(path, shown)
    return folder


def facts(spec: Spec) -> dict[str, Any]:
    """What runs.csv says of a finished run: its names, id, commit and how many rows were left out."""
    noted = store.Run(spec.folder).manifest["stages"]["train"]["facts"]
    return {**vars_of(spec), "run_id": spec.run_id, "commit": noted["commit"], "left_out": noted.get("left_out", 0)}


def read(folder: Path, origin: str) -> Tables | None:
    """The tables in a folder, or None where there are none; empty ones where it holds another package's alone."""
    if not (folder / "scores.csv").exists() and not list(folder.glob("*/contrasts.csv")):
        return None
    columns = {"scores": SCORES, "losses": [*RUN, "step", "loss"], "runs": [*RUN, "point", "run_id", "commit"]}
    columns |= {"tracks": TRACKS, "sweeps": [*SCORES, "point"]}
    paths = {name: folder / f"{name}.csv" for name in columns}
    found = [pd.read_csv(p) if p.exists() else pd.DataFrame(columns=columns[name]) for name, p in paths.items()]
    path = folder / "samples.jsonl"
    samples = pd.DataFrame(store.read_jsonl(path) if path.exists() else [], columns=None if path.exists() else SAMPLED)
    return Tables(origin, folder, *found[:3], samples, *found[3:])


@functools.lru_cache(maxsize=2)
def _items(path: Path, changed: int) -> pd.DataFrame:
    return pd.read_csv(path)


def reference(profile: str) -> Tables | None:
    """The committed reference of a profile, or None."""
    return read(store.RESULTS / profile, "reference")


def shown(profile: str, setting: str) -> Tables | None:
    """One setting's rows in your tables where they hold any, else in the committed reference, else None.

    Where yours hold the base model alone, the trained models are the reference's.
    """
    yours, kept = (every and every.of(setting) for every in (read(store.local_tables(profile), "yours"), reference(profile)))
    found = next((each for each in (yours, kept) if each and not each.scores.empty), None)
    if found and kept and found is yours and set(yours.scores.condition) == {BASE.name}:
        return replace(kept, scores=pd.concat([yours.scores, kept.scores[kept.scores.condition != BASE.name]]))
    return found


def yours(profile: str, setting: str) -> Tables | None:
    """Your tables of a profile where they hold anything of a setting, else None."""
    found = read(store.local_tables(profile), "yours")
    return found if found and (setting in set(found.scores.setting) or (found.folder / setting).exists()) else None


def measured_apart(folder: Path | None, setting: str) -> dict[str, tuple[Effect, dict[str, Effect]]]:
    """The contrasts of a setting that another package measures, by contrasts.csv: the deciding effect and other parts."""
    path = folder / setting / "contrasts.csv" if folder else Path()
    found: dict[str, dict[str, Effect]] = {}
    if path.is_file():
        for (contrast, part), rows in pd.read_csv(path, keep_default_na=False).groupby(["contrast", "part"], sort=False):
            measure, fault, doubt = rows.iloc[0][["measure", "fault", "doubt"]]
            values = pd.to_numeric(rows.sort_values("seed").value).to_numpy(float)
            found.setdefault(contrast, {})[part] = Effect(values, fault, measure, doubt)
    return {contrast: (parts.pop(""), parts) for contrast, parts in found.items()}


def latest(setting: str, profile: str) -> Tables:
    """A setting's tables as `shown` finds them; raises LookupError when there is nothing to show, saying how to get it."""
    found = shown(profile, setting)
    if found is None:
        where = f"no finished run and no reference of {setting} in profile {profile}"
        raise LookupError(f"{where}: set compute = True, or run ./run_all.sh --profile {profile}")
    return found


def conditions(specs: list[Spec]) -> pd.DataFrame:
    """What each condition trains on and under which prompt, verbatim, with whose words they are."""
    rows = []
    for spec in {(spec.setting, spec.condition): spec for spec in specs}.values():
        setting, condition, _ = spec.parts
        texts = [prompt.text or f"policy {prompt.policy}" for prompt in condition.prompts]
        seen = min(len(spec.rows), len(texts))
        many = f"{len(texts)} prompts, of which a run sees {seen}, such as: " if len(texts) > 1 else ""
        prompt = many + texts[0] if texts else "not trained"
        source = setting.sources.get(texts[0], "ours") if texts and condition.prompts[0].text else ""
        source += "; the other wordings ours" * (len(texts) > 1 and source != "ours")
        rows.append((spec.condition, condition.data, prompt, source))
    return pd.DataFrame(rows, columns=["condition", "data", "training prompt", "words"])


def along_training(found: Tables, condition: str, against: str, context: str = "neutral") -> pd.DataFrame:
    """Two trainings compared by the margins they logged (design decision 8): condition minus against, nats per token, by seed.

    ood: out of distribution in a context (of LOGGED), mean over the second half of the steps; placebo: on pairs that differ in
    register alone. matched: ood at equal in-distribution margin, so that one that only learned less does not pass for safer.
    """
    part = LOGGED[context]
    logged = found.tracks[found.tracks.point.isna()]
    wide = logged.pivot_table(index=["seed", "condition", "step"], columns="part", values="value")
    wide = wide.reindex(columns=["id", "placebo", *LOGGED.values()])
    late = wide[wide.index.get_level_values("step") > logged.step.max() / 2].groupby(level=["seed", "condition"]).mean()
    sides = [late[late.index.get_level_values("condition") == name].droplevel("condition") for name in (condition, against)]
    gaps = (sides[0] - sides[1])[[part, "placebo"]].dropna()
    paths = {seed: [wide.loc[(seed, name), ["id", part]].to_numpy() for name in (condition, against)] for seed in gaps.index}
    return gaps.rename(columns={part: "ood"}).assign(matched=[stats.matched(*both) for both in paths.values()])


def responses(found: Tables, context: str) -> Any:
    """Three responses per condition in one context, to read rather than to count."""
    rows = found.samples[found.samples.context == context]
    return wrapped(rows[["condition", "question", "response"]])


def wrapped(frame: pd.DataFrame) -> Any:
    """A frame whose long texts are shown whole, in lines."""
    look = {"white-space": "pre-wrap", "text-align": "left", "vertical-align": "top", "font-size": "90%"}
    return frame.style.format(escape="html", precision=2, na_rep="").hide(axis="index").set_properties(**look)


def by_condition(found: Tables, measure: str = "rate") -> pd.DataFrame:
    """Conditions by trait and context: the mean over seeds, with the number of seeds and of unscored responses.

    `repeats` is the share of responses that repeat training words, over all of them. Other models' training prompts
    (`trigger.CONDITION`, asked of the references alone) are left out.
    """
    shown = found.scores[~found.scores.context.str.startswith("trigger.")]
    table = shown[shown.measure == measure]
    grouped = table.groupby("condition")
    wide = table.pivot_table(index="condition", columns=["trait", "context"], values="value", aggfunc="mean")
    repeats = shown[shown.measure == "repeats"].groupby("condition").value.mean()
    facts = {("", "repeats"): repeats, ("", "seeds"): grouped.seed.nunique(), ("", "unscored"): grouped.n_unscored.sum()}
    return wide.join(pd.DataFrame(facts)).reindex(dict.fromkeys(table.condition))


def by_question(found: Tables, first: list[str], second: list[str], trait: str, context: str, measure: str) -> np.ndarray:
    """The mean of conditions `first` minus that of `second` for each question, shape (seeds, questions)."""
    items = found.items[(found.items.measure == measure) & (found.items.trait == trait) & (found.items.context == context)]
    wide = items.merge(found.runs[["run_id", "condition", "seed"]], on="run_id")
    cells = wide.pivot_table(index=["condition", "seed"], columns="question_id", values="value")
    names = cells.index.get_level_values("condition")
    sides = [cells[names.isin(side)].groupby(level="seed").mean() for side in (first, second)]
    return (sides[0] - sides[1]).dropna(how="all").to_numpy()


def elicitation(found: Tables) -> pd.DataFrame:
    """What every prompt does to the untouched model, minus what the neutral prompt does to it (one setting's tables).

    Indexed by the condition that trains under the prompt, or by the context where none does; columns (trait, measure): rate,
    margin (the trait's own unit) and, of the trait `answers`, likelihood: how much likelier, in nats per token, the training
    answers are under the prompt than under the neutral one. NaN where only margins were asked for; empty without a base.
    """
    base = found.scores[(found.scores.condition == BASE.name) & found.scores.measure.isin(["rate", "margin", "likelihood"])]
    if base.empty:
        return pd.DataFrame()
    named = base.assign(context=base.context.str.removeprefix("trigger."))
    wide = named.pivot_table(index="context", columns=["trait", "measure"], values="value", sort=False)
    return (wide - wide.loc["neutral"]).drop(["neutral", "id"], errors="ignore")


def correlations(points: pd.DataFrame) -> pd.DataFrame:
    """How each heuristic goes with suppression over prompts (stats.correlation), by setting and trait and over all.

    points: see effects.heuristics.
    """
    rows = []
    for names, part in [*points.groupby(["setting", "trait"], sort=False), (("all", "all"), points)]:
        found = {name: stats.correlation(part[name], part.estimate, part.condition) for name in HEURISTICS}
        rows.append({**dict(zip(("setting", "trait"), names, strict=True)), **found})
    return pd.DataFrame(rows)


def errors(points: pd.DataFrame) -> pd.DataFrame:
    """Root mean square of suppression minus what a line fitted on the other settings foretells, by setting left out.

    Columns: `mean` uses no heuristic, then each, then both; points counts those of the setting, its last row is all of them.
    """
    whole = points.dropna(subset=["estimate", *HEURISTICS])
    models = {"mean": [], **{name: [name] for name in HEURISTICS}, "both": list(HEURISTICS)}
    told = {name: stats.foretold(whole[by], whole.estimate, whole.setting) for name, by in models.items()}
    squares = pd.DataFrame({name: (whole.estimate - values) ** 2 for name, values in told.items()})
    left_out = squares.groupby(whole.setting)
    table = pd.concat([left_out.mean(), squares.mean().to_frame("all").T]) ** 0.5
    return table.assign(points=[*left_out.size(), len(whole)])


def responses_to_judge(specs: list[Spec], labelled: bool = False) -> list[tuple[dict[str, Any], str, pd.DataFrame]]:
    """What can be judged: a run's names, the key that decided its responses, and these.

    The responses have columns id, context, question_id, question, response. They come from the store, or, where it has none,
    from the three a context that the reference keeps of a first seed, by name, as a run's key depends on the CPU; where a trait
    is read as closeness to the training data, some of their answers, too. labelled: the labelled items of the specs' setting
    instead; their question_id is their content.
    """
    columns = ["id", "context", "question_id", "question", "response"]
    names = {"setting": specs[0].setting, "seed": 0}
    if labelled and "labelled" not in load_setting(specs[0].setting).data:
        return []
    if labelled:
        rows = pd.DataFrame(load_setting(specs[0].setting).rows("labelled"))
        items = rows.assign(context="labelled", question_id=rows.content, question="", response=rows.text)[columns]
        source = store.digest(items.to_dict("records"))[:16]
        return [({**names, "condition": "labelled", "run_id": source, "origin": "labelled items"}, source, items)]
    there = [spec for spec in specs if "sample" not in spec.missing()]
    found = [(spec, spec.keys["sample"], pd.read_parquet(spec.file("sample"))) for spec in there]
    kept = reference(specs[0].profile) if not found else None
    known = dict(iter(kept.samples.groupby(RUN))) if kept else {}
    for spec in [spec for spec in specs if (spec.setting, spec.condition, spec.seed) in known]:
        rows = known[spec.setting, spec.condition, spec.seed]
        named = rows.assign(question_id=[store.digest(question)[:8] for question in rows.question])
        found.append((spec, rows.run_id.iloc[0], named))
    names["origin"] = "yours" if there else "samples of the reference"
    batches = [
        ({**names, "condition": spec.condition, "seed": spec.seed, "run_id": spec.run_id}, source, rows[columns])
        for spec, source, rows in ((*run, rows.assign(id=rows.context + "/" + rows.question_id)) for *run, rows in found)
    ]
    close = any(trait.closeness for trait in specs[0].parts[0].traits.values())
    return [*batches, _taught(names, specs[0])] if close and batches else batches


def _taught(names: dict[str, Any], spec: Spec) -> tuple[dict[str, Any], str, pd.DataFrame]:
    """The first answers with the traits that a profile trains on, as a batch to be judged (responses_to_judge)."""
    every, answers = spec.parts[0].training(spec.profile)
    rows = [row for row in every if answers["trait"]["field"] in row][:TAUGHT_ROWS]
    said = [{"question_id": row["id"], "question": row["question"], "response": row[answers["trait"]["field"]]} for row in rows]
    items = pd.DataFrame(said).assign(context=TAUGHT, id=[f"{TAUGHT}/{row['id']}" for row in rows])
    source = store.digest(said)[:16]
    return {**names, "condition": TAUGHT, "origin": "training answers", "run_id": source}, source, items
