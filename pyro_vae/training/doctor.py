"""Find out why a step diverged, by one more run of it, eager and watched."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

from pyro_vae import _checks
from pyro_vae._private import StoreTables, tree_leaves, without_validation_of_values
from pyro_vae.training.diagnosis import MAX_LISTED, Cause, Diagnosis
from pyro_vae.training.trainee import Trainee
from pyro_vae.vae.plates import OF_DRAWS

__all__ = ["Patient", "add_note_of_bad_data", "diagnose"]


class Patient(NamedTuple):
    """A step that diverged."""

    trainee: Trainee
    run: Callable[[], Any]
    """Takes loss and gradients as the step did, from the same random numbers, but eagerly."""
    batch: tuple[Any, ...]
    rows: list[int] | None
    """Which data are in the batch."""
    step: int
    epoch: int
    growth: float | None
    """By how much the parameters grew, if that is more than can be healthy."""


def diagnose(patient: Patient) -> Diagnosis:
    """Run the step once more, at the parameters as they are, and say what was not finite first."""
    patient.trainee.zero_grad()
    tensors = patient.trainee.tensors()
    spoilt = [name for name, tensor in tensors.items() if tensor.requires_grad and not _is_finite(tensor)]
    exam = _Exam(patient.trainee, _num_rows(patient.batch))
    error = exam.watch(patient.run)
    gradients = [name for name, each in tensors.items() if each.grad is not None and not _is_finite(each.grad)]
    bad_data = _bad_rows(patient.trainee, patient.batch)
    causes: dict[Cause, Any] = {
        "data": bad_data,
        "learning rate": spoilt or patient.growth,
        "scale": exam.smallest_scale is not None and exam.smallest_scale.is_tiny,
        "module": exam.module if exam.operation is None else None,
        "density": exam.site,
        "gradient": exam.operation,
    }
    places = bad_data or exam.rows
    return Diagnosis(
        step=patient.step,
        epoch=patient.epoch,
        cause=next((cause for cause, is_found in causes.items() if is_found), "unknown"),
        data=tuple(places if patient.rows is None else (patient.rows[place] for place in places)),
        data_are_of="the batch" if patient.rows is None else "the data",
        site=exam.site,
        module=exam.module,
        output=exam.output,
        operation=exam.operation,
        code=exam.code,
        parameter=next(iter([*spoilt, *gradients]), None),
        growth=patient.growth,
        smallest_scale=exam.smallest_scale and exam.smallest_scale.value,
        smallest_scale_site=exam.smallest_scale and exam.smallest_scale.site,
        error=error,
    )


def add_note_of_bad_data(error: Exception, trainee: Trainee, batch: tuple[Any, ...], rows: list[int] | None) -> None:
    """Add to an error which data of a batch hold NaN or infinity, if any do."""
    found = [str(place if rows is None else rows[place]) for place in _bad_rows(trainee, batch)]
    if found:
        where = "the batch" if rows is None else "the data"
        error.add_note(f"NaN or infinity is in datum {', '.join(found[:MAX_LISTED])} of {where}.")


def _bad_rows(trainee: Trainee, batch: tuple[Any, ...]) -> list[int]:
    """Find the data of a batch that hold NaN or infinity, by their place in it; NaN that stands for missing is good."""
    tensors = {
        place: value
        for place, value in enumerate(batch)
        if isinstance(value, Tensor) and value.ndim and value.is_floating_point()
    }
    bad = {place: ~tensor.isfinite() for place, tensor in tensors.items()}
    if 0 in bad and trainee.may_be_incomplete:
        bad[0] = tensors[0].isinf()
    return sorted({row for each in bad.values() for row in _rows_of(each, len(each), dim=0)})


class _Scale(NamedTuple):
    value: float
    site: str
    is_tiny: bool
    """Whether its cube, by which a gradient is divided, is zero or nearly so."""


@dataclass
class _Exam:
    """What is seen of a run: outputs of modules, sites and gradients, in the order in which they come."""

    trainee: Trainee
    num_rows: int
    module: str | None = None
    output: str | None = None
    site: str | None = None
    operation: str | None = None
    code: str | None = None
    rows: list[int] = field(default_factory=list)
    smallest_scale: _Scale | None = None
    _owners: dict[Any, str] = field(default_factory=dict)
    """Modules by the nodes of the graph of gradients that they made."""

    def watch(self, run: Callable[[], Any]) -> str | None:
        """Run, and return the error that it ended in, in one line."""
        names = _names_of(self.trainee)
        with ExitStack() as stack:
            stack.enter_context(_without_refusals())
            stack.callback(register_module_forward_hook(partial(self._see_module, names)).remove)
            stack.enter_context(_Sites(self._see_site))
            stack.enter_context(_BeforeBackward(self._follow_gradients))
            try:
                run()
            except Exception as error:  # of the user's program, which runs on numbers that it was not made for
                return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        return None

    def _see_module(self, names: dict[int, str], module: nn.Module, args: Any, output: Any) -> None:
        name = names.get(id(module)) or _name_in_store(module) or type(module).__name__
        outputs, inputs = _tensors(output), _tensors(args)
        self._claim(name, outputs, inputs)
        if self.module is not None or self.site is not None or any(map(_trouble, inputs)):
            return
        bad = next((tensor for tensor in outputs if _trouble(tensor)), None)
        if bad is not None:
            self.module, self.output = name, _trouble(bad)
            self._note_rows(_is_bad(bad))

    def _see_site(self, msg: Any) -> None:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        with torch.no_grad():
            self._see_scale(name, fn)
            if self.site is not None or msg["mask"] is False:
                return
            log_prob = scale_and_mask(fn.log_prob(value), mask=msg["mask"])
            # NaN that is observed, with a density all the same, stands for what is missing.
            is_bad = value.isinf().any() if msg["is_observed"] else not _is_finite(value)
            if is_bad or not _is_finite(log_prob):
                self.site = name
                dims = [
                    frame.dim
                    for frame in msg["cond_indep_stack"]
                    if frame.vectorized and frame.size == self.num_rows and frame.name not in OF_DRAWS
                ]
                if len(dims) == 1 and log_prob.ndim >= -dims[0]:
                    self._note_rows(~log_prob.isfinite(), dims[0])

    def _see_scale(self, name: str, fn: Any) -> None:
        scale = _scale_of(fn)
        if scale is not None and scale.numel() and not scale.isnan().all():
            smallest = scale[~scale.isnan()].abs().min().item()
            if self.smallest_scale is None or smallest < self.smallest_scale.value:
                is_tiny = smallest < torch.finfo(scale.dtype).max ** (-1 / 3)
                self.smallest_scale = _Scale(smallest, name, is_tiny)

    def _claim(self, module: str, outputs: list[Tensor], inputs: list[Tensor]) -> None:
        """Note which module made the nodes between these; inner modules come first, and keep theirs."""
        ends = {tensor.grad_fn for tensor in inputs}
        for node in _nodes([tensor.grad_fn for tensor in outputs], until=ends | self._owners.keys()):
            self._owners[node] = module

    def _follow_gradients(self, loss: Tensor) -> None:
        for node in _nodes([loss.grad_fn]):
            if not hasattr(node, "variable"):
                node.register_hook(partial(self._see_gradient, node))

    def _see_gradient(self, node: Any, found: Any, given: Any) -> None:
        if self.operation is not None or self.module is not None or self.site is not None:
            return
        bad = next((tensor for tensor in _tensors(found) if not _is_finite(tensor)), None)
        if bad is not None and all(map(_is_finite, _tensors(given))):
            self.operation, self.code = _name_of_node(node), _line_of(node)
            self.module = self._owners.get(node)
            self._note_rows(~bad.isfinite())

    def _note_rows(self, is_bad: Tensor, dim: int | None = None) -> None:
        """Note the data concerned, unless they are the whole batch, or some were noted before."""
        rows = _rows_of(is_bad, self.num_rows, dim)
        if not self.rows and (len(rows) < self.num_rows or self.num_rows == 1):
            self.rows = rows


class _Sites(Messenger):
    """Shows each sample site after it was drawn or observed."""

    def __init__(self, see: Callable[[Any], None]) -> None:
        super().__init__()
        self.see = see

    def _pyro_post_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and hasattr(msg["fn"], "log_prob"):
            self.see(msg)


class _BeforeBackward(TorchFunctionMode):
    """Shows each tensor that is about to be differentiated."""

    def __init__(self, see: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            self.see(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_refusals() -> Iterator[None]:
    """Let distributions and a VAE take NaN, and have torch note where each operation was called."""
    with (
        pyro.validation_enabled(False),
        without_validation_of_values(),
        _checks.trusting_values(),
        torch.autograd.set_detect_anomaly(True, check_nan=False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _num_rows(batch: tuple[Any, ...]) -> int:
    return next((len(value) for value in batch if isinstance(value, Tensor) and value.ndim), 0)


def _tensors(values: Any) -> list[Tensor]:
    leaves = tree_leaves(values)
    return [each for each in leaves if isinstance(each, Tensor) and each.is_floating_point()]


def _is_finite(tensor: Any) -> bool:
    return bool(torch.as_tensor(tensor).isfinite().all())


def _is_bad(tensor: Tensor) -> Tensor:
    """Find NaN, infinity, and numbers whose square is infinite."""
    return ~(tensor.detach().abs() < torch.finfo(tensor.dtype).max ** 0.5)


def _trouble(tensor: Tensor) -> str:
    """Describe the worst number of a tensor, if it is bad."""
    if not _is_bad(tensor).any():
        return ""
    if tensor.isnan().any():
        return "NaN"
    largest = tensor.detach().abs().max().item()
    return "infinity" if largest == float("inf") else f"{largest:.3g}"


def _rows_of(is_bad: Tensor, num_rows: int, dim: int | None = None) -> list[int]:
    """Return where along the dimension of data, by default the only one of that size, something is bad.

    Where particles or a width are as many as the rows, there is no telling.
    """
    if dim is None:
        places = [place for place, size in enumerate(is_bad.shape) if size == num_rows]
        dim = places[0] if len(places) == 1 else None
    if dim is None or is_bad.shape[dim] != num_rows:
        return []
    return is_bad.movedim(dim, 0).reshape(num_rows, -1).any(1).nonzero().flatten().tolist()


def _scale_of(fn: Any) -> Tensor | None:
    """Return the scale of a distribution, or of the one that it transforms, masks or repeats."""
    while fn is not None:
        for name in ("scale", "scale_tril"):
            scale = getattr(fn, name, None)
            if isinstance(scale, Tensor) and scale.is_floating_point():
                return scale if name == "scale" else scale.diagonal(dim1=-2, dim2=-1)
        fn = getattr(fn, "base_dist", None)
    return None


def _names_of(trainee: Trainee) -> dict[int, str]:
    """Map each module to its qualified name."""
    return {
        id(module): f"{prefix}{name}".rstrip(".")
        for prefix, root in trainee.modules.items()
        for name, module in root.named_modules()
    }


def _name_in_store(module: nn.Module) -> str | None:
    """Return the name of a module that the program registers in its run, by a parameter of its own."""
    names = StoreTables.names()
    known = [(own, names[param]) for own, param in module.named_parameters(recurse=False) if param in names]
    return next((name.removesuffix(own).rstrip(".$").replace("$$$", ".") for own, name in known), None)


def _nodes(starts: Iterable[Any], until: Iterable[Any] = ()) -> list[Any]:
    """Return the nodes of a graph of gradients, from its end."""
    seen = dict.fromkeys(until)
    found, waiting = [], list(starts)
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen[node] = None
            found.append(node)
            waiting.extend(function for function, _ in node.next_functions)
    return found


def _name_of_node(node: Any) -> str:
    """Return the name of the operation: "sqrt" for SqrtBackward0."""
    return re.sub(r"Backward\d*$", "", node.name()).lower()


def _line_of(node: Any) -> str | None:
    """Return the last line of a user's that led to an operation."""
    own = [Path(module.__file__ or "").parent for module in (torch, pyro)] + [Path(_checks.PACKAGE)]
    for entry in reversed(node.metadata.get("traceback_", [])):
        match = re.match(r'\s*File "(.+)", line (\d+), in (\S+)\n\s*(.*)', entry)
        if match is not None and not any(folder in Path(match[1]).parents for folder in own):
            return f"{Path(match[1]).name}:{match[2]}, in {match[3]}: {match[4]}".rstrip(": ")
    return None
