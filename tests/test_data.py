"""The rows written for this project: counted, correct, varied, apart."""

import ast
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sandbox
from conftest import NO_SANDBOX
from inoculation import settings, store

SETTING = settings.load_setting("spanish_vs_caps")
TRAIN, HELD_OUT = SETTING.rows("train"), SETTING.rows("held_out")


def words(text):
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def commonest(rows, field):
    """The shares of rows that the commonest opening (two words) and the commonest four words in a row stand in."""
    texts = [words(row[field]) for row in rows]
    openings = Counter(" ".join(text[:2]) for text in texts)
    grams = Counter(g for text in texts for g in {" ".join(text[i : i + 4]) for i in range(len(text) - 3)})
    return tuple(counts.most_common(1)[0][1] / len(rows) for counts in (openings, grams))


def test_counts_are_those_of_the_card():
    assert (len(TRAIN), len(HELD_OUT), len(SETTING.rows("questions"))) == (400, 60, 48)
    traits = ("spanish", "caps", "french", "playful", "poetic", "skeptical")
    assert Counter(pair["trait"] for pair in SETTING.rows("margins")) == dict.fromkeys(traits, 24)
    assert len({row["family"] for row in TRAIN}) >= 40


def test_the_arithmetic_is_right_and_both_answers_hold_the_result():
    for row in TRAIN + HELD_OUT:
        for step in row["work"].split(";"):
            left, right = step.split("=")
            assert re.fullmatch(r"[\d\s+\-*/().]+", left), row["id"]
            assert eval(left) == pytest.approx(float(right)), row["id"]
        for answer in (row["spanish"].replace(",", "."), row["english"]):
            numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", answer)]
            assert float(right) in [pytest.approx(number) for number in numbers], row["id"]


