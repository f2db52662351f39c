"""How fast is a run, and against what? `./run_all.sh bench` (`--help` lists its options).

Every way of doing a thing is an arm, a process of its own (arm.py), and arms take turns round by round, because the speed of
a shared machine drifts by more than what is compared. The table gives medians over rounds with their range; a ratio is the
median of the rounds' own ratios. Written: bench.csv and the figure bench (png, csv, json), under data/local and figures/local,
with --update-reference under data/results and figures; on CUDA or with another model, bench.DEVICE.MODEL.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from inoculation import figures, model, settings, store
from matplotlib.figure import Figure

ARM = Path(__file__).with_name("arm.py")
ROUNDS = 3
STEPS = 2
GROWTH_STEPS = 6
NEW_TOKENS = 24
PROMPTS = 84
BATCHES = {1: 1, 24: 24, 84: 84}  # batch size of `generate`: prompts answered with it
PAIRS = 24
NAMES = ["baseline", "inoculation.spanish", "inoculation.caps"]
NOTEBOOK = "02_spanish_vs_caps"
SHOW = """
import sys
from pathlib import Path
from inoculation.__main__ import execute
sys.exit(bool(execute(Path(sys.argv[1]), Path(sys.argv[2]), {})))
"""
QWEN = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
QWEN |= {"num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768}
Measured = dict[str, Any]


@dataclass
class Bench:
    """The arms, started when first asked, and what they measured: one record a measurement."""

    device: str
    folder: str
    home: Path
    total: int
    records: list[Measured] = field(default_factory=list)
    arms: dict[str, subprocess.Popen] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def ask(self, arm: str, part: str, do: str, **given: Any) -> Measured:
        """Let an arm measure something, and say so with an ETA; {"error": ...} where it could not."""
        done, spent = len(self.records), time.monotonic() - self.started
        left = f" · about {spent / done * (self.total - done) / 60:.0f} min left" if done > 3 else ""
        print(f"[{done + 1}/{self.total}] {part} · {arm}{left}", flush=True)
        process = self.arms.get(arm) or self._start(arm)
        try:
            process.stdin.write(json.dumps({"do": do, **given}) + "\n")
            process.stdin.flush()
            found = json.loads(process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            found = {"error": "the arm's process died"}
        self.records.append({"part": part, "arm": arm, **found})
        return found

    def _start(self, arm: str) -> subprocess.Popen:
        command = [sys.executable, str(ARM), arm, "--device", self.device, *(["--folder", self.folder] if self.folder else [])]
        # Threads that wait must not spin while another arm is measured.
        environment = {"INOCULATION_HOME": str(self.home), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
        log = (self.home / f"{arm}.log").open("w", encoding="utf-8")
        self.arms[arm] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **environment},
        )
        return self.arms[arm]

    def close(self) -> None:
        """End the arms."""
        for process in self.arms.values():
            process.kill()


def main() -> int:
    """Measure, print and write the table and its figure; 1 when something could not be measured."""
    parser = argparse.ArgumentParser(prog="./run_all.sh bench", description=__doc__.splitlines()[0])
    parser.add_argument("--update-reference", action="store_true", help="maintainers: write data/results and figures")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--base-model", choices=["embedded", "random-qwen2.5-7b"], default="embedded")
    options = parser.parse_args()
    model.converted(settings.load_profile("mini").base_model)
    with tempfile.TemporaryDirectory() as home:
        folder = "" if options.base_model == "embedded" else str(random_model(Path(home) / "model"))
        parts = 4 * (ROUNDS + 1) + ROUNDS * (2 + len(BATCHES)) + 3
        bench = Bench(options.device, folder, Path(home), parts)
        try:
            records, growth = measure(bench)
        finally:
            bench.close()
    table = pd.concat([tabulate(records), fitted(growth)], ignore_index=True)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep=""))
    write(table, growth, options)
    failed = records[records.error.notna()] if "error" in records else records[:0]
    for row in failed.drop_duplicates(["part", "arm"]).itertuples():
        print(f"PROBLEM {row.part}, {row.arm}: {row.error}", file=sys.stderr)
    return 1 if len(failed) else 0


def random_model(folder: Path) -> Path:
    """Qwen2.5-7B's shape with random weights in bfloat16, and the embedded model's tokenizer: for speed alone."""
    model.prepare_environment()
    import unsloth  # noqa: F401, I001
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(Qwen2Config(**QWEN)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model.converted(settings.load_profile("mini").base_model)).save_pretrained(folder)
    return folder


def measure(bench: Bench) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every measurement (part, arm, value, peak_mb) and the points of growth (over, n, seconds)."""
    ours = "bfloat16" if bench.device == "cuda" or settings.cpu_multiplies_bfloat16() else "float32"
    for _ in range(ROUNDS):
        top = bench.ask("ours", "peak", "peak", dtype=ours)
        for arm in ("ours", "plain-float32", "plain", "plain-bfloat16"):
            found = bench.ask(arm, "training", "train", steps=STEPS, dtype=ours)
            if "error" not in found:
                rate = found["gflop"] / found["seconds"]
                bench.records[-1] |= {"value": found["tokens"] / found["seconds"], "share": rate / top["gflops"]}
    adapter = str(bench.home / "adapter-run")
    bench.ask("ours", "adapter", "adapter", folder=adapter)
    adapter = f"{adapter}/adapter"
    for _ in range(ROUNDS):
        answer = {"do": "sample", "adapter": adapter, "new_tokens": NEW_TOKENS}
        _rate(bench, "ours", "sampling", "tokens", **answer, prompts=PROMPTS, batch=PROMPTS)
        for batch, prompts in BATCHES.items():
            _rate(bench, "plain-float32", f"sampling, batch {batch}", "tokens", **answer, prompts=prompts, batch=batch)
        _rate(bench, "ours", "margins", PAIRS, do="margins", adapter=adapter, pairs=PAIRS)
    return pd.DataFrame(bench.records), _growth(bench, ours)


