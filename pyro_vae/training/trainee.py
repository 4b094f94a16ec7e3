"""What is trained: a model and a guide, with all tensors that they learn or keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.vae import VAE

__all__ = ["Trainee"]


@dataclass(frozen=True)
class Trainee:
    """A VAE, or any pair, with its modules and, once it was run, its parameters in Pyro's store."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    modules: dict[str, nn.Module]
    """Those that can be found without a run, by the role that prefixes the names of their tensors."""
    vae: VAE | None = None
    in_store: dict[str, Tensor] = field(default_factory=dict)
    """Unconstrained parameters that lie in Pyro's store and in none of the modules."""

    @classmethod
    def of(cls, program: Any) -> Trainee:
        """Take a VAE, or a (model, guide) pair."""
        if isinstance(program, VAE):
            return cls(program.model, program.guide, {"": program}, program)
        if not isinstance(program, tuple) or len(program) != 2 or not all(map(callable, program)):
            raise TypeError(
                f"program: expected a VAE, or a pair (model, guide) of functions or modules; got {program!r}; pass one."
            )
        model, guide = program
        found = {"model": list(_modules_of(model)), "guide": list(_modules_of(guide))}
        modules = {f"{role}{i or ''}.": each for role, some in found.items() for i, each in enumerate(some)}
        once = {id(each): name for name, each in reversed(modules.items())}
        return cls(model, guide, {name: each for name, each in modules.items() if once[id(each)] == name})

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        modules = (tensor for each in self.modules.values() for tensor in chain(each.parameters(), each.buffers()))
        first = next(chain(modules, self.in_store.values()), None)
        return torch.get_default_device() if first is None else first.device

    @property
    def may_be_incomplete(self) -> bool:
        """Whether NaN in x stands for a missing entry."""
        return self.vae is not None and self.vae.model.datum.may_be_incomplete

    def train(self, mode: bool = True) -> None:
        """Set the mode of all modules."""
        for module in self.modules.values():
            module.train(mode)

    def note_parameters(self, run: Callable[[], Any]) -> Any:
        """Run something, and note the parameters of Pyro's store that it asks for."""
        with poutine.trace(param_only=True) as capture:
            result = run()
        own = {id(tensor) for tensor in self._of_modules().values()}
        for name, site in capture.trace.nodes.items():
            if site["type"] == "param" and id(site["value"].unconstrained()) not in own:
                self.in_store[name] = site["value"].unconstrained()
        return result

    def tensors(self) -> dict[str, Tensor]:
        """Return all parameters and buffers, by name; those of Pyro's store are unconstrained."""
        return self._of_modules() | {f"store.{name}": value for name, value in self.in_store.items()}

    def parameters(self) -> list[Tensor]:
        """Return what is trained."""
        return [tensor for tensor in self.tensors().values() if tensor.requires_grad]

    @torch.no_grad()
    def load(self, values: dict[str, Tensor], source: str) -> None:
        """Set all tensors, or raise an error before any of them changes."""
        tensors = self.tensors()
        problems = [
            *(f"no {name!r}" for name in tensors.keys() - values.keys()),
            *(f"{name!r}, which the program has not" for name in values.keys() - tensors.keys()),
            *(
                f"{name!r} of shape {tuple(values[name].shape)} for {tuple(tensors[name].shape)}"
                for name in tensors.keys() & values.keys()
                if values[name].shape != tensors[name].shape
            ),
            *(
                f"{name!r} of {values[name].dtype} for {tensors[name].dtype}"
                for name in tensors.keys() & values.keys()
                if _kind_of(values[name]) != _kind_of(tensors[name])
            ),
        ]
        if problems:
            raise ValueError(
                f"{source}: expected the parameters of this program; got {'; '.join(sorted(problems)[:4])}; load it "
                "into the program that was trained."
            )
        for name, tensor in tensors.items():
            tensor.copy_(values[name])

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def _of_modules(self) -> dict[str, Tensor]:
        return {
            f"{prefix}{name}": tensor
            for prefix, module in self.modules.items()
            for name, tensor in module.state_dict(keep_vars=True).items()
            if isinstance(tensor, Tensor)
        }


def _kind_of(tensor: Tensor) -> tuple[bool, bool]:
    """Return what two types have to share for one to hold the other's numbers, to rounding."""
    return tensor.is_floating_point(), tensor.is_complex()


def _modules_of(program: Any) -> Iterator[nn.Module]:
    """Yield the modules that a program is, is bound to, or closes over."""
    if isinstance(program, nn.Module):
        yield program
    elif isinstance(program, partial):
        yield from _modules_of(program.func)
    elif isinstance(getattr(program, "__self__", None), nn.Module):
        yield program.__self__
    else:
        yield from _modules_among(cell.cell_contents for cell in getattr(program, "__closure__", None) or ())


def _modules_among(values: Iterable[Any]) -> Iterator[nn.Module]:
    yield from (value for value in values if isinstance(value, nn.Module))
