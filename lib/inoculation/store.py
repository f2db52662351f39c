"""Where things lie, how data files are read, and the run store: one folder a run, stages that are whole or absent.

INOCULATION_HOME moves everything a run writes (data/local, figures/local) to another folder, for shared storage and for
tests; INOCULATION_CACHE moves the converted base model.

`data/local/runs/<setting>/<condition>/<run id>/` holds spec.json, prompts.jsonl, adapter/, train_log.csv, eval/<key>/*.parquet
and manifest.json. A stage exists when manifest.json names its key and every file it lists still has the digest noted there;
files are written under temporary names and renamed, the manifest last. Anything else is not there: it is redone, with a line
that says why. What is read from data/ is read strictly: whatever is wrong with a file raises SettingError with the file, the
line and what was expected. This module knows nothing of what a stage computes or a file means.
"""

import contextlib
import difflib
import fcntl
import functools
import gzip
import hashlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import yaml

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
RESULTS = DATA / "results"
REFERENCE_FIGURES = ROOT / "figures"
NOTEBOOKS = ROOT / "notebooks"


class SettingError(ValueError):
    """A file under data/ or a name given by the user is wrong; the text says where and what was expected."""


def home() -> Path:
    """The folder under which a run writes data/local and figures/local."""
    return Path(os.environ.get("INOCULATION_HOME", ROOT)).resolve()


def local() -> Path:
    """Everything a user's run writes: runs, tables, executed notebooks."""
    return home() / "data" / "local"


def run_store() -> Path:
    """The run store."""
    return local() / "runs"


def local_tables(profile: str) -> Path:
    """A profile's tables, made from the run store."""
    return local() / "tables" / profile


def local_figures(profile: str) -> Path:
    """A profile's figures, drawn from its tables or from the reference."""
    return home() / "figures" / "local" / profile


def made_folder(setting: str, profile: str) -> Path:
    """Where a profile's distilled or imported answers of a setting lie."""
    return local() / "made" / setting / profile


