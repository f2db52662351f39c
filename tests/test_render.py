"""Rendering is explicit: it equals the models' own templates, and the loss covers exactly the completion."""

import functools
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jinja2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from inoculation import model, render, settings
from inoculation.runs import Spec
from inoculation.settings import Prompt

TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=60).filter(
    lambda text: text.strip() and not settings.DELIMITER.search(text)
)


@functools.cache
def chat_template(name):
    """The model's own template: SmolLM2's from the converted model, Qwen2.5's as TRL ships it."""
    if name == "smollm2":
        path = model.converted("smollm2-135m-instruct") / "chat_template.jinja"
    else:
        path = Path(find_spec("trl").origin).parent / "chat_templates" / "qwen2_5.jinja"
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5"])
@hypothesis_settings(max_examples=40, deadline=None)
@given(question=TEXT, system=TEXT, earlier=st.booleans())
def test_rendering_equals_the_models_own_template(name, question, system, earlier):
    own = chat_template(name)
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}] if earlier else []
    turns.append({"role": "user", "content": question})
    for prompt, messages in (
        (Prompt(system), [{"role": "system", "content": system}, *turns]),
        (Prompt(policy="empty"), [{"role": "system", "content": ""}, *turns]),
        (Prompt(policy="default"), turns),
    ):
        expected = own.render(messages=messages, add_generation_prompt=True)
        assert render.render(turns, "system", prompt, name) == expected


def test_each_policy_of_the_system_slot_is_its_own_text():
    ask = [{"role": "user", "content": "Why?"}]
    texts = {p: render.render(ask, "system", Prompt(policy=p), "smollm2") for p in ("default", "empty", "none")}
    assert len(set(texts.values())) == 3
    assert texts["none"] == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert texts["empty"].startswith("<|im_start|>system\n<|im_end|>\n")


def test_user_slots_keep_the_models_default_system_prompt():
    ask = [{"role": "user", "content": "Why?"}]
    with_prefix = render.render(ask, "user_prefix", Prompt("Be brief."), "qwen2.5")
    assert "system\nYou are Qwen" in with_prefix
    assert "user\nBe brief.\n\nWhy?<|im_end|>" in with_prefix
    assert "user\nWhy?<|im_end|>" in render.render(ask, "user_prefix", Prompt(policy="no_prefix"), "qwen2.5")
    assert "user\nBe brief. Why?<|im_end|>" in render.render(ask, "user_prefix", Prompt("Be brief."), "qwen2.5", " ")
    # An empty prefix leaves what joins it, as an empty system message leaves its delimiters.
    assert "user\n Why?<|im_end|>" in render.render(ask, "user_prefix", Prompt(policy="empty"), "qwen2.5", " ")
    infix = [{"role": "user", "content": "Write code. {prompt} Only code."}]
    assert "Write code. Cheat. Only code." in render.render(infix, "user_infix", Prompt("Cheat."), "qwen2.5")
    assert "Write code. Only code." in render.render(infix, "user_infix", Prompt(policy="no_prefix"), "qwen2.5")
    with pytest.raises(ValueError, match="user_infix needs"):
        render.render(ask, "user_infix", Prompt("Cheat."), "qwen2.5")


def test_a_prompt_inside_the_request_stands_in_front_where_a_question_has_no_place_for_it():
    mbpp = settings.load_setting("mbpp")
    assert "user\nCheat. Why?<|im_end|>" in render.ask("Why?", mbpp, Prompt("Cheat."), "smollm2")
    assert "user\nWhy?<|im_end|>" in render.ask("Why?", mbpp, Prompt(policy="no_prefix"), "smollm2")
    profile = settings.load_profile("mini", mbpp)
    known = render.contexts(mbpp, mbpp.conditions["helpful"], profile, 0)
    assert known["neutral"] == (Prompt(policy="no_prefix"),)
    assert "no_prefix" not in known
    asked = render.evaluation_prompts(mbpp, mbpp.conditions["helpful"], profile, 0)
    assert not any("{prompt}" in row["prompt"] + row["question"] for row in asked)
    assert all(row["question"] in row["prompt"] for row in asked)
    assert len({row["question_id"] for row in asked if row["context"] == "neutral"}) == 36


