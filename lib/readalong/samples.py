"""Stored responses to a page that reads them: one script file per origin, setting and condition, and an index of these.

Scripts instead of JSON, as a page opened from disk may fetch nothing; static/samples.js loads those that a filter needs. The
reference keeps three responses per condition and context; yours are all that the run store holds. narrow_vs_general has none,
as it measures margins alone.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from inoculation import runs, store, tables
from inoculation.settings import load_setting

from readalong import pages

KEYS = ["run_id", "context", "question_id"]
TOLD = ["seed", "run_id", "context", "question", "response"]


@dataclass(frozen=True)
class Shelf:
    """The samples of one origin (reference or yours), setting and condition.

    samples: seed, run_id, context, question, response, scores ({trait: 0 to 1, None where unscored}, without those not known)
    and repeats (whether it repeats training words, None where not known). runs: what to call a run, by run id.
    """

    origin: str
    setting: str
    condition: str
    samples: list[dict[str, Any]]
    runs: dict[str, str]

    @property
    def name(self) -> str:
        """The stem of its file."""
        return re.sub(r"[^\w.-]", "_", f"{self.origin}.{self.setting}.{self.condition}", flags=re.ASCII)

    @property
    def entry(self) -> dict[str, Any]:
        """What the index says of it."""
        named = {"name": self.name, "origin": self.origin, "setting": self.setting, "condition": self.condition}
        contexts = list(dict.fromkeys(sample["context"] for sample in self.samples))
        return {**named, "count": len(self.samples), "contexts": contexts, "runs": self.runs}


def build(profile: str, site: Path) -> int:
    """Write samples.html and samples/*.js into a site; returns the number of responses."""
    entries = []
    for shelf in shelves(profile):
        script = f"addSamples({_literal(shelf.name)}, {_literal(shelf.samples)});\n"
        store.write_whole(site / "samples" / f"{shelf.name}.js", script)
        entries.append(shelf.entry)
    settings = {name: _told(name) for name in dict.fromkeys(entry["setting"] for entry in entries)}
    index = f"const samplesIndex = {_literal({'settings': settings, 'shelves': entries})};\n"
    store.write_whole(site / "samples" / "index.js", index)
    origins = list(dict.fromkeys(entry["origin"] for entry in entries))
    count = sum(entry["count"] for entry in entries)
    pages.render(site, "samples.html", "samples.html", count=count, origins=origins, settings=settings)
    return count


def _literal(value: Any) -> str:
    """JSON that is also a JavaScript literal and can end no script element, whatever a response holds."""
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c")


def _told(name: str) -> dict[str, Any]:
    """A setting's title, its content note or none, and the labels of its traits that have a scorer."""
    setting, notes = load_setting(name), store.read_yaml(store.DATA / "content_notes.yaml")
    labels = {trait.name: trait.label for trait in setting.traits.values() if trait.scorer}
    return {"title": setting.title, "note": notes.get(name, ""), "traits": labels}


def shelves(profile: str) -> Iterator[Shelf]:
    """The reference's samples, then yours, condition by condition; none where there are none."""
    yield from _reference(profile)
    yield from _yours(profile)


def _reference(profile: str) -> Iterator[Shelf]:
    found = tables.reference(profile)
    if found is None or found.samples.empty:
        return
    items = found.items[found.items.run_id.isin(found.samples.run_id) & found.items.measure.isin(["rate", "repeats"])]
    for (setting, condition), rows in found.samples.groupby(["setting", "condition"], sort=False):
        seeds = dict(zip(rows.run_id, rows.seed, strict=True))
        asked = pd.concat([_asked(profile, setting, condition, seed).assign(run_id=run_id) for run_id, seed in seeds.items()])
        own = _adding_up(items.merge(asked, on=KEYS), found.scores[found.scores.setting == setting])
        named = rows.merge(asked, on=["run_id", "context", "question"], how="left")
        yield Shelf("reference", setting, condition, _samples(named, own), {run: f"seed {seed}" for run, seed in seeds.items()})


def _asked(profile: str, setting: str, condition: str, seed: int) -> pd.DataFrame:
    """The questions that a run was asked in each context, with their ids."""
    return pd.DataFrame(runs.Spec(setting, condition, int(seed), profile).prompts)[["context", "question_id", "question"]]


def _adding_up(items: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The items whose count and mean are what scores.csv has for them in this setting.

    The base model's run serves several settings, and items.csv.gz does not say whose an item is.
    """
    cell = ["run_id", "context", "trait", "measure"]
    told = items.merge(scores[[*cell, "n", "n_unscored", "value"]], on=cell, suffixes=("", "_told"))
    values = told.groupby(cell).value
    whole = values.transform("size") == told.n + told.n_unscored
    return told[whole & np.isclose(values.transform("mean"), told.value_told, rtol=1e-4, atol=1e-5, equal_nan=True)]


def _yours(profile: str) -> Iterator[Shelf]:
    every: dict[tuple[str, str], list[runs.Spec]] = {}
    for spec in runs.finished(profile):
        every.setdefault((spec.setting, spec.condition), []).append(spec)
    for (setting, condition), specs in every.items():
        samples = [sample for spec in specs for sample in _samples(_responses(spec), _scores(spec))]
        labels = {spec.run_id: f"seed {spec.seed}{', ' * bool(spec.point)}{spec.point}" for spec in specs}
        yield Shelf("yours", setting, condition, samples, labels)


def _responses(spec: runs.Spec) -> pd.DataFrame:
    return pd.read_parquet(spec.file("sample")).assign(seed=spec.seed, run_id=spec.run_id)


def _scores(spec: runs.Spec) -> pd.DataFrame:
    """A run's scores as the rows of items.csv.gz (tables.items) that belong to sampled responses."""
    scores = pd.read_parquet(spec.file("score")).assign(run_id=spec.run_id)
    rates = scores[scores.measure == "rate"] if "measure" in scores else scores
    repeats = scores.drop_duplicates(KEYS).assign(trait="any", value=lambda rows: rows.repeats.astype(float))
    return pd.concat([rates[rates.trait != "any"], repeats])


def _samples(rows: pd.DataFrame, items: pd.DataFrame) -> list[dict[str, Any]]:
    """Responses (columns TOLD and question_id) with their scores among items (columns of tables.ITEMS)."""
    known: dict[tuple[str, ...], dict[str, float]] = {}
    for *key, trait, value in items[[*KEYS, "trait", "value"]].itertuples(index=False, name=None):
        known.setdefault(tuple(key), {})[trait] = value
    own = [known.get(key, {}) for key in rows[KEYS].itertuples(index=False, name=None)]
    return [{**told, **_scored(each)} for told, each in zip(rows[TOLD].to_dict("records"), own, strict=True)]


def _scored(values: dict[str, float]) -> dict[str, Any]:
    told = {trait: None if pd.isna(value) else round(value, 4) for trait, value in values.items()}
    repeats = told.pop("any", None)
    return {"scores": told, "repeats": None if repeats is None else bool(repeats)}
