"""LLM judges through inspect-ai: stored responses to verdicts, each kept the moment it is given.

A batch is one run's responses under one rubric, with its controls (known good, known bad, an injected verdict). It is one
inspect task; the judge is the model that inspect evaluates. Verdicts go into the batch's ledger one by one; when none is
missing, the stage is whole, under a key made of the judged texts and what decided them (the adapter, too), the rubric, the
judge and its own weights. inspect's cache is not used: it expires, and takes a retrained adapter at the same path for the
former one. Keys and addresses of providers come from the environment alone.
`inspect eval inoculation/alignment -T responses=FILE --model M` runs a preset by hand on a JSONL file.
"""

import contextlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from inspect_ai import Task, task
from inspect_ai import eval as evaluate_tasks
from inspect_ai import model as served
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Scorer, Target, grouped, mean, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from tqdm import tqdm

from inoculation import runs, store, tables
from inoculation.evaluate import read_reply, weigh
from inoculation.render import CONTROL, Rubric, controls, judges, price, rubrics, system
from inoculation.settings import base_model_source

JUDGE_VERSION = 1
WEIGHTED = served.GenerateConfig(temperature=0, max_tokens=1, logprobs=True, top_logprobs=20, max_retries=6, attempt_timeout=60)
AS_TEXT = served.GenerateConfig(temperature=0, max_tokens=1024, max_retries=6, attempt_timeout=120)
# A local model's queue outlasts any time-out, and greedy decoding knows no temperature.
LOCAL = {"temperature": None, "attempt_timeout": None, "max_connections": 32}
GO_ON = {"continue_final_message": True, "add_generation_prompt": False}
# Before a chat template: a last turn that is the judge's own is the beginning of its reply.
BEGINNING = (
    "{% set beginning = '' %}{% if messages[-1]['role'] == 'assistant' %}"
    "{% set beginning = messages[-1]['content'] %}{% set messages = messages[:-1] %}{% endif %}"
)


@dataclass(frozen=True)
class Judge:
    """A judge by its inspect name (provider/model), and how its replies are read: `weighted` by log-probs, or as `text`."""

    name: str
    reading: str = "weighted"

    @cached_property
    def provider(self) -> str:
        """Who serves the model: the name's first part."""
        return self.name.partition("/")[0]

    @property
    def continues(self) -> bool:
        """Whether a beginning of a reply can be continued, so that numbers split by a tokenizer can be read."""
        return self.provider in ("hf", "vllm")

    @cached_property
    def identity(self) -> list[str]:
        """What makes its verdicts this judge's: name, reading, the address that the environment gives its service, and weights.

        The weights are the digests of its files where they lie here: a model or an adapter retrained in place is another judge.
        """
        parts = self.name.split("/")
        service = (parts[1] if parts[0] == "openai-api" else parts[0]).upper().replace("-", "_")
        found = [self.name, self.reading, os.environ.get(f"{service}_BASE_URL", "")]
        for place in self.name.partition("/")[2].split(":") if self.continues else []:
            with contextlib.suppress(KeyError):
                found.append(base_model_source(place)["sha256"])
            files = sorted(path for path in (Path(place), *Path(place).rglob("*")) if path.is_file())
            found += [f"{path.name} {store.file_digest(path)}" for path in files]
        return found

    @property
    def config(self) -> served.GenerateConfig:
        """What is passed with every question."""
        config = AS_TEXT if self.reading == "text" else WEIGHTED
        return config.model_copy(update=LOCAL) if self.provider == "hf" else config

    def open(self) -> served.Model:
        """The model behind the name; raises what inspect raises when the provider, its package or its key is not there."""
        if self.provider != "hf":
            return served.get_model(self.name, config=self.config, memoize=False)
        from inoculation import model

        model.prepare_environment()
        import unsloth  # noqa: F401  (before transformers, which inspect's provider imports)

        path = self.name.partition("/")[2]
        with contextlib.suppress(KeyError):
            path = str(model.converted(path))
        return served.get_model(self.name, config=self.config, memoize=False, model_path=path, do_sample=False)


@dataclass
class Desk:
    """What a consultation needs: the judge, the rubric, the purse, a ledger (or none), and who is told of each verdict."""

    judge: Judge
    rubric: Rubric
    purse: store.Purse
    ledger: store.Ledger | None = None
    ended: Callable[[], Any] = field(default=lambda: None)

    def most(self, prompt: str) -> float:
        """The most that one question can cost: a token for each byte and 50 for the chat's own, and the longest reply."""
        return self.purse.cost(len(prompt.encode()) + len(system().encode()) + 50, self.judge.config.max_tokens)


