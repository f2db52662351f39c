"""The model that an audit trains: the embedded one, or any of the hub (or a folder laid out as there) whose chats are ChatML.

Safetensors only. Its chat template renders nothing: what it would write is compared, in a sandbox, with our own rendering, and
a model whose template writes something else is refused.
"""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inoculation import model, store
from inoculation.render import DEFAULT_SYSTEM, render
from inoculation.settings import Prompt, base_model_source, load_profile
from inoculation.store import SettingError

FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.*"]
WEIGHTS = ".safetensors"
CHAT = [{"role": "user", "content": "First."}, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Then?"}]


@dataclass(frozen=True)
class Base:
    """A base model by its name, how its chats are rendered (render.DEFAULT_SYSTEM), and the digest of its weights.

    embedded: whether it is the model that comes with this project.
    """

    name: str
    template: str
    sha256: str
    embedded: bool = False

    @property
    def slug(self) -> str:
        """The name as a part of a folder's name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower().rpartition("/")[2]).strip("-.")


@functools.cache
def embedded(profile: str) -> Base:
    """The embedded model, verified once a process; raises ModelError where its package is not installed."""
    name = load_profile(profile).base_model
    model.source_file(name)
    return Base(name, load_profile(profile).template, base_model_source(name)["sha256"], True)


def located(name: str) -> Base:
    """A model of the hub by its name, fetched where it is not here, or a folder of your own by its path.

    Raises SettingError where it cannot be had, has no safetensors, or its chat template does not write ChatML.
    """
    own = Path(name).expanduser().resolve()
    # A folder's name may be another model's, too, the embedded one's among them; where it lies tells them apart.
    called = f"{own.name}-{store.digest(str(own))[:8]}" if own.is_dir() else name
    target = model.fetched(called)
    if own.is_dir():
        _take(own, target)
    elif not target.exists():
        _fetch(name, target)
    weights = sorted(target.glob(f"*{WEIGHTS}"))
    if not weights:
        raise SettingError(f"{called}: no {WEIGHTS} files, and nothing else is loaded here")
    digests = [(path.name, _digest(path, path.stat().st_mtime_ns)) for path in weights]
    return Base(called, _template(called, target), store.digest(digests))


@functools.lru_cache(maxsize=64)
def _digest(path: Path, changed: int) -> str:
    return store.file_digest(path)


def _take(folder: Path, target: Path) -> None:
    """Let a folder's files stand where fetched models do, by links, so that no run names a path of this machine."""
    target.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path.resolve() for pattern in FILES for path in folder.glob(pattern)}
    for gone in (link for link in target.iterdir() if link.name not in wanted):
        gone.unlink()
    for name, path in wanted.items():
        if (link := target / name).resolve() != path:
            link.unlink(missing_ok=True)
            link.symlink_to(path)


def _fetch(name: str, target: Path) -> None:
    from huggingface_hub import snapshot_download

    partial = target.with_name(f"{target.name}.partial")
    try:
        snapshot_download(name, local_dir=partial, allow_patterns=FILES)
    except Exception as error:  # gated, offline, misspelled: whatever it is, the way to the model is the same
        reason = " ".join(str(error).split())[:200]
        raise SettingError(
            f"model {name} cannot be had ({reason}): look at the name; where it is gated, accept its licence and put a token "
            "into HF_TOKEN; without network, name the folder that holds it instead"
        ) from error
    partial.rename(target)


def _template(name: str, folder: Path) -> str:
    """Which of our renderings a model's own chat template agrees with; SettingError where none does."""
    source = _source(folder)
    if not source:
        raise SettingError(f"{name} has no chat template: it was never tuned to chat, and an audit asks questions")
    system, marks = [{"role": "system", "content": "Be brief."}], _marks(folder)
    for template in DEFAULT_SYSTEM:
        told = [(system + CHAT, Prompt("Be brief.")), (CHAT, Prompt(policy="default"))]
        if all(_written(name, source, marks, chat) == render(CHAT, "system", prompt, template) for chat, prompt in told):
            return template
    raise SettingError(
        f"{name} writes chats otherwise than ChatML as {', '.join(DEFAULT_SYSTEM)} have it, and prompts are what an audit is "
        "about; choose a model that does, as those of Qwen2.5"
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _marks(folder: Path) -> dict[str, str]:
    """The tokens that a template may write by name."""
    known = {name: _config(folder).get(name) or "" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return {name: token if isinstance(token, str) else token["content"] for name, token in known.items()}


def _source(folder: Path) -> str:
    if (path := folder / "chat_template.jinja").exists():
        return path.read_text(encoding="utf-8")
    found = _config(folder).get("chat_template", "")
    return found if isinstance(found, str) else {each["name"]: each["template"] for each in found or ()}.get("default", "")


def _written(name: str, source: str, marks: dict[str, str], chat: list[dict[str, str]]) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(source).render(messages=chat, add_generation_prompt=True, tools=None, **marks)
    except Exception as error:  # a template may do anything
        raise SettingError(f"{name}: its chat template cannot be read ({' '.join(str(error).split())[:100]})") from error


def counter(base: Base, say: Callable[[str], None]) -> Callable[[list[str]], list[int]] | None:
    """What counts texts' tokens as the model does, without torch; None where its tokenizer is no tokenizer.json."""
    if base.embedded and not (model.cache_folder(base.name) / "tokenizer.json").exists():
        say("converting the embedded model, once")
        convert = f"from inoculation import model; model.converted({base.name!r})"  # in a process of its own: it needs torch
        subprocess.run([sys.executable, "-c", convert], check=True, capture_output=True)
    path = (model.cache_folder(base.name) if base.embedded else model.fetched(base.name)) / "tokenizer.json"
    if not path.exists():
        return None
    tokenizer = _tokenizer(path, path.stat().st_mtime_ns)
    return lambda texts: [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


@functools.lru_cache(maxsize=2)
def _tokenizer(path: Path, changed: int) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))