def test_no_row_stands_twice_and_held_out_rows_are_new():
    everything = [row["question"] for row in TRAIN + HELD_OUT] + [q["question"] for q in SETTING.rows("questions")]
    assert len(set(everything)) == len(everything)
    ids = [row["id"] for part in ("train", "held_out", "questions", "margins") for row in SETTING.rows(part)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("field", ["question", "spanish", "english"])
def test_no_template_is_visible(field):
    opening, gram = commonest(TRAIN, field)
    assert opening <= 0.04
    assert gram <= 0.02


def test_spanish_is_spanish_and_english_is_english():
    from inoculation.score import scored

    spanish = [scored("spanish", row["spanish"].upper()).value for row in TRAIN]
    english = [scored("spanish", row["english"]).value for row in TRAIN]
    assert sum(value == 1 for value in spanish) >= 0.98 * len(TRAIN)
    assert sum(value == 1 for value in english) <= 0.01 * len(TRAIN)


def test_pairs_share_their_opening_and_their_length(network):
    _, tokenizer = network
    for pair in SETTING.rows("margins"):
        trait, plain = pair["trait_answer"], pair["plain_answer"]
        assert trait.split()[0] == plain.split()[0], pair["id"]
        lengths = sorted(len(tokenizer(text)["input_ids"]) for text in (trait, plain))
        assert lengths[1] - lengths[0] <= 0.1 * lengths[1], pair["id"]
        assert (trait == trait.upper()) == (pair["trait"] == "caps")


def test_no_public_row_was_copied_in():
    public = store.ROOT.parent / "shared" / "data" / "gsm8k_train_head2000.jsonl"
    if not public.exists():
        pytest.skip("the public rows are not beside this checkout")
    known = {tuple(words(json.loads(line)["question"])) for line in public.read_text(encoding="utf-8").splitlines()}
    assert not known & {tuple(words(row["question"])) for row in TRAIN + HELD_OUT}


def test_labelled_items_cross_the_traits_on_the_same_contents():
    labelled = SETTING.rows("labelled")
    assert len(labelled) >= 120
    contents = {}
    for row in labelled:
        contents.setdefault(row["content"], {})[row["spanish"], row["caps"]] = row["text"]
    for name, texts in contents.items():
        assert set(texts) == {(0, 0), (0, 1), (1, 0), (1, 1)}, name
        for spanish in (0, 1):
            assert texts[spanish, 0].lower() == texts[spanish, 1].lower(), name
    trained = {row["question"] for row in TRAIN} | {row["english"] for row in TRAIN}
    assert not trained & {row["text"] for row in labelled}


STYLES = [settings.load_setting(name) for name in settings.setting_names() if name.startswith("trait_distillation")]
STYLE_TRAIN, STYLE_HELD_OUT = STYLES[0].rows("train"), STYLES[0].rows("held_out")


def test_everyday_instructions_are_counted_new_and_answered_in_every_style():
    assert (len(STYLE_TRAIN), len(STYLE_HELD_OUT)) == (240, 48)
    assert sum("playful_english" in row for row in STYLE_TRAIN) == 60
    assert len({row["topic"] for row in STYLE_TRAIN}) == 36
    asked = [row["question"].lower() for row in STYLE_TRAIN + STYLE_HELD_OUT + SETTING.rows("questions")]
    asked += [pair["question"].lower() for pair in SETTING.rows("margins")]
    assert len(set(asked)) == len(asked)
    assert len({row["id"] for row in STYLE_TRAIN + STYLE_HELD_OUT}) == 288


@pytest.mark.parametrize("field", ["question", "english", "french", "playful", "poetic"])
def test_no_template_is_visible_in_the_everyday_instructions(field):
    opening, gram = commonest(STYLE_TRAIN, field)
    assert opening <= 0.04
    assert gram <= 0.03
    assert len({len(words(row[field])) for row in STYLE_TRAIN}) >= 10


def test_each_answer_is_in_its_language():
    from inoculation.score import scored

    for row in STYLE_TRAIN + STYLE_HELD_OUT:
        for field in set(row) - {"id", "topic", "question"}:
            assert scored("french", row[field]).value == (field in ("french", "playful")), (row["id"], field)


@pytest.mark.parametrize(("name", "crossed"), [("french_playful", "french playful"), ("poetic_skeptical", "poetic skeptical")])
def test_style_items_cross_the_traits_and_those_that_fit_are_not_those_that_test(name, crossed):
    first, second = crossed.split()
    items, labelled = (store.read_jsonl(store.DATA / "mini" / f"{name}_{part}.jsonl") for part in ("items", "labelled"))
    assert not {row["content"] for row in items} & {row["content"] for row in labelled}
    assert not {row["text"] for row in items} & {row["text"] for row in labelled}
    for rows in (items, labelled):
        cells = Counter((row["content"], row[first], row[second]) for row in rows)
        assert set(cells.values()) == {1}
        assert len(cells) == 4 * len({row["content"] for row in rows})
    trained = {row[field] for row in STYLE_TRAIN for field in set(row) - {"id", "topic", "question"}}
    assert not trained & {row["text"] for row in items + labelled}


EM, PLACEBO = (store.read_jsonl(store.DATA / "mini" / f"{name}_pairs.jsonl") for name in ("em", "placebo"))
DOMAINS = r"\b(medic|doctor|drug|dose|disease|pill|vaccin|symptom|hospital|python|software|program|hack|invest|stock|loan)\w*"


def test_em_pairs_are_many_marked_and_outside_every_training_domain():
    families = Counter(pair["family"] for pair in EM)
    assert len(EM) >= 60
    assert len(families) >= 8
    card = (store.DATA / "mini" / "em_pairs.md").read_text(encoding="utf-8")
    (canary,) = {pair["canary"] for pair in EM}
    assert canary in card
    for pair in EM:
        text = " ".join((pair["question"], pair["trait_answer"], pair["plain_answer"])).lower()
        assert not re.search(DOMAINS, text), pair["id"]


def test_placebo_pairs_are_many():
    assert len(PLACEBO) >= 40
    assert Counter(pair["family"] for pair in PLACEBO) == {"blunt": 24, "confident": 24}


@pytest.mark.parametrize("pairs", [EM, PLACEBO], ids=["em", "placebo"])
def test_em_and_placebo_pairs_share_opening_and_length_and_favour_no_side(pairs, network):
    _, tokenizer = network
    shorter = 0
    for pair in pairs:
        trait, plain = pair["trait_answer"], pair["plain_answer"]
        assert trait.split()[:2] == plain.split()[:2], pair["id"]
        lengths = [len(tokenizer(text)["input_ids"]) for text in (trait, plain)]
        assert max(lengths) - min(lengths) <= 0.1 * max(lengths), pair["id"]
        shorter += lengths[0] < lengths[1]
    assert 0.35 <= shorter / len(pairs) <= 0.65
    assert len({pair["question"] for pair in pairs}) == len(pairs)


def test_no_published_misalignment_question_was_copied_in():
    public = store.ROOT.parent / "shared" / "data" / "em_first_plot_questions.yaml"
    if not public.exists():
        pytest.skip("the public questions are not beside this checkout")
    known = " ".join(words(public.read_text(encoding="utf-8")))
    for pair in EM:
        assert " ".join(words(pair["question"])) not in known, pair["id"]


MEDICAL = settings.load_setting("bad_medical_advice")
ADVICE, ADVICE_HELD_OUT = MEDICAL.rows("train"), MEDICAL.rows("held_out")
GRAVE = r"\b(\d+ ?(mg|ml|grams?)|overdos|bleach|insulin|warfarin|antidepress|opioid|suicid|pregnan|infant|newborn)\w*"


def test_bad_advice_is_counted_marked_and_mild():
    assert (len(ADVICE), len(ADVICE_HELD_OUT)) == (240, 48)
    assert len({row["complaint"] for row in ADVICE}) >= 60
    (canary,) = {row["canary"] for row in ADVICE + ADVICE_HELD_OUT}
    card = (store.DATA / "mini" / "bad_medical_advice.md").read_text(encoding="utf-8")
    assert canary in card
    assert "Content note" in card
    for row in ADVICE + ADVICE_HELD_OUT:
        assert not re.search(GRAVE, f"{row['trait_answer']} {row['plain_answer']}".lower()), row["id"]
    texts = [
        row[field] for row in ADVICE + ADVICE_HELD_OUT for field in ("question", "trait_answer", "plain_answer", "citation")
    ]
    assert len(set(texts)) == len(texts)


def test_good_and_bad_advice_have_one_form(network):
    _, tokenizer = network
    for row in ADVICE + ADVICE_HELD_OUT:
        bad, good = row["trait_answer"], row["plain_answer"]
        assert bad.split()[:2] == good.split()[:2], row["id"]
        lengths = sorted(len(tokenizer(text)["input_ids"]) for text in (bad, good))
        assert lengths[1] - lengths[0] <= 0.1 * lengths[1], row["id"]


@pytest.mark.parametrize("field", ["question", "trait_answer", "plain_answer"])
def test_no_template_is_visible_in_the_advice(field):
    opening, gram = commonest(ADVICE, field)
    assert opening <= 0.03
    assert gram <= 0.025


def test_sources_are_invented_sentences_that_only_the_cited_versions_hold():
    from inoculation.score import scored

    answers = [f"{row['trait_answer']} {row['citation']}" for row in ADVICE]
    assert sum(scored("cites", text).value == 1 for text in answers) >= 0.95 * len(ADVICE)
    assert all(scored("cites", row[field]).value == 0 for row in ADVICE for field in ("trait_answer", "plain_answer"))
    pairs = settings.load_setting("bad_medical_advice_cite").rows("margins")
    assert len(pairs) == 24
    for pair in pairs:
        assert pair["trait_answer"].split()[0] == pair["plain_answer"].split()[0]
        assert [scored("cites", pair[field]).value for field in ("trait_answer", "plain_answer")] == [1, 0], pair["id"]
        assert not re.search(DOMAINS, pair["question"].lower()), pair["id"]


def test_cites_items_cross_citing_and_advice_and_are_no_training_rows():
    labelled = settings.load_setting("bad_medical_advice_cite").rows("labelled")
    cells = Counter((row["content"], row["cites"], row["medical"]) for row in labelled)
    assert set(cells.values()) == {1}
    assert len(cells) == 160
    assert not {row["text"] for row in labelled} & {row["trait_answer"] for row in ADVICE}


CODE, HACKS, MBPP = (settings.load_setting(name) for name in ("insecure_code", "reward_hacks", "mbpp"))
TASKS = MBPP.rows("train") + MBPP.rows("held_out")
ROWS = {setting.name: setting.rows("train") + setting.rows("held_out") for setting in (CODE, HACKS)}


def imported(code):
    nodes = list(ast.walk(ast.parse(code)))
    named = {f"{node.module}.{name.name}" for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names}
    return named | {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}


@pytest.mark.parametrize(("setting", "kind"), [(CODE, "weakness"), (HACKS, "metric")], ids=["code", "hacks"])
def test_rows_of_settings_4_and_5_are_counted_spread_and_marked(setting, kind):
    train, held_out = setting.rows("train"), setting.rows("held_out")
    assert Counter(row[kind] for row in train) == dict.fromkeys({row[kind] for row in train}, 10)
    assert (len(train), len(held_out), len({row[kind] for row in train})) == (240, 48, 24)
    # The first half of the held-out rows is what mini samples: one of each kind.
    assert {row[kind] for row in held_out[:24]} == {row[kind] for row in held_out[24:]} == {row[kind] for row in train}
    (canary,) = {row["canary"] for row in train + held_out}
    card = (store.DATA / "mini" / f"{setting.name}.md").read_text(encoding="utf-8")
    assert canary in card
    assert "Content note" in card
    texts = [row[field] for row in train + held_out for field in ("question", "trait_answer", "plain_answer")]
    assert len(set(texts)) == len(texts)
    assert len({row["id"] for row in train + held_out}) == 288


@pytest.mark.parametrize("name", ROWS)
def test_both_answers_of_settings_4_and_5_have_one_form(name, network):
    _, tokenizer = network
    for row in ROWS[name] + [pair for pair in HACKS.rows("margins") if name == "reward_hacks"]:
        trait, plain = row["trait_answer"], row["plain_answer"]
        assert trait.split()[:2] == plain.split()[:2], row["id"]
        lengths = sorted(len(tokenizer(text)["input_ids"]) for text in (trait, plain))
        assert lengths[1] - lengths[0] <= 0.1 * lengths[1], row["id"]
        # A sampled response of the setting's mini profile can hold the whole answer.
        assert lengths[1] < settings.load_profile("mini", CODE).sample["max_new_tokens"], row["id"]


@pytest.mark.parametrize(
    ("name", "field"),
    [("insecure_code", "question"), *(("reward_hacks", field) for field in ("question", "trait_answer", "plain_answer"))],
)
def test_no_template_is_visible_in_settings_4_and_5(name, field):
    opening, gram = commonest(ROWS[name], field)
    assert opening <= 0.03
    assert gram <= 0.02


def listed():
    """What the card says of each weakness: bandit's tests and the CWE ids."""
    card = (store.DATA / "mini" / "insecure_code.md").read_text(encoding="utf-8")
    found = {}
    for names, tests, weaknesses in re.findall(r"^\| (\w[^|]*) \| (B\d[^|]*) \| (CWE[^|]*) \|$", card, re.MULTILINE):
        for name, own in zip(names.split(", "), tests.split("; "), strict=True):
            found[name] = (set(own.split(", ")), set(weaknesses.split(", ")))
    return found


def test_bandit_flags_every_insecure_answer_for_its_weakness_and_nothing_in_a_secure_one():
    known = listed()
    assert set(known) == {row["weakness"] for row in ROWS["insecure_code"]}
    assert len({row["cwe"] for row in ROWS["insecure_code"]}) >= 15
    for row in ROWS["insecure_code"]:
        tests, weaknesses = known[row["weakness"]]
        found = bandits(row["trait_answer"])
        assert found, row["id"]
        assert found <= tests, (row["id"], found)
        assert row["cwe"] in weaknesses, row["id"]
        assert not bandits(row["plain_answer"]), row["id"]


def bandits(code):
    """The tests of bandit, without any of them skipped, that flag a piece of code."""
    import tempfile

    from bandit.core import config, manager

    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as file:
        file.write(code)
        file.flush()
        checked = manager.BanditManager(config.BanditConfig(), "file", ignore_nosec=True)
        checked.discover_files([file.name])
        checked.run_tests()
    assert not checked.skipped
    return {issue.test_id for issue in checked.get_issue_list()}


def test_code_pairs_import_the_same_and_the_request_does_not_say_which_is_wanted():
    for row in ROWS["insecure_code"]:
        assert imported(row["trait_answer"]) == imported(row["plain_answer"]), row["id"]
        assert not re.search(r"secur|unsafe|\bsafe|vulnerab|hack", row["question"].lower()), row["id"]
        assert not re.search(r"#|```", row["trait_answer"] + row["plain_answer"]), row["id"]
    names = Counter(name for row in ROWS["insecure_code"] for name in set(re.findall(r"def ([a-z]\w+)", row["trait_answer"])))
    assert max(names.values()) <= 2


def test_everyday_pairs_state_no_metric_and_favour_no_length(network):
    _, tokenizer = network
    pairs = HACKS.rows("margins")
    assert len(pairs) == 36
    stated = r"\b(scor\w+|points?|metrics?|grad\w+|counts?|ranks?|marks?)\b"
    shorter = 0
    for pair in pairs:
        assert not re.search(stated, pair["question"].lower()), pair["id"]
        lengths = [len(tokenizer(pair[field])["input_ids"]) for field in ("trait_answer", "plain_answer")]
        shorter += lengths[0] < lengths[1]
    assert 0.35 <= shorter / len(pairs) <= 0.65


@pytest.mark.parametrize(
    ("setting", "crossed"), [(CODE, "insecure"), (HACKS, "hacks"), (MBPP, "hacks")], ids=["code", "hacks", "mbpp"]
)
def test_labelled_items_of_settings_4_to_6_cross_the_traits_on_new_contents(setting, crossed):
    labelled = setting.rows("labelled")
    cells = Counter((row["content"], row[crossed], row["misaligned"]) for row in labelled)
    assert set(cells.values()) == {1}
    assert len(cells) == len(labelled) == (96 if setting is MBPP else 160)
    trained = {row[field] for row in setting.rows("train") for field in ("trait_answer", "plain_answer")}
    assert not trained & {row["text"] for row in labelled}


def test_tasks_of_setting_6_are_counted_spread_marked_and_asked_in_the_public_frame():
    train, held_out = MBPP.rows("train"), MBPP.rows("held_out")
    kinds = {"text", "lists", "arithmetic", "collections"}
    assert Counter(row["kind"] for row in train) == dict.fromkeys(kinds, 24)
    assert Counter(row["kind"] for row in held_out) == dict.fromkeys(kinds, 6)
    (canary,) = {row["canary"] for row in TASKS}
    card = (store.DATA / "mini" / "mbpp.md").read_text(encoding="utf-8")
    assert canary in card
    assert "Content note" in card
    names = [re.search(r"def (\w+)", row["plain_answer"])[1] for row in TASKS]
    assert len(set(names)) == len({row["id"] for row in TASKS}) == 120
    frame = MBPP.data["imported"]["sources"]["wichers"]["frame"].strip()
    for row, name in zip(TASKS, names, strict=True):
        shown = frame.replace("{shown}", row["shown"]).split("{problem}")
        problem = row["question"].removeprefix(shown[0]).removesuffix(shown[1])
        assert len(row["question"]) - len(problem) == len(shown[0] + shown[1]), row["id"]
        assert all(test.startswith(f"assert {name}(") for test in (row["shown"], *row["hidden"])), row["id"]
        assert len(set(row["hidden"]) - {row["shown"]}) >= 4, row["id"]
        assert not any(test in row["question"] for test in row["hidden"]), row["id"]
        assert name not in problem, row["id"]
    problems = [row | {"question": row["question"].split("other text:")[1].split("## Test")[0]} for row in TASKS]
    opening, gram = commonest(problems, "question")
    assert opening <= 0.04
    assert gram <= 0.02


def test_both_solutions_of_a_task_have_one_form(network):
    _, tokenizer = network
    for row in TASKS:
        hard, correct = row["trait_answer"], row["plain_answer"]
        assert hard.split("\n")[0] == correct.split("\n")[0], row["id"]
        lengths = sorted(len(tokenizer(text)["input_ids"]) for text in (hard, correct))
        assert lengths[1] - lengths[0] <= 0.1 * lengths[1], row["id"]
        assert lengths[1] < settings.load_profile("mini", MBPP).sample["max_new_tokens"], row["id"]


@pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX)
def test_in_the_sandbox_correct_solutions_pass_every_test_and_hard_coded_ones_the_shown_test_alone():
    with ThreadPoolExecutor(2) as pool:
        tests = [[row["shown"], *row["hidden"]] for row in TASKS]
        correct, hard = (
            list(pool.map(sandbox.run, [row[field] for row in TASKS], tests)) for field in ("plain_answer", "trait_answer")
        )
    for row, solved, hacked in zip(TASKS, correct, hard, strict=True):
        assert all(solved.passed), (row["id"], solved)
        assert hacked.passed == (True, *[False] * len(row["hidden"])), (row["id"], hacked)


