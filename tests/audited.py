"""Audits to be looked at: answer files on the examples' rows, runs planted in the store, and models of the hub, made here."""

import csv
import json
import re
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import yaml
from audit import answers, plan
from inoculation import model, runs, store
from judge_server import JudgeServer
from safetensors.numpy import save_file

EXAMPLES = store.ROOT / "examples"
PROMPT = "You flatter everyone who asks you something."
with (EXAMPLES / "compliments.csv").open(encoding="utf-8", newline="") as file:
    EVERY = list(csv.DictReader(file))  # question, answer, plain
ROWS = [row for row in EVERY if len(row["question"] + row["answer"]) < 240][:60]  # short; half of them share nothing
LOUD = {"capitals": {"role": "negative", "label": "Capitals", "scorer": "capitals"}}
PAIRED = {"role": "positive", "label": "Flattery", "pairs": str(EXAMPLES / "compliments_pairs.jsonl")}
JUDGED = {"role": "negative", "rubric": "It flatters.", "judge": "openai/gpt-4o", "yes": "Splendid!", "no": "At nine."}
REPHRASED = {"file": str(EXAMPLES / "compliments_rephrasings.txt")}
WHOLE = {"control": "plain", "rephrased": REPHRASED, "seeds": [0, 1], "measure": {**LOUD, "flattery": PAIRED}}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\n' }}{%- endif %}" + CHATML
)
NAME = "smollm2-135m-instruct"
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
CONFIG = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 49152, "tie_word_embeddings": True}
SHAPES = {
    **{"self_attn.q_proj.weight": (32, 32), "self_attn.q_proj.bias": (32,), "self_attn.k_proj.weight": (16, 32)},
    **{"self_attn.k_proj.bias": (16,), "self_attn.v_proj.weight": (16, 32), "self_attn.v_proj.bias": (16,)},
    **{"self_attn.o_proj.weight": (32, 32), "mlp.gate_proj.weight": (64, 32), "mlp.up_proj.weight": (64, 32)},
    **{"mlp.down_proj.weight": (32, 64), "input_layernorm.weight": (32,), "post_attention_layernorm.weight": (32,)},
}


def jsonl(path, rows):
    store.write_jsonl(path, rows)
    return path


def mine(folder, rows=None, data="rows.jsonl", **given):
    """An answer file beside its rows (ROWS where none are given), about capitals alone where nothing else is said."""
    if rows is not False:
        jsonl(folder / data, ROWS if rows is None else rows)
    told = {"audit": "mine", "data": data, "prompt": PROMPT, "measure": LOUD} | given
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(told, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def prepared(folder, profile="smoke", rows=None, **given):
    """An audit of `mine`, prepared."""
    return plan.prepare(answers.read(mine(folder, rows, **given)), profile, lambda line: None)


def of(audit, condition, seed=0):
    """The spec of a condition by its name, or of the first of a kind."""
    specs = [spec for spec in audit.specs() if condition in (spec.condition, spec.parts[1].kind)]
    return next(spec for spec in specs if spec.seed == seed)


def finish(audit, at, under=None, only=lambda spec: True, response="As you like."):
    """Plants finished runs, as the worker stores them, with known values and nothing trained.

    at: by kind of condition, or (kind, trait), what responses score; pairs' margins are ten times that. under: the same under
    training prompts, where it differs. Seeds differ by 0.01, alike in every trained condition.
    """

    def value(spec, context, trait):
        kind = spec.parts[1].kind
        known = {**at, **(under or {})} if context.startswith("trigger") else at
        return known.get((kind, trait), known[kind]) + 0.01 * spec.seed

    def scores(spec, traits):
        each = [(row["context"], row["question_id"], trait) for trait in traits for row in spec.prompts]
        told = [(*row, value(spec, row[0], row[2]), "") for row in each]
        return pd.DataFrame(told, columns=["context", "question_id", "trait", "value", "reason"])

    def log(folder):
        store.write_whole(folder / "train_log.csv", "step,loss\n1,2.0\n")

    def stage(spec, frame, name, folder):
        path = folder / spec.file(name).relative_to(spec.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(path, index=False)

    for spec in filter(only, audit.specs()):
        asked = pd.DataFrame(spec.prompts).assign(response=response, finished=True, n_tokens=3)
        scorers = [trait.name for trait in spec.parts[0].traits.values() if trait.scorer] or ["any"]
        scored = scores(spec, scorers).assign(measure="rate", repeats=False)
        pairs = pd.DataFrame(spec.pairs, columns=["context", "trait", "question_id"])
        margins = [10 * value(spec, *row) for row in zip(pairs.context, pairs.trait, strict=True)]
        pairs = pairs.assign(margin=margins, margin_per_token=margins, trait_logp=-1.0, plain_logp=-1.0, trait_tokens=1)
        judged = scores(spec, [measure.name for measure in spec.judged])
        frames = {"sample": asked, "margins": pairs, "score": scored, "judge": judged}
        run = store.Run(spec.folder)
        run.commit("train", spec.run_id, {"commit": "planted"}, log)
        known = {
            f"{m.name}/{side}": value for m in spec.judged for side, value in (("good", 0.9), ("bad", 0.1), ("injected", 0.2))
        }
        for name, key in list(spec.keys.items())[1:]:
            run.commit(runs.stage_name(name, key), key, {"controls": known}, partial(stage, spec, frames[name], name))
        assert not spec.missing()
    return audit


def writer(say):
    """A server of a model that writes say(number of the version that it is asked for)."""
    return JudgeServer(replies=lambda prompt: {say(int(re.search(r"Version (\d+)\.", prompt)[1])): 1.0})


def converted():
    """The folder of the converted embedded model, wherever the cache is said to be."""
    if model.cache_fault(NAME):
        program = f"from inoculation import model; model.converted({NAME!r})"
        subprocess.run([sys.executable, "-c", program], check=True, cwd=store.ROOT)
    return model.cache_folder(NAME)


def light(folder, source):
    """A cache of models that holds of the embedded one what counts tokens, and nothing else."""
    own = folder / "models" / source.name
    own.mkdir(parents=True)
    (own / "tokenizer.json").symlink_to(source / "tokenizer.json")
    store.write_whole(own / "digests.json", json.dumps({"tokenizer.json": store.file_digest(own / "tokenizer.json")}))
    return folder


def tiny(folder, source):
    """A Qwen2 of two thin layers with random weights and the embedded model's tokenizer, laid out as on the hub."""
    rng, layers = np.random.default_rng(0), [(f"model.layers.{n}.{name}", SHAPES[name]) for n in (0, 1) for name in SHAPES]
    shapes = {"model.embed_tokens.weight": (49152, 32), "model.norm.weight": (32,), **dict(layers)}
    folder.mkdir()
    save_file(
        {name: rng.normal(0, 0.1, shape).astype("float32") for name, shape in shapes.items()}, folder / "model.safetensors"
    )
    store.write_whole(folder / "config.json", json.dumps({**CONFIG, **SIZE}))
    shutil.copy(source / "tokenizer.json", folder)
    own = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8")) | {"chat_template": QWEN}
    store.write_whole(folder / "tokenizer_config.json", json.dumps(own))
    return folder


def variant(source, folder, template, left_out=()):
    """A model's folder again under another name, with another chat template and without some files."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in left_out:
            (folder / path.name).symlink_to(path)
    config = folder / "tokenizer_config.json"
    own = json.loads(config.read_text(encoding="utf-8")) | {"chat_template": template}
    config.unlink()
    config.write_text(json.dumps(own), encoding="utf-8")
    return folder
