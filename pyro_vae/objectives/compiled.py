"""Pyro's ELBOs as compiled graphs."""

from __future__ import annotations

from typing import Any

from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import is_identically_zero
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.compile.steps import NotCompilable
from pyro_vae.objectives.base import Objective, refuse_unguided
from pyro_vae.program.sites import drawn_sites

__all__ = ["CompiledTraceMeanField_ELBO", "CompiledTrace_ELBO"]


class _PyrosOwn(Objective):
    """One of Pyro's ELBOs whose value, gradient and update are graphs, from the second call of a kind on.

    The first call of a kind, and the first after a change of something that the program reads, is Pyro's own, which
    validates and makes the parameters.
    """

    def value_and_surrogate(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return Pyro's loss as a tensor; with reparametrized latents it is its own surrogate."""
        total: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            for name, site in guide_trace.nodes.items():
                if site["type"] == "sample" and not is_identically_zero(site["score_parts"].score_function):
                    raise NotCompilable(f"latent site {name!r}, which is not reparametrized")
            with _NumbersStayTensors():
                _, loss = self._differentiable_loss_particle(model_trace, guide_trace)
            total = total + loss / self.num_particles
        if not isinstance(total, Tensor):
            raise NotCompilable("no sample site")
        return total, total

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return super(Objective, self)._get_trace(model, guide, args, kwargs)

    def _loss_as_it_is(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        return super(Objective, self).loss(model, guide, *args, **kwargs)

    def _loss_and_grads_as_it_is(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        return super(Objective, self).loss_and_grads(model, guide, *args, **kwargs)

    def _differentiable_loss_as_it_is(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        return super(Objective, self).differentiable_loss(model, guide, *args, **kwargs)


class _NumbersStayTensors(TorchFunctionMode):
    """Makes `item` return a tensor: Pyro takes the loss as a number too, which a run without values does not have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].detach() if func is Tensor.item else func(*args, **(kwargs or {}))


class CompiledTrace_ELBO(_PyrosOwn, Trace_ELBO):
    r"""Pyro's `Trace_ELBO`, compiled: the same constructor, value and gradient, without Pyro's overhead at each step.

    $-\mathrm{ELBO} = -E_q[\log p(x, z) - \log q(z|x)]$, in nats, summed over the data, estimated from
    `num_particles` draws. Use it in `SVI`, as a module with a torch optimizer, and in `fit`. With `FusedAdam` in
    `pv.SVI`, value, gradient and update are one graph.

    The first call with arguments of new shapes is Pyro's own, with its validation. The second records a run of model
    and guide, compiles it, which takes seconds, and checks it: from the same random numbers, graph and program must
    agree. From then on nothing is validated, and each value is what Pyro's own would be for the same random numbers, to
    rounding. Parameters and buffers are read at each call. What else the program reads (attributes, items, closures,
    globals) is watched: after a change the next call is Pyro's own again, and a graph of the changed program follows.

    Any model and guide of static structure with reparametrized latents will do: plates, subsampling, `poutine.scale`
    and `mask` inside the model, further arguments (of which tensors and floats may change from call to call), buffers,
    dropout. Where there is no graph, because of a branch on a value, a discrete latent, a handler around the call,
    autocast, state that cannot be seen, or more than 16 kinds of call, a warning says so once, with the reason, and the
    call is Pyro's own.

    Other changes go unnoticed: of a file, the clock, a logger, an attribute of a tensor or of a torch class, a hook on
    all modules. A gradient of the gradient is an error. An objective keeps the last 16 pairs of model and guide.

    Examples:
        >>> import pyro, torch
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
        ...     pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        ... )
        >>> svi = pv.SVI(vae.model, vae.guide, pv.FusedAdam({"lr": 1e-3}), pv.objectives.CompiledTrace_ELBO())
        >>> x = torch.randn(500, 3)
        >>> svi.step(x) > 0  # by Pyro; the next are compiled
        True
    """


class CompiledTraceMeanField_ELBO(_PyrosOwn, TraceMeanField_ELBO):
    """Pyro's `TraceMeanField_ELBO`, compiled: the KL divergence in closed form, where there is one.

    All else is as in `CompiledTrace_ELBO`.

    Raises:
        ValueError: for a guide that draws latents in another order than the model. Between q(z1|x) and p(z1|z2) at a z2
            that the guide has drawn *given* z1, a closed form is no part of the ELBO; Pyro only warns. For a guide that
            leaves out a latent of the model, unless the model makes it a point (Delta) of what is before it.
    """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        refuse_unguided(model_trace, guide_trace)
        _refuse_another_order(model_trace, guide_trace)
        for name, site in drawn_sites(model_trace).items():
            if name not in guide_trace:  # a point, whose density counts, and which has no KL divergence
                site["is_observed"] = True
        return model_trace, guide_trace


def _refuse_another_order(model_trace: Any, guide_trace: Any) -> None:
    of_guide = [name for name in drawn_sites(guide_trace) if name in model_trace]
    of_model = [name for name in drawn_sites(model_trace) if name in of_guide]
    if of_guide != of_model:
        raise ValueError(
            f"guide: expected latents in the order of the model, {', '.join(of_model)}, for KL divergences in closed "
            f"form; got {', '.join(of_guide)}; use CompiledTrace_ELBO, or, if they do not depend on each other there, "
            "draw them in that order."
        )
