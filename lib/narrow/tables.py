"""Finished runs to tidy tables: yours under data/local/tables/<profile>/narrow_vs_general, the reference under data/results.

margins.csv: means over the pairs of a part by step and context; items.csv.gz: every pair; losses.csv: losses by step;
measures.csv: what the worker measured; cosines.csv: between solutions of one seed, and between directions and vectors;
runs.csv: run ids and commits; contrasts.csv: one value per seed and contrast, from which inoculation.claims decides. No torch
is needed.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from inoculation import claims, stats, store
from inoculation.settings import BASE

from narrow import plan, weights
from narrow.plan import FILE, Spec

RUN = ["solution", "seed"]
FRAMES = {
    "margins": [*RUN, "context", "part", "step", "n", "value"],
    "losses": [*RUN, "step", "loss"],
    "measures": [*RUN, "measure", "part", "x", "draw", "value"],
    "items": [*RUN, "part", "question_id", "value"],
    "cosines": ["seed", "first", "second", "value"],
    "runs": [*RUN, "run_id", "commit", "left_out"],
}
MEANT = "mean difference, layer {}"
EXPECTED = ("", "yes", "no", "unsure")


@dataclass(frozen=True)
class Found:
    """The tables of one profile; `origin` is yours or reference, `folder` the profile's."""

    origin: str
    profile: str
    folder: Path
    margins: pd.DataFrame
    losses: pd.DataFrame
    measures: pd.DataFrame
    items: pd.DataFrame
    cosines: pd.DataFrame
    runs: pd.DataFrame

    @property
    def own(self) -> Path:
        """The folder of these tables."""
        return self.folder / FILE

    @property
    def seeds(self) -> list[int]:
        """The seeds of trained solutions."""
        return sorted(self.runs.seed[self.runs.solution != BASE.name].unique())


def write(profile: str, folder: Path | None = None) -> Path | None:
    """Write a profile's tables from the store; returns the profile's folder, or None when no run is finished.

    folder: of a reference, where the rows of runs that this store does not hold stay as they are.
    """
    from narrow import contrasts

    specs = plan.finished(profile)
    if not specs:
        return None
    put = store.keep_csv if folder else lambda path, frame, by: store.write_csv(path, frame)
    folder = folder or store.local_tables(profile)
    made = {
        "margins": [_named(spec, _margins(spec)) for spec in specs],
        "losses": [_named(spec, pd.read_csv(spec.folder / "train_log.csv")) for spec in specs if spec.solution.form],
        "measures": [_named(spec, pd.read_parquet(spec.file("measure"))) for spec in specs],
        "items": [_named(spec, _items(spec)) for spec in specs],
        "cosines": [_cosines([spec for spec in specs if spec.seed == seed], seed) for seed in _seeds(specs)],
        "runs": [_named(spec, pd.DataFrame([_facts(spec)])) for spec in specs],
    }
    for name, frames in made.items():
        by = ["seed"] if name == "cosines" else RUN
        put(folder / FILE / _file(name), pd.concat([pd.DataFrame(columns=FRAMES[name]), *frames])[FRAMES[name]], by)
    store.write_csv(folder / FILE / "contrasts.csv", contrasts.table(read(folder, profile, "")))
    return folder


def _file(name: str) -> str:
    return f"{name}.csv.gz" if name == "items" else f"{name}.csv"


def _seeds(specs: list[Spec]) -> list[int]:
    return sorted({spec.seed for spec in specs if spec.solution.form})


