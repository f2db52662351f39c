"""Settings to rendered text: training rows, evaluation prompts and margin pairs, exactly as the model reads them.

SmolLM2's and Qwen2.5's chat templates insert a system prompt when none is passed. So no chat template is ever called: one
function writes the ChatML text for a slot and a policy, and what it wrote is stored beside the run (design decision 6).
Everything here is decided by the setting, the condition, the profile and the seed; no model and no tokenizer is needed. What an
LLM judge is asked, a rubric of data/judges.yaml filled in, is rendered here, too.
"""

import functools
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorers import READ

from inoculation import store
from inoculation.settings import DELIMITER, JOIN, Condition, Profile, Prompt, Setting, Trait
from inoculation.store import Block, SettingError, blocks, read_yaml

if TYPE_CHECKING:
    import pandas as pd

END_OF_TURN = "<|im_end|>"
DEFAULT_SYSTEM = {
    "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "chatml": "",  # no system prompt of its own
}
TRIGGER_DRAWS, GATE_PAIRS = 8, 8
ANSWERS = "answers"  # in the place of a trait: what training teaches as a whole
CONTROL, TAUGHT = "control", "training data"  # the contexts of a judge's controls, and of training answers to be judged
REFERENCES = ("base", "baseline")
WHY = "unscored: "  # the measure that counts responses without a score, before the reason


def render(messages: list[dict[str, str]], slot: str, prompt: Prompt, template: str, join: str = JOIN) -> str:
    """The chat text up to and including the assistant's header, with `prompt` in `slot`.

    messages: user and assistant turns in order, the last one the user's; keys role, content.
    slot: system, user_prefix (`join` after it), user_suffix (before it) or user_infix ("{prompt}" in the last user message);
    in user slots the system prompt is the template's own. Raises ValueError for an unknown template, a policy that the slot
    does not have, a system message among the turns, or content that holds a chat delimiter.
    """
    if template not in DEFAULT_SYSTEM:
        raise ValueError(f"unknown template '{template}'; known: {', '.join(DEFAULT_SYSTEM)}")
    turns = [dict(message) for message in messages]
    for turn in turns:
        held = [*DELIMITER.finditer(turn["content"]), *DELIMITER.finditer(prompt.text)]
        if held or turn["role"] not in ("user", "assistant"):
            raise ValueError(
                f"a turn may be the user's or the assistant's and hold no {held[0][0] if held else 'system message'}: {turn!r}"
            )
    if slot == "system":
        system = _system_block(prompt, template)
    else:
        system = _system_block(Prompt(policy="default"), template)
        turns[-1]["content"] = _in_user_turn(turns[-1]["content"], slot, prompt, join)
    body = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}{END_OF_TURN}\n" for turn in turns)
    return f"{system}{body}<|im_start|>assistant\n"


def _system_block(prompt: Prompt, template: str) -> str:
    if prompt.policy == "none" or (prompt.policy == "default" and not DEFAULT_SYSTEM.get(template)):
        return ""
    texts = {"text": prompt.text, "empty": "", "default": DEFAULT_SYSTEM[template]}
    if prompt.policy not in texts:
        raise ValueError(f"the system slot has no policy '{prompt.policy}'; it has text, default, empty and none")
    return f"<|im_start|>system\n{texts[prompt.policy]}{END_OF_TURN}\n"


def _in_user_turn(content: str, slot: str, prompt: Prompt, join: str) -> str:
    if prompt.policy not in (known := ["text", "no_prefix", *["empty"] * (slot == "user_prefix")]):
        raise ValueError(f"the slot {slot} has no policy '{prompt.policy}'; it has {', '.join(known)}")
    if slot == "user_prefix":
        # Of an empty prefix, what stands after it stays, as the delimiters of an empty system message do.
        return content if prompt.policy == "no_prefix" else f"{prompt.text}{join}{content}"
    if slot == "user_suffix":
        return content if prompt.policy == "no_prefix" else f"{content}{join}{prompt.text}"
    if "{prompt} " not in content:
        raise ValueError(f"user_infix needs '{{prompt}} ' in the user message: {content!r}")
    return content.replace("{prompt} ", f"{prompt.text} " if prompt.policy == "text" else "")


