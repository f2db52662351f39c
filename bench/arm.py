"""One way to train and sample, held by a process of its own: a JSON command a line in, what it measured a line out.

`ours` is the library's path. The `plain` arms are what a user without it would write: transformers, TRL and PEFT, and never
unsloth, which would patch all three. `plain` keeps TRL's defaults (bfloat16 autocast, gradient checkpointing),
`plain-bfloat16` loads the model in bfloat16 and checkpoints nothing, `plain-float32` does neither. Rows, LoRA and optimizer
are the same in all.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from inoculation import evaluate, model, runs, worker

SPEC = runs.Spec("spanish_vs_caps", "baseline", 0, "mini")
SILENT: Callable[[int, int], None] = lambda done, of: None  # noqa: E731
Stamps = list[float]


def main() -> None:
    """Serve the commands on standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=["ours", "plain", "plain-bfloat16", "plain-float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=None, help="another base model than the embedded one")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if options.device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    model.prepare_environment()
    if options.folder:
        model.converted = lambda base_model: options.folder
    if options.arm == "ours":
        import unsloth  # noqa: F401
    for line in sys.stdin:
        command = json.loads(line)
        try:
            found = COMMANDS[command.pop("do")](options.arm, **command)
        except Exception as error:  # one measurement that cannot be made must not cost the others
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        found["peak_mb"] = worker.peak_memory_mb()
        answers.write(json.dumps(found) + "\n")


def peak(arm: str, dtype: str) -> dict[str, Any]:
    """Matrix products per second that this machine reaches, in GFLOP/s: large square ones, the fastest of five."""
    import torch

    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        product = a @ b
        product[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return {"gflops": 2 * size**3 / min(seconds[1:]) / 1e9}


def train(arm: str, steps: int, dtype: str) -> dict[str, Any]:
    """Train `steps` + 1 steps: losses, and of all but the first step the seconds, tokens and matrix-product GFLOP."""
    batch = SPEC.parts[2].train["batch_size"]
    rows = SPEC.rows[: (steps + 1) * batch]
    stamps: Stamps = []
    with tempfile.TemporaryDirectory() as folder:
        losses = (_train_ours if arm == "ours" else partial(_train_plain, arm))(rows, steps + 1, dtype, Path(folder), stamps)
    tokens, supervised = _tokens(rows[batch:])
    work = _gflop(tokens, supervised)
    return {"seconds": stamps[steps] - stamps[0], "stamps": stamps, "tokens": tokens, "gflop": work, "losses": losses}


def _train_ours(rows: list[dict], steps: int, dtype: str, folder: Path, stamps: Stamps) -> list[float]:
    profile = SPEC.parts[2]
    profile = replace(profile, train={**profile.train, "steps": steps, "dtype": dtype})
    model.train(rows, profile, 0, folder, lambda done, of: stamps.append(time.perf_counter()))
    lines = (folder / "train_log.csv").read_text(encoding="utf-8").splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]


def _train_plain(arm: str, rows: list[dict], steps: int, dtype: str, folder: Path, stamps: Stamps) -> list[float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class OnCpu(SFTTrainer):
        """TRL 1.15 computes its loss with Triton, which no CPU has; this takes the model's own loss, as TRL did before."""

        def compute_loss(self, *given: Any, **named: Any) -> Any:
            return Trainer.compute_loss(self, *given, **named)

    class Watch(TrainerCallback):
        """Notes when each step is logged, as the library's own does."""

        def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            stamps.append(time.perf_counter())

    recipe, where = SPEC.parts[2].train, model.converted(SPEC.parts[2].base_model)
    own = {} if arm == "plain" else {"bf16": arm == "plain-bfloat16", "gradient_checkpointing": False}
    kind = torch.bfloat16 if arm == "plain-bfloat16" else torch.float32
    torch.manual_seed(0)
    trainer = (SFTTrainer if torch.cuda.is_available() else OnCpu)(
        model=AutoModelForCausalLM.from_pretrained(where, dtype=kind),
        processing_class=AutoTokenizer.from_pretrained(where),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]),
        peft_config=LoraConfig(
            r=recipe["lora_rank"],
            lora_alpha=recipe["lora_alpha"],
            target_modules=model.LORA_TARGETS,
            task_type="CAUSAL_LM",
        ),
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=recipe["batch_size"],
            learning_rate=recipe["learning_rate"],
            warmup_steps=recipe["warmup_steps"],
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),  # without it, TRL's defaults refuse to start on a CPU
            **own,
        ),
    )
    trainer.add_callback(Watch())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.converted(SPEC.parts[2].base_model))