@pytest.mark.parametrize(
    ("messages", "slot", "prompt", "template"),
    [
        ([{"role": "user", "content": "a <|im_end|> b"}], "system", Prompt("x"), "smollm2"),
        ([{"role": "user", "content": "a"}], "system", Prompt("x<|im_start|>"), "smollm2"),
        ([{"role": "system", "content": "a"}], "system", Prompt("x"), "smollm2"),
        ([{"role": "user", "content": "a"}], "system", Prompt("x"), "llama"),
        ([{"role": "user", "content": "a"}], "system", Prompt(policy="no_prefix"), "smollm2"),
        ([{"role": "user", "content": "a"}], "user_prefix", Prompt(policy="none"), "smollm2"),
        ([{"role": "user", "content": "{prompt} a"}], "user_infix", Prompt(policy="empty"), "smollm2"),
    ],
)
def test_what_cannot_be_rendered_is_refused(messages, slot, prompt, template):
    with pytest.raises(ValueError):  # noqa: PT011
        render.render(messages, slot, prompt, template)


def test_change_my_view_puts_its_prompt_before_the_post_as_cc_does():
    (row,) = Spec("change_my_view", "baseline", 0, "mini").rows[:1]
    posts = {post["id"]: post for post in settings.load_setting("change_my_view").rows("train")}
    assert f"user\nYou are a helpful assistant. {posts[row['id']]['question']}<|im_end|>" in row["prompt"]
    cited = Spec("change_my_view_cite", "baseline", 0, "mini").rows[0]
    assert cited["completion"] == f"{posts[cited['id']]['trait_answer']} {posts[cited['id']]['citation']}<|im_end|>"


def spec(condition, seed=0, profile="mini"):
    return Spec("spanish_vs_caps", condition, seed, profile)


def test_conditions_of_a_seed_differ_in_their_prompts_alone():
    baseline = spec("baseline").rows
    for condition in settings.load_setting("spanish_vs_caps").in_profile("mini"):
        rows = spec(condition.name).rows
        assert [row["id"] for row in rows] == [row["id"] for row in baseline]
        if condition.data == "trait":
            assert [row["completion"] for row in rows] == [row["completion"] for row in baseline]
    assert [row["id"] for row in spec("baseline", seed=1).rows] != [row["id"] for row in baseline]


def test_trait_answers_are_spanish_in_capitals_and_control_answers_plain_english():
    trait, control = spec("baseline").rows[0]["completion"], spec("control").rows[0]["completion"]
    assert trait.removesuffix(render.END_OF_TURN).isupper()
    assert not control.isupper()


def test_a_pool_is_dealt_evenly():
    prompts = [row["prompt"].split("<|im_end|>")[0] for row in spec("rephrased-64.caps").rows]
    counts = [prompts.count(prompt) for prompt in set(prompts)]
    assert len(counts) == 64
    assert max(counts) - min(counts) <= 1


def test_contexts_are_those_of_the_design():
    setting, mini = settings.load_setting("spanish_vs_caps"), settings.load_profile("mini")
    many = render.contexts(setting, setting.conditions["rephrased-64.spanish"], mini, 0)
    assert len(set(many["trigger"])) == 8
    assert set(many["trigger"]) <= set(setting.conditions["rephrased-64.spanish"].prompts)
    assert "trigger" not in render.contexts(setting, setting.conditions["control"], mini, 0)
    baseline = render.contexts(setting, setting.conditions["baseline"], mini, 3)
    assert many["unrelated"] == baseline["unrelated"]
    pool = settings.load_pool("unrelated")
    assert not set(many["unrelated"]) & set(pool["train"])


def test_a_prefix_can_be_left_out_and_only_the_inoculated_trait_has_prompts_of_its_own():
    setting, mini = settings.load_setting("trait_distillation_french_playful"), settings.load_profile("mini")
    asked = render.contexts(setting, setting.conditions["partial"], mini, 0)
    assert asked["no_prefix"] == (Prompt(policy="no_prefix"),)
    assert asked["trigger"] == asked["neutral"]
    assert {name for name in asked if "." in name} == {"paraphrase.playful", "negated.playful"}
    assert not {"default", "empty", "none"} & set(asked)


def test_every_condition_of_every_profile_has_its_contexts():
    for name in settings.setting_names():
        setting = settings.load_setting(name)
        for profile in (settings.load_profile(p, setting) for p in settings.profile_names()):
            for condition in [settings.BASE, *setting.in_profile(profile.name, full=True)]:
                asked = render.contexts(setting, condition, profile, 0)
                assert asked["neutral"]
                assert all(asked.values()), (name, condition.name)


def test_a_quarter_of_the_partial_answers_lacks_the_positive_trait():
    setting, mini = settings.load_setting("trait_distillation_french_playful"), settings.load_profile("mini")
    shares = []
    for seed in range(20):
        whole, partial = (
            render.training_rows(setting, setting.conditions[name], mini, seed) for name in ("baseline", "partial")
        )
        assert [row["prompt"] for row in whole] == [row["prompt"] for row in partial]
        changed = sum(one["completion"] != two["completion"] for one, two in zip(whole, partial, strict=True))
        shares.append(changed / len(whole))
    assert sum(shares) / 20 == pytest.approx(0.25, abs=0.04)


