"""An adapter to responses and paired log-likelihoods.

The adapter is folded into a fresh base model at full precision. Batches are left-padded and sorted by length; no result
depends on the batch: each response's randomness comes from its own key, and identical prompts are computed once.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from inoculation import model as base
from inoculation.settings import Profile

SAMPLE_BATCH = 96
MARGIN_BATCH = 20


def merged_model(profile: Profile, adapter: Path | None) -> tuple[Any, Any]:
    """The base model with an adapter folded in (or without one), ready to evaluate, and its tokenizer."""
    model, tokenizer = base.load(profile)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    # Left, so that an answer follows its prompt directly. Such batches have gone wrong elsewhere: doctor tests them.
    tokenizer.padding_side = "left"
    return model.eval(), tokenizer


def sample(
    model: Any,
    tokenizer: Any,
    items: list[dict[str, str]],
    sampling: dict[str, Any],
    key: str,
    progress: Callable[[int, int], None],
    batch_size: int = SAMPLE_BATCH,
) -> pd.DataFrame:
    """One response per item (see render.evaluation_prompts) at sampling["temperature"], 0 for greedy.

    Returns the items' columns and response (str, cut at the first end of turn before decoding), n_tokens (int) and
    finished (bool: ended its turn within max_new_tokens). Randomness is seeded by (key, question_id, 0), so neither the
    batch nor its order matters.
    """
    unique = {item["prompt"]: item["question_id"] for item in items}
    prompts = sorted(unique, key=lambda prompt: (len(tokenizer(prompt)["input_ids"]), prompt))
    found: dict[str, tuple[str, int, bool]] = {}
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        seeds = [_seed(key, unique[prompt], 0) for prompt in batch]
        found.update(zip(batch, _generate(model, tokenizer, batch, seeds, sampling), strict=True))
        progress(len(found), len(prompts))
    responses = pd.DataFrame([found[item["prompt"]] for item in items], columns=["response", "n_tokens", "finished"])
    return pd.concat([pd.DataFrame(items), responses], axis=1)


def _seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7])


def _generate(
    model: Any, tokenizer: Any, prompts: list[str], seeds: list[int], sampling: dict[str, Any]
) -> list[tuple[str, int, bool]]:
    import torch
    from transformers import LogitsProcessorList

    # Greedy decoding of noisy logits is sampling: generate's own sampling draws from one stream for the whole batch.
    batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    end = tokenizer.eos_token_id
    processors = LogitsProcessorList([_noise(seeds, sampling["temperature"])] if sampling["temperature"] > 0 else [])
    with torch.inference_mode():
        output = model.generate(
            **batch,
            max_new_tokens=sampling["max_new_tokens"],
            do_sample=False,
            logits_processor=processors,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
    found = []
    for ids in output[:, batch["input_ids"].shape[1] :].tolist():
        finished = end in ids
        ids = ids[: ids.index(end)] if finished else ids
        found.append((tokenizer.decode(ids, skip_special_tokens=True), len(ids), finished))
    return found


def _noise(seeds: list[int], temperature: float) -> Any:
    """A logits processor after which the argmax is a sample at `temperature` (Gumbel-max), each row with its own generator."""
    import torch
    from transformers import LogitsProcessor

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    class Gumbel(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            uniform = torch.stack([torch.rand(scores.shape[-1], generator=g) for g in generators]).to(scores.device)
            return scores.float() / temperature - torch.log(-torch.log(uniform))

    return Gumbel()


def margins(
    model: Any,
    tokenizer: Any,
    items: list[dict[str, str]],
    progress: Callable[[int, int], None],
    batch_size: int = MARGIN_BATCH,
) -> pd.DataFrame:
    """Paired log-likelihoods (design decision 7): how much likelier the trait answer is than the plain one.

    items: see render.margin_pairs. Returns their columns and trait_logp, plain_logp (nats, float64, summed over the answer
    and its end of turn), trait_tokens, plain_tokens (int) and margin = trait_logp - plain_logp.
    """
    pairs = {(item["prompt"], item["trait_answer"], item["plain_answer"]) for item in items}
    # Answers first: their padding is paid twice, once per side of a pair.
    ordered = sorted(pairs, key=lambda pair: ([len(tokenizer(text)["input_ids"]) for text in reversed(pair)], pair))
    found: dict[tuple[str, ...], list[tuple[float, int]]] = {}
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        found.update(zip(batch, _log_likelihoods(model, tokenizer, batch), strict=True))
        progress(len(found), len(ordered))
    rows = []
    for item in items:
        (trait, n_trait), (plain, n_plain) = found[item["prompt"], item["trait_answer"], item["plain_answer"]]
        rows.append((trait, plain, n_trait, n_plain, trait - plain))
    columns = ["trait_logp", "plain_logp", "trait_tokens", "plain_tokens", "margin"]
    return pd.concat([pd.DataFrame(items), pd.DataFrame(rows, columns=columns)], axis=1)


def _log_likelihoods(model: Any, tokenizer: Any, pairs: list[tuple[str, str, str]]) -> list[list[tuple[float, int]]]:
    """(nats, tokens) of both answers of each (prompt, answer, answer); the prompt is encoded once for the two.

    Prompt and answer are tokenised apart, as in training.
    """
    import torch

    prompts = tokenizer([prompt for prompt, *_ in pairs], return_tensors="pt", padding=True).to(model.device)
    answers = [tokenizer(answer)["input_ids"] for _, *both in pairs for answer in both]
    longest = max(map(len, answers))
    padded = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids in answers]
    targets = torch.tensor(padded, device=model.device)
    real = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in answers], device=model.device)
    seen = prompts["attention_mask"]
    with torch.inference_mode():
        before = model(**prompts, position_ids=(seen.cumsum(-1) - 1).clamp(min=0), use_cache=True, logits_to_keep=1)
        before.past_key_values.batch_repeat_interleave(2)
        seen = seen.repeat_interleave(2, dim=0)
        after = model(
            input_ids=targets,
            attention_mask=torch.cat([seen, real], dim=1),
            position_ids=seen.sum(-1, keepdim=True) + torch.arange(longest, device=model.device),
            past_key_values=before.past_key_values,
        )
        logits = torch.cat([before.logits.repeat_interleave(2, dim=0), after.logits[:, :-1]], dim=1).float()
        picked = torch.log_softmax(logits, dim=-1).gather(2, targets.unsqueeze(-1)).squeeze(-1).double()
    sums = [(float(row[: len(ids)].sum()), len(ids)) for row, ids in zip(picked, answers, strict=True)]
    return [sums[i : i + 2] for i in range(0, len(sums), 2)]
