"""Narrow or general: geometry and penalty on the real model, contrasts with a planted truth, and what may go wrong."""

import dataclasses
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from inoculation import claims, model, render, runs, settings, store
from inoculation.worker import complete
from narrow import contrasts, figures, measure, plan, tables, train, weights, worker
from narrow.plan import FILE, Spec

SMOKE = ("base", "lora.control", "lora.general", "lora.narrow", "vector.general", "bridge.inoculation")
SEEDS = range(5)


@pytest.fixture(scope="module")
def base():
    """The untouched embedded model in float32, and its tokenizer."""
    return model.merged_model(settings.load_profile("smoke"), None)


def lora(seed, rank=3, size=(5, 7)):
    rng = np.random.default_rng(seed)
    return weights.Solution({"m": (rng.normal(size=(rank, size[1])), rng.normal(size=(size[0], rank)))})


def dense(solution):
    down, up = solution.parts["m"]
    return up @ down


def test_norm_and_cosine_are_those_of_the_whole_change_whatever_the_split():
    one, other = lora(0), lora(1)
    assert one.norm == pytest.approx(np.linalg.norm(dense(one)))
    expected = (dense(one) * dense(other)).sum() / np.linalg.norm(dense(one)) / np.linalg.norm(dense(other))
    assert weights.cosine(one, other) == pytest.approx(expected)
    down, up = one.parts["m"]
    resplit = weights.Solution({"m": (-2 * down, -up / 2)})
    assert weights.cosine(one, resplit) == pytest.approx(1)
    assert one.to_norm(3.0).norm == pytest.approx(3)
    with pytest.raises(weights.SolutionError, match="its norm is 0"):
        one.scaled(0.0).to_norm(1.0)


@pytest.mark.parametrize("epsilon", [0.1, 0.6, 1.0])
def test_noise_is_orthogonal_and_keeps_the_norm(epsilon):
    import torch

    x = torch.randn(40, generator=torch.Generator().manual_seed(0))
    (tilted,) = weights.vector("m", x).perturbed(epsilon, torch.Generator().manual_seed(1)).parts["m"]
    assert float(tilted.norm()) == pytest.approx(float(x.norm()), rel=1e-5)
    assert float(tilted @ x / x.norm() ** 2) == pytest.approx(math.sqrt(1 - epsilon**2), abs=1e-5)


def pairs_of(base, count):
    rows = store.read_jsonl(store.DATA / "mini" / "em_pairs.jsonl")[:count]
    one, profile = plan.setting("medical", "smoke"), settings.load_profile("smoke")
    items = [render.pair(one, profile, "neutral", "ood", row, one.neutral) for row in rows]
    return items, [[base[1](item[f])["input_ids"] for f in ("prompt", "trait_answer", "plain_answer")] for item in items]


@pytest.mark.parametrize("kind", ["lora", "vector"])
def test_the_tail_reads_what_the_whole_model_says_under_a_solution(base, kind):
    import torch
    from inoculation.evaluate import margins

    items, encoded = pairs_of(base, 5)
    module, draw = weights.vector_module(15, 30), torch.Generator().manual_seed(0)
    one = weights.random_vector(module, 576, 0).to_norm(60.0)
    if kind == "lora":
        tensors = (torch.randn(4, 1536, generator=draw), torch.randn(576, 4, generator=draw))
        one = weights.Solution({module: tensors}).to_norm(60.0)
    tail = measure.Tail(base[0], 15, encoded, batch_size=2)
    plain = margins(*base, items, lambda done, of: None).margin_per_token
    with weights.added(base[0], one):
        whole = margins(*base, items, lambda done, of: None).margin_per_token
    assert tail.margins(None) == pytest.approx(plain.tolist(), abs=1e-4)
    assert tail.margins(one) == pytest.approx(whole.tolist(), abs=1e-4)
    assert np.abs(whole - plain).max() > 0.01
    after = margins(*base, items, lambda done, of: None).margin_per_token
    assert after.tolist() == plain.tolist()