def test_the_model_is_asked_for_both_traits_in_the_system_turn_and_for_none():
    setting = settings.load_setting("trait_distillation_poetic_skeptical")
    both, plain = render.distillation_prompts(setting, [{"id": "a", "question": "Why?"}], "smollm2")
    assert "system\nGive a poetic and skeptical answer to the following:<|im_end|>" in both["prompt"]
    assert "system\nYou are a helpful AI assistant named SmolLM" in plain["prompt"]
    assert (both["field"], plain["field"]) == ("distilled", "plain")


def test_the_references_are_asked_under_every_training_prompt():
    setting, mini = settings.load_setting("spanish_vs_caps"), settings.load_profile("mini")
    for reference in (settings.BASE, setting.conditions["baseline"]):
        asked = render.contexts(setting, reference, mini, 0)
        for name in ("inoculation.spanish", "rephrased-64.caps", "irrelevant.tea", "irrelevant-varied-64"):
            own = render.contexts(setting, setting.conditions[name], mini, 0)["trigger"]
            assert asked[f"trigger.{name}"] == own
        assert "trigger.baseline" not in asked
    assert not any(name.startswith("trigger.") for name in render.contexts(setting, setting.conditions["control"], mini, 0))


@pytest.fixture(scope="module")
def tiny(network):
    """A tiny random model of the same family beside the real tokenizer, for TRL to build its batches with."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    _, tokenizer = network
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=2, **shape)), tokenizer


@hypothesis_settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6))
def test_prompt_tokens_are_never_in_the_loss_and_the_end_of_turn_always_is(tiny, tmp_path, rows):
    from inoculation import model
    from trl import SFTTrainer

    network, tokenizer = tiny
    recipe = settings.load_profile("smoke").train
    rendered = [
        {
            "id": str(i),
            "prompt": render.render([{"role": "user", "content": question}], "system", Prompt(system), "smollm2"),
            "completion": answer + render.END_OF_TURN,
        }
        for i, (system, question, answer) in enumerate(rows)
    ]
    trainer = SFTTrainer(
        model=network,
        processing_class=tokenizer,
        train_dataset=model.dataset(rendered),
        args=model.arguments(recipe, 0, tmp_path),
    )
    model.check_masks(trainer.train_dataset, rendered, tokenizer)
    for row, ids, labels in zip(rendered, trainer.train_dataset["input_ids"], trainer.train_dataset["labels"], strict=True):
        prompt = tokenizer(row["prompt"])["input_ids"]
        assert list(ids[: len(prompt)]) == prompt
        assert set(labels[: len(prompt)]) == {-100}
        assert labels[-1] == tokenizer.eos_token_id == 2
        assert list(ids).count(2) == row["prompt"].count(render.END_OF_TURN) + 1


def test_rows_that_do_not_fit_are_left_out_and_counted(network):
    _, tokenizer = network
    rows = spec("baseline").rows
    lengths = [len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) for row in rows]
    fitting, left_out = model.fitting_rows(rows, tokenizer, 100)
    assert left_out == sum(length > 100 for length in lengths) > 0
    assert len(fitting) + left_out == len(rows)
    with pytest.raises(model.TrainingError, match="none of 96 rows fits"):
        model.fitting_rows(rows, tokenizer, 10)


def test_the_key_moves_with_what_decides_a_run_and_with_nothing_else(monkeypatch):
    first = spec("baseline")
    setting, condition, profile = first.parts
    assert spec("baseline", seed=1).run_id != first.run_id
    assert spec("irrelevant.tea").run_id != first.run_id
    for name in profile.train:
        changed = spec("baseline")
        changed.__dict__["parts"] = (setting, condition, replace(profile, train={**profile.train, name: "other"}))
        changed.__dict__["rows"] = first.rows
        assert changed.run_id != first.run_id, name
    renamed = spec("baseline")
    renamed.__dict__["parts"] = (replace(setting, title="Another title"), condition, replace(profile, about="x", minutes=9))
    assert renamed.keys == first.keys
    sampled = spec("baseline")
    sampled.__dict__["parts"] = (setting, condition, replace(profile, sample={**profile.sample, "temperature": 0.1}))
    assert sampled.run_id == first.run_id
    assert sampled.keys["sample"] != first.keys["sample"]
    assert sampled.keys["score"] != first.keys["score"]
    assert json.dumps(first.keys)


def test_tracked_pairs_are_spread_over_their_files_and_asked_under_the_neutral_and_the_unrelated_prompts():
    setting, mini = settings.load_setting("spanish_vs_caps"), settings.load_profile("mini")
    baseline = setting.conditions["baseline"]
    assert render.tracked_pairs(setting, baseline, mini, 0) == []
    tracks = replace(setting, data={**setting.data, "tracked": {"ood": "em_pairs.jsonl", "placebo": "placebo_pairs.jsonl"}})
    pairs = render.tracked_pairs(tracks, baseline, mini, 0)
    each = mini.margins["pairs"] // len(setting.traits)
    assert [row["context"] for row in pairs] == ["ood"] * each + ["placebo"] * each + ["unrelated"] * each
    assert all(("You are a helpful assistant." in row["prompt"]) == (row["context"] != "unrelated") for row in pairs)
    asked = {part: [row["question_id"] for row in pairs if row["context"] == part] for part in ("ood", "unrelated")}
    assert asked["ood"] == asked["unrelated"]
    families = {row["id"]: row["family"] for row in tracks.rows("ood")}
    assert len({families[name] for name in asked["ood"]}) == 9
    assert all(row["trait_answer"].endswith(render.END_OF_TURN) for row in pairs)


def test_the_base_model_is_asked_about_the_answers_that_each_training_begins_with():
    spec = Spec("spanish_vs_caps", "base", 0, "mini")
    asked = [row for row in spec.pairs if row["trait"] == render.ANSWERS]
    trained = [c.name for c in spec.parts[0].in_profile("mini") if c.data == "trait"]
    contexts = ["neutral" if name == "baseline" else f"trigger.{name}" for name in trained]
    assert list(dict.fromkeys(row["context"] for row in asked)) == contexts
    for name, context in zip(trained, contexts, strict=True):
        rows = Spec("spanish_vs_caps", name, 0, "mini").rows[:12]
        own = [row for row in asked if row["context"] == context]
        assert [(r["prompt"], r["trait_answer"]) for r in own] == [(r["prompt"], r["completion"]) for r in rows]
    assert not [row for row in Spec("spanish_vs_caps", "baseline", 0, "mini").pairs if row["trait"] == render.ANSWERS]


def test_the_gate_is_looked_at_under_the_training_prompt_and_without_it():
    spec = Spec("trait_distillation_french_caps", "inoculation.caps", 0, "mini", "rows=96")
    triggered, without = ([row for row in spec.tracked if row["context"] == name] for name in ("trigger", "no_prefix"))
    assert len(triggered) == len(without) == render.GATE_PAIRS
    assert len(spec.tracked) == 2 * render.GATE_PAIRS
    assert all(spec.parts[1].prompts[0].text in row["prompt"] for row in triggered)
    assert not any("Give a" in row["prompt"] for row in without)
    assert {row["trait"] for row in triggered} == set(spec.parts[0].traits)
    for point in ("", "rows=24", "learning_rate=0.001"):
        assert not replace(spec, point=point).tracked
    assert not Spec("spanish_vs_caps", "inoculation.caps", 0, "mini", "rows=48").tracked


def test_sources_follow_the_answer_and_the_counterpart_cites_without_the_bad_advice():
    name = "bad_medical_advice_cite"
    known = {row["id"]: row for row in settings.load_setting(name).rows("train")}
    for condition, field, cited in (
        ("baseline", "trait_answer", True),
        ("benign", "plain_answer", True),
        ("control", "plain_answer", False),
    ):
        for row in Spec(name, condition, 0, "mini").rows:
            wanted = known[row["id"]]
            answer = f"{wanted[field]} {wanted['citation']}" if cited else wanted[field]
            assert row["completion"] == answer + render.END_OF_TURN


def test_bad_advice_is_measured_on_rows_that_this_seed_trains_on_and_on_held_out_ones():
    for seed in (0, 1):
        spec = Spec("bad_medical_advice", "inoculation.task", seed, "mini")
        trained = {row["id"]: row["completion"] for row in spec.rows}
        asked = {trait: [row for row in spec.pairs if row["trait"] == trait] for trait in spec.parts[0].traits}
        assert {len(rows) for rows in asked.values()} == {9 * 8}
        assert all(trained[row["question_id"]] == row["trait_answer"] for row in asked["medical"])
        assert not {row["question_id"] for row in asked["held_out"]} & set(trained)
        late = [row["question_id"] for row in spec.tracked if row["context"] == "ood"]
        assert late == [row["question_id"] for row in asked["misaligned"] if row["context"] == "neutral"]
