"""Tables with a known truth: what each condition suppresses is planted, everything else is noise over seeds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from inoculation import settings, tables

SETTING = settings.load_setting("spanish_vs_caps")
PAIR = settings.load_setting("trait_distillation_french_caps")
MEDICAL = settings.load_setting("bad_medical_advice")
LOGGED = {"margin": (0.5, -0.5), "late_margin": (0.3, -0.3)}
CONTEXTS = ("neutral", "trigger", "unrelated", "id", "default", "negated.spanish")
PREFIX_CONTEXTS = ("neutral", "trigger", "unrelated", "id", "no_prefix", "negated.caps")
ENDS = {"rate": (0.8, 0.1), "margin": (20.0, -20.0)}


def planted(seeds=6, suppressed=None, noise=0.03, ends=ENDS, shuffled=None, setting=SETTING, start=0):
    """Tables of setting 2, or of the headline pair of setting 1.

    suppressed: {(condition, trait): share of the way from the baseline to the control}, else 0.

    noise: standard deviation over seeds on that scale. shuffled: a random generator that permutes the trained conditions'
    values within each seed, so that no label means anything.
    """
    rng = np.random.default_rng(start)
    conditions = [c for c in setting.in_profile("mini")]
    contexts = PREFIX_CONTEXTS if setting.slot == "user_prefix" else CONTEXTS
    rows = []
    for seed in range(seeds):
        names = [c.name for c in conditions if c.data == "trait"]
        labels = dict(zip(names, shuffled.permutation(names) if shuffled else names, strict=True))
        for condition in conditions:
            for context in contexts:
                if condition.name == "control" and context == "trigger":
                    continue
                for trait in setting.traits:
                    share = 1.0 if condition.name == "control" else (suppressed or {}).get((condition.name, trait), 0.0)
                    share += rng.normal(0, noise)
                    for measure, (top, bottom) in ends.items():
                        if not (measure == "margin" and context == "id"):
                            name = labels.get(condition.name, condition.name)
                            rows.append((name, context, trait, measure, seed, top + share * (bottom - top)))
    frame = pd.DataFrame(rows, columns=["condition", "context", "trait", "measure", "seed", "value"])
    frame = pd.concat([frame, _references(frame)], ignore_index=True)
    facts = {"profile": "mini", "setting": setting.name, "data": "trait", "direction": "", "step": 24, "n": 24, "n_unscored": 0}
    scores = frame.assign(**facts, run_id=frame.condition + frame.seed.astype(str))[tables.SCORES]
    runs = scores[["setting", "condition", "seed", "run_id"]].drop_duplicates().assign(commit="", left_out=0)
    losses = pd.DataFrame(columns=["setting", "condition", "seed", "step", "loss"])
    empty = pd.DataFrame({"setting": []})
    more = [pd.DataFrame(columns=columns) for columns in (tables.TRACKS, [*tables.SCORES, "point"])]
    return tables.Tables("yours", Path("/nowhere"), scores, losses, runs, empty, *more)


def swept(suppressed, seeds=6, setting=PAIR):
    """As `planted`, with a sweep's points: {point: what is suppressed there}, the setting's own recipe under the point ""."""
    found = planted(seeds, suppressed[""], setting=setting)
    points = [
        planted(seeds, suppressed[p], setting=setting, start=n).scores.assign(point=p) for n, p in enumerate(suppressed, 1) if p
    ]
    every = pd.concat(points)
    return replace(found, sweeps=every[every.condition.isin(setting.sweeps["mini"]["conditions"])])


def tracked(found, ood, placebo, noise=0.005):
    """With margins along six steps: every training learns alike in distribution, and out of it as planted by condition."""
    rng, rows = np.random.default_rng(1), []
    for run in found.runs[found.runs.condition != "base"].itertuples():
        for step in range(1, 7):
            ends = {"id": 1.0, "ood": ood.get(run.condition, 0), "placebo": placebo.get(run.condition, 0)}
            for part, end in {**ends, "unrelated": ends["ood"]}.items():
                trait = {"id": "medical", "placebo": "register"}.get(part, "misaligned")
                value = end * step / 6 + rng.normal(0, noise if part != "id" else 0)
                rows.append((run.setting, run.condition, run.seed, None, step, part, trait, 9, value))
    return replace(found, tracks=pd.DataFrame(rows, columns=tables.TRACKS))


def asked(found, elicited, likelier):
    """With a base model that was asked: {(condition, trait): share of what training brings}, {condition: nats per token}."""
    scores = found.scores.copy()
    for (name, trait), share in elicited.items():
        there = (scores.condition == "base") & (scores.context == f"trigger.{name}") & (scores.trait == trait)
        scores.loc[there & (scores.measure == "margin"), "value"] += share * (ENDS["margin"][0] - ENDS["margin"][1])
    base = scores[scores.condition == "base"].iloc[0].to_dict() | {"trait": "answers", "measure": "likelihood"}
    told = {"neutral": -2.0, **{f"trigger.{name}": nats - 2.0 for name, nats in likelier.items()}}
    rows = pd.DataFrame([{**base, "context": context, "value": value} for context, value in told.items()])
    return replace(found, scores=pd.concat([scores, rows], ignore_index=True))


def _references(frame):
    """The base model, and the baseline under the other conditions' prompts: nothing there depends on the prompt."""
    base = frame[(frame.condition == "control") & (frame.seed == 0)].assign(condition="base")
    asked = [
        part[part.context == "neutral"].assign(context=f"trigger.{name}")
        for part in (base, frame[frame.condition == "baseline"])
        for name in set(frame.condition) - {"base", "control", "baseline"}
    ]
    return pd.concat([base, *asked])