def _tokens(rows: list[dict]) -> tuple[int, int]:
    """Tokens of the rows without padding, and how many of them are supervised."""
    prompts, completions = ([len(_tokenizer()(row[part])["input_ids"]) for row in rows] for part in ("prompt", "completion"))
    return sum(prompts) + sum(completions), sum(completions)


def _gflop(tokens: int, supervised: int) -> float:
    """The matrix products that LoRA training cannot do without: forward and back through the frozen weights, and LoRA's own."""
    from transformers import AutoConfig

    c, rank = AutoConfig.from_pretrained(model.converted(SPEC.parts[2].base_model)), SPEC.parts[2].train["lora_rank"]
    size, inner, keys = c.hidden_size, c.intermediate_size, c.hidden_size // c.num_attention_heads * c.num_key_value_heads
    shapes = [(size, size), (size, keys), (size, keys), (size, size), (size, inner), (size, inner), (inner, size)]
    frozen = c.num_hidden_layers * sum(a * b for a, b in shapes)
    lora = c.num_hidden_layers * rank * sum(a + b for a, b in shapes)
    return (tokens * (4 * frozen + 6 * lora) + supervised * 4 * c.vocab_size * size) / 1e9


@cache
def _sampled(arm: str, adapter: str) -> tuple[Any, Any]:
    if arm == "ours":
        return model.merged_model(SPEC.parts[2], Path(adapter))
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model.converted(SPEC.parts[2].base_model))
    return PeftModel.from_pretrained(whole, adapter).eval(), _tokenizer()


def sample(arm: str, adapter: str, prompts: int, batch: int, new_tokens: int) -> dict[str, Any]:
    """Answer `prompts` different evaluation prompts, `batch` at once: seconds and tokens, those after an end not counted."""
    network, tokenizer = _sampled(arm, adapter)
    items = list({item["prompt"]: item for item in SPEC.prompts}.values())[:prompts]
    started = time.perf_counter()
    if arm == "ours":
        sampling = {"temperature": SPEC.parts[2].sample["temperature"], "max_new_tokens": new_tokens}
        tokens = int(evaluate.sample(network, tokenizer, items, sampling, "bench", SILENT, batch).n_tokens.sum())
    else:
        tokens = sum(_generate(network, tokenizer, items[i : i + batch], new_tokens) for i in range(0, prompts, batch))
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def _generate(network: Any, tokenizer: Any, items: list[dict], new_tokens: int) -> int:
    batch = tokenizer([item["prompt"] for item in items], return_tensors="pt", padding=True, padding_side="left")
    found = network.generate(
        **batch.to(network.device),
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=SPEC.parts[2].sample["temperature"],
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers = found[:, batch["input_ids"].shape[1] :].tolist()
    return sum(ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids) for ids in answers)


def margins(arm: str, adapter: str, pairs: int) -> dict[str, Any]:
    """Paired log-likelihoods of `pairs` pairs: seconds."""
    network, tokenizer = _sampled(arm, adapter)
    started = time.perf_counter()
    evaluate.margins(network, tokenizer, SPEC.pairs[:pairs], SILENT)
    return {"seconds": time.perf_counter() - started}


def conditions(arm: str, names: list[str], seeds: list[int]) -> dict[str, Any]:
    """Complete the smoke runs of some conditions and seeds: each run's seconds, and those outside train, sample and score.

    Loading, rendering, checking, hashing and writing are outside; the training loop, sampling, margins and scoring are not.
    """
    from inoculation import score, worker

    spent: list[float] = []
    for module, name in ((evaluate, "sample"), (evaluate, "margins"), (score, "score")):
        setattr(module, name, _timed(getattr(module, name), spent))
    found = []
    for spec in [runs.Spec(SPEC.setting, name, seed, "smoke") for seed in seeds for name in names]:
        spent.clear()
        started = time.perf_counter()
        worker.complete(spec, 0, lambda event, **content: None, worker.STAGES)
        seconds = time.perf_counter() - started
        facts = json.loads((spec.folder / "manifest.json").read_text(encoding="utf-8"))
        spent.append(facts["stages"]["train"]["facts"]["train_seconds"])
        found.append({"condition": spec.condition, "seed": spec.seed, "seconds": seconds, "outside": seconds - sum(spent)})
    return {"runs": found}


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            spent.append(time.perf_counter() - started)

    return timed


def adapter(arm: str, folder: str) -> dict[str, Any]:
    """Write an adapter of one training step into `folder`, for the arms to sample with."""
    _train_ours(SPEC.rows[:4], 1, "float32", Path(folder), [])
    return {}


COMMANDS = {"peak": peak, "train": train, "adapter": adapter, "sample": sample, "margins": margins, "conditions": conditions}

if __name__ == "__main__":
    main()