def _rate(bench: Bench, arm: str, part: str, count: str | int, **command: Any) -> None:
    found = bench.ask(arm, part, **command)
    if "error" not in found:
        bench.records[-1]["value"] = (count if isinstance(count, int) else found[count]) / found["seconds"]


def _growth(bench: Bench, dtype: str) -> pd.DataFrame:
    """Seconds over training rows, conditions and seeds (the last two with the smoke profile), and what a notebook costs."""
    points: list[Measured] = []
    found = bench.ask("ours", "rows", "train", steps=GROWTH_STEPS, dtype=dtype)
    batch = settings.load_profile("mini").train["batch_size"]
    points += [
        {"over": "rows", "n": i * batch, "seconds": at - found["stamps"][0]}
        for i, at in enumerate(found.get("stamps", [])[: GROWTH_STEPS + 1])
    ]
    for over, names, seeds in (("conditions", NAMES, [0]), ("seeds", NAMES[:1], [1, 2, 3])):
        runs = bench.ask("ours", over, "conditions", names=names, seeds=seeds).get("runs", [])
        ends = np.cumsum([run["seconds"] for run in runs])
        points += [{"over": over, "n": i + 1, "seconds": end} for i, end in enumerate(ends)]
        points += [{"over": "outside", "n": 1, "seconds": run["outside"]} for run in runs]
    started = time.monotonic()
    shown = [str(store.NOTEBOOKS / f"{NOTEBOOK}.ipynb"), str(bench.home / "shown.ipynb")]
    environment = {**os.environ, "INOCULATION_HOME": str(bench.home / "empty")}
    if subprocess.run([sys.executable, "-c", SHOW, *shown], env=environment, stdout=subprocess.DEVNULL).returncode == 0:
        points.append({"over": "notebook", "n": 1, "seconds": time.monotonic() - started})
    return pd.DataFrame(points)


def tabulate(records: pd.DataFrame) -> pd.DataFrame:
    """Median and range of every measurement, how many times faster ours is, and the share of the matrix-product peak."""
    units = {"training": "tokens/s", "margins": "pairs/s"}
    made = []
    for (part, arm), rows in records.dropna(subset=["value"]).groupby(["part", "arm"], sort=False):
        about = part.split(",")[0]
        ours = records[(records.part == about) & (records.arm == "ours")].value.to_numpy()
        made.append(
            {
                "part": part,
                "arm": arm,
                "unit": units.get(about, "tokens/s"),
                "n": len(rows),
                "median": rows.value.median(),
                "low": rows.value.min(),
                "high": rows.value.max(),
                "ours_is_times_faster": np.median(ours[: len(rows)] / rows.value.to_numpy()[: len(ours)]),
                "share_of_peak": rows.share.median(),
                "peak_mb": rows.peak_mb.max(),
            }
        )
    if "gflops" in records:
        top = records.gflops.dropna()
        made.append({"part": "peak", "arm": "matrix product", "unit": "GFLOP/s", "n": len(top)} | _spread(top))
    return pd.DataFrame(made)