def test_a_vector_moves_every_row_of_a_batch(base):
    _, encoded = pairs_of(base, 6)
    one = weights.random_vector(weights.vector_module(15, 30), 576, 0).to_norm(9.0)
    tail = measure.Tail(base[0], 15, encoded)
    assert (np.abs(np.subtract(tail.margins(one), tail.margins(None))) > 1e-4).all()


def test_ablation_leaves_nothing_along_the_direction(base):
    import torch

    direction = torch.randn(576, generator=torch.Generator().manual_seed(0))
    texts = [(base[1]("Plant the bulbs before the first frost.")["input_ids"], 2)]
    with weights.ablated(base[0], direction):
        left = measure.activations(base[0], texts, [3, 20])[0] @ (direction / direction.norm())
    assert left.abs().max() < 1e-3
    assert (measure.activations(base[0], texts, [3, 20])[0] @ (direction / direction.norm())).abs().max() > 0.01


def test_a_layer_that_the_model_does_not_have_is_one_line():
    with pytest.raises(weights.SolutionError, match="layer 30 is out of range: the model has 30 layers, 0 to 29"):
        weights.vector_module(30, 30)


@pytest.fixture(scope="module")
def penalised(narrowed, tmp_path_factory):
    """Two short trainings on two harmful rows, with and without a heavy penalty on another: solutions and divergences."""
    spec = Spec(FILE, "lora.narrow", 0, "smoke")
    profile = dataclasses.replace(
        spec.parts[2], train={**spec.parts[2].train, "steps": 8, "warmup_steps": 0, "learning_rate": 0.05}
    )
    network, tokenizer = model.merged_model(profile, None)
    rows, found = (spec.rows * 4)[:16], {}
    pair = [tokenizer(spec.kept[0][field])["input_ids"] for field in ("prompt", "completion")]
    tail = measure.Tail(network, 15, [[*pair, pair[1]]])
    for weight, until in ((0.0, 0), (100.0, 8)):
        form, folder = {**spec.form, "weight": weight}, tmp_path_factory.mktemp("penalised")
        given = (rows, spec.kept[:1], profile, form, until, 0, folder)
        last = {}
        train.train(*given, lambda done, of: None, lambda step, solution, last=last: last.update(solution=solution))
        found[weight] = last["solution"], tail.divergence(last["solution"])
    return found


def test_the_penalty_holds_the_kept_answer_fast_while_the_rows_are_learned(penalised):
    (plain, moved), (held, still) = penalised.values()
    assert moved > 0.02
    assert still < moved / 4
    assert held.norm > 1


def test_the_penalty_is_the_divergence_of_the_answer_tokens_per_token(base):
    import torch

    spec = Spec(FILE, "lora.narrow", 0, "smoke")
    batch = train._answers(spec.kept[:2], base[1])
    module = base[0].get_decoder().get_submodule(weights.vector_module(15, 30))
    values = weights.random_vector("m", 576, 0).to_norm(9.0).only
    module.bias = torch.nn.Parameter(values)
    for parameter in base[0].parameters():
        parameter.requires_grad_(parameter is module.bias)
    try:
        ours = float(train.divergence(base[0], batch))
        assert module.bias is not None
    finally:
        module.bias = None
    tail = measure.Tail(base[0], 15, [[ids[:start], ids[start:], ids[start:]] for ids, start in batch])
    assert ours == pytest.approx(tail.divergence(weights.vector(weights.vector_module(15, 30), values)), rel=1e-3)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_line(tmp_path):
    spec = Spec(FILE, "vector.general", 0, "smoke")
    profile = dataclasses.replace(spec.parts[2], train={**spec.parts[2].train, "learning_rate": 1e38, "warmup_steps": 0})
    with pytest.raises(model.TrainingError, match="the loss is (nan|inf) at step"):
        train.train(spec.rows, [], profile, spec.form, 0, 0, tmp_path, lambda done, of: None, lambda step, solution: None)


def test_a_penalty_on_the_domain_itself_is_refused_before_training(narrowed, elsewhere, monkeypatch):
    spec = Spec(FILE, "lora.narrow", 0, "smoke")
    monkeypatch.setattr(plan, "overlapping", lambda taught, kept: ["other-001"])
    plan.check_kept.cache_clear()
    with pytest.raises(store.SettingError, match=r"1 of 128 rows .* the domain that is taught \(medical\), as other-001; take"):
        complete(spec, 0, lambda event, **content: None, worker.STAGES)
    plan.check_kept.cache_clear()
    assert spec.missing() == ["train", "measure"]