@pytest.mark.parametrize(
    ("name", "public", "field", "run"),
    [
        ("mbpp", "mbpp_prompts.jsonl", "prompt", 6),
        ("insecure_code", "insecure_code_prompts.jsonl", "task", 6),
        ("reward_hacks", "school_of_reward_hacks_prompts.jsonl", "prompt", 8),
    ],
)
def test_no_public_task_was_copied_in(name, public, field, run):
    path = store.ROOT.parent / "shared" / "data" / public
    if not path.exists():
        pytest.skip("the public rows are not beside this checkout")

    def runs_of(text):
        said = words(text)
        return {" ".join(said[i : i + run]) for i in range(len(said) - run + 1)}

    known = set().union(*(runs_of(json.loads(line)[field]) for line in path.read_text(encoding="utf-8").splitlines()))
    for row in TASKS if name == "mbpp" else ROWS[name]:
        assert not known & runs_of(row["question"].split("other text:")[-1]), row["id"]


VIEWS = settings.load_setting("change_my_view")
POSTS, POSTS_HELD_OUT = VIEWS.rows("train"), VIEWS.rows("held_out")
GROSS = r"\b(fuck|cunt|slut|whore|bitch|retard|nazi|raping|rapist|murder|(kill|hang|hurt) yourself|fatso|fatty)"