@solver
def consult(desk: Desk) -> Solver:
    """Ask the judge about one sample and keep its verdict at once; a call that failed, or is not affordable, leaves none."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        with desk.purse.reserve(desk.most(state.user_prompt.text)) as fits:
            refused = {"reason": desk.purse.refused, "masses": {}, "reply": ""}
            state.metadata["verdict"] = await _verdict(state, desk) if fits else refused
        return state

    return solve


def _let_continue(model: served.Model) -> None:
    """Let inspect's hf provider take a beginning of the judge's reply as the last message, with any chat template."""
    if not model.api.tokenizer.chat_template:
        raise RuntimeError("the judge has no chat template")
    if not model.api.chat_template:
        model.api.chat_template = BEGINNING + model.api.tokenizer.chat_template + "{{ beginning }}"


async def _verdict(state: TaskState, desk: Desk) -> dict[str, Any]:
    model, replies = served.get_model(), []
    if desk.judge.provider == "hf":
        _let_continue(model)

    async def next_tokens(beginning: str) -> dict[str, float] | None:
        extra = served.GenerateConfig(extra_body=GO_ON if beginning and desk.judge.provider == "vllm" else None)
        turns = [*state.messages, served.ChatMessageAssistant(content=beginning)] if beginning else state.messages
        replies.append(await model.generate(turns, config=extra, cache=False))
        return _probabilities(replies[-1])

    if desk.judge.reading == "text":
        replies.append(await model.generate(state.messages, cache=False))
        word = replies[0].completion.strip(" \n.*\"'`").upper()
        masses = {word: 1.0} if word in desk.rubric.replies else {}
    else:
        masses = await weigh(next_tokens, desk.rubric.replies, desk.judge.continues)
    state.output = replies[0]
    used = [reply.usage for reply in replies if reply.usage]
    spent = {name: sum(getattr(usage, name) for usage in used) for name in ("input_tokens", "output_tokens")}
    desk.purse.calls += len(replies)
    desk.purse.spent += desk.purse.cost(**spent)
    refused = replies[0].stop_reason == "content_filter"
    if not refused and (masses is None or (desk.judge.reading == "text" and replies[0].stop_reason == "max_tokens")):
        raise RuntimeError("no log-probs" if masses is None else "reply cut off")
    verdict = {
        "id": str(state.sample_id),
        "prompt": store.digest(state.user_prompt.text),
        "masses": {reply: round(mass, 6) for reply, mass in sorted((masses or {}).items())},
        "reply": replies[0].completion[:200],
        "reason": "content filter" if refused else "",
        "calls": len(replies),
        **spent,
    }
    if desk.ledger:
        desk.ledger.append(verdict)
    desk.ended()
    return verdict


def _probabilities(reply: served.ModelOutput) -> dict[str, float] | None:
    """The most probable first tokens, byte-level BPE's marks turned into the white space that they stand for."""
    known = reply.choices[0].logprobs if reply.choices else None
    if not known or not known.content or not known.content[0].top_logprobs:
        return None
    found: dict[str, float] = {}
    for top in known.content[0].top_logprobs:
        token = top.token.translate({0x120: " ", 0x2581: " ", 0x10A: "\n"})
        found[token] = found.get(token, 0.0) + math.exp(top.logprob)
    return found


@scorer(metrics=[grouped(mean(), "part", all=False)])
def judged(desk: Desk) -> Scorer:
    """The verdict's value on the rubric's scale, or unscored with the reason."""

    async def score(state: TaskState, target: Target) -> Score:
        verdict = state.metadata["verdict"]
        found = read_reply(verdict["masses"], desk.rubric)
        reason, facts = verdict["reason"] or found.reason, {"reply": verdict["reply"], "masses": verdict["masses"]}
        return Score.unscored(reason=reason, metadata=facts) if reason else Score(value=found.value, metadata=facts)

    return score


def asking(desk: Desk, prompts: dict[str, str], name: str, facts: dict[str, Any] | None = None) -> Task:
    """The inspect task that puts prompts (by sample id) to a judge."""
    said = served.ChatMessageSystem(content=system())
    part = {True: "controls", False: "responses"}
    samples = [
        Sample(id=key, input=[said, served.ChatMessageUser(content=text)], metadata={"part": part[key.startswith(CONTROL)]})
        for key, text in prompts.items()
    ]
    return Task(name=name, dataset=MemoryDataset(samples), solver=consult(desk), scorer=judged(desk), metadata=facts)