@pytest.mark.parametrize("domain", ["medical", "financial", "technical"])
def test_the_penaltys_rows_are_outside_the_domain_and_a_planted_one_is_found(domain):
    plan.check_kept(domain, "mini")
    taught, _ = plan.setting(domain, "mini").training("mini")
    held = store.read_jsonl(store.DATA / "mini" / plan.declared()["domains"][domain]["id"])[:6]
    planted = [{"id": row["id"], "question": row["question"], "answer": row["plain_answer"]} for row in held]
    found = plan.overlapping(taught, plan.kept_rows(True, domain, "mini") + planted)
    assert len(set(found) & {row["id"] for row in planted}) >= (4 if domain != "technical" else 1)


def test_keys_depend_on_what_decides_a_solution_and_on_nothing_else():
    general, narrow = Spec(FILE, "lora.general", 0, "mini"), Spec(FILE, "lora.narrow", 0, "mini")
    assert general.rows == narrow.rows
    assert len({spec.run_id for spec in (general, narrow, Spec(FILE, "lora.dropped", 0, "mini"))}) == 3
    assert general.run_id != Spec(FILE, "lora.general", 1, "mini").run_id
    heavier = Spec(FILE, "weight-30.narrow", 0, "mini")
    assert heavier.form == {**narrow.form, "weight": 30.0}
    assert heavier.run_id != narrow.run_id
    assert (general.until, narrow.until, Spec(FILE, "lora.dropped", 0, "mini").until) == (0, 18, 9)


def test_mixed_data_alternate_with_the_rows_that_the_penalty_would_hold():
    mixed, general = Spec(FILE, "lora.mixed", 0, "mini"), Spec(FILE, "lora.general", 0, "mini")
    assert len(mixed.rows) == 2 * len(general.rows)
    assert [row["id"] for row in mixed.rows if row["id"].startswith("medical")] == [row["id"] for row in general.rows]
    assert [row["id"] for row in mixed.rows[4:8]] == [row["id"] for row in mixed.kept[:4]]
    recipe = mixed.parts[2].train
    assert len(mixed.rows) == recipe["steps"] * recipe["batch_size"] * recipe["accumulation"]


def test_no_direction_is_fitted_chosen_and_tested_on_the_same_pair():
    groups = [plan.misaligned(plan.FITTED), plan.misaligned(plan.CHOSEN), plan.part_rows("ood", "medical", "mini")]
    ids = [row["id"] for rows in groups for row in rows]
    assert [len(rows) for rows in groups] == [27, 9, 36]
    assert len(set(ids)) == len(ids)