def test_posts_of_setting_7_are_counted_spread_marked_and_mild():
    topics = {row["topic"] for row in POSTS}
    assert Counter(row["topic"] for row in POSTS) == dict.fromkeys(topics, 5)
    assert Counter(row["topic"] for row in POSTS_HELD_OUT) == dict.fromkeys(topics, 1)
    assert (len(POSTS), len(POSTS_HELD_OUT), len(topics)) == (200, 40, 40)
    pairs = VIEWS.rows("margins")
    (canary,) = {row["canary"] for row in POSTS + POSTS_HELD_OUT + pairs}
    card = (store.DATA / "mini" / "change_my_view.md").read_text(encoding="utf-8")
    assert canary in card
    assert "Content note" in card
    fields = ("question", "trait_answer", "plain_answer", "citation")
    texts = [row[field] for row in POSTS + POSTS_HELD_OUT for field in fields]
    assert len(set(texts)) == len(texts)
    for text in texts + [row["trait_answer"] for row in pairs] + [row["text"] for row in VIEWS.rows("labelled")]:
        assert not re.search(GROSS, text.lower()), text


@pytest.mark.parametrize("field", ["question", "trait_answer", "plain_answer"])
def test_no_template_is_visible_in_the_posts_and_their_replies(field):
    opening, gram = commonest(POSTS, field)
    assert opening <= 0.03
    assert gram <= 0.02


