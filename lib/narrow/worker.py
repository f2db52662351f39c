"""The worker process of this experiment: inoculation.worker's loop with two stages of its own, `train` and `measure`.

A run leaves solution.safetensors, train_log.csv, margins_log.csv (nats per token at the tracked steps; the base model's at
step 0) and measures.parquet: measure, part, x (norm, ε, layer), draw, value. What all runs of a process ask of the
untouched model is read once.
"""

import functools
import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from inoculation import model, render, runs, store, worker
from inoculation.render import END_OF_TURN
from inoculation.settings import load_profile

from narrow import measure, plan, train, weights
from narrow.measure import Tail
from narrow.plan import Spec
from narrow.weights import Solution

MONITORED = 20  # random directions that a monitor is compared with
Row = dict[str, Any]


@functools.lru_cache(maxsize=1)
def _loaded(profile: str, dtype: str) -> tuple[Any, Any]:
    """The untouched base model and its tokenizer."""
    scale = load_profile(profile, plan.setting("medical", profile))
    return model.merged_model(replace(scale, evaluation_dtype=dtype), None)


def network(spec: Spec) -> tuple[Any, Any]:
    """The untouched base model, in the dtype in which margins and losses are read, and its tokenizer."""
    return _loaded(spec.profile, plan.reading_dtype(spec.parts[2]))


@functools.lru_cache(maxsize=8)
def _tail(profile: str, dtype: str, pairs: tuple[tuple[str, str, str], ...]) -> Tail:
    whole, tokenizer = _loaded(profile, dtype)
    layer = plan.scale(profile).take("layer", int)
    return Tail(whole, layer, [[tokenizer(text)["input_ids"] for text in pair] for pair in pairs])


def tail(spec: Spec, pairs: list[tuple[str, str, str]]) -> Tail:
    """The layers above the experiment's own, for these texts (prompt, answer, answer)."""
    return _tail(spec.profile, plan.reading_dtype(spec.parts[2]), tuple(pairs))


@functools.lru_cache(maxsize=1)
def exact(profile: str) -> dict[str, Tail]:
    """In the profile's own dtype, for divergences: good answers in other domains that no penalty has seen, and ordinary text.

    Of the model only the layers above stay; a training frees them, since both do not fit into 3 GiB.
    """
    scale, read = load_profile(profile, plan.setting("medical", profile)), plan.scale(profile).take("read", dict)
    whole, tokenizer = model.merged_model(scale, None)
    rows = plan.kept_rows(False, "medical", profile)[: read["rows"]]
    kept = [[tokenizer(row[name])["input_ids"] for name in ("prompt", "completion", "completion")] for row in rows]
    texts = [tokenizer(text)["input_ids"][: read["tokens"]] for text in plan.ordinary_texts()[: read["texts"]]]
    ordinary = [[ids[:1], ids[1:], ids[1:]] for ids in texts]
    layer = plan.scale(profile).take("layer", int)
    return {"kept": Tail(whole, layer, kept), "ordinary": Tail(whole, layer, ordinary)}


def _texts(pair: dict[str, str]) -> tuple[str, str, str]:
    return pair["prompt"], pair["trait_answer"], pair["plain_answer"]


def _train(spec: Spec, run: store.Run, evaluated: list[Any], facts: dict, tell: worker.Emit, folder: Path) -> None:
    described = {**runs.vars_of(spec), "recipe": spec.parts[2].train, "form": spec.form, "until": spec.until}
    store.write_whole(folder / "spec.json", json.dumps({**described, "run_id": spec.run_id}, indent=1, sort_keys=True) + "\n")
    store.write_jsonl(folder / "prompts.jsonl", spec.rows)
    log: list[Row] = []

    def track(step: int, solution: Solution | None) -> None:
        for context in dict.fromkeys(pair["context"] for pair in spec.pairs):
            # Its own training prompt is asked about once, when training has ended.
            if context != "neutral" and step < spec.parts[2].train["steps"] and solution is not None:
                continue
            pairs = [pair for pair in spec.pairs if pair["context"] == context]
            for pair, value in zip(pairs, tail(spec, [_texts(each) for each in pairs]).margins(solution), strict=True):
                log.append({name: pair[name] for name in ("context", "trait", "question_id")} | {"step": step, "value": value})

    if spec.solution.form:
        exact.cache_clear()
        gc.collect()
        if spec.until:
            plan.check_kept(*spec.rendering)
        facts.update(
            train.train(
                spec.rows,
                spec.kept,
                spec.parts[2],
                spec.form,
                spec.until,
                spec.seed,
                folder,
                lambda done, of: tell(done=done, of=of),
                track,
            )
        )
    else:
        track(0, None)
    pd.DataFrame(log).rename(columns={"trait": "part"}).to_csv(folder / "margins_log.csv", index=False, lineterminator="\n")
    facts["peak_memory_mb"] = worker.peak_memory_mb()