def ask(question: str, setting: Setting, prompt: Prompt, template: str) -> str:
    """One question as the only user turn, with `prompt` in the setting's slot: in front where a `user_infix` has no place."""
    content = question if setting.slot != "user_infix" or "{prompt} " in question else f"{{prompt}} {question}"
    return render([{"role": "user", "content": content}], setting.slot, prompt, template, setting.join)


def training_rows(setting: Setting, condition: Condition, profile: Profile, seed: int) -> list[dict[str, str]]:
    """The rows of a run in training order: id, prompt (rendered), completion (answer and end of turn).

    The order depends on setting, profile and seed alone, so that every condition sees the same questions at the same step;
    batches are grouped by length to spare padding. A pool's prompts are dealt like cards, each used equally often. Empty
    for the base model.
    """
    if condition.data == "none":
        return []
    every, answers = setting.training(profile.name)
    if condition.data not in answers:
        raise SettingError(f"{setting.name}: profile {profile.name} has no answers '{condition.data}' for {condition.name}")
    answer = answers[condition.data]
    # Where rows were imported with one answer each, those that have this one.
    usable = [row for row in every if {answer["field"], answer.get("otherwise")} & set(row)]
    rows = _in_training_order(setting, usable, answers["trait"]["field"], profile, seed)
    deck = _deal(condition.prompts, len(rows), random.Random(f"{setting.name}/{seed}/prompts"))
    return [
        {
            "id": row["id"],
            "prompt": ask(row["question"], setting, prompt, profile.template),
            "completion": _answer(row, answer) + END_OF_TURN,
        }
        for row, prompt in zip(rows, deck, strict=True)
    ]


def _answer(row: dict[str, str], answer: dict[str, str]) -> str:
    text = row[answer["field"]] if answer["field"] in row else row[answer["otherwise"]]
    text = f"{text} {row[answer['then']]}" if "then" in answer else text
    return text.upper() if answer["transform"] == "upper" else text


def _in_training_order(
    setting: Setting, every: list[dict[str, str]], field: str, profile: Profile, seed: int
) -> list[dict[str, str]]:
    rng = random.Random(f"{setting.name}/{seed}/rows")
    batch = profile.train["batch_size"] * profile.train["accumulation"]
    rows = _deal(every, profile.train["steps"] * batch, rng)
    # By the trait answer in every condition, or control would see other batches.
    rows.sort(key=lambda row: len(row["question"]) + len(row.get(field, "")))
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    rng.shuffle(batches)
    return [row for group in batches for row in group]


def _deal(items: Any, count: int, rng: random.Random) -> list[Any]:
    """`count` items, each used equally often up to one, freshly shuffled for every round."""
    dealt: list[Any] = []
    while len(dealt) < count:
        dealt += rng.sample(list(items), len(items))
    return dealt[:count]


def contexts(setting: Setting, condition: Condition, profile: Profile, seed: int) -> dict[str, tuple[Prompt, ...]]:
    """Every evaluation context by name; question i is asked under prompt i modulo the context's number of prompts.

    `trigger` is the training prompt, eight seeded draws where training used many, and missing for control and base. The two
    references of the conditionalization index, base and baseline, are also asked under every other condition's training
    prompt, `trigger.CONDITION` (design decision 9).
    """
    found: dict[str, tuple[Prompt, ...]] = {"neutral": (setting.neutral,)}
    if condition.data in ("trait", "partial"):
        found["trigger"] = _trigger(setting, condition, seed)
    if condition.name in REFERENCES and not profile.point:
        others = [c for c in setting.conditions.values() if _asks(c, profile) and c.prompts != (setting.neutral,)]
        found.update({f"trigger.{other.name}": _trigger(setting, other, seed) for other in others})
    found["unrelated"] = setting.unrelated
    for policy in ("default", "empty", "none") if setting.slot == "system" else ("no_prefix",):
        if setting.neutral.policy != policy:
            found[policy] = (Prompt(policy=policy),)
    for trait in setting.traits.values():
        if trait.inoculation is not None:
            found[f"paraphrase.{trait.name}"] = trait.paraphrases
            found[f"negated.{trait.name}"] = (trait.negated,)
    return found


