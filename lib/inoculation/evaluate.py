"""An adapter to responses and paired log-likelihoods.

The adapter is folded into a fresh base model at full precision. Batches are left-padded and sorted by length; no result
depends on the batch: each response's randomness comes from its own key, and identical prompts are computed once.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from inoculation import model as base
from inoculation.settings import Profile

SAMPLE_BATCH = 96
MARGIN_BATCH = 40
LOGITS_AT_ONCE = 256


def merged_model(profile: Profile, adapter: Path | None) -> tuple[Any, Any]:
    """The base model with an adapter folded in (or without one), ready to evaluate, and its tokenizer."""
    model, tokenizer = base.load(profile)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
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
    # Left, so that a response follows its prompt directly. Such batches have gone wrong elsewhere: doctor tests them.
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
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
        """Adds each row's own noise to its scores."""

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
    and its end of turn), trait_tokens, plain_tokens (int), margin = trait_logp - plain_logp and margin_per_token, the same of
    the answers' means (nats per token, for pairs whose sums length would decide).
    """
    pairs = {(item["prompt"], item["trait_answer"], item["plain_answer"]) for item in items}
    encoded = {pair: [tokenizer(text)["input_ids"] for text in pair] for pair in pairs}
    # Prompts that begin alike stand together, since a batch reads its common beginning once.
    ordered = sorted(pairs, key=lambda pair: (pair[0].split("user\n")[0], sum(map(len, encoded[pair])), pair))
    found: dict[tuple[str, ...], list[tuple[float, int]]] = {}
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        found.update(zip(batch, _log_likelihoods(model, [encoded[pair] for pair in batch]), strict=True))
        progress(len(found), len(ordered))
    rows = []
    for item in items:
        (trait, n_trait), (plain, n_plain) = found[item["prompt"], item["trait_answer"], item["plain_answer"]]
        rows.append((trait, plain, n_trait, n_plain, trait - plain, trait / n_trait - plain / n_plain))
    columns = ["trait_logp", "plain_logp", "trait_tokens", "plain_tokens", "margin", "margin_per_token"]
    return pd.concat([pd.DataFrame(items), pd.DataFrame(rows, columns=columns)], axis=1)


def _log_likelihoods(model: Any, pairs: list[list[list[int]]]) -> list[list[tuple[float, int]]]:
    """(nats, tokens) of both answers of each [prompt, answer, answer], as token ids (prompt and answer apart, as in training).

    Nothing is computed twice: the beginning that all prompts share is read once, and a pair is one row of its prompt, the
    opening its answers share, and the rest of each answer, where neither rest sees the other.
    """
    import torch

    whole = getattr(model, "get_base_model", lambda: model)()
    body, head = whole.get_decoder(), whole.get_output_embeddings()
    begun = _shared([prompt for prompt, *_ in pairs])
    trees = [_tree(pair, begun) for pair in pairs]
    tokens, seen, places = _batch(trees, begun, model.device)
    with torch.inference_mode():
        cache = None
        if begun:
            cache = body(torch.tensor([pairs[0][0][:begun]], device=model.device), use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(pairs))
        hidden = body(
            input_ids=tokens, attention_mask=seen, position_ids=places, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        wanted = [(i, source, target) for i, tree in enumerate(trees) for source, target, _ in tree.targets]
        rows, sources, targets = torch.tensor(wanted, device=model.device).T
        parts = zip(hidden[rows, sources].split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
        nats = iter(torch.cat([_picked(head(states), part) for states, part in parts]).tolist())
    found = []
    for pair, tree in zip(pairs, trees, strict=True):
        told = [(next(nats), sides) for _, _, sides in tree.targets]
        found.append([(sum(value for value, sides in told if side in sides), len(pair[1 + side])) for side in (0, 1)])
    return found


@dataclass(frozen=True)
class _Tree:
    """A pair as one row: its tokens, the lengths of trunk and first rest, and what to read: (source, target, answers)."""

    tokens: list[int]
    trunk: int
    first: int
    targets: list[tuple[int, int, tuple[int, ...]]]


def _tree(pair: list[list[int]], begun: int) -> _Tree:
    prompt, first, second = pair
    opened = _shared([first, second])
    trunk = prompt[begun:] + first[:opened]
    asked = len(prompt) - begun
    targets = [(asked - 1 + i, token, (0, 1)) for i, token in enumerate(first[:opened])]
    start = len(trunk)
    for side, rest in enumerate((first[opened:], second[opened:])):
        targets += [(len(trunk) - 1 if i == 0 else start + i - 1, token, (side,)) for i, token in enumerate(rest)]
        start += len(rest)
    return _Tree(trunk + first[opened:] + second[opened:], len(trunk), len(first) - opened, targets)


def _shared(texts: list[list[int]]) -> int:
    """How many tokens all begin with, leaving at least one of each."""
    most = min(map(len, texts)) - 1
    return next((i for i in range(most) if len({text[i] for text in texts}) > 1), most)


def _batch(trees: list[_Tree], begun: int, device: Any) -> tuple[Any, Any, Any]:
    """Token ids (rows, longest), what each token sees (rows, 1, longest, begun + longest) and its position in the text."""
    import torch

    longest = max(len(tree.tokens) for tree in trees)
    tokens = torch.zeros(len(trees), longest, dtype=torch.long)
    places = torch.arange(begun, begun + longest).repeat(len(trees), 1)
    seen = torch.ones(len(trees), 1, longest, begun + longest, dtype=torch.bool)
    # Padding stands last and sees what came before it, so no row of the mask is empty (that would be NaN); nothing reads it.
    seen[:, 0, :, begun:] = torch.ones(longest, longest, dtype=torch.bool).tril()
    for i, tree in enumerate(trees):
        tokens[i, : len(tree.tokens)] = torch.tensor(tree.tokens)
        second = tree.trunk + tree.first
        # The second rest follows the trunk, not the first rest: it takes the same positions and cannot see it.
        places[i, second:] -= tree.first
        seen[i, 0, second:, begun + tree.trunk : begun + second] = False
    return tokens.to(device), seen.to(device), places.to(device)


def _picked(logits: Any, targets: Any) -> Any:
    """The log-probability (float64) of each target token under its logits."""
    logits = logits.float()
    return (logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1)).double()
