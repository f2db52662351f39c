"""A trained solution as what it adds to a model: low-rank changes of weights, or one vector; and its geometry.

A `Solution` maps the names of a model's linear modules to tensors: (A, B) adds B A x to the module's output, (v,) adds v at
every position. It is added by forward hooks, so the model itself never changes and none of it is left when the block ends.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class SolutionError(ValueError):
    """A solution cannot be made, read or rescaled; the text says which and why."""


@dataclass(frozen=True)
class Solution:
    """parts: module name to (A, B), float32 of shapes (rank, in) and (out, rank), B with LoRA's scaling; or to (v,), (out,)."""

    parts: dict[str, tuple[Any, ...]]

    @property
    def only(self) -> Any:
        """The tensor of a solution that is one vector."""
        ((found,),) = self.parts.values()
        return found

    @property
    def norm(self) -> float:
        """The Frobenius norm of all changes B A, or the vector's Euclidean norm (D.5, without A's and B's ambiguity)."""
        return math.sqrt(max(0.0, inner(self, self)))

    def scaled(self, factor: float) -> "Solution":
        """The same direction, `factor` times as long."""
        return Solution({name: (*rest, last * factor) for name, (*rest, last) in self.parts.items()})

    def to_norm(self, norm: float) -> "Solution":
        """The same direction at a norm; SolutionError where it has none."""
        if not (length := self.norm):
            raise SolutionError("its norm is 0, so that it has no direction to rescale")
        return self.scaled(norm / length)

    def perturbed(self, epsilon: float, generator: Any) -> "Solution":
        """Each tensor x as sqrt(1 - e²) x + e y: y random, orthogonal to x and as long, so that the norm stays (D.5)."""
        return Solution({name: tuple(_tilted(x, epsilon, generator) for x in tensors) for name, tensors in self.parts.items()})


def _tilted(x: Any, epsilon: float, generator: Any) -> Any:
    import torch

    y = torch.randn(x.shape, generator=generator)
    y -= (y * x).sum() / (x * x).sum() * x
    return math.sqrt(1 - epsilon**2) * x + epsilon * y * (x.norm() / y.norm())


def inner(first: Solution, second: Solution) -> float:
    """The inner product of two solutions' changes, over the modules that both change."""
    total = 0.0
    for name in first.parts.keys() & second.parts.keys():
        one, other = first.parts[name], second.parts[name]
        product = (one[0] @ other[0].T) * (one[1].T @ other[1]) if len(one) > 1 else one[0] * other[0]
        total += float(product.sum())
    return total


def cosine(first: Solution, second: Solution) -> float:
    """The cosine between two solutions' changes; NaN where one has norm 0."""
    lengths = first.norm * second.norm
    return inner(first, second) / lengths if lengths else math.nan


def vector(module: str, values: Any) -> Solution:
    """A vector of shape (out,) that is added to a module's output."""
    return Solution({module: (values,)})


def random_vector(module: str, size: int, seed: int) -> Solution:
    """A Gaussian direction."""
    import torch

    return vector(module, torch.randn(size, generator=torch.Generator().manual_seed(seed)))


def vector_module(layer: int, layers: int) -> str:
    """The module whose output a vector is added to; SolutionError for a layer that the model does not have.

    Adding to down_proj's output is adding to the residual stream behind the block, for Llama and Qwen2 (facts.md D.4, 1).
    """
    if not 0 <= layer < layers:
        raise SolutionError(f"layer {layer} is out of range: the model has {layers} layers, 0 to {layers - 1}")
    return f"layers.{layer}.mlp.down_proj"


@contextlib.contextmanager
def added(model: Any, *solutions: Solution) -> Iterator[None]:
    """Inside the block, `model` computes with the solutions added."""
    body = model.get_decoder()
    handles = [
        body.get_submodule(name.removeprefix("model.")).register_forward_hook(_adds(tensors))
        for solution in solutions
        for name, tensors in solution.parts.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adds(tensors: tuple[Any, ...]) -> Any:
    def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        if len(tensors) == 1:
            return output + tensors[0].to(output)
        down, up = (tensor.to(output) for tensor in tensors)
        return output + inputs[0] @ down.T @ up.T

    return hook


@contextlib.contextmanager
def ablated(model: Any, direction: Any) -> Iterator[None]:
    """Inside the block, a direction (size,), or None, is projected out of the residual stream at every layer and position."""
    if direction is None:
        yield
        return
    unit = direction / direction.norm()

    def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        along = unit.to(states)
        states = states - (states @ along)[..., None] * along
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handles = [layer.register_forward_hook(hook) for layer in model.get_decoder().layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def save(path: Path, solution: Solution) -> None:
    """Write a solution as safetensors."""
    from safetensors.torch import save_file

    names = ("A", "B") if all(len(tensors) > 1 for tensors in solution.parts.values()) else ("v",)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}.{key}": t.contiguous() for name, ts in solution.parts.items() for key, t in zip(names, ts, strict=True)}
    save_file(tensors, path)


def load(path: Path, arrays: bool = False) -> Solution:
    """Read a solution that `save` wrote, as tensors, or as NumPy arrays without torch."""
    from importlib import import_module

    load_file = import_module("safetensors.numpy" if arrays else "safetensors.torch").load_file
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(path).items():
        module, _, key = name.rpartition(".")
        found.setdefault(module, {})[key] = tensor
    return Solution({module: tuple(tensors[key] for key in sorted(tensors)) for module, tensors in sorted(found.items())})