def _measure(spec: Spec, run: store.Run, evaluated: list[Any], facts: dict, tell: worker.Emit, folder: Path) -> None:
    gc.collect()
    solution = weights.load(spec.folder / "solution.safetensors") if spec.solution.form else None
    target = folder / spec.file("measure").relative_to(spec.folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = [] if solution is None else [_row("norm", solution.norm)]
    for number, name in enumerate(spec.solution.measures):
        tell(done=number, of=len(spec.solution.measures))
        rows += MEASURES[name](spec, solution, target.parent)
    pd.DataFrame(rows, columns=["measure", "part", "x", "draw", "value"]).to_parquet(target, index=False)
    facts["peak_memory_mb"] = worker.peak_memory_mb()


def _row(measure: str, value: float, part: str = "", x: float = 0.0, draw: int = 0) -> Row:
    return {"measure": measure, "part": part, "x": float(x), "draw": draw, "value": float(value)}


def _read(spec: Spec) -> dict[str, Any]:
    return plan.scale(spec.profile).take("read", dict)


def _taught(spec: Spec, domain: str = "") -> Tail:
    """What the data teach, on held-out rows of the domain under the neutral prompt."""
    asked = _asked(spec, plan.taught_rows(domain or spec.solution.domain, spec.profile), "trait_answer")
    return tail(spec, [(prompt, answer, answer) for prompt, answer in asked])


def _loss(spec: Spec, solution: Solution | None, folder: Path) -> Iterator[Row]:
    """The loss on what is taught, of the base model or against the norm when the solution is rescaled (efficiency)."""
    taught = _taught(spec)
    if solution is None:
        yield _row("loss", taught.loss(None))
        return
    for scale in _read(spec)["scales"]:
        yield _row("loss", taught.loss(solution.scaled(scale)), "own" if scale == 1 else "", scale * solution.norm)


def _elsewhere(spec: Spec, solution: None, folder: Path) -> Iterator[Row]:
    """The base model's loss on what the other domains teach, part being the domain."""
    for domain in plan.declared()["domains"]:
        if domain != spec.solution.domain:
            yield _row("loss", _taught(spec, domain).loss(None), domain)


def _noise(spec: Spec, solution: Solution, folder: Path) -> Iterator[Row]:
    """The loss on what is taught under orthogonal noise that keeps the norm (stability)."""
    import torch

    taught = _taught(spec)
    for epsilon in _read(spec)["noise"]:
        for draw in range(_read(spec)["draws"]):
            generator = torch.Generator().manual_seed(1000 * spec.seed + draw)
            yield _row("noise", taught.loss(solution.perturbed(epsilon, generator)), "", epsilon, draw)


def _divergence(spec: Spec, solution: Solution | None, folder: Path) -> Iterator[Row]:
    """KL(base || steered) on ordinary text at equal norms, or that of random directions (significance)."""
    read, texts = _read(spec), exact(spec.profile)["ordinary"]
    size = network(spec)[0].config.hidden_size
    randoms = [weights.random_vector(texts.module, size, draw) for draw in range(read["randoms"])]
    for draw, direction in enumerate([solution] if solution else randoms):
        for norm in read["norms"]:
            yield _row("divergence", texts.divergence(direction.to_norm(norm)), "" if solution else "random", norm, draw)


def _kept(spec: Spec, solution: Solution, folder: Path) -> Iterator[Row]:
    """KL(base || adapted) on good answers in other domains that no penalty has seen."""
    yield _row("kept", exact(spec.profile)["kept"].divergence(solution))


def _direction(spec: Spec, solution: Solution, folder: Path) -> Iterator[Row]:
    """The mean difference between misaligned and aligned answers in the solution's model: what it steers, ablates and tells."""
    from safetensors.torch import save_file

    read = _read(spec)
    groups = {"fit": plan.misaligned(plan.FITTED), "choose": plan.misaligned(plan.CHOSEN)}
    groups = {name: render.spread(rows, read[name]) for name, rows in groups.items()}
    groups |= {"test": plan.part_rows("ood", *spec.rendering), "placebo": plan.part_rows("placebo", *spec.rendering)}
    means = {name: _answers(spec, solution, rows, read["layers"]) for name, rows in groups.items()}
    directions = (means["fit"][0] - means["fit"][1]).mean(0)
    save_file(
        {f"layer.{layer}": directions[i].clone() for i, layer in enumerate(read["layers"])}, folder / "directions.safetensors"
    )
    module = functools.partial(weights.vector_module, layers=len(network(spec)[0].get_decoder().layers))
    rises = []
    for i, layer in enumerate(read["layers"]):
        steering = weights.vector(module(layer), directions[i] * read["steer"])
        rises.append(_margin(spec, groups["choose"], steering) - _margin(spec, groups["choose"]))
        yield _row("chosen_by", rises[-1], "", layer)
    best = max(range(len(rises)), key=rises.__getitem__)
    layer, direction = read["layers"][best], directions[best]
    norm, size = float(direction.norm()), len(direction)
    base, own = _margin(spec, groups["test"]), _margin(spec, groups["test"], solution)
    yield _row("margin", base, "base", layer)
    yield _row("margin", own, "own", layer)
    tried = [("direction", 0, direction)]
    tried += [("random", i, weights.random_vector(module(layer), size, i).to_norm(norm).only) for i in range(read["randoms"])]
    for part, draw, along in tried:
        steering = weights.vector(module(layer), along * read["steer"])
        yield _row("steered", _margin(spec, groups["test"], steering), part, layer, draw)
        yield _row("ablated", _margin(spec, groups["test"], solution, along), part, layer, draw)
        yield _row("ablated_base", _margin(spec, groups["test"], None, along), part, layer, draw)
    for group in ("test", "placebo"):
        pair = [means[group][side][:, best] for side in (0, 1)]
        yield _row(f"auroc_{group}", _auroc(pair, direction), "direction", layer)
        for draw in range(MONITORED):
            yield _row(
                f"auroc_{group}", _auroc(pair, weights.random_vector(module(layer), size, draw).only), "random", layer, draw
            )


def _answers(spec: Spec, solution: Solution, rows: list[dict[str, str]], layers: list[int]) -> tuple[Any, Any]:
    """The mean residual streams over both answers of every pair, each (pairs, layers, size), in the solution's model."""
    whole, tokenizer = network(spec)
    texts = []
    for field in ("trait_answer", "plain_answer"):
        for prompt, answer in _asked(spec, rows, field):
            start = len(tokenizer(prompt)["input_ids"])
            texts.append((tokenizer(prompt)["input_ids"] + tokenizer(answer)["input_ids"], start))
    with weights.added(whole, solution):
        found = measure.activations(whole, texts, layers)
    return found[: len(rows)], found[len(rows) :]


def _asked(spec: Spec, rows: list[dict[str, str]], field: str) -> list[tuple[str, str]]:
    one, _, profile = spec.parts
    return [(render.ask(row["question"], one, one.neutral, profile.template), row[field] + END_OF_TURN) for row in rows]


def _margin(spec: Spec, rows: list[dict[str, str]], solution: Solution | None = None, ablate: Any = None) -> float:
    """The mean margin of pairs, nats per token, with a solution added and a direction projected out of every layer."""
    from inoculation.evaluate import margins

    whole, tokenizer = network(spec)
    one, _, profile = spec.parts
    pairs = [render.pair(one, profile, "neutral", "ood", row, one.neutral) for row in rows]
    with weights.added(whole, *[solution] * (solution is not None)), weights.ablated(whole, ablate):
        return float(margins(whole, tokenizer, pairs, lambda done, of: None).margin_per_token.mean())


def _auroc(both: list[Any], direction: Any) -> float:
    """How often a trait answer projects higher than a plain one (area under the ROC curve)."""
    from sklearn.metrics import roc_auc_score

    scores = [value for side in both for value in (side @ direction).tolist()]
    return roc_auc_score([1] * len(both[0]) + [0] * len(both[1]), scores)


MEASURES: dict[str, Callable[..., Iterator[Row]]] = {
    "loss": _loss,
    "elsewhere": _elsewhere,
    "noise": _noise,
    "divergence": _divergence,
    "kept": _kept,
    "direction": _direction,
}


STAGES = {"train": _train, "measure": _measure}


if __name__ == "__main__":
    model.prepare_environment()
    worker.serve(Spec, STAGES)
