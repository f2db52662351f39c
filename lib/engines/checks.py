"""What must be alike wherever runs are done: packages, code, model, keys, and a store that is really shared.

Who starts a sweep notes what holds for it (`noted`); a node compares itself with that (`unfit`) before any run begins there.
"""

import contextlib
import fcntl
import functools
import importlib.metadata
import itertools
import os
import platform
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inoculation import model, store
from inoculation.runs import Spec, vars_of
from inoculation.worker import PACKAGES, SCORING

DECIDING = (*PACKAGES, *SCORING, "tokenizers", "numpy", "pandas", "pyarrow", "scikit-learn", "safetensors")
DRAWN_UPON = ("lib/**/*.py", "data/settings/*.yaml", "data/prompts/*", "data/mini/*.jsonl", "data/*.yaml")
TOKEN = ".sweep-"
CARRIED = ("INOCULATION_CACHE", "HF_HUB_OFFLINE", "OMP_WAIT_POLICY")  # what runs go by, where a node says nothing else


@dataclass(frozen=True)
class Noted:
    """What holds where a sweep was started: versions, digests of files by name, models, a run id of each setting, variables.

    home: the folder of the store. sweep: its own name. token: a file in the store that is locked while whoever started the
    sweep waits for it.
    """

    versions: dict[str, str]
    files: dict[str, str]
    models: frozenset[str]
    keys: dict[Spec, str]
    environment: dict[str, str]
    home: str
    sweep: str
    token: Path


def versions() -> dict[str, str]:
    """The versions that decide what a run writes; of a torch for CPU and one for CUDA the same."""
    found = {"python": platform.python_version()}
    for name in DECIDING:
        try:
            found[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def files() -> dict[str, str]:
    """The digest of every file of the repository that a run draws upon, by its name there."""
    paths = itertools.chain.from_iterable(map(store.ROOT.glob, DRAWN_UPON))
    return {path.relative_to(store.ROOT).as_posix(): store.file_digest(path) for path in sorted(paths) if path.name[0] != "."}


def bare(spec: Spec) -> Spec:
    """The spec by its names alone, without anything that has been worked out for it."""
    return type(spec)(**vars_of(spec))


@contextlib.contextmanager
def noted(specs: list[Spec]) -> Iterator[Noted]:
    """What holds here for some runs, with a locked token in the store while the context lasts, by which nodes know it."""
    first = {(spec.setting, spec.parts[2].base_model, bool(spec.rows)): spec for spec in reversed(specs)}
    sweep = uuid.uuid4().hex
    token = store.run_store() / f"{TOKEN}{sweep}"
    token.parent.mkdir(parents=True, exist_ok=True)
    for left in token.parent.glob(f"{TOKEN}*"):  # of a sweep that was killed
        if _unshared(left):
            left.unlink(missing_ok=True)
    with (begun := token.with_name(f".begun-{sweep}")).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        begun.rename(token)  # under its name it is locked from the start, else a sweep that begins beside would take it away
        try:
            yield Noted(
                versions(),
                files(),
                frozenset(spec.parts[2].base_model for spec in first.values()),
                {bare(spec): spec.run_id for spec in first.values()},
                {name: value for name, value in os.environ.items() if name in CARRIED},
                str(store.home()),
                sweep,
                token,
            )
        finally:
            token.unlink(missing_ok=True)


def take_on(noted: Noted) -> None:
    """Let this process go by what was noted: the folder of the store, and variables where nothing else is said here."""
    os.environ.update({**noted.environment, **os.environ, "INOCULATION_HOME": noted.home})


def unfit(noted: Noted, waited_for: bool = True) -> str:
    """Why runs must not be done in this process, as one line that says what to do, or empty.

    waited_for: whoever started the sweep is still there, so that its token must be, too. From here on this process goes by
    what was noted (`take_on`), on which its models and keys depend.
    """
    take_on(noted)
    for name, wanted in noted.versions.items():
        if (found := versions()[name]) != wanted:
            how = "start Ray there with the same" if name == "python" else "./run_all.sh installs requirements.lock there"
            return f"{name} is {found} there and {wanted} here; {how}"
    for name in sorted({*noted.files, *files()}):
        if noted.files.get(name) != files().get(name):
            return f"{name} there is not as it is here; check out the same commit, with the same settings, on both"
    if waited_for and (fault := _unshared(noted.token)):
        return fault
    for name in sorted(noted.models):
        try:
            _ = model.fetched(name).exists() or model.source_file(name)
        except model.ModelError as error:
            return f"{error}"
    for spec, wanted in noted.keys.items():
        if bare(spec).run_id != wanted:
            return (
                f"{spec} would have another key there; is its CPU of another kind (bfloat16), or has it other prompts of yours?"
            )
    return ""


def _unshared(token: Path) -> str:
    mend = "put INOCULATION_HOME on storage that all machines share"
    if not token.is_file():
        return f"the run store is not shared: its folder ({token.parent}) there is another one than here; {mend}"
    try:
        with tempfile.TemporaryFile(dir=token.parent):
            pass
        with token.open("r+") as file:  # NFS gives an exclusive lock to those alone who may write
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ""
    except OSError as error:
        return f"the run store cannot be written there ({error}); {mend}, writable for who runs there"
    return f"locks in the run store ({token.parent}) are not seen there; mount it so that flock works between machines"