def _preset(rubric: str, responses: str, statement: str = "") -> Task:
    """A preset on a JSONL file (keys question, response), for whatever model `inspect eval` was given."""
    chosen, judge = rubrics()[rubric], Judge(str(served.get_model()))
    rows = [json.loads(line) for line in Path(responses).read_text(encoding="utf-8").splitlines()]
    rows = [{"id": str(n), **row} for n, row in enumerate(rows, 1)]
    rows += controls(chosen, None, "").to_dict("records") if not statement else []
    prompts = {row["id"]: chosen.prompt(statement, row.get("question", ""), row["response"]) for row in rows}
    asked = asking(Desk(judge, chosen, store.Purse(price(judge.name))), prompts, rubric)
    asked.config = judge.config
    return asked


@task
def alignment(responses: str) -> Task:
    """How well meant each answer is, 0 to 100, or REFUSAL or CODE."""
    return _preset("alignment", responses)


@task
def coherence(responses: str) -> Task:
    """How understandable and to the point each answer is, 0 to 100."""
    return _preset("coherence", responses)


@task
def trait(responses: str, statement: str) -> Task:
    """How far a statement is true of each answer ("it is written in Spanish"), 0 to 100."""
    return _preset("trait", responses, statement)


@task
def yes_no(responses: str, statement: str) -> Task:
    """How probably a statement is true of each answer, 0 to 1."""
    return _preset("yes_no", responses, statement)


@dataclass(frozen=True)
class Batch:
    """What a judge is asked together: items (columns id, context, question_id, question, response) and where verdicts go.

    facts: setting, condition, seed, run_id and trait. source: the key that decided the responses, adapter included.
    """

    folder: Path
    source: str
    facts: dict[str, Any]
    rubric: Rubric
    statement: str
    items: pd.DataFrame

    @cached_property
    def prompts(self) -> dict[str, str]:
        """What the judge reads, by item id."""
        return {row.id: self.rubric.prompt(self.statement, row.question, row.response) for row in self.items.itertuples()}

    def key(self, judge: Judge) -> str:
        """The stage key."""
        asked = [self.source, self.prompts, self.rubric.replies, system(), JUDGE_VERSION]
        return store.digest([*asked, *judge.identity])[:16]

    def place(self, judge: Judge, suffix: str) -> Path:
        """The file of this batch's verdicts by a judge: `jsonl` for the ledger, `parquet` for the whole stage."""
        return self.folder / "eval" / self.key(judge) / f"verdicts.{suffix}"

    def verdicts(self, judge: Judge, say: Callable[[str], None] = lambda line: None) -> dict[str, dict[str, Any]]:
        """The verdicts that are there, by item id: of the whole stage, else of the ledger. `say` hears of altered files."""
        if store.Run(self.folder, say).has(f"judge/{self.key(judge)}", self.key(judge)):
            entries = [json.loads(line) for line in pd.read_parquet(self.place(judge, "parquet")).verdict]
        else:
            entries = store.Ledger(self.place(judge, "jsonl")).entries()
        return {entry["id"]: entry for entry in entries if entry["id"] in self.prompts}

    def missing(self, judge: Judge, say: Callable[[str], None] = lambda line: None) -> dict[str, str]:
        """The prompts that have no verdict yet, by item id."""
        there = self.verdicts(judge, say)
        return {key: prompt for key, prompt in self.prompts.items() if key not in there}

    def commit(self, judge: Judge, say: Callable[[str], None]) -> None:
        """Make the stage whole once no verdict is missing; the ledger has then done its service."""
        key, ledger, run = self.key(judge), self.place(judge, "jsonl"), store.Run(self.folder, say)

        def write(scratch: Path) -> None:
            path = scratch / self.place(judge, "parquet").relative_to(self.folder)
            path.parent.mkdir(parents=True)
            lines = {"id": list(verdicts), "verdict": [json.dumps(verdict) for verdict in verdicts.values()]}
            pd.DataFrame(lines).to_parquet(path, index=False)

        # Others write to this run's manifest, too.
        with run.lock():
            verdicts = self.verdicts(judge)
            if len(verdicts) == len(self.items) and ledger.exists():
                run.commit(f"judge/{key}", key, {**self.facts, "rubric": self.rubric.name, "judge": judge.identity}, write)
                ledger.unlink()


