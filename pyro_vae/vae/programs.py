"""The model and the guide of a VAE."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.func import functional_call

from pyro_vae.vae.datum import Datum, any_parameter, side_by_side
from pyro_vae.vae.plates import free_names, own_plate, plates_around, refuse_other_guide
from pyro_vae.vae.store import (
    Values,
    is_loaded,
    replaced,
    taken_by_another,
    trainable,
    warn_of_loaded,
)

__all__ = ["Guide", "Model"]


class _Half(nn.Module):
    """What model and guide share: they check data and hand parameters to Pyro's store before they draw."""

    role: str

    def __init__(self, datum: Datum, name: str | None) -> None:
        super().__init__()
        self.datum = datum
        self.name = name
        self._name_in_use = name or "vae"

    def site(self, name: str) -> str:
        """Return the full name of a site."""
        return name if self.name is None else f"{self.name}/{name}"

    def check_context(self, context: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Check the further arguments, each `(..., N, *shape)`."""
        return self.datum.check_context(context, any_parameter(self))

    def check(self, x: Any) -> Tensor:
        """View x as rows of the plates around."""
        return self.datum.check(x, any_parameter(self), plates=plates_around())

    def register(self) -> Values:
        """Hand the parameters to Pyro's store, where SVI finds them; frozen ones stay out.

        The store keeps the first tensor under a name, and SVI trains that one: under a name that is taken, a second
        module would silently never train. The values that a handler, such as `poutine.lift`, has put in the place of
        parameters are returned.
        """
        loaded: dict[str, nn.Parameter] = {}
        for name in self._names():
            full_name = f"{name}.{self.role}"
            if not taken_by_another(full_name, self):
                self._name_in_use = name
                if loaded:
                    warn_of_loaded([*loaded], full_name, self.datum)
                return replaced(full_name, self)
            loaded = loaded or self._loaded(full_name)
        raise ValueError(
            f"name: expected a name that is free in Pyro's parameter store; got {self.name!r}, under which another "
            "module's parameters lie; give this VAE another (vae.name = ...), or call pyro.clear_param_store() if the "
            "other is gone (or is this one, before load_state_dict(..., assign=True)); to take over values of a loaded "
            f"store, pyro.module({full_name!r}, ..., update_module_params=True)."
        )

    def registered_or_looked_for(self) -> Values:
        """Call `register` inside a Pyro program; outside, only look for loaded parameters in the store."""
        if am_i_wrapped():
            return self.register()
        full_name = f"{self.name or self._name_in_use}.{self.role}"
        loaded = self._loaded(full_name)
        if loaded:
            warn_of_loaded([*loaded], None, self.datum)
        return {}

    def _loaded(self, full_name: str) -> dict[str, nn.Parameter]:
        """Return the parameters by their names in the store, if other, loaded ones lie there; otherwise none."""
        named = dict(trainable(full_name, self).values())
        return named if is_loaded(named) else {}

    def _distribution(self, part: str, values: Values, args: tuple[Tensor, ...]) -> dist.Distribution:
        """Call a part, with these values in the place of its parameters."""
        module, prefix = getattr(self, part), f"{part}."
        own = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        return functional_call(module, own, args) if own else module(*args)

    def _names(self) -> Iterator[str]:
        if self.name is not None:
            return iter([self.name])
        numbered = (f"vae_{i}" for i in itertools.count(1))
        return itertools.chain([self._name_in_use, "vae"], numbered)

    def _plate(self, num_rows: int | None, num_data: int | None, subsample_size: int | None) -> AbstractContextManager:
        """Return a plate over data, or an empty context where one lies around the call."""
        if -1 not in plates_around():
            return own_plate(self.site("data"), num_rows, num_data, subsample_size)
        for argument, value in {"num_data": num_data, "subsample_size": subsample_size}.items():
            if value is not None:
                raise ValueError(
                    f"{argument}: expected None inside of a plate at dim=-1, which says how many data there are; got "
                    f"{value}; tell that plate, or put it at dim=-2 if it is none over data."
                )
        return nullcontext()


class Model(_Half):
    """The generative program p(z) p(x|z): the `model` of a `VAE`."""

    role = "model"

    def __init__(self, prior: nn.Module, likelihood: nn.Module, datum: Datum, name: str | None) -> None:
        super().__init__(datum, name)
        self.prior = prior
        self.likelihood = likelihood

    def forward(
        self,
        x: Any = None,
        *context: Any,
        z: Any = None,
        likelihood: bool = True,
        num_data: int | None = None,
        subsample_size: int | None = None,
    ) -> Tensor:
        """Draw z, and draw x or, if it is given, condition on it.

        Args:
            x: data, or None to generate.
            context: further arguments, as the VAE's `context_shapes` say.
            z: a latent that another part of the program has drawn, `(..., N, *latent_shape)`. The prior is then left
                out: there is no site `"z"`.
            likelihood: False for the prior alone: there is no site `"x"`, and something else that depends on z can be
                observed in its place, such as a blurred image.
            num_data: how many data x stands for (log densities are then scaled by `num_data / len(x)`); without x, how
                many to generate, by default as many as z or the context has rows, or 1.
            subsample_size: with x the whole data set, how many of its rows to take at random.

        Returns:
            z, of shape `(N, latent_dim)`, with the leading dimensions of outer plates before it.
        """
        x = None if x is None else self.check(x)
        z = None if z is None else self.check_latent(z)
        context = self.check_context(context)
        _refuse_contradictions(x, z, likelihood, subsample_size)
        values = self.register()
        with free_names(), self._plate(self.datum.num_rows(x, z, context), num_data, subsample_size) as rows:
            if subsample_size is not None:
                x, context = self.datum.rows(x, context, rows)
            if z is None:
                refuse_other_guide(self.site("z"))
                z = pyro.sample(self.site("z"), self.prior_of(context, values))
            if likelihood:
                pyro.sample(self.site("x"), self.likelihood_of(z, context, values), obs=x)
        return z

    def check_latent(self, z: Any) -> Tensor:
        """Check a latent that is handed in, `(..., N, *latent_shape)`."""
        return self.datum.check_latent(z, any_parameter(self))

    def prior_of(self, context: tuple[Tensor, ...], values: Values) -> dist.Distribution:
        """Return p(z), for each row of the context if there is any."""
        return self._distribution("prior", values, side_by_side(context, self.datum.context_shapes))

    def likelihood_of(self, z: Tensor, context: tuple[Tensor, ...], values: Values) -> dist.Distribution:
        """Return p(x|z)."""
        shapes = (self.datum.latent_shape, *self.datum.context_shapes)
        return self._distribution("likelihood", values, side_by_side((z, *context), shapes))


class Guide(_Half):
    """The amortized posterior q(z|x): the `guide` of a `VAE`."""

    role = "guide"

    def __init__(self, posterior: nn.Module, datum: Datum, name: str | None) -> None:
        super().__init__(datum, name)
        self.posterior = posterior

    def forward(self, x: Any, *context: Any, num_data: int | None = None, subsample_size: int | None = None) -> Tensor:
        """Draw z from q(z|x). Arguments and return value are as in the model."""
        x, context = self.check(x), self.check_context(context)
        values = self.register()
        with free_names(), self._plate(self.datum.num_rows(x, None, context), num_data, subsample_size) as rows:
            if subsample_size is not None:
                x, context = self.datum.rows(x, context, rows)
            return pyro.sample(self.site("z"), self.posterior_of(x, context, values))

    def posterior_of(self, x: Tensor, context: tuple[Tensor, ...], values: Values) -> dist.Distribution:
        """Return q(z|x)."""
        shapes = (self.datum.event_shape, *self.datum.context_shapes)
        return self._distribution("posterior", values, side_by_side((x, *context), shapes))


def _refuse_contradictions(x: Any, z: Any, likelihood: bool, subsample_size: int | None) -> None:
    if x is not None and not likelihood:
        raise ValueError("likelihood: expected True where x is given; got False; leave x out, or observe it.")
    if z is not None and not likelihood:
        raise ValueError("z: expected None where the likelihood is switched off; got both, and nothing to draw.")
    if z is not None and subsample_size is not None:
        raise ValueError(
            "subsample_size: expected None where z is given, which has its rows already; got "
            f'{subsample_size}; put the call into pyro.plate("data", ..., {subsample_size}, dim=-1).'
        )
