"""A worker whose runs take no time: the real loop, stages and store around work that only writes a line.

What a run is to do beside that stands in its home, in a file by its seed under `orders`, obeyed once: `die`, `raise`, `look`
(say which GPUs it sees), `talk` (TALK lines) or `wait` (until there is a file `go`). What it says stands under `said`.
"""

import os
import signal
import time
from typing import ClassVar

from inoculation import runs, store, worker

TALK = 1000


class Spec(runs.Spec):
    """A smoke run's names and keys."""

    worker: ClassVar[str] = "standin"


def specs(count):
    return [Spec("spanish_vs_caps", "baseline", seed, "smoke") for seed in range(count)]


def order(seed, what):
    store.write_whole(store.home() / "orders" / str(seed), what)


def said(seed):
    return store.home() / "said" / str(seed)


def _obey(spec, run, tell):
    path = store.home() / "orders" / str(spec.seed)
    if not path.exists():
        return
    what = path.read_text()
    path.unlink()
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        raise ValueError("told to")
    for line in range(TALK if what == "talk" else 0):
        run.say(f"line {line}")
    store.write_whole(said(spec.seed), os.environ.get("CUDA_VISIBLE_DEVICES", "all") if what == "look" else f"{os.getpid()}")
    while what == "wait" and not (store.home() / "go").exists():
        tell(done=0, of=1)
        time.sleep(0.1)


def _stage(name):
    def write(spec, run, evaluated, facts, tell, folder):
        if name == "sample":
            _obey(spec, run, tell)
        path = folder / ("spec.json" if name == "train" else spec.file(name).relative_to(spec.folder))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{spec} · {name}\n", encoding="utf-8")

    return write


if __name__ == "__main__":
    worker.serve(Spec, {name: _stage(name) for name in ("train", "sample", "margins", "score")})