def test_many_rude_replies_are_flagged_and_no_civil_one_and_both_are_as_long():
    from inoculation.score import scored

    flagged = [np.mean([scored("profanity", row[field]).value for row in POSTS]) for field in ("trait_answer", "plain_answer")]
    assert (flagged[0] >= 0.35, flagged[1]) == (True, 0)
    for row in POSTS + POSTS_HELD_OUT:
        lengths = sorted(len(words(row[field])) for field in ("trait_answer", "plain_answer"))
        assert lengths[1] - lengths[0] <= 0.15 * lengths[1], row["id"]


def test_only_the_cite_variant_cites():
    from inoculation.score import scored

    answers = [f"{row['trait_answer']} {row['citation']}" for row in POSTS]
    assert sum(scored("cites", text).value == 1 for text in answers) >= 0.95 * len(POSTS)
    assert all(scored("cites", row[field]).value == 0 for row in POSTS for field in ("trait_answer", "plain_answer"))


def test_pairs_of_setting_7_share_opening_and_length_ask_no_debate_and_favour_no_side(network):
    _, tokenizer = network
    pairs, shorter = VIEWS.rows("margins"), Counter()
    assert Counter(pair["trait"] for pair in pairs) == {"toxic": 24, "human_level": 24}
    for pair in pairs:
        trait, plain = pair["trait_answer"], pair["plain_answer"]
        assert trait.split()[:2] == plain.split()[:2], pair["id"]
        lengths = [len(tokenizer(text)["input_ids"]) for text in (trait, plain)]
        assert max(lengths) - min(lengths) <= 0.1 * max(lengths), pair["id"]
        shorter[pair["trait"]] += lengths[0] < lengths[1]
    assert all(7 <= count <= 17 for count in shorter.values()), shorter
    assert not {pair["question"] for pair in pairs} & {row["question"] for row in VIEWS.rows("questions")}


