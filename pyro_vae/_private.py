"""The private names of torch and Pyro that the package depends on.

They were checked on torch 2.14 and 2.15 and Pyro 1.9.2. `tests/test_private.py` looks for each, and for others
elsewhere. Methods that a subclass of Pyro's overrides or calls, such as `ELBO._get_traces` and
`PyroOptim._get_optim_args`, stay in the subclass.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = [
    "NAMES",
    "StoreTables",
    "arguments_of_operator",
    "compile_module",
    "found",
    "has_hooks",
    "has_hooks_on_calls",
    "keeping_validation",
    "mask_of_distribution",
    "name_of_module",
    "seed_generator_of_cpu",
    "validate_sample_code",
    "without_validation_of_values",
]

CHECKED = "torch 2.14 and 2.15 and pyro-ppl 1.9.2"

NAMES = {
    "BatchNorm": "torch.nn.modules.batchnorm._BatchNorm",
    "Dropout": "torch.nn.modules.dropout._DropoutNd",
    "FakeTensor": "torch._subclasses.FakeTensor",
    "FakeTensorMode": "torch._subclasses.FakeTensorMode",
    "TorchDispatchMode": "torch.utils._python_dispatch.TorchDispatchMode",
    "OpOverload": "torch._ops.OpOverload",
    "DisableTorchFunction": "torch._C.DisableTorchFunction",
    "TensorGuards": "torch._C._dynamo.guards.TensorGuards",
    "is_functorch_wrapped_tensor": "torch._C._functorch.is_functorch_wrapped_tensor",
    "tree_flatten": "torch.utils._pytree.tree_flatten",
    "tree_leaves": "torch.utils._pytree.tree_leaves",
    "tree_map": "torch.utils._pytree.tree_map",
    "tree_unflatten": "torch.utils._pytree.tree_unflatten",
    "foreach_add_": "torch._foreach_add_",
    "inductor_compile": "torch._inductor.compile",
    "sample_dirichlet": "torch._sample_dirichlet",
    "standard_gamma": "torch._standard_gamma",
    "end_with_parent": "torch.multiprocessing._prctl_pr_set_pdeathsig",
    "PYRO_STACK": "pyro.poutine.runtime._PYRO_STACK",
}
"""Each by the name that the package uses."""


def found(name: str) -> Any:
    """Import one of `NAMES`, or raise an error that says which version has it."""
    module, _, attribute = NAMES[name].rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"pyro_vae: expected {NAMES[name]}, a private name that {CHECKED} have; got none in torch "
            f"{torch.__version__} and pyro-ppl {pyro.__version__}; install one of these versions."
        ) from error


def __getattr__(name: str) -> Any:
    """Look a name up when it is asked for: without compiling, the compiler's names need not exist."""
    if name in NAMES:
        return found(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class StoreTables:
    """The dictionaries of Pyro's parameter store, to be read and restored as they are."""

    @staticmethod
    def params() -> dict[str, Tensor]:
        """Unconstrained parameters by name."""
        return pyro.get_param_store()._params

    @staticmethod
    def names() -> dict[Tensor, str]:
        """Names by unconstrained parameter."""
        return pyro.get_param_store()._param_to_name

    @classmethod
    def all(cls) -> tuple[dict[Any, Any], ...]:
        return cls.params(), cls.names(), pyro.get_param_store()._constraints


def seed_generator_of_cpu(seed: int) -> None:
    """Seed the CPU's generator alone: `torch.manual_seed` keeps a record of each call for a GPU that may come."""
    torch.default_generator.manual_seed(seed)


def has_hooks(tensor: Tensor) -> bool:
    """Tell whether a tensor has hooks on its gradient."""
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


def num_changes(tensor: Tensor) -> int:
    """Count the changes in place that a tensor has seen."""
    return tensor._version


def has_hooks_on_calls(module: torch.nn.Module) -> bool:
    """Tell whether a module has hooks that see, or change, what goes in and out."""
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    )


def mask_of_distribution(fn: Any) -> Any:
    """Return the mask of a `MaskedDistribution`."""
    return fn._mask


def name_of_module(module: Any) -> str:
    """Return the name of a `PyroModule` inside its parent."""
    return module._pyro_name


def arguments_of_operator(target: Any) -> Any:
    """Return the arguments of a torch operation, with which of them it writes to."""
    return target._schema.arguments


@contextmanager
def keeping_validation() -> Iterator[None]:
    """Leave torch's validation of distributions as it is, though an import inside switches it off."""
    before = Distribution._validate_args
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def validate_sample_code() -> Any:
    """Return the code by which torch refuses a value outside a distribution's support."""
    return Distribution._validate_sample.__code__


@contextmanager
def without_validation_of_values() -> Iterator[None]:
    """Disable torch's checks of values, which some distributions insist on whatever the setting is."""
    validate: Callable[..., None] = Distribution._validate_sample
    Distribution._validate_sample = lambda self, value: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Distribution._validate_sample = validate  # type: ignore[method-assign]


def compile_module(module: Any, inputs: list[Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a recorded graph to machine code."""
    return found("inductor_compile")(module, inputs, options=options)
