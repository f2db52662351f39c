"""Do the fast paths give what the plain ones give? Writes proofs/parity.csv (dated in its first column).

On the embedded model in float32 (design decision 17): the loss of each of 50 training steps with LoRA's products fused and as
PEFT computes them; a second training, bit for bit; greedy responses of the stream and of `generate`, one prompt at a time;
margins and two plain forward passes; margins under a solution of notebook 08 by the layers above it and by the whole model. For
bfloat16 the rate at which responses differ is reported, not bounded.
"""

import datetime
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from inoculation import evaluate, model, store
from inoculation.runs import Spec

SPEC = Spec("spanish_vs_caps", "baseline", 0, "mini")
STEPS = 50
BFLOAT16_STEPS = 6
PROMPTS = 24
PAIRS = 24
GREEDY = {"temperature": 0, "max_new_tokens": 24}
TABLE = Path(__file__).with_suffix(".csv")


def trained(folder: Path, steps: int, dtype: str = "float32", fused: bool = True) -> tuple[pd.Series, Path]:
    """Losses by step and the adapter of a training on one row a step."""
    profile = SPEC.parts[2]
    profile = replace(profile, train={**profile.train, "steps": steps, "batch_size": 1, "dtype": dtype})
    fuse = model.fuse_lora
    model.fuse_lora = fuse if fused else lambda network: None
    try:
        model.train(SPEC.rows[:steps], profile, 0, folder, lambda done, of: None)
    finally:
        model.fuse_lora = fuse
    return pd.read_csv(folder / "train_log.csv").loss, folder / "adapter"


def responses(adapter: Path) -> pd.Series:
    """Greedy responses of an adapter to the first prompts."""
    network, tokenizer = model.merged_model(SPEC.parts[2], adapter)
    return evaluate.sample(network, tokenizer, SPEC.prompts[:PROMPTS], GREEDY, "parity", lambda done, of: None).response


def generated(network: Any, tokenizer: Any) -> list[str]:
    """The same by transformers' own loop, one prompt at a time."""
    found = []
    for item in SPEC.prompts[:PROMPTS]:
        ids = tokenizer(item["prompt"], return_tensors="pt")
        told = network.generate(**ids, max_new_tokens=GREEDY["max_new_tokens"], do_sample=False, eos_token_id=2, pad_token_id=2)
        found.append(tokenizer.decode(told[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def plain_margin(network: Any, tokenizer: Any, row: Any) -> float:
    """A pair's margin by one forward pass for each answer, log-softmax in float64."""
    import torch

    sums = []
    for answer in (row.trait_answer, row.plain_answer):
        asked, said = tokenizer(row.prompt)["input_ids"], tokenizer(answer)["input_ids"]
        with torch.inference_mode():
            logits = network(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
        sums.append(logits.double().log_softmax(-1).gather(1, torch.tensor(said)[:, None]).sum().item())
    return sums[0] - sums[1]


def under_a_solution() -> list[tuple[str, str, float, float | None]]:
    """Margins under a random change as large as a trained one: the layers above it against the whole model, and bfloat16."""
    import torch
    from narrow import measure, plan, weights

    network, tokenizer = model.merged_model(SPEC.parts[2], None)
    pairs = plan.Spec(plan.FILE, "base", 0, "mini").pairs[:PAIRS]
    encoded = [[tokenizer(pair[name])["input_ids"] for name in ("prompt", "trait_answer", "plain_answer")] for pair in pairs]
    change = weights.random_vector(weights.vector_module(15, 30), network.config.hidden_size, 0).to_norm(30.0)
    above = pd.Series(measure.Tail(network, 15, encoded).margins(change))
    with weights.added(network, change):
        whole = evaluate.margins(network, tokenizer, pairs, lambda done, of: None).margin_per_token
    rough = pd.Series(measure.Tail(network.to(torch.bfloat16), 15, encoded).margins(change))
    what, unit = f"{PAIRS} margins under a solution", "nats per token"
    return [
        (f"{what}, layers above it against the whole model", f"largest difference, {unit}", (above - whole).abs().max(), 1e-4),
        (f"{what}, read in bfloat16", f"largest difference, {unit}", (above - rough).abs().max(), None),
        (f"{what}, read in bfloat16", f"difference of the means, {unit}", abs((above - rough).mean()), None),
    ]


def parity() -> pd.DataFrame:
    """One row a comparison: the difference found and the bound it must keep."""
    rows = []
    with tempfile.TemporaryDirectory() as home:
        folders = [Path(home) / name for name in ("fused", "again", "plain", "short", "bfloat16")]
        for folder in folders:
            folder.mkdir()
        fused, adapter = trained(folders[0], STEPS)
        same = store.file_digest(trained(folders[1], STEPS)[1] / "adapter_model.safetensors") == store.file_digest(
            adapter / "adapter_model.safetensors"
        )
        plain, _ = trained(folders[2], STEPS, fused=False)
        rows.append(
            (f"loss of {STEPS} steps, fused against PEFT", "largest difference, nats", (fused - plain).abs().max(), 1e-3)
        )
        rows.append((f"adapter of {STEPS} steps, trained again", "files that differ", float(not same), 0.0))
        network, tokenizer = model.merged_model(SPEC.parts[2], adapter)
        differ = sum(a != b for a, b in zip(responses(adapter), generated(network, tokenizer), strict=True))
        rows.append((f"{PROMPTS} greedy responses, stream against generate", "responses that differ", float(differ), 0.0))
        pairs = evaluate.margins(network, tokenizer, SPEC.pairs[:PAIRS], lambda done, of: None)
        off = max(abs(row.margin - plain_margin(network, tokenizer, row)) for row in pairs.itertuples())
        rows.append((f"{PAIRS} margins, tree against two passes", "largest difference, nats", off, 1e-4))
        exact, exact_adapter = trained(folders[3], BFLOAT16_STEPS)
        rough, rough_adapter = trained(folders[4], BFLOAT16_STEPS, dtype="bfloat16")
        what = f"trained {BFLOAT16_STEPS} steps in bfloat16 against float32"
        rows.append((f"{what}: loss", "largest difference, nats", (exact - rough).abs().max(), None))
        share = (responses(exact_adapter) != responses(rough_adapter)).mean()
        rows.append((f"{what}: {PROMPTS} greedy responses", "share that differ", share, None))
    rows += under_a_solution()
    return pd.DataFrame(rows, columns=["compared", "measure", "found", "bound"])


def main() -> int:
    """Write the table; 1 when a bound is broken."""
    found = parity()
    found.insert(0, "date", datetime.date.today().isoformat())
    found.to_csv(TABLE, index=False, lineterminator="\n", float_format="%.3g")
    print(found.to_string(index=False))
    return int((found.found > found.bound).any())


if __name__ == "__main__":
    model.prepare_environment()
    sys.exit(main())