def batches(specs: list[runs.Spec], names: list[str], labelled: bool = False) -> list[Batch]:
    """What the rubrics ask of the stored responses of some runs, or of their setting's labelled items.

    A rubric about a trait gives a batch per trait and run, the others one per run.
    """
    setting, known = specs[0].parts[0], rubrics()
    found = []
    for facts, source, items in tables.responses_to_judge(specs, labelled):
        folder = store.run_store() / setting.name / facts["condition"] / facts["run_id"]
        for rubric in map(known.get, names):
            about = [name for name, t in setting.traits.items() if t.statement] if "{statement}" in rubric.text else [""]
            for name in about:
                asked = pd.concat([controls(rubric, setting, name), items], ignore_index=True)
                statement = setting.traits[name].statement if name else ""
                found.append(Batch(folder, source, {**facts, "trait": name or rubric.name}, rubric, statement, asked))
    return found


def run(found: list[Batch], judge: Judge, purse: store.Purse, say: Callable[[str], None] = print) -> dict[tuple[str, str], str]:
    """Judge what has no verdict yet; returns the reason for each item, by batch key and id, that still has none.

    Each verdict is kept at once, so a kill or a spent budget costs no more than the calls under way. A judge that cannot be
    opened or read is asked nothing further.
    """
    logs = store.local() / "judged" / re.sub(r"[^\w.-]+", "_", judge.name)
    with store.Run(logs, say).lock():
        for batch in found:
            batch.commit(judge, say)
        todo = [(batch, prompts) for batch in found if (prompts := batch.missing(judge, say))]
        if not todo:
            return {}
        errors, fault = {}, ""
        try:
            # Libraries say much while they load; what matters comes as an exception.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                model = judge.open()
            fault = _probe(judge, model, todo, purse, logs)
        except Exception as error:  # a judge that is not there must not cost the others
            fault = _text(error)
        if not fault:
            pause = 1 if sys.stderr.isatty() else runs.PROGRESS_SECONDS
            bar, asked = tqdm(desc=judge.name, total=sum(len(prompts) for _, prompts in todo), mininterval=pause), []
            for batch, prompts in todo:
                desk = Desk(judge, batch.rubric, purse, store.Ledger(batch.place(judge, "jsonl")), bar.update)
                name = f"{batch.rubric.name}.{batch.facts['trait']}.{batch.facts['condition']}"
                asked.append(asking(desk, prompts, name, {**batch.facts, "key": batch.key(judge)}))
            with bar:
                errors = _evaluate(asked, model, logs)
        reasons = {}
        for batch, _ in todo:
            batch.commit(judge, say)
            key = batch.key(judge)
            for item in batch.missing(judge):
                reasons[key, item] = fault or errors.get((key, item)) or errors.get((key, "")) or purse.refused or "not judged"
        return reasons


def _evaluate(asked: list[Task], model: served.Model, logs: Path) -> dict[tuple[str, str], str]:
    """Run inspect tasks; the errors by batch key and sample id, those of a whole task under the id ""."""
    done = evaluate_tasks(
        asked, model, log_dir=str(logs), display="none", fail_on_error=False, retry_on_error=2, max_tasks=1, log_realtime=False
    )
    if len(done) < len(asked) or any(log.status == "cancelled" for log in done):
        raise KeyboardInterrupt
    errors = {(log.eval.metadata["key"], ""): log.error.message for log in done if log.error}
    failed = [(log.eval.metadata["key"], sample) for log in done for sample in log.samples or [] if sample.error]
    return {**errors, **{(key, str(sample.id)): _text(sample.error.message) for key, sample in failed}}


def _probe(judge: Judge, model: served.Model, todo: list[tuple[Batch, dict[str, str]]], purse: store.Purse, logs: Path) -> str:
    """One question before thousands: why the judge's replies cannot be read, or empty."""
    heard = store.Ledger(logs / "probe.jsonl")
    heard.path.unlink(missing_ok=True)
    prompt = {"probe": judges().take("probe", str)}
    errors = _evaluate([asking(Desk(judge, rubrics()["trait"], purse, heard), prompt, "probe", {"key": "probe"})], model, logs)
    if errors:
        return next(iter(errors.values()))
    if purse.refused:
        return purse.refused
    masses, numbers = heard.entries()[0]["masses"], any("50" in batch.rubric.replies for batch, _ in todo)
    splits = masses.get("8", 0) > masses.get("85", 0) and not judge.continues and judge.reading == "weighted"
    return "its tokenizer splits numbers" if splits and numbers else ""


def _text(error: Exception | str) -> str:
    """An error in one line, without rich's markup and without the name of the exceptions raised here."""
    message = re.sub(r"\[/?bold\]", "", str(getattr(error, "message", None) or error or type(error).__name__))
    return " ".join(re.sub(r"^RuntimeError\('(.*)'\)$", r"\1", message).split())[:300]