def model_cache() -> Path:
    """Where converted base models are kept, outside the repository."""
    return Path(os.environ.get("INOCULATION_CACHE", platformdirs.user_cache_dir("inoculation"))) / "models"


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either the old one or the new one, never part of it; text becomes UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@dataclass(frozen=True)
class Ledger:
    """Entries that are safe the moment they are written: one JSON line each, appended and flushed, with its own check."""

    path: Path

    def append(self, entry: dict[str, Any]) -> None:
        """Keep one entry."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            # What a kill left of a line must not spoil the next one.
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(json.dumps({**entry, "check": digest(entry)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> list[dict[str, Any]]:
        """The entries in order; a torn or altered line is none."""
        found = []
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else []:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if entry.pop("check") == digest(entry):
                    found.append(entry)
        return found


@dataclass
class Purse:
    """What judging may cost and has cost, in US dollars; a price of None is unknown and counts as nothing.

    refused: `budget` once something did not fit any more.
    """

    price: tuple[float, float] | None
    limit: float = math.inf
    spent: float = 0.0
    reserved: float = 0.0
    calls: int = 0
    refused: str = ""

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """US dollars for so many tokens."""
        return (input_tokens * self.price[0] + output_tokens * self.price[1]) / 1e6 if self.price else 0.0

    @contextlib.contextmanager
    def reserve(self, most: float) -> Iterator[bool]:
        """Whether something that costs at most `most` still fits, beside all that is under way."""
        fits = self.spent + self.reserved + most <= self.limit
        self.reserved += most * fits
        self.refused = self.refused if fits else "budget"
        try:
            yield fits
        finally:
            self.reserved -= most * fits


@dataclass
class Run:
    """One run's folder. `say` receives a line whenever something found there is not trusted."""

    folder: Path
    say: Callable[[str], None] = field(default=lambda line: None)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, or an empty one where none can be read."""
        path = self.folder / "manifest.json"
        if not path.exists():
            return {"schema": SCHEMA, "stages": {}}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["schema"] != SCHEMA:
                raise ValueError(f"schema {found['schema']}, expected {SCHEMA}")
            return {**found, "stages": dict(found["stages"])}
        except (ValueError, KeyError, TypeError) as error:
            self.say(f"{path.parent.name}: manifest.json cannot be used ({error}); the run is redone")
            return {"schema": SCHEMA, "stages": {}}

    def has(self, stage: str, key: str) -> bool:
        """True when the stage was finished under this key and its files are as they were written."""
        entry = self.manifest["stages"].get(stage)
        if entry is None or entry.get("key") != key:
            return False
        for name, expected in entry["files"].items():
            path = self.folder / name
            problem = "missing" if not path.is_file() else "altered" if file_digest(path) != expected else ""
            if problem:
                self.say(f"{self.folder.name}: {name} is {problem}; {stage} is redone")
                return False
        return True

    def commit(self, stage: str, key: str, facts: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Run `write` on an empty scratch folder, move what it wrote into place, then note the stage in the manifest.

        `facts` (times, versions, counts) are stored and never part of a key; they are read after `write` has returned.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f".{stage.replace('/', '-')}.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        write(scratch)
        written = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
        files = {}
        for name in written:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            files[str(name)] = file_digest(scratch / name)
            (scratch / name).replace(target)
        shutil.rmtree(scratch)
        # The manifest comes last: a stage that it does not name does not exist, whatever files lie there.
        manifest = self.manifest
        manifest["stages"][stage] = {"key": key, "files": files, "facts": facts}
        write_whole(self.folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")

    def clear_scratch(self) -> None:
        """Remove what a killed process left half-written."""
        for path in self.folder.glob(".*.partial"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, wait: bool = True) -> Iterator[bool]:
        """Hold the run's lock, which the kernel drops when its owner dies; False where another has it and `wait` is off."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, not in it: the folder may not exist yet and its contents are listed in the manifest.
        with (self.folder.parent / f".{self.folder.name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                self.say(f"{self.folder.name}: another process works on this run; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield True


def csv_text(frame: "pd.DataFrame") -> str:
    """A table as text that is the same every time: six digits, one kind of line end."""
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def write_csv(path: Path, frame: "pd.DataFrame") -> None:
    """Write a table as csv_text, compressed where the name ends in gz; whole or not at all."""
    text = csv_text(frame)
    write_whole(path, gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text)


def keep_csv(path: Path, frame: "pd.DataFrame", by: list[str]) -> None:
    """Write a table, beside the rows of a former one whose names (columns `by`) are not in this one; settings stay together."""
    import pandas as pd

    if path.exists():
        former = pd.read_csv(path)
        named = [part[by].astype(object).fillna("").astype(str).apply(tuple, axis=1) for part in (former, frame)]
        frame = pd.concat([former[~named[0].isin(set(named[1]))], frame])
    write_csv(path, frame.sort_values("setting", kind="stable") if "setting" in frame else frame)


def provenance(sources: dict[Path, str]) -> dict[str, Any]:
    """Where tables came from: their origin (sources: folder to origin) and every file's digest, of several as ORIGIN/NAME."""
    files = {
        f"{origin}/" * (len(sources) > 1) + p.name: p for each, origin in sources.items() for p in each.iterdir() if p.is_file()
    }
    return {"origin": " and ".join(dict.fromkeys(sources.values())), "inputs": {n: file_digest(p) for n, p in files.items()}}


def write_figure(path: Path, figure: Any, drawn: "pd.DataFrame", record: dict[str, Any]) -> None:
    """Write a picture (path, .png) with what is drawn (.csv) and its record (.json); same data, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_csv(path.with_suffix(".csv"), drawn)
    # Without Software the bytes do not depend on matplotlib's version string.
    figure.savefig(path, metadata={"Description": text, "Software": None})
    write_whole(path.with_suffix(".json"), text)


def nearest(word: str, known: Iterable[str], what: str) -> SettingError:
    """The error for an unknown name, with the nearest known ones."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5) or known
    return SettingError(f"unknown {what} '{word}'; nearest: {', '.join(close)}")


def read_lines(path: Path) -> list[str]:
    """A text file's lines without white space around them; raises SettingError where it is not UTF-8."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise SettingError(f"{path.name}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def read_jsonl(path: Path) -> list[dict[str, str]]:
    """A JSONL file's objects; raises SettingError with the line that does not parse."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise SettingError(f"{path.name}:{number}: expected one JSON object a line ({error.msg})") from error
    return rows


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as a JSONL file, whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def commit() -> str:
    """The repository's commit, with `+dirty` where tracked files differ from it; `unknown` outside a checkout."""
    git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False)
    found = git(["git", "rev-parse", "HEAD"])
    if found.returncode:
        return "unknown"
    dirty = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    return found.stdout.strip() + ("+dirty" if dirty else "")