def _spread(values: pd.Series) -> Measured:
    return {"median": values.median(), "low": values.min(), "high": values.max()}


def fitted(growth: pd.DataFrame) -> pd.DataFrame:
    """Seconds a row, condition and seed more cost (least squares through all points), and the two overheads."""
    made = []
    for over, points in growth.groupby("over", sort=False):
        if over in ("outside", "notebook"):
            part = {"outside": "overhead of a condition", "notebook": "a notebook that computes nothing"}[over]
            made.append({"part": part, "arm": "ours", "unit": "s", "n": len(points)} | _spread(points.seconds))
        else:
            slope, start = np.polyfit(points.n, points.seconds, 1)
            made.append({"part": f"one more of {over}", "arm": "ours", "unit": "s", "n": len(points), "median": slope})
    return pd.DataFrame(made)


def write(table: pd.DataFrame, growth: pd.DataFrame, options: argparse.Namespace) -> None:
    """Write the table, the figure, the figure's data and its provenance."""
    plain = (options.device, options.base_model) == ("cpu", "embedded")
    name = "bench" if plain else f"bench.{options.device}.{options.base_model}"
    reference = options.update_reference
    results = store.RESULTS if reference else store.local() / "bench"
    pictures = store.REFERENCE_FIGURES if reference else store.home() / "figures" / "local"
    for folder in (results, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(results / f"{name}.csv", index=False, lineterminator="\n", float_format="%.4g")
    growth.to_csv(pictures / f"{name}.csv", index=False, lineterminator="\n", float_format="%.4g")
    facts = {"machine": _machine(options.device), "rounds": ROUNDS}
    caption = (
        "Speed against plain TRL and PEFT, and how time grows; demo scale. Points: medians; lines: range over "
        f"{ROUNDS} interleaved rounds; growth: least squares. {facts['machine']}."
    )
    record = {
        "figure": name,
        "caption": caption,
        "inputs": {f"{name}.csv": store.file_digest(results / f"{name}.csv")},
        **facts,
    }
    store.write_whole(pictures / f"{name}.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    draw(table, growth).savefig(pictures / f"{name}.png")
    print(f"written: {results / name}.csv and {pictures / name}.png")


def _machine(device: str) -> str:
    if device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown GPU"
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in told if line.startswith("model name")), "unknown CPU")
    bfloat16 = "with" if settings.cpu_multiplies_bfloat16() else "without"
    return f"{len(os.sched_getaffinity(0))} cores of {name}, {bfloat16} bfloat16 in hardware"


def draw(table: pd.DataFrame, growth: pd.DataFrame) -> Figure:
    """Training and sampling speed by arm, and the three growths with their fits."""
    figure, axes = figures.canvas(5.0, 3, 2)
    for row, about in enumerate(("training", "sampling")):
        axes[row, 0].remove(), axes[row, 1].remove()
        axis = figure.add_subplot(axes[0, 0].get_gridspec()[row, :])
        part = table[table.part.str.split(",").str[0] == about]
        names = [
            f"{arm}{', generate' + part_.removeprefix(about).replace(',', '') if ',' in part_ else ''}"
            for arm, part_ in zip(part.arm, part.part, strict=True)
        ]
        colours = ["#d55e00" if arm == "ours" else "#666666" for arm in part.arm]
        axis.hlines(range(len(part)), part.low, part.high, colors=colours)
        axis.scatter(part["median"], range(len(part)), c=colours, s=18, zorder=3)
        axis.set_yticks(range(len(part)), names)
        axis.set(xlim=(0, None), ylim=(len(part) - 0.5, -0.5), xlabel=f"{about}, tokens/s")
    axes[2, 0].remove(), axes[2, 1].remove()
    panels = axes[0, 0].get_gridspec()[2, :].subgridspec(1, 3)
    for i, (over, points) in enumerate(growth[growth.over.isin(["rows", "conditions", "seeds"])].groupby("over", sort=False)):
        axis = figure.add_subplot(panels[i])
        sns.regplot(
            data=points, x="n", y="seconds", ci=None, ax=axis, color="#0072b2", scatter_kws={"s": 9}, line_kws={"lw": 1}
        )
        axis.set(xlabel=f"{over}", ylabel="seconds" if i == 0 else "", ylim=(0, None))
    return figure


if __name__ == "__main__":
    sys.exit(main())