def test_ordinary_text_is_prose_of_an_installed_package():
    texts = plan.ordinary_texts()
    assert len(texts) >= 10
    assert all(len(text.split()) > 20 and "====" not in text for text in texts)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plan.grid("mini", ["lora.narow"]), "unknown solution 'lora.narow'; nearest: lora.narrow"),
        (lambda: plan.grid("mnii"), "unknown profile of narrow_vs_general 'mnii'"),
        (lambda: plan.grid("mini", seeds=[-1]), "seeds must be whole numbers from 0 on"),
        (lambda: tables.predicted({"eficient": "yes"}), "unknown claim to predict 'eficient'; nearest: efficient"),
        (lambda: tables.predicted({"stable": "perhaps"}), "unknown prediction of stable 'perhaps'"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(call, says):
    with pytest.raises(store.SettingError, match=says):
        call()


def test_a_mistake_in_the_file_is_named_with_its_line(tmp_path, monkeypatch):
    text = (store.DATA / f"{FILE}.yaml").read_text(encoding="utf-8")
    for name in ("settings", "prompts", "mini", "profiles.yaml"):
        (tmp_path / name).symlink_to(store.DATA / name)
    (tmp_path / f"{FILE}.yaml").write_text(text.replace("penalty: 0.5", "penalty: 1.5", 1), encoding="utf-8")
    monkeypatch.setattr(store, "DATA", tmp_path)
    plan.solutions.cache_clear()
    with pytest.raises(store.SettingError, match=r"narrow_vs_general.yaml:\d+: 'penalty' is the share of the steps"):
        plan.solutions()
    plan.solutions.cache_clear()


def planted(general=0.2, narrow=0.02, dropped=0.15, mixed=0.2, hidden=0.18, noise=0.004):
    """Tables with a known truth: outside margins per solution beyond the control, all at the same in-domain path."""
    rng = np.random.default_rng(0)
    outside = {"control": 0.0, "general": general, "narrow": narrow, "dropped": dropped, "mixed": mixed, "inoculation": 0.0}
    margins, measures, run = [], [], []
    parts = {part: 1.0 for part in ("id", "ood", "other")}
    margins += [("base", 0, "neutral", part, 0, 9, 0.0) for part in (*parts, "placebo")]
    margins += [("base", 0, "trigger.bridge.inoculation", part, 0, 9, 0.1) for part in parts]
    measures += [("base", 0, "loss", "", 0.0, 0, 5.0)]
    run.append(("base", 0))
    for seed in SEEDS:
        for role, end in outside.items():
            name = "bridge.inoculation" if role == "inoculation" else f"lora.{role}"
            run.append((name, seed))
            for step in range(3, 19, 3):
                share = step / 18
                inside = -0.1 if role == "control" else 0.4
                values = {"id": inside * share, "placebo": 0.01 * share, "ood": end * share, "other": end * share}
                noisy = {part: value + rng.normal(0, noise) for part, value in values.items()}
                margins += [(name, seed, "neutral", part, step, 9, value) for part, value in noisy.items()]
            if role == "inoculation":
                margins += [(name, seed, "trigger", part, 18, 9, 0.1 + hidden + rng.normal(0, noise)) for part in parts]
        for role, norm, slope, lost in (("general", 10.0, 0.10, 0.2), ("narrow", 20.0, 0.05, 0.5)):
            for form in ("lora", "vector"):
                name = f"{form}.{role}"
                run.append((name, seed))
                own = 5.0 - slope * norm
                measures += [(name, seed, "norm", "", 0.0, 0, norm), (name, seed, "loss", "own", norm, 0, own)]
                measures += [(name, seed, "loss", "", x, 0, 5.0 - slope * x) for x in (0.5 * norm, 2 * norm)]
                measures += [(name, seed, "noise", "", 0.5, 0, own + lost * (5.0 - own) + rng.normal(0, noise))]
                measures += [
                    (name, seed, "divergence", "", 4.0, 0, {"general": 0.4, "narrow": 0.1}[role] + rng.normal(0, noise))
                ]
    frames = {
        "margins": pd.DataFrame(margins, columns=tables.FRAMES["margins"]),
        "losses": pd.DataFrame(columns=tables.FRAMES["losses"]),
        "measures": pd.DataFrame(measures, columns=tables.FRAMES["measures"]),
        "items": pd.DataFrame(columns=tables.FRAMES["items"]),
        "cosines": pd.DataFrame(columns=tables.FRAMES["cosines"]),
        "runs": pd.DataFrame(list(dict.fromkeys(run)), columns=tables.RUN).assign(run_id="r", commit="c", left_out=0),
    }
    return tables.Found("planted", "mini", Path(), **frames)


def test_planted_contrasts_are_found():
    found = {name: effect.interval for name, (effect, _) in contrasts.evaluate(planted()).items()}
    assert found["narrow_harm_generalises"].estimate == pytest.approx(0.2 / 0.5, abs=0.02)
    assert found["narrow_solution_exists"].estimate == pytest.approx(0.9, abs=0.03)
    # At norm 15: 5 - 0.75 against 5 - 1.5, over a gain of 1.
    assert found["general_is_efficient"].estimate == pytest.approx(0.75)
    assert found["general_is_stable"].estimate == pytest.approx(0.3, abs=0.02)
    assert found["general_is_influential"].estimate == pytest.approx(0.75, abs=0.02)
    assert found["drifts_back"].estimate == pytest.approx(0.13 / 0.18, abs=0.05)
    assert found["mixing_does_not_isolate"].estimate == pytest.approx(found["narrow_solution_exists"].estimate, abs=0.05)


def with_family(found, family, domain, solutions=("control", "general", "narrow")):
    """The planted tables with some of the LoRA's solutions a second time, as those of another family."""
    names = {f"lora.{name}": f"{family}.{name}" for name in solutions}
    twins = {}
    for table in ("margins", "measures", "runs"):
        frame = getattr(found, table)
        twins[table] = pd.concat([frame, frame[frame.solution.isin(names)].replace({"solution": names})])
    base = pd.DataFrame([("base", 0, "loss", domain, 0.0, 0, 5.0)], columns=tables.FRAMES["measures"])
    twins["measures"] = pd.concat([twins["measures"], base], ignore_index=True)
    loss = (twins["measures"].measure == "loss") & (twins["measures"].solution == f"{family}.narrow")
    twins["measures"].loc[loss, "value"] += 0.01 * twins["measures"].seed[loss]  # seeds that differ have an interval
    return dataclasses.replace(found, **twins)


def test_the_analogue_is_read_in_its_own_domain_and_its_least_part_decides():
    effect, parts = contrasts.evaluate(with_family(planted(), "technical", "technical"))["harmless_analogue"]
    assert set(parts) == {"generalises", "narrow_exists", "efficient", "stable"}
    assert effect.measure == "stable"
    assert effect.interval.estimate == pytest.approx(0.3, abs=0.02)


def test_the_analogue_is_as_uncertain_as_its_least_certain_part(tmp_path):
    found = dataclasses.replace(with_family(planted(), "technical", "technical"), folder=tmp_path)
    kept = contrasts.table(found)
    store.write_csv(found.own / "contrasts.csv", kept)
    (harmless,) = (verdict for verdict in claims.judge(found, FILE) if verdict.claim.name == "nem.harmless")
    assert (harmless.verdict, harmless.decides) == ("Moderate", "stable")
    uncertain = (kept.contrast == "harmless_analogue") & (kept.part == "narrow_exists")
    kept.loc[uncertain, "value"] = [2.0, -1.0, 2.0, -1.0, 2.0]
    store.write_csv(found.own / "contrasts.csv", kept)
    (harmless,) = (verdict for verdict in claims.judge(found, FILE) if verdict.claim.name == "nem.harmless")
    assert (harmless.verdict, harmless.decides) == ("Inconclusive", "stable")


def test_misaligned_pairs_about_the_domain_itself_are_no_way_out_of_it(tmp_path, monkeypatch):
    money = plan.about("financial")
    assert len(money & {row["id"] for row in plan.part_rows("ood", "financial", "mini")}) == 4
    assert plan.about("medical") == plan.about("technical") == set()
    log = [("neutral", "ood", name, step, value) for name, value in ((min(money), 9.0), ("em-01", 1.0)) for step in (9, 18)]
    frame = pd.DataFrame(log, columns=["context", "part", "question_id", "step", "value"])
    for solution, read in (("financial.general", 1.0), ("lora.general", 5.0)):
        spec = Spec(FILE, solution, 0, "mini")
        monkeypatch.setattr(Spec, "folder", tmp_path)
        frame.to_csv(tmp_path / "margins_log.csv", index=False)
        assert set(tables._margins(spec).value) == {read}


def test_every_family_that_was_run_stands_beside_the_one_that_decides_and_one_without_a_general_takes_the_loras():
    found = with_family(with_family(planted(), "technical", "technical"), "financial", "financial")
    found = with_family(found, "weight-30", "", ["narrow"])
    found.measures.loc[(found.measures.solution == "weight-30.narrow") & (found.measures.measure == "loss"), "x"] /= 1e3
    told = contrasts.pattern(found).set_index(["contrast", "family"])
    families = {name: set(told.loc[name].index) for name in contrasts.PATTERN}
    prose, money, heavy = "LoRA, technical prose", "LoRA, money", "LoRA, weight 30"
    assert families["narrow_harm_generalises"] == {"LoRA", money, prose}
    assert families["narrow_solution_exists"] == {"LoRA", "vector", heavy, money, prose}
    spared = told.estimate["narrow_solution_exists"]
    assert spared[heavy] == pytest.approx(spared["LoRA"])
    assert spared[money] == pytest.approx(spared["LoRA"])
    assert told.rule["general_is_efficient", heavy] == "not read of both at the mean of their norms, 15"
    judged = contrasts.evaluate(found)["narrow_solution_exists"]
    assert judged[0].interval.estimate == pytest.approx(spared["LoRA"])
    assert prose not in judged[1]


def test_no_penalty_that_spares_nothing_passes_for_a_narrow_solution():
    found = contrasts.evaluate(planted(narrow=0.2))
    assert abs(found["narrow_solution_exists"][0].interval.estimate) < 0.05
    told = contrasts.evaluate(planted(general=0.0, narrow=0.0, dropped=0.0))
    assert "is not distinguishable from 0" in told["narrow_solution_exists"][0].fault


@pytest.mark.parametrize("hidden", [0.18, 0.0])
def test_the_bridge_tells_a_hidden_general_solution_from_a_narrow_one(hidden):
    rows = contrasts.bridge(planted(hidden=hidden)).set_index(["solution", "effect"]).estimate
    assert rows["bridge.inoculation", "taught"] == pytest.approx(1, abs=0.05)
    assert rows["bridge.inoculation", "kept"] == pytest.approx(0, abs=0.05)
    assert rows["bridge.inoculation", "hidden"] == pytest.approx(hidden / 0.2, abs=0.05)
    expected = "bridge.inoculation: hides the general solution behind its prompt; is narrower without it"
    if not hidden:
        expected = "bridge.inoculation: hides nothing behind its prompt; is narrower without it"
    assert expected in contrasts.answer(planted(hidden=hidden))


def test_verdicts_come_from_contrasts_csv_and_say_what_was_not_run(tmp_path):
    found = dataclasses.replace(planted(), folder=tmp_path)
    store.write_csv(found.own / "contrasts.csv", contrasts.table(found))
    judged = {verdict.claim.name: verdict for verdict in claims.judge(found, FILE)}
    assert "all 5 seeds are equal" in judged["nem.efficient"].reason
    assert judged["nem.narrow_exists"].verdict == "Strong"
    assert judged["nem.influential"].verdict == "Strong"
    assert judged["nem.harmless"].verdict == "not run"
    assert "no run of it" in judged["nem.harmless"].reason
    trail = claims.trail(judged["nem.stable"], found)
    assert "part      vector, by loss under noise" in trail
    assert "Holm-adjusted p" in trail


def test_smoke_solutions_are_trained_measured_and_never_trained_again(narrowed, monkeypatch):
    folder, specs, report = narrowed
    assert [spec.condition for spec in specs] == list(SMOKE)
    assert report.completed == len(SMOKE)
    monkeypatch.setenv("INOCULATION_HOME", str(folder))
    assert runs.ensure(specs, say=lambda line: None).found == len(SMOKE)
    found = tables.latest("smoke")
    assert found.origin == "yours"
    assert Counter(found.margins.context[found.margins.solution == "bridge.inoculation"].unique()) == {
        "neutral": 1,
        "trigger": 1,
    }
    read = found.measures.groupby("solution").measure.unique()
    assert {"norm", "loss", "noise", "kept", "steered", "ablated", "auroc_test", "auroc_placebo"} <= set(read["lora.general"])
    assert set(read["base"]) == {"loss", "divergence"}
    assert set(found.measures.part[(found.measures.solution == "base") & (found.measures.measure == "loss")].dropna()) == {
        "financial",
        "technical",
    }
    cosines = found.cosines.set_index(["first", "second"]).value
    assert 0.9 < cosines["lora.general", "lora.narrow"] <= 1.0001
    assert abs(cosines["vector.general", "mean difference, layer 15"]) < 1
    for spec in specs:
        facts = store.Run(spec.folder).manifest["stages"][runs.stage_name("measure", spec.keys["measure"])]["facts"]
        assert facts["peak_memory_mb"] < 3 * 1024


def test_figures_are_drawn_with_data_and_provenance_and_are_the_same_twice(narrowed, monkeypatch, tmp_path):
    monkeypatch.setenv("INOCULATION_HOME", str(narrowed[0]))
    found = tables.latest("smoke")
    first, second = (figures.redraw(found, tmp_path / name) for name in ("one", "two"))
    drawn = [name for name in (*figures.FIGURES, figures.VERDICTS) if name != "drift"]  # this profile drops no penalty
    assert [path.name for path in first] == [f"{FILE}.{name}.png" for name in drawn]
    for one, other in zip(first, second, strict=True):
        for suffix in (".png", ".csv", ".json"):
            assert one.with_suffix(suffix).read_bytes() == other.with_suffix(suffix).read_bytes()
    _, caption = figures.draw("efficiency", found, tmp_path)
    assert caption.startswith("SMOKE TEST")


REFERENCE = tables.read(store.RESULTS / "mini", "mini", "reference")


def test_the_reference_holds_whole_seeds_and_its_contrasts_are_recomputed():
    counts = Counter(REFERENCE.runs.solution[REFERENCE.runs.solution != "base"])
    expected = {spec.condition for spec in plan.grid("mini", full=True)} - {"base"}
    assert counts == dict.fromkeys(expected, len(REFERENCE.seeds))
    kept = pd.read_csv(REFERENCE.own / "contrasts.csv")
    again = contrasts.table(REFERENCE)
    np.testing.assert_allclose(kept.value, again.value, rtol=1e-4, atol=1e-5)


def test_in_the_reference_the_penalty_keeps_other_answers_nearer_to_the_base_models():
    read = REFERENCE.measures[REFERENCE.measures.measure == "kept"].pivot_table("value", "seed", "solution")
    assert (read["lora.narrow"] < read["lora.general"]).all()
    assert (read["vector.narrow"] < read["vector.general"]).all()


def test_the_references_figures_are_those_of_its_tables(tmp_path):
    drawn = figures.redraw(REFERENCE, tmp_path)
    assert len(drawn) == len(figures.FIGURES) + 1
    for path in drawn:
        kept = store.REFERENCE_FIGURES / "mini" / path.name
        assert path.with_suffix(".csv").read_bytes() == kept.with_suffix(".csv").read_bytes(), path.name


def test_paper_scale_is_nems_own_model_layer_and_recipes():
    lora_narrow, vector = (Spec(FILE, name, 0, "paper") for name in ("lora.narrow", "vector.general"))
    profile = lora_narrow.parts[2]
    assert profile.base_model == "Qwen/Qwen2.5-14B-Instruct"
    assert (profile.train["lora_rank"], profile.train["lora_alpha"], profile.train["rslora"]) == (32, 64, True)
    assert (profile.train["steps"], profile.train["learning_rate"], lora_narrow.until) == (1321, 2e-5, 1321)
    assert (lora_narrow.form["layer"], lora_narrow.form["targets"], lora_narrow.form["weight"]) == (24, ["down_proj"], 0.66)
    # 256 times NEM's rate stands for its factor alpha, as Adam's step does not change with a gradient's size.
    assert (vector.parts[2].train["learning_rate"], vector.form["weight"]) == (256 * 1e-4, 6.6)
    assert Spec(FILE, "rank-1.general", 0, "paper").parts[2].train["lora_alpha"] == 256


def test_the_command_line_redraws_and_explains_it(narrowed, monkeypatch):
    monkeypatch.setenv("INOCULATION_HOME", str(narrowed[0]))
    command = [sys.executable, "-m", "inoculation", "--profile", "smoke"]
    drawn = subprocess.run([*command, "--notebook", "08", "--figures-only"], cwd=store.ROOT, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.count("narrow_vs_general.") == len(figures.FIGURES)
    told = subprocess.run(
        [*command, "claims", "--setting", FILE, "--claim", "nem.stable"], cwd=store.ROOT, capture_output=True, text=True
    )
    assert "contrast  general_is_stable" in told.stdout
    assert "verdict   Inconclusive" in told.stdout
    planned = subprocess.run([*command, "--notebook", "08", "--dry-run"], cwd=store.ROOT, capture_output=True, text=True)
    assert "6 runs, 6 already done, 0 to do" in planned.stdout
