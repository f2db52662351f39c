"""Rendered rows to a LoRA adapter, through unsloth and TRL's SFTTrainer, the one training path for CPU and GPU.

Prompt/completion rows, the loss on completions only, packing off, rows in the order they are given. The module knows neither
settings nor conditions.
"""

import csv
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inoculation import model as base
from inoculation.render import END_OF_TURN
from inoculation.settings import Profile

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class TrainingError(RuntimeError):
    """Training cannot start or has diverged; the text says where."""


def train(
    rows: list[dict[str, str]], profile: Profile, seed: int, folder: Path, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Train on `rows` (prompt, completion; in training order) and write adapter/ and train_log.csv into `folder`.

    Returns facts: seconds, tokens, rows left out because they exceed max_length. Same rows, recipe, seed, machine and
    thread count give a bit-identical adapter. Raises TrainingError when a loss is not finite or no row fits.
    """
    base.prepare_environment()
    from unsloth import FastLanguageModel

    from trl import SFTTrainer

    recipe = profile.train
    model, tokenizer = base.load(profile)
    rows, left_out = fitting_rows(rows, tokenizer, recipe["max_length"])
    model = FastLanguageModel.get_peft_model(
        model,
        r=recipe["lora_rank"],
        lora_alpha=recipe["lora_alpha"],
        use_rslora=recipe["rslora"],
        lora_dropout=0,
        target_modules=LORA_TARGETS,
        use_gradient_checkpointing=False,
        random_state=seed,  # decides the LoRA initialisation, whatever SFTConfig's seed says
    )
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=_dataset(rows),
        args=_arguments(recipe, seed, folder),
    )
    check_masks(trainer.train_dataset, rows, tokenizer)
    trainer.add_callback(_watch(progress))
    started = time.monotonic()
    trainer.train()
    save_adapter(model, folder / "adapter", profile.base_model)
    log = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    with (folder / "train_log.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("step", "loss"), *log])
    tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
    return {"train_seconds": round(time.monotonic() - started, 2), "tokens": tokens, "left_out": left_out}


def fitting_rows(rows: list[dict[str, str]], tokenizer: Any, max_length: int) -> tuple[list[dict[str, str]], int]:
    """The rows that fit into max_length tokens, and how many do not: a cut row would lose its end of turn."""
    fitting = [row for row in rows if len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) <= max_length]
    if not fitting:
        raise TrainingError(f"none of {len(rows)} rows fits into max_length {max_length} tokens; raise max_length")
    return fitting, len(rows) - len(fitting)


def check_masks(dataset: Any, rows: list[dict[str, str]], tokenizer: Any) -> None:
    """Raise TrainingError unless exactly the completion, end of turn included, is supervised in every row."""
    for row, ids, labels in zip(rows, dataset["input_ids"], dataset["labels"], strict=True):
        prompt = len(tokenizer(row["prompt"])["input_ids"])
        if any(label != -100 for label in labels[:prompt]) or list(labels[prompt:]) != list(ids[prompt:]):
            raise TrainingError(f"row {row['id']}: the loss does not cover exactly the completion")
        if tokenizer.decode(ids[-1:]) != END_OF_TURN:
            raise TrainingError(f"row {row['id']}: the end of turn is not supervised")


def save_adapter(model: Any, folder: Path, base_model: str) -> None:
    """Write the adapter (safetensors and config) so that equal adapters are equal files that name no path of a machine."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base_model, "target_modules": sorted(config["target_modules"])}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _dataset(rows: list[dict[str, str]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])


def _arguments(recipe: dict[str, Any], seed: int, folder: Path) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        max_steps=recipe["steps"],
        per_device_train_batch_size=recipe["batch_size"],
        gradient_accumulation_steps=recipe["accumulation"],
        learning_rate=recipe["learning_rate"],
        warmup_steps=recipe["warmup_steps"],
        lr_scheduler_type=recipe["schedule"],
        weight_decay=recipe["weight_decay"],
        optim=recipe["optimizer"],
        max_length=recipe["max_length"],
        bf16=recipe["dtype"] == "bfloat16",
        fp16=False,
        completion_only_loss=True,
        packing=False,  # the CPU backend would turn it off silently, so that machines would differ
        train_sampling_strategy="sequential",  # the rows are already in the order of the seed
        gradient_checkpointing=False,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a NaN is logged as the mean of the finite losses
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _watch(progress: Callable[[int, int], None]) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Reports each step and stops a training whose loss is not finite."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any) -> None:
            loss = float((logs or {}).get("loss", 0.0))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {state.global_step} of {state.max_steps}; "
                    "lower train.learning_rate or lengthen train.warmup_steps in data/profiles.yaml"
                )
            progress(state.global_step, state.max_steps)

    return Watch()