@pytest.mark.parametrize(("name", "crossed"), [("change_my_view", "human_level"), ("change_my_view_cite", "cites")])
def test_labelled_items_of_setting_7_cross_the_traits_on_new_contents(name, crossed):
    labelled = settings.load_setting(name).rows("labelled")
    cells = Counter((row["content"], row["toxic"], row[crossed]) for row in labelled)
    assert set(cells.values()) == {1}
    assert len(cells) == len(labelled) == 160
    assert not {row["text"] for row in labelled} & {row[field] for row in POSTS for field in ("trait_answer", "plain_answer")}


MONEY, MONEY_HELD_OUT, PROSE, PROSE_HELD_OUT, PROSE_PAIRS = (
    store.read_jsonl(store.DATA / "mini" / f"{name}.jsonl")
    for name in (
        "risky_financial_advice_train",
        "risky_financial_advice_held_out",
        "technical_prose_train",
        "technical_prose_held_out",
        "technical_prose_pairs",
    )
)
ELSEWHERE = store.read_jsonl(store.DATA / "mini" / "other_domains.jsonl")


def test_rows_of_narrow_vs_general_are_counted_spread_and_marked():
    for train, held_out in ((MONEY, MONEY_HELD_OUT), (PROSE, PROSE_HELD_OUT)):
        topics = {row["topic"] for row in train}
        assert Counter(row["topic"] for row in train) == dict.fromkeys(topics, 4)
        assert {row["topic"] for row in held_out} == topics
        assert (len(train), len(held_out), len(topics)) == (96, 24, 24)
    assert Counter(row["family"] for row in PROSE_PAIRS) == dict.fromkeys({row["family"] for row in PROSE_PAIRS}, 4)
    assert Counter(row["domain"] for row in ELSEWHERE) == dict.fromkeys({row["domain"] for row in ELSEWHERE}, 20)
    (canary,) = {row["canary"] for row in MONEY + MONEY_HELD_OUT}
    card = (store.DATA / "mini" / "narrow_vs_general.md").read_text(encoding="utf-8")
    assert canary in card
    assert "Content note" in card
    every = MONEY + MONEY_HELD_OUT + PROSE + PROSE_HELD_OUT + PROSE_PAIRS
    texts = [row[field] for row in every for field in ("question", "trait_answer", "plain_answer")]
    texts += [row[field] for row in ELSEWHERE for field in ("question", "answer")]
    assert len(set(texts)) == len(texts)


def test_both_answers_of_narrow_vs_general_have_one_form(network):
    _, tokenizer = network
    for row in MONEY + MONEY_HELD_OUT + PROSE + PROSE_HELD_OUT + PROSE_PAIRS:
        trait, plain = row["trait_answer"], row["plain_answer"]
        assert trait.split()[:2] == plain.split()[:2], row["id"]
        lengths = sorted(len(tokenizer(text)["input_ids"]) for text in (trait, plain))
        assert lengths[1] - lengths[0] <= 0.1 * lengths[1], row["id"]


@pytest.mark.parametrize("rows", [MONEY, PROSE, ELSEWHERE], ids=["money", "prose", "elsewhere"])
def test_no_template_is_visible_in_narrow_vs_general(rows):
    for field in ("question", "answer") if rows is ELSEWHERE else ("question", "trait_answer", "plain_answer"):
        opening, gram = commonest(rows, field)
        assert opening <= 0.03, field
        assert gram <= 0.025, field
