"""Figures: each function draws on the Axes it is given, or on new ones, and returns them. matplotlib's only home."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae import _checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_vae.evidence import Evidence
    from pyro_vae.training import History

__all__ = ["bounds", "image_grid", "latent_codes", "manifold", "reconstructions", "training_curves"]


def training_curves(history: History, ax: Axes | None = None) -> Axes:
    """The ELBO of training and validation against the epoch."""
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


def image_grid(images: Tensor, ax: Axes | None = None, *, num_columns: int | None = None, title: str = "") -> Axes:
    """Images `(N, H, W)`, `(N, C, H, W)` or flat squares `(N, H * H)`, in rows of `num_columns`."""
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
    """Originals in the upper row of each pair, the mean of p(x|z) below; shapes as for `image_grid`."""
    if len(originals) != len(reconstructed):
        raise ValueError(f"reconstructed: expected {len(originals)} images; got {len(reconstructed)}; one an original.")
    pairs = zip(_as_pictures(originals).split(10), _as_pictures(reconstructed).split(10), strict=True)
    both = torch.cat([picture for pair in pairs for picture in pair])
    columns = min(10, len(originals))
    return image_grid(both.movedim(-1, 1), ax, num_columns=columns, title="Originals above their reconstructions")


def bounds(evidence: Evidence, ax: Axes | None = None) -> Axes:
    """The bounds L_k against k with two standard errors; the ELBO and the estimate of log p(x), L_K, as lines."""
    ax = _axes(ax)
    all_bounds = evidence.all_bounds.values()
    shown = [bound for bound in all_bounds if not math.isnan(bound.mean_std_error)]
    errors = [2 * bound.mean_std_error for bound in shown]
    label = r"bound $L_k$, $\pm$ 2 standard errors"
    ax.errorbar([b.k for b in shown], [b.mean for b in shown], errors, fmt="o-", markersize=4, capsize=4, label=label)
    ax.axhline(evidence.mean, color="C2", ls="--", label=r"$\log\,p(x)$ from all draws, itself a bound")
    ax.axhline(evidence.bounds(1).mean, color="C3", ls=":", label="ELBO")
    ax.set(xscale="log", xlabel="k, draws in each average", ylabel="nats per datum")
    ax.set_title("The bound rises towards log p(x)")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.05))  # below the curve, above the ELBO
    return ax


def latent_codes(loc: Tensor, labels: Tensor | None = None, ax: Axes | None = None) -> Axes:
    """Means of q(z|x), `(N, D)`, coloured by label; their first two principal components where D > 2."""
    ax = _axes(ax)
    codes, names = _in_the_plane(_checks.tensor("loc", loc).detach().cpu())
    labels = None if labels is None else _checks.tensor("labels", labels).cpu()
    for label in [None] if labels is None else labels.unique().tolist():
        chosen = codes if labels is None else codes[labels == label]
        ax.plot(chosen[:, 0].numpy(), chosen[:, 1].numpy(), "o", ms=2.5, mew=0, alpha=0.8, label=label)
    if labels is not None:
        ax.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3)
    ax.set(xlabel=names[0], ylabel=names[1], title="Latent codes, the mean of q(z|x)")
    ax.set_aspect("equal", adjustable="datalim")
    return ax


def manifold(decode: Callable[[Tensor], Tensor], ax: Axes | None = None, *, num: int = 20) -> Axes:
    """What a two-dimensional latent decodes to, on a grid through the inverse Gaussian CDF of the unit square.

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


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6, 4.5), layout="constrained")[1]


def _as_pictures(images: Tensor) -> Tensor:
    """Images as `(N, H, W, channels)`, values from 0 to 1."""
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
