"""What a solution does at its layer: likelihoods, divergence on ordinary text, activations; always against the untouched model.

All solutions of one comparison act behind one layer's MLP, so what lies below is the same for every one of them. `Tail`
reads it once per text and then asks any number of solutions for the price of the layers above. A solution is a
`weights.Solution`; None is the base model.
"""

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from inoculation.evaluate import LOGITS_AT_ONCE, MARGIN_BATCH, Tree, as_tree, batched, picked

from narrow.weights import Solution, vector_module

TEXTS_AT_ONCE = 16
Pair = list[list[int]]  # token ids of a prompt and of two answers to it


@dataclass(frozen=True)
class _Kept:
    """A batch as it reaches the layers above: trees, mask, places, the layer's output and what entered its down_proj."""

    trees: list[Tree]
    seen: Any
    places: Any
    output: Any
    entered: Any

    @property
    def wanted(self) -> list[tuple[int, int, int]]:
        """(row, source, target): which state foretells which token of an answer."""
        return [(row, source, target) for row, one in enumerate(self.trees) for source, target, _ in one.targets]


class Tail:
    """The layers of a model above one of them, with what reaches them for some texts."""

    def __init__(self, model: Any, layer: int, pairs: list[Pair], batch_size: int = MARGIN_BATCH) -> None:
        """pairs: prompts with two answers each; the same answer twice where one likelihood is wanted."""
        body = model.get_decoder()
        self.module, self.head = vector_module(layer, len(body.layers)), model.get_output_embeddings()
        self.above = _with_layers(body, body.layers[layer + 1 :], body.norm)
        self.pairs, self.order = pairs, sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
        starts = range(0, len(pairs), batch_size)
        self.kept = [self._read(body, layer, [pairs[i] for i in self.order[start : start + batch_size]]) for start in starts]

    def _read(self, body: Any, layer: int, pairs: list[Pair]) -> _Kept:
        import torch

        trees = [as_tree(pair, 0) for pair in pairs]
        tokens, seen, places = batched(trees, 0, body.embed_tokens.weight.device)
        entered: list[Any] = []
        handle = body.get_submodule(self.module).register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        below = _with_layers(body, body.layers[: layer + 1], torch.nn.Identity())
        with torch.inference_mode():
            output = below(input_ids=tokens, attention_mask=seen, position_ids=places, use_cache=False).last_hidden_state
        handle.remove()
        return _Kept(trees, seen, places, output, entered[0])

    def states(self, solution: Solution | None) -> Iterator[tuple[_Kept, Any]]:
        """Each batch with its last hidden states, shape (rows, longest, size), under a solution."""
        import torch

        for kept in self.kept:
            with torch.inference_mode():
                given = {"attention_mask": kept.seen, "position_ids": kept.places, "use_cache": False}
                hidden = self.above(inputs_embeds=kept.output + _change(solution, kept), **given).last_hidden_state
            yield kept, hidden

    def nats(self, solution: Solution | None) -> list[tuple[float, float]]:
        """Nats per token of both answers of every pair, end of turn included."""
        import torch

        found: dict[int, tuple[float, ...]] = {}
        numbers = iter(self.order)
        for kept, hidden in self.states(solution):
            rows, sources, targets = torch.tensor(kept.wanted, device=hidden.device).T
            with torch.inference_mode():
                parts = zip(hidden[rows, sources].split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
                told = iter(torch.cat([picked(self.head(states), part) for states, part in parts]).tolist())
            for one in kept.trees:
                number, values = next(numbers), [(next(told), sides) for _, _, sides in one.targets]
                sums = [sum(value for value, sides in values if side in sides) for side in (0, 1)]
                found[number] = tuple(total / len(answer) for total, answer in zip(sums, self.pairs[number][1:], strict=True))
        return [found[number] for number in range(len(self.pairs))]

    def margins(self, solution: Solution | None) -> list[float]:
        """How much likelier the first answer of every pair is, nats per token."""
        return [first - second for first, second in self.nats(solution)]

    def loss(self, solution: Solution | None) -> float:
        """Minus the nats per token of the first answers, the mean over pairs."""
        return -sum(first for first, _ in self.nats(solution)) / len(self.pairs)

    @functools.cached_property
    def base_states(self) -> list[Any]:
        """The base model's last hidden states, one tensor a batch."""
        return [hidden for _, hidden in self.states(None)]

    def divergence(self, solution: Solution) -> float:
        """KL(base || adapted) in nats per token that an answer has, the mean over all (summed over the vocabulary)."""
        import torch

        total, count = 0.0, 0
        for (kept, hidden), base in zip(self.states(solution), self.base_states, strict=True):
            # The last token of an answer given twice has one source.
            told = dict.fromkeys((row, source) for row, source, _ in kept.wanted)
            rows, sources = torch.tensor(list(told), device=hidden.device).T
            parts = (states[rows, sources].split(LOGITS_AT_ONCE) for states in (base, hidden))
            for before, after in zip(*parts, strict=True):
                with torch.inference_mode():
                    target, adapted = (self.head(states).float().log_softmax(-1) for states in (before, after))
                    total += float((target.exp() * (target - adapted)).sum())
                count += len(before)
        return total / count


def _with_layers(body: Any, layers: Any, norm: Any) -> Any:
    """The same body with these layers and norm; no weight is copied."""
    found = copy.copy(body)
    found._modules = {**body._modules, "layers": layers, "norm": norm}
    return found


def _change(solution: Solution | None, kept: _Kept) -> Any:
    if solution is None:
        return 0.0
    (tensors,) = solution.parts.values()
    first, *rest = (tensor.to(kept.output) for tensor in tensors)
    return kept.entered @ first.T @ rest[0].T if rest else first


def activations(model: Any, texts: list[tuple[list[int], int]], layers: list[int], batch_size: int = TEXTS_AT_ONCE) -> Any:
    """The mean residual stream behind each layer over the tokens of each answer: float32, (texts, layers, size).

    texts: token ids, and where the answer begins.
    """
    import torch

    body, found = model.get_decoder(), torch.zeros(len(texts), len(layers), model.config.hidden_size)
    order, seen = sorted(range(len(texts)), key=lambda i: len(texts[i][0])), {}

    def keep(layer: int, module: Any, inputs: Any, output: Any) -> None:
        seen[layer] = output[0] if isinstance(output, tuple) else output

    handles = [body.layers[layer].register_forward_hook(functools.partial(keep, layer)) for layer in layers]
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        longest = max(len(texts[i][0]) for i in batch)
        tokens = torch.tensor([texts[i][0] + [0] * (longest - len(texts[i][0])) for i in batch], device=model.device)
        # Padding stands last, and a causal model's earlier states do not see it.
        with torch.inference_mode():
            body(input_ids=tokens, use_cache=False)
        for row, i in enumerate(batch):
            ids, answer = texts[i]
            found[i] = torch.stack([seen[layer][row, answer : len(ids)].float().mean(0).cpu() for layer in layers])
    for handle in handles:
        handle.remove()
    return found