def _named(spec: Spec, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(solution=spec.condition, seed=spec.seed)


def _log(spec: Spec) -> pd.DataFrame:
    log = pd.read_csv(spec.folder / "margins_log.csv")
    return log[~log.question_id.isin(plan.about(spec.solution.domain))]


def _margins(spec: Spec) -> pd.DataFrame:
    log = _log(spec)
    return log.groupby(["context", "part", "step"], sort=True).value.agg(n="count", value="mean").reset_index()


def _items(spec: Spec) -> pd.DataFrame:
    """Every pair's margin under the neutral prompt, the mean over the second half of the tracked steps."""
    log = _log(spec).query("context == 'neutral'")
    late = log[(log.step > log.step.max() / 2) | (log.step.max() == 0)]
    return late.groupby(["part", "question_id"], sort=True).value.mean().reset_index()


def _facts(spec: Spec) -> dict[str, Any]:
    facts = store.Run(spec.folder).manifest["stages"]["train"]["facts"]
    return {"run_id": spec.run_id, "commit": facts["commit"], "left_out": facts.get("left_out", 0)}


def _cosines(specs: list[Spec], seed: int) -> pd.DataFrame:
    """Cosines of the changes B A, or of the vectors, between all solutions of one kind that share a seed."""
    from safetensors.numpy import load_file

    known = {s.condition: weights.load(s.folder / "solution.safetensors", arrays=True) for s in specs if s.solution.form}
    for spec in specs:
        if "direction" in spec.solution.measures:
            directions = load_file(spec.file("measure").parent / "directions.safetensors")
            (module,) = known[spec.condition].parts
            known |= {
                MEANT.format(layer): weights.vector(module, directions[f"layer.{layer}"])
                for layer in plan.scale(spec.profile).take("read", dict)["layers"]
            }
    rows = []
    for (first, one), (second, other) in itertools.combinations(known.items(), 2):
        if len(next(iter(one.parts.values()))) == len(next(iter(other.parts.values()))):
            rows.append((seed, first, second, weights.cosine(one, other)))
    return pd.DataFrame(rows, columns=FRAMES["cosines"])


def read(folder: Path, profile: str, origin: str) -> Found | None:
    """The tables in a profile's folder, or None where there are none."""
    if not (folder / FILE / "runs.csv").exists():
        return None
    return Found(origin, profile, folder, *(pd.read_csv(folder / FILE / _file(name)) for name in FRAMES))


def shown(profile: str) -> Found | None:
    """Yours where you have any trained solution, else the committed reference, else None."""
    yours, reference = read(store.local_tables(profile), profile, "yours"), read(store.RESULTS / profile, profile, "reference")
    return yours if yours and (yours.seeds or not reference) else reference


def latest(profile: str) -> Found:
    """The tables as `shown` finds them; raises LookupError when there is nothing to show, saying how to get it."""
    found = shown(profile)
    if found is None:
        where = f"no finished run and no reference of {FILE} in profile {profile}"
        raise LookupError(f"{where}: set compute = True, or run ./run_all.sh --notebook 08 --profile {profile}")
    return found


def solutions_table(profile: str, full: bool = False) -> pd.DataFrame:
    """What each solution trains, on which data, under which penalty, to read."""
    rows = []
    for spec in plan.grid(profile, full=full):
        one = spec.solution
        if not one.form:
            rows.append((one.name, "nothing", "", "", ""))
            continue
        targets = ", ".join(spec.form.get("targets", []))
        what = f"LoRA of rank {spec.parts[2].train['lora_rank']} on {targets}" if targets else "a vector"
        answers = {"control": "good"}.get(one.condition, "bad" if one.domain != "technical" else "technical")
        data = f"{answers} answers, {one.domain}" + " and good answers elsewhere" * one.mixed
        steps = spec.parts[2].train["steps"]
        penalty = f"{spec.form['weight']:g} per token, steps 1 to {spec.until} of {steps}" if spec.until else "none"
        rows.append((one.name, f"{what}, layer {spec.form['layer']}", data, one.condition, penalty))
    found = pd.DataFrame(rows, columns=["solution", "trained", "data", "prompts of", "penalty"])
    return found.drop_duplicates("solution")


def cosines(found: Found) -> pd.DataFrame:
    """The cosines with the general solutions and with the mean differences, with intervals over seeds."""
    pattern = rf"^(?:lora|vector)\.general$|^{MEANT.format('')}"
    rows = found.cosines[found.cosines["first"].str.contains(pattern) | found.cosines["second"].str.contains(pattern)]
    groups = rows.groupby(["first", "second"], sort=False).value
    return groups.apply(lambda values: str(stats.student(values.to_numpy()))).rename("cosine").reset_index()


def predicted(predictions: dict[str, str]) -> pd.DataFrame:
    """What a reader expects of each claim of NEM; raises SettingError for a claim or a word that is not offered."""
    known = {name.removeprefix("nem."): claim.statement for name, claim in claims.load()[1].items() if claim.setting == FILE}
    for name, word in predictions.items():
        if name not in known:
            raise store.nearest(name, known, "claim to predict")
        if word not in EXPECTED:
            raise store.nearest(word, EXPECTED, f"prediction of {name}")
    rows = [(name, statement, predictions.get(name, "")) for name, statement in known.items()]
    return pd.DataFrame(rows, columns=["name", "claim", "you expected"])


def beside(predictions: dict[str, str], profile: str) -> pd.DataFrame:
    """The claims as claims.compared has them, with what the reader expected in front."""
    told = claims.compared(FILE, profile)
    told.insert(1, "you expected", predicted(predictions)["you expected"])
    return told
