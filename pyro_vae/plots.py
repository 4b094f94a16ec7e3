"""Figures: each function draws on the Axes it is given, or on new ones. matplotlib is imported only here."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae.diagnostics import LatentUse
from pyro_vae.evidence.bdmc import Sandwich
from pyro_vae.evidence.comparison import Comparison
from pyro_vae.evidence.posterior import Posterior
from pyro_vae.evidence.psis import khat_threshold
from pyro_vae.evidence.result import Evidence
from pyro_vae.training.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = [
    "activity",
    "as_png",
    "as_svg",
    "bounds",
    "differences",
    "effective_chains",
    "evidence",
    "gaps",
    "image_grid",
    "khat",
    "latent_codes",
    "manifold",
    "posterior",
    "rate_and_distortion",
    "reconstructions",
    "sandwich",
    "training_curves",
]


def training_curves(history: History, ax: Axes | None = None) -> Axes:
    """Plot the ELBO of training and validation against the epoch."""
    ax = _axes(ax)
    if not len(history):
        raise ValueError("history: expected at least one epoch; got none; train first.")
    epochs = range(1, len(history) + 1)
    ax.plot(epochs, history.train_elbo, label="training, while it goes on")
    if history.validation_elbo:
        ax.plot(epochs, history.validation_elbo, label="validation, after each epoch")
    # The first epochs would squeeze the rest into a line.
    everything = sorted(history.train_elbo + history.validation_elbo)
    ax.set_ylim(bottom=everything[len(everything) // 20])
    ax.set(xlabel="epoch", ylabel="ELBO, nats per datum", title="Training")
    ax.legend(loc="lower right")
    return ax


def rate_and_distortion(history: History, ax: Axes | None = None) -> Axes:
    """Plot distortion against rate after each epoch; the ELBO is minus their sum."""
    ax = _axes(ax)
    if not history.rate:
        raise ValueError("history: expected the rate of at least one epoch; got none; train a program with an ELBO.")
    ax.plot(history.rate, history.distortion, "o-", ms=3)
    for epoch in {0, len(history.rate) - 1}:
        place = (history.rate[epoch], history.distortion[epoch])
        ax.annotate(f"epoch {epoch + 1}", place, xytext=(5, 5), textcoords="offset points", fontsize=9)
    ax.margins(x=0.2, y=0.1)
    ax.set(xlabel="rate, KL(q(z|x) || p(z)), nats", ylabel="distortion, nats", title="What z says, what it leaves out")
    return ax


def image_grid(images: Tensor, ax: Axes | None = None, *, num_columns: int | None = None, title: str = "") -> Axes:
    """Draw images `(N, H, W)`, `(N, C, H, W)` or flat squares `(N, H * H)`, in rows of `num_columns`."""
    ax = _axes(ax)
    tiles = _as_pictures(images)
    columns = _checks.whole_number("num_columns", num_columns or math.ceil(math.sqrt(len(tiles))))
    blank = (-len(tiles)) % columns
    tiles = torch.cat([tiles, tiles.new_ones(blank, *tiles.shape[1:])])
    rows = tiles.unflatten(0, (-1, columns))
    picture = rows.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    ax.imshow(picture.squeeze(-1).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set(title=title, xticks=[], yticks=[])
    return ax


def reconstructions(originals: Tensor, reconstructed: Tensor, ax: Axes | None = None) -> Axes:
    """Draw originals in the upper row of each pair, the mean of p(x|z) below; shapes as for `image_grid`."""
    if len(originals) != len(reconstructed):
        raise ValueError(f"reconstructed: expected {len(originals)} images; got {len(reconstructed)}; one an original.")
    pairs = zip(_as_pictures(originals).split(10), _as_pictures(reconstructed).split(10), strict=True)
    both = torch.cat([picture for pair in pairs for picture in pair])
    columns = min(10, len(originals))
    return image_grid(both.movedim(-1, 1), ax, num_columns=columns, title="Originals above their reconstructions")


def bounds(evidence: Evidence, ax: Axes | None = None) -> Axes:
    """Plot the bounds L_k against k with two standard errors; the ELBO and the estimate of log p(x), L_K, as lines."""
    ax = _axes(ax)
    all_bounds = evidence.all_bounds.values()
    shown = [bound for bound in all_bounds if math.isfinite(bound.mean) and not math.isnan(bound.mean_std_error)]
    if not shown:  # an empty logarithmic axis cannot be drawn
        ax.text(0.5, 0.5, "no bound is finite: log p(x) = -inf for some data", ha="center", transform=ax.transAxes)
        return ax
    errors = [2 * bound.mean_std_error for bound in shown]
    label = r"bound $L_k$, $\pm$ 2 standard errors"
    ax.errorbar([b.k for b in shown], [b.mean for b in shown], errors, fmt="o-", markersize=4, capsize=4, label=label)
    ax.axhline(evidence.mean, color="C2", ls="--", label=r"$\log\,p(x)$ from all draws, itself a bound")
    ax.axhline(evidence.guide_elbo.mean, color="C3", ls=":", label="ELBO")
    ax.set(xscale="log", xlabel="k, draws in each average", ylabel="nats per datum")
    ax.set_title("The bound rises towards log p(x)")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.05))  # below the curve, above the ELBO
    return ax


def khat(evidence: Evidence, ax: Axes | None = None, *, num_worst: int = 5) -> Axes:
    """Plot Pareto k-hat of each datum, with the threshold, and the places of the worst data."""
    ax = _axes(ax)
    values = evidence.khat
    known = (~values.isnan()).nonzero().flatten()
    shown = values[known].clamp(-1, 2)
    ax.plot(known.numpy(), shown.numpy(), "o", ms=3, mew=0, alpha=0.6)
    if evidence.num_samples is not None and evidence.num_samples > 1:
        limit = khat_threshold(evidence.num_samples)
        ax.axhline(limit, color="C3", ls="--", label=f"{limit:.2f}: above, the error cannot be trusted")
        ax.legend(loc="upper right")
        ax.set_ylim(top=2.5)  # room for the legend above all points
    for place in shown.argsort(descending=True)[: _checks.whole_number("num_worst", num_worst)].tolist():
        ax.annotate(str(int(known[place])), (int(known[place]), shown[place].item()), fontsize=8)
    if not len(known):
        ax.text(0.5, 0.5, "no k-hat: fewer than 25 draws a datum", ha="center", transform=ax.transAxes)
    ax.set(xlabel="datum", ylabel=r"Pareto $\hat k$, cut to $-1 \dots 2$", title="How heavy the weights' tails are")
    return ax


def evidence(evidence: Evidence) -> Figure:
    """Plot the bounds against k, or if there are none log p(x) beside the ELBO; and k-hat, or else the ESS."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    if len(evidence.all_bounds) > 1:
        bounds(evidence, axes[0])
    else:
        gaps(evidence, axes[0])
    if evidence.khat.isnan().all():
        effective_chains(evidence, axes[1])
    else:
        khat(evidence, axes[1])
    return figure