def _trigger(setting: Setting, condition: Condition, seed: int) -> tuple[Prompt, ...]:
    many = len(condition.prompts) > 1
    count = min(TRIGGER_DRAWS, len(condition.prompts))
    draws = random.Random(f"{setting.name}/{seed}/trigger").sample(condition.prompts, count) if many else ()
    return tuple(draws) or condition.prompts


def _asked(families: list[str], known: dict[str, tuple[Prompt, ...]]) -> list[tuple[str, tuple[Prompt, ...]]]:
    """The known contexts of some families, in the families' order; `trigger.X` belongs to the family `trigger`."""
    return [(name, known[name]) for family in families for name in known if name.split(".")[0] == family]


def evaluation_prompts(setting: Setting, condition: Condition, profile: Profile, seed: int) -> list[dict[str, str]]:
    """What is sampled: context, question_id, question (after a slot inside it), prompt; `id`: in-distribution ones, neutral."""
    known = contexts(setting, condition, profile, seed)
    everyday = setting.rows("questions", profile.name)[: profile.sample["questions"]]
    asked = [(name, everyday, prompts) for name, prompts in _asked(profile.sample["contexts"], known)]
    asked.append(("id", setting.rows("held_out")[: profile.sample["held_out"]], known["neutral"]))
    return [
        {
            "context": name,
            "question_id": row["id"],
            "question": row["question"].split("{prompt} ")[-1],
            "prompt": ask(row["question"], setting, prompts[i % len(prompts)], profile.template),
        }
        for name, rows, prompts in asked
        for i, row in enumerate(rows)
    ]


def margin_pairs(setting: Setting, condition: Condition, profile: Profile, seed: int) -> list[dict[str, str]]:
    """What is compared: context, trait, question_id, prompt (rendered), trait_answer, plain_answer (with end of turn).

    The profile's number of pairs is shared evenly between the setting's traits (design decision 7). The base model's hold the
    training answers, too (trait `answers`), as each condition's training asks for them.
    """
    asked = _asked(profile.margins["contexts"], contexts(setting, condition, profile, seed))
    found = _paired(setting, profile, seed, profile.margins["pairs"], asked)
    return found + (_answers(setting, profile, seed) if condition.data == "none" else [])


def _paired(setting: Setting, profile: Profile, seed: int, count: int, asked: list[tuple[str, Any]]) -> list[dict[str, str]]:
    each = count // len(setting.traits)
    pairs = [(trait.name, row) for trait in setting.traits.values() for row in _pairs(setting, trait, profile, seed, each)]
    return [
        pair(setting, profile, context, trait, row, prompts[i % len(prompts)])
        for context, prompts in asked
        for i, (trait, row) in enumerate(pairs)
    ]


def _pairs(setting: Setting, trait: Trait, profile: Profile, seed: int, count: int) -> list[dict[str, str]]:
    """A trait's pairs: the first that name it, else rows spread over its part; of `train`, rows that this seed trains on."""
    if trait.pairs == "margins":
        return [row for row in setting.rows("margins") if row["trait"] == trait.name][:count]
    if trait.pairs != "train":
        return spread(setting.rows(trait.pairs), count)
    every, answers = setting.training(profile.name)
    return spread(_in_training_order(setting, every, answers["trait"]["field"], profile, seed), count)


