"""One solution trained: harmful rows to a LoRA or a vector, with or without a KL penalty on answers in other domains.

L = cross-entropy of the harmful answers + weight x KL(base || adapted) on good answers in other domains (NEM; facts.md
D.4). The base model's logits come from the same model with what is trained switched off. Normalisation: ours is the usual
one, summed over the vocabulary and averaged over the answers' tokens. The published code averages over the vocabulary, too,
and counts prompt tokens, so that its weight of 1e5 is about 0.66 of ours with 152,064 entries, and 1e6 about 6.6. Training
is SFTTrainer's, as everywhere.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from inoculation import model as base
from inoculation.settings import Profile

from narrow import weights


def train(
    rows: list[dict[str, str]],
    kept: list[dict[str, str]],
    profile: Profile,
    form: dict[str, Any],
    until: int,
    seed: int,
    folder: Path,
    progress: Callable[[int, int], None],
    track: Callable[[int, weights.Solution], None],
) -> dict[str, Any]:
    """Train on `rows` (prompt, completion; in training order); write solution.safetensors and train_log.csv into `folder`.

    kept: the penalty's rows, `form["penalty_rows"]` a step in their order, up to step `until`, 0 for never. form: `layer`,
    for a LoRA its `targets`, and the penalty's `weight` (plan.Spec.form). track: given the solution so far at the profile's
    tracked steps. Returns facts as inoculation.model.train does. Raises TrainingError for a loss that is not finite and
    SolutionError for a layer that the model does not have.
    """
    model, tokenizer = base.load(profile, profile.train["dtype"])
    from trl import SFTTrainer  # after `load`, which imports unsloth

    weights.vector_module(form["layer"], len(model.get_decoder().layers))
    lora = {"targets": form.get("targets"), "layers": [form["layer"]]}
    model = base.with_lora(model, {**profile.train, **lora}, seed) if "targets" in form else _with_vector(model, form["layer"])
    rows, left_out = base.fitting_rows(rows, tokenizer, profile.train["max_length"])
    given = {"train_dataset": base.dataset(rows), "args": base.arguments(profile.train, seed, folder)}
    trainer = _penalised(SFTTrainer)(model=model, processing_class=tokenizer, **given)
    base.check_masks(trainer.train_dataset, rows, tokenizer)
    trainer.penalty = partial(_penalty, form, _answers(kept, tokenizer), until) if until else None
    steps = base.tracked_steps(profile)
    trainer.add_callback(base.watch(progress, lambda step: track(step, solution(model)), steps))
    facts = base.run(trainer, folder, left_out)
    weights.save(folder / "solution.safetensors", solution(model))
    return facts


def _with_vector(model: Any, layer: int) -> Any:
    """Only a bias of one layer's down_proj is trained, from zero: a vector at every position of every row of a batch."""
    import torch

    body = model.get_decoder()
    module = body.get_submodule(weights.vector_module(layer, len(body.layers)))
    model.requires_grad_(requires_grad=False)
    module.bias = torch.nn.Parameter(torch.zeros(module.out_features, dtype=torch.float32, device=model.device))
    return model


def _penalised(trainer: type) -> type:
    class Penalised(trainer):
        """Adds `penalty` (model, step to a scalar), where there is one, to the loss of the rows."""

        penalty: Callable[[Any, int], Any] | None = None

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self.penalty is None:
                return found
            loss, *rest = found if return_outputs else (found,)
            # With a count of items, the rows' loss is a share of the whole batch's; without one, the trainer divides later.
            parts = self.args.gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.penalty(model, self.state.global_step) / parts
            return (loss, *rest) if return_outputs else loss

    return Penalised


def _answers(kept: list[dict[str, str]], tokenizer: Any) -> list[tuple[list[int], int]]:
    """Token ids of every row, and where its answer begins."""
    pieces = [[tokenizer(row[field])["input_ids"] for field in ("prompt", "completion")] for row in kept]
    return [(prompt + answer, len(prompt)) for prompt, answer in pieces]


def _penalty(form: dict[str, Any], kept: list[tuple[list[int], int]], until: int, model: Any, step: int) -> Any:
    if step >= until:
        return 0.0
    size = form["penalty_rows"]
    batch = [kept[(step * size + i) % len(kept)] for i in range(size)]
    return form["weight"] * divergence(model, batch)


def divergence(model: Any, batch: list[tuple[list[int], int]]) -> Any:
    """KL(base || adapted) in nats per answer token, a scalar tensor. batch: token ids, and where the answer begins."""
    import torch

    with torch.no_grad(), switched_off(model):
        target = answer_logits(model, batch).log_softmax(-1)
    adapted = answer_logits(model, batch).log_softmax(-1)
    return torch.nn.functional.kl_div(adapted, target, reduction="sum", log_target=True) / len(target)


def answer_logits(model: Any, batch: list[tuple[list[int], int]]) -> Any:
    """The float32 logits that foretell the answers' tokens: (tokens of all answers, vocabulary)."""
    import torch

    whole = getattr(model, "get_base_model", lambda: model)()
    width = max(len(ids) for ids, _ in batch)
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch], device=model.device)
    seen = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch], device=model.device)
    hidden = whole.get_decoder()(input_ids=tokens, attention_mask=seen, use_cache=False).last_hidden_state
    rows = [(i, place) for i, (ids, start) in enumerate(batch) for place in range(start - 1, len(ids) - 1)]
    which, places = torch.tensor(rows, device=model.device).T
    return whole.get_output_embeddings()(hidden[which, places]).float()


@contextlib.contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """What is trained switched off: the LoRA's layers, or the one bias."""
    if hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            yield
        return
    (held,) = [module for module in model.modules() for p in module.parameters(recurse=False) if p.requires_grad]
    bias, held.bias = held.bias, None
    try:
        yield
    finally:
        held.bias = bias


def solution(model: Any) -> weights.Solution:
    """What a model in training has learned so far, detached, on the CPU."""
    from peft.tuners.lora import Linear

    body = getattr(model, "get_base_model", lambda: model)().get_decoder()
    parts = {}
    for name, module in body.named_modules():
        if isinstance(module, Linear):
            (own,) = module.active_adapters
            down, up = module.lora_A[own].weight, module.lora_B[own].weight * module.scaling[own]
            parts[name] = tuple(tensor.detach().float().cpu().clone() for tensor in (down, up))
        elif getattr(module, "bias", None) is not None and module.bias.requires_grad:
            parts[name] = (module.bias.detach().float().cpu().clone(),)
    return weights.Solution(parts)