def gaps(evidence: Evidence, ax: Axes | None = None) -> Axes:
    """Plot log p(x) of each datum, in order, and its ELBO."""
    ax = _axes(ax)
    order = evidence.log_evidence.argsort()
    ax.plot(evidence.log_evidence[order].numpy(), label=r"$\log\,p(x)$")
    ax.plot(evidence.elbo[order].numpy(), ".", ms=3, color="C3", label="ELBO")
    ax.set(xlabel="data, in the order of $\\log\\,p(x)$", ylabel="nats", title="What the ELBO misses of each datum")
    ax.legend(loc="lower right")
    return ax


def effective_chains(evidence: Evidence, ax: Axes | None = None) -> Axes:
    """Plot the effective sample size of each datum, of chains or of draws; data that are not reliable are crosses."""
    ax = _axes(ax)
    good = evidence.reliable
    places, ess = torch.arange(len(evidence)), evidence.ess.clamp(min=1)  # none at all cannot be drawn on a log scale
    ax.plot(places[good].numpy(), ess[good].numpy(), "o", ms=4, mew=0, alpha=0.7, label="reliable")
    ax.plot(places[~good].numpy(), ess[~good].numpy(), "x", ms=5, color="C3", label="not reliable")
    ax.set(xlabel="datum", ylabel="effective chains", yscale="log", ylim=(0.8, 4 * ess.max().item()))
    ax.set_title("How many chains or draws count")
    ax.legend(loc="upper right", ncols=2)
    return ax


def activity(use: LatentUse, ax: Axes | None = None) -> Axes:
    """Plot how much the mean of each latent number varies over data, in order, with the threshold of active units."""
    ax = _axes(ax)
    values = torch.cat([value.flatten() for value in use.activity.values()]).sort(descending=True).values
    places, is_active = torch.arange(1, len(values) + 1), values > use.threshold
    for chosen, color, label in ((is_active, "C0", "active"), (~is_active, "C7", "not active")):
        if chosen.any():
            heights = values[chosen].clamp(min=use.threshold / 20)  # below zero only by noise
            ax.plot(places[chosen].numpy(), heights.numpy(), "o", ms=4, color=color, label=label)
    ax.axhline(use.threshold, color="C3", ls="--", label=f"threshold {use.threshold:g}")
    ax.set(yscale="log", xlabel="latent numbers, in order", ylabel="variance over data of E(z|x)")
    ax.set_title(f"{use.num_active} of {len(values)} latent numbers are active")
    ax.legend()
    return ax


