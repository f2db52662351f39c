"""`./run_all.sh doctor`: is this machine set up so that its results can be trusted?

Each check runs the real thing on the embedded model (two training steps, a few short generations) and prints one line; a
failing line says what to do.
"""

import contextlib
import importlib.metadata
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sandbox
from inoculation import evaluate, model, store
from inoculation.runs import Spec

NEEDED_GB = 5
REINSTALL = "run ./run_all.sh, which installs requirements.lock"


class UnwellError(Exception):
    """A check failed; the text says what was found and what to do."""


def pins() -> dict[str, str]:
    """The lock's versions by package name, for this Python."""
    from packaging.requirements import Requirement

    lines = (store.ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {r.name: str(r.specifier)[2:] for r in wanted if r.marker is None or r.marker.evaluate()}


def check_versions(state: dict[str, Any]) -> str:
    """Every package of the lock is installed at its version; torch may be another one within bounds."""
    wrong = []
    for name, wanted in pins().items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found.split("+")[0] != wanted and name != "torch":
            wrong.append(f"{name} {found} instead of {wanted}")
    if wrong:
        raise UnwellError(f"{', '.join(wrong[:5])} ({len(wrong)} in all); {REINSTALL}")
    return f"{len(pins())} packages as in the lock, torch {importlib.metadata.version('torch')}"


def check_disk(state: dict[str, Any]) -> str:
    """There is room for the model cache and a mini run."""
    free = shutil.disk_usage(store.ROOT).free / 1e9
    if free < NEEDED_GB:
        raise UnwellError(f"{free:.1f} GB free, {NEEDED_GB} GB needed; free some space or set INOCULATION_HOME to another disk")
    return f"{free:.0f} GB free"


def check_import_order(state: dict[str, Any]) -> str:
    """unsloth is imported before transformers, trl and peft."""
    early = [name for name in ("transformers", "trl", "peft") if name in sys.modules]
    if early:
        raise UnwellError(f"{', '.join(early)} came before unsloth; import unsloth first, or restart the kernel")
    model.prepare_environment()
    import unsloth

    return f"unsloth {unsloth.__version__} first"


def check_model_cache(state: dict[str, Any]) -> str:
    """The package's model file is the pinned one and the converted copy is whole."""
    name = state["spec"].parts[2].base_model
    model.source_file(name)
    folder = model.converted(name)
    fault = model.cache_fault(name)
    if fault:
        raise UnwellError(f"{fault}; delete {folder} and run this again")
    return f"{name} verified by SHA-256"


def check_masks(state: dict[str, Any]) -> str:
    """In TRL's own batches the prompt is masked and the end of turn is supervised; two steps are then trained."""
    spec, folder = state["spec"], Path(state["folder"])
    facts = model.train(spec.rows, spec.parts[2], spec.seed, folder, lambda done, of: None)
    return f"{len(spec.rows)} rows, {facts['tokens']} tokens, prompts masked, end of turn supervised"


def check_batch_parity(state: dict[str, Any]) -> str:
    """Greedy responses are the same one by one and in a batch of eight (float32)."""
    spec = state["spec"]
    network, tokenizer = model.merged_model(spec.parts[2], None)
    items = Spec(spec.setting, "baseline", 0, "mini").prompts[20:28]
    greedy = {"temperature": 0, "max_new_tokens": 12}
    one, eight = (
        evaluate.sample(network, tokenizer, items, greedy, "doctor", lambda done, of: None, batch_size=size) for size in (1, 8)
    )
    differing = sum(one.response != eight.response)
    if differing:
        raise UnwellError(f"{differing} of 8 responses depend on the batch: results are not to be trusted; {REINSTALL}")
    return "8 of 8 responses equal in batches of 1 and 8"


def check_adapter(state: dict[str, Any]) -> str:
    """An adapter changes what the model says of an answer."""
    spec = state["spec"]
    found = []
    for adapter in (None, Path(state["folder"]) / "adapter"):
        network, tokenizer = model.merged_model(spec.parts[2], adapter)
        found.append(evaluate.margins(network, tokenizer, spec.pairs[:2], lambda done, of: None).trait_logp.to_numpy())
    moved = abs(found[1] - found[0]).max()
    if moved < 1e-3:
        raise UnwellError(f"log-likelihoods moved by {moved:.1e} nats only: the adapter is not applied; {REINSTALL}")
    return f"two training steps move log-likelihoods by up to {moved:.2f} nats"


def check_sandbox(state: dict[str, Any]) -> str:
    """Code that a model writes can be shut in; where it cannot, it is not run."""
    try:
        return f"{sandbox.tier()}; no code of a model is run outside it"
    except sandbox.SandboxError as error:
        raise UnwellError(str(error)) from error


CHECKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "disk": check_disk,
    "versions": check_versions,
    "import order": check_import_order,
    "model cache": check_model_cache,
    "loss masks": check_masks,
    "batch parity": check_batch_parity,
    "adapter": check_adapter,
    "sandbox": check_sandbox,
}


def examine(say: Callable[[str], None] = print) -> int:
    """Run every check and say one line each; returns how many failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        state = {"spec": Spec("spanish_vs_caps", "baseline", 0, "smoke"), "folder": folder}
        for name, check in CHECKS.items():
            try:
                # The libraries' chatter would hide the lines that matter.
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    line = f"ok    {name}: {check(state)}"
            except Exception as error:  # one failing check must not hide the next
                failed += 1
                advice = "" if isinstance(error, UnwellError | model.ModelError) else f" ({type(error).__name__}); {REINSTALL}"
                line = f"FAIL  {name}: {' '.join(str(error).split())}{advice}"
            say(line)
    return failed


if __name__ == "__main__":
    sys.exit(1 if examine() else 0)