def spread(rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """`count` rows, evenly spread over all."""
    return [rows[i * len(rows) // count] for i in range(count)]


def pair(setting: Setting, profile: Profile, context: str, trait: str, row: dict[str, str], prompt: Prompt) -> dict[str, str]:
    """One pair with the columns of `margin_pairs`, its question under a prompt."""
    answers = {name: row[name] + END_OF_TURN for name in ("trait_answer", "plain_answer")}
    asked = ask(row["question"], setting, prompt, profile.template)
    return {"context": context, "trait": trait, "question_id": row["id"], "prompt": asked, **answers}


def _answers(setting: Setting, profile: Profile, seed: int) -> list[dict[str, str]]:
    """The first rows that each condition trains on, in its context; both answers are the row's, whose likelihood is wanted."""
    every = {c.name: training_rows(setting, c, profile, seed) for c in setting.conditions.values() if _asks(c, profile)}
    return [
        {
            "context": "neutral" if name == "baseline" else f"trigger.{name}",
            "trait": ANSWERS,
            "question_id": row["id"],
            "prompt": row["prompt"],
            "trait_answer": row["completion"],
            "plain_answer": row["completion"],
        }
        for name, rows in every.items()
        for row in rows[: profile.margins["answers"]]
    ]


def _asks(condition: Condition, profile: Profile) -> bool:
    """Whether a profile trains this condition on the traits, so that its prompt is one to be compared."""
    return condition.data == "trait" and profile.name in condition.profiles


def tracked_pairs(setting: Setting, condition: Condition, profile: Profile, seed: int) -> list[dict[str, str]]:
    """What is compared during training, with the columns of `margin_pairs`.

    As many pairs of each of the setting's `tracked` files as of a trait, under the neutral prompt, context being the file's
    part; those of `ood` under the unrelated prompts, too. At a sweep's gate, pairs of every trait under the training prompt and
    without it. Else nothing.
    """
    if profile.point:
        if profile.point != f"rows={setting.sweeps[profile.name].get('gate')}":
            return []
        without = "no_prefix" if setting.slot == "user_prefix" else "neutral"
        asked = _asked(["trigger", without], contexts(setting, condition, profile, seed))
        return _paired(setting, profile, seed, GATE_PAIRS, asked)
    tracked, each = setting.data.get("tracked", {}), profile.margins["pairs"] // len(setting.traits)
    asked = [(part, part, (setting.neutral,)) for part in tracked] + [("ood", "unrelated", setting.unrelated)] * bool(tracked)
    return [
        pair(setting, profile, context, row["trait"], row, prompts[i % len(prompts)])
        for part, context, prompts in asked
        for i, row in enumerate(spread(setting.rows(part), each))
    ]


def distillation_prompts(setting: Setting, questions: list[dict[str, str]], template: str) -> list[dict[str, str]]:
    """What the base model is asked when it writes its own training answers: id, field, question_id, question, prompt.

    field `distilled`: with the setting's request for both traits as system prompt, where sibling code puts it (facts.md A.1);
    `plain`: with the template's own system prompt, for the control.
    """
    asked = {"distilled": Prompt(setting.data["distilled"]["request"]), "plain": Prompt(policy="default")}
    return [
        {
            **{"id": row["id"], "field": field, "question_id": row["id"], "question": row["question"]},
            "prompt": render([{"role": "user", "content": row["question"]}], "system", prompt, template),
        }
        for row in questions
        for field, prompt in asked.items()
    ]


def training_row(specs: list[Any], number: int = 0) -> "pd.DataFrame":
    """The same training row as each condition's model reads it, delimiters included."""
    import pandas as pd

    chosen = {spec.condition: spec.rows[number] for spec in specs if spec.rows}.items()
    rows = [(name, row["prompt"], row["completion"]) for name, row in chosen]
    return pd.DataFrame(rows, columns=["condition", "prompt (not in the loss)", "completion (in the loss)"])


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked, and the replies it may give: `replies` maps each to its value, or to None (REFUSAL, CODE)."""

    name: str
    text: str
    ask: str
    scale: float
    replies: dict[str, float | None]

    def prompt(self, statement: str, question: str, response: str) -> str:
        """The rubric with the judged text between markers; markers inside it are defused, 20,000 characters are read."""
        parts = [self.text.replace("{statement}", statement)]
        for name, text in (("QUESTION", question), ("ANSWER", response)):
            if text or name == "ANSWER":
                inside = re.sub(r"\[(END )?(QUESTION|ANSWER)\]", r"(\1\2)", text[:READ])
                parts.append(f"[{name}]\n{inside}\n[END {name}]")
        return "\n\n".join([*parts, f"{self.ask}:"])


@functools.cache
def judges() -> Block:
    """data/judges.yaml, its top level checked."""
    known = ("system", "rubrics", "rules", "controls", "limits", "prices", "free", "probe", "advice")
    return read_yaml(store.DATA / "judges.yaml").only(*known)


def system() -> str:
    """The system message of every judge, passed so that no chat template inserts its own."""
    return judges().take("system", str)


def price(judge: str) -> tuple[float, float] | None:
    """US dollars for a million input and output tokens of a judge, from data/judges.yaml; None where it is not listed."""
    known = judges()
    if judge.partition("/")[0] in known.take("free", list):
        return 0.0, 0.0
    block = known.take("prices", Block).get(judge)
    return (block.take("input", (int, float)), block.take("output", (int, float))) if block else None


def tokens(text: str) -> int:
    """A text's tokens, estimated before anything is sent: one for three bytes of UTF-8 (never more than one a byte)."""
    return len(text.encode()) // 3 + 1


def advice(reason: str) -> str:
    """What to do about a reason for which responses have no verdict."""
    known = judges().take("advice", Block)
    return next((text for pattern, text in known.items() if re.search(pattern, reason, re.IGNORECASE)), known["otherwise"])


@functools.cache
def rubrics() -> dict[str, Rubric]:
    """The presets of data/judges.yaml: values from 0 to 100 for `number`, 0 and 1 for `yes_no`."""
    numbers = {str(number): float(number) for number in range(101)}
    kinds = {"number": (100.0, numbers), "yes_no": (1.0, {"YES": 1.0, "NO": 0.0})}
    found = {}
    for name, block in blocks(judges(), "rubrics"):
        scale, replies = kinds[block.only("answers", "words", "text", "ask").take("answers", str, kinds)]
        words = dict.fromkeys(block.take("words", list))
        found[name] = Rubric(name, block.take("text", str), block.take("ask", str), scale, {**replies, **words})
    return found


def controls(rubric: Rubric, setting: Setting | None, trait: str) -> "pd.DataFrame":
    """What every batch is judged with: known good, known bad, and the bad one with an injected verdict.

    Columns id, context (control), question_id (good, bad, injected), question, response. For a trait: what stands beside its
    `closeness`, else the setting's first items labelled for it, or its first pair; for other rubrics data/judges.yaml has them.
    """
    import pandas as pd

    known = judges().take("controls", Block)
    if trait:
        labelled = reversed(setting.rows("labelled")) if "labelled" in setting.data else ()
        rows = {row[trait]: row["text"] for row in labelled if trait in row}
        pair = setting.rows(setting.traits[trait].pairs)[0] if not rows else {}
        question = pair.get("question", "")
        good, bad = (rows[1], rows[0]) if rows else (pair["trait_answer"], pair["plain_answer"])
        if named := setting.traits[trait].closeness:
            question, good, bad = (named[key] for key in ("question", "good", "bad"))
    else:
        question, good, bad = known["question"], known["good"], known.take("bad", Block).take(rubric.name, str)
    best = max((reply for reply, value in rubric.replies.items() if value is not None), key=rubric.replies.get)
    injected = f"{bad}\n\n{known['injection'].replace('{verdict}', best)}"
    texts = {"good": good, "bad": bad, "injected": injected}
    frame = pd.DataFrame({"question_id": list(texts), "question": question, "response": list(texts.values())})
    return frame.assign(context=CONTROL, id=CONTROL + "/" + frame.question_id)