def differences(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Plot how log p(x) of each datum differs between two models, and the mean difference."""
    ax = _axes(ax)
    known = comparison.difference[comparison.difference.isfinite()]
    ax.hist(known.numpy(), bins=min(40, 5 + len(known) // 5))
    ax.axvline(0, color="C7", lw=1)
    ax.axvline(comparison.mean, color="C3", ls="--", label=f"mean {comparison.mean:.3f}")
    ax.set(xlabel=r"$\log\,p_a(x) - \log\,p_b(x)$, nats", ylabel="data", title="Right of 0 the first is better")
    ax.legend()
    return ax


def sandwich(sandwich: Sandwich) -> Figure:
    """Plot the lower and the upper bound of each simulated datum, and the gap between them."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    order = sandwich.lower.argsort()
    left.plot(sandwich.upper[order].numpy(), "v", ms=4, mew=0, color="C3", label="upper bound, AIS backwards")
    left.plot(sandwich.lower[order].numpy(), "^", ms=4, mew=0, color="C0", label="lower bound, AIS forwards")
    left.set(xlabel="simulated data, in order", ylabel="nats", title=r"$\log\,p(x)$ between two bounds")
    left.legend(loc="lower right")
    right.hist(sandwich.gap.numpy(), bins=30)
    right.axvline(sandwich.mean_gap, color="C3", ls="--", label=f"mean {sandwich.mean_gap:.3f}")
    right.set(xlabel="upper - lower, nats", ylabel="data", title="The gap; below zero only by noise")
    right.legend()
    return figure


def posterior(posterior: Posterior, index: int = 0) -> Figure:
    """Plot q(z|x) against p(z|x) of one datum: in the plane where p spreads most, and each latent number's spread."""
    from matplotlib import pyplot

    exact, guide = (_latent_matrix(latents, index) for latents in (_flat_chains(posterior), posterior.guide_latents))
    centre = exact.mean(0)
    _, _, directions = torch.linalg.svd(exact - centre, full_matrices=False)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for draws, label, color in ((exact, f"p(z|x), by {posterior.method}", "C0"), (guide, "q(z|x), the guide", "C1")):
        plane = (draws - centre) @ directions[:2].T
        second = plane[:, 1] if plane.shape[1] > 1 else torch.zeros(len(plane))
        left.plot(plane[:, 0].numpy(), second.numpy(), ".", ms=3, alpha=0.4, color=color, label=label)
        right.plot(draws.std(0).numpy(), ".-", color=color, label=label)
    left.set(xlabel="where p(z|x) spreads most", ylabel="second direction", title=f"Draws of z for datum {index}")
    right.set(xlabel="latent number", ylabel="standard deviation", ylim=(0, None), title="Spread of each latent number")
    left.legend(markerscale=3)
    right.legend()
    return figure


def _flat_chains(posterior: Posterior) -> dict[str, Tensor]:
    return {name: value.flatten(0, 1) for name, value in posterior.latents.items()}


def _latent_matrix(latents: dict[str, Tensor], index: int) -> Tensor:
    """Return all latent numbers of one datum, `(S, D)`."""
    return torch.cat([value[:, index].reshape(len(value), -1).double() for _, value in sorted(latents.items())], dim=1)


def latent_codes(
    loc: Tensor, labels: Tensor | None = None, ax: Axes | None = None, *, label_names: Sequence[str] | None = None
) -> Axes:
    """Plot means of q(z|x), `(N, D)`, coloured by label; their first two principal components where D > 2.

    Args:
        loc: the means.
        labels: `(N,)` whole numbers, or None.
        label_names: what labels 0, 1, ... stand for, for the legend.
    """
    ax = _axes(ax)
    named: dict[Any, str] = dict(enumerate(label_names or ()))
    codes, names = _in_the_plane(_checks.tensor("loc", loc).detach().cpu())
    labels = None if labels is None else _checks.tensor("labels", labels).cpu()
    for label in [None] if labels is None else labels.unique().tolist():
        chosen = codes if labels is None else codes[labels == label]
        name = named.get(label, label)
        ax.plot(chosen[:, 0].numpy(), chosen[:, 1].numpy(), "o", ms=2.5, mew=0, alpha=0.8, label=name)
    if labels is not None:
        ax.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3)
    ax.set(xlabel=names[0], ylabel=names[1], title="Latent codes, the mean of q(z|x)")
    ax.set_aspect("equal", adjustable="datalim")
    return ax