class Block(dict):
    """A YAML mapping that knows its file and lines and reports every misuse with them."""

    def __init__(self, path: Path, node: yaml.MappingNode) -> None:
        super().__init__()
        self.path, self.line = path, node.start_mark.line + 1
        self.lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in self:
                raise SettingError(f"{path.name}:{line}: '{key}' stands twice (first in line {self.lines[key]})")
            self.lines[key] = line
            self[key] = _plain(path, value_node)

    def error(self, message: str, key: str | None = None) -> SettingError:
        """A SettingError at this block, or at one of its keys."""
        return SettingError(f"{self.path.name}:{self.lines.get(key, self.line)}: {message}")

    def take(self, key: str, kind: type | tuple[type, ...], choices: Iterable[str] | None = None) -> Any:
        """The value of a key that must exist, have a type and, where given, be one of some choices."""
        if key not in self:
            raise self.error(f"expected a key '{key}' here; found {', '.join(self) or 'nothing'}")
        value = self[key]
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"'{key}' must be {names}, not {type(value).__name__} ({value!r})", key)
        if isinstance(value, str) and value != value.strip():
            raise self.error(f"'{key}' begins or ends with white space: {value!r}", key)
        for item in (value if isinstance(value, list) else [value]) if choices is not None else []:
            if item not in list(choices):
                raise self.error(str(nearest(str(item), choices, key)), key)
        return value

    def only(self, *allowed: str) -> "Block":
        """This block, after refusing keys that are not allowed."""
        for key in self:
            if key not in allowed:
                raise self.error(str(nearest(key, allowed, "key")), key)
        return self


def _plain(path: Path, node: yaml.Node) -> Any:
    if "python" in node.tag or node.tag.startswith("!"):
        raise SettingError(f"{path.name}:{node.start_mark.line + 1}: not valid YAML: the tag {node.tag} is not allowed")
    if isinstance(node, yaml.MappingNode):
        return Block(path, node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(path, item) for item in node.value]
    return yaml.SafeLoader("").construct_object(node)


def read_yaml(path: Path) -> Block:
    """A YAML file whose top level is a mapping, as a Block that is the same for all who read the same text."""
    try:
        return _parsed(path, path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingError(f"{path.name}: no such file under {path.parent.name}/") from error


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, text: str) -> Block:
    try:
        node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if not isinstance(node, yaml.MappingNode):
            raise SettingError(f"{path.name}:1: expected a mapping (key: value) at the top level")
        return Block(path, node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise SettingError(f"{path.name}:{mark.line + 1 if mark else 1}: not valid YAML: {problem}") from error


def blocks(top: Block, key: str) -> list[tuple[str, Block]]:
    """The named mappings under a key, in the file's order."""
    block = top.take(key, Block)
    return [(name, block.take(name, Block)) for name in block]