def manifold(decode: Callable[[Tensor], Tensor], ax: Axes | None = None, *, num: int = 20) -> Axes:
    """Draw what a two-dimensional latent decodes to, on a grid through the inverse Gaussian CDF of the unit square.

    Args:
        decode: from z `(num * num, 2)` to images; `lambda z: vae.likelihood(z).mean`.
        num: points along each side.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, figure 4.
    """
    steps = (torch.arange(_checks.whole_number("num", num)) + 0.5) / num
    quantiles = torch.special.ndtri(steps)
    down, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    with torch.no_grad():
        images = decode(torch.stack([right, down], dim=-1).flatten(0, 1))
    return image_grid(images, ax, num_columns=num, title="The learned manifold")


INK = "#010203"
"""Stands for the colour of the text around a figure, until it is known."""
PALETTE = ["3a86c8", "e07b28", "3d9e52", "d64f4b", "9168c5", "a0715e", "d66fb5", "8a8f98", "a9a12c", "2aa5b5"]
ON_ANY_PAGE = {
    "axes.prop_cycle": f"cycler('color', {PALETTE})",
    "font.size": 11,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "pyro_vae",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
"""matplotlib's settings for figures that are legible on light pages and on dark ones."""
MANY_POINTS = 2000


def as_svg(draw: Callable[[Axes], object], name: str, alt: str, *, size: tuple[float, float] = (5.2, 3.8)) -> str:
    """Return a figure as an SVG element for an HTML page, with text in the colour of the text around it.

    Args:
        draw: draws on the Axes that it is given; `lambda ax: pv.plots.training_curves(history, ax)`.
        name: what its ids start with, different for each figure of a page.
        alt: what it shows, for those who cannot see it.
        size: width and height in inches, of which only the ratio counts where the page sets the width.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(ON_ANY_PAGE):
        figure = Figure(figsize=size, layout="constrained")
        ax = figure.subplots()
        draw(ax)
        for line in ax.lines:
            line.set_rasterized(torch.as_tensor(line.get_xydata()).shape[0] > MANY_POINTS)
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    return _as_element(buffer.getvalue(), name, alt)


def _as_element(document: str, name: str, alt: str) -> str:
    """Make an SVG document an element of a page, whose ids are its own."""
    element = re.sub(r"<(metadata|style)\b.*?</\1>", "", document[document.index("<svg") :], flags=re.DOTALL)
    element = re.sub(r" font-family: [^;\"]+;", "", element)
    element = re.sub(r' (?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", element, count=5)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', element).replace("url(#", f"url(#{name}-")
    element = element.replace("xlink:href=", "href=").replace(INK, "currentColor")
    return element.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}" style="stroke-linejoin: round"', 1)


def as_png(images: Tensor) -> list[bytes]:
    """Return each of the images as a PNG file, one byte a pixel and channel; shapes as for `image_grid`."""
    from matplotlib import image

    files = []
    for picture in _as_pictures(images):
        buffer = io.BytesIO()
        image.imsave(buffer, picture.squeeze(-1).numpy(), cmap="gray_r", vmin=0, vmax=1, format="png")
        files.append(buffer.getvalue())
    return files


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6, 4.5), layout="constrained")[1]


def _as_pictures(images: Tensor) -> Tensor:
    """Return images as `(N, H, W, channels)`, values from 0 to 1."""
    images = _checks.tensor("images", images).detach().cpu().float()
    if images.max() > 2:
        raise ValueError(f"images: expected values from 0 to 1; got up to {images.max():g}; divide by 255, perhaps.")
    if images.ndim == 2:
        side = math.isqrt(images.shape[1])
        if side * side != images.shape[1]:
            raise ValueError(f"images: expected flat squares; got {images.shape[1]} pixels; reshape to (N, C, H, W).")
        images = images.unflatten(1, (side, side))
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"images: expected (N, H, W) or (N, C, H, W), C of 1, 3 or 4; got {tuple(images.shape)}; reshape."
        )
    return images.clamp(0, 1).movedim(1, -1)


def _in_the_plane(loc: Tensor) -> tuple[Tensor, tuple[str, str]]:
    if loc.shape[1] == 2:
        return loc, ("$z_1$", "$z_2$")
    if loc.shape[1] == 1:
        return torch.cat([loc, torch.zeros_like(loc)], 1), ("$z$", "")
    if len(loc) < 2:
        raise ValueError(f"loc: expected at least 2 data for principal components; got {len(loc)}; pass more.")
    centred = loc - loc.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T, ("first principal component", "second principal component")
