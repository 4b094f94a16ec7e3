"""Each figure draws on the Axes that it is given, or on new ones, and returns them."""

import io
from functools import cache

import matplotlib.pyplot as plt
import pytest
import torch
from page import faults
from truths import draws_of, small_vae

import pyro_vae as pv

HISTORY = pv.History([-3.0, -2.0], [-3.0, -2.5], [1.0, 1.0], [2.0, 1.5], [0.1, 0.1])
LABELS = torch.arange(20) % 10


@cache
def results():
    """By importance sampling, by annealing, and the use of latents."""
    vae = small_vae()
    x = draws_of(vae, 20)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=100)
    annealed = pv.ais(vae.model, vae.guide, x, num_temperatures=2, num_chains=4)
    return evidence, annealed, pv.latent_use(vae.model, vae.guide, x)


FIGURES = {
    "training_curves": lambda ax: pv.plots.training_curves(HISTORY, ax),
    "rate_and_distortion": lambda ax: pv.plots.rate_and_distortion(HISTORY, ax),
    "gaps": lambda ax: pv.plots.gaps(results()[1], ax),
    "effective_chains": lambda ax: pv.plots.effective_chains(results()[1], ax),
    "activity": lambda ax: pv.plots.activity(results()[2], ax),
    "differences": lambda ax: pv.plots.differences(pv.compare(*results()[:2]), ax),
    "image_grid": lambda ax: pv.plots.image_grid(torch.rand(7, 1, 4, 5), ax),
    "image_grid in colour": lambda ax: pv.plots.image_grid(torch.rand(7, 3, 4, 5), ax),
    "reconstructions": lambda ax: pv.plots.reconstructions(torch.rand(13, 16), torch.rand(13, 16), ax),
    "bounds": lambda ax: pv.plots.bounds(results()[0], ax),
    "latent_codes": lambda ax: pv.plots.latent_codes(torch.randn(20, 2), LABELS, ax),
    "latent_codes by PCA": lambda ax: pv.plots.latent_codes(torch.randn(20, 5), LABELS, ax),
    "latent_codes on a line": lambda ax: pv.plots.latent_codes(torch.randn(20, 1), None, ax),
    "manifold": lambda ax: pv.plots.manifold(lambda z: z.sigmoid().repeat(1, 8), ax, num=5),
}


@pytest.mark.parametrize("name", FIGURES)
def test_axes_given_or_new(name, tmp_path):
    _, ax = plt.subplots()
    assert FIGURES[name](ax) is ax
    new = FIGURES[name](None)
    assert new is not ax and new.has_data()
    new.figure.savefig(tmp_path / "figure.png")


def test_bounds_shows_the_numbers_of_the_evidence():
    vae = small_vae()
    evidence = pv.importance_sampling(vae.model, vae.guide, draws_of(vae, 20), num_samples=100)
    ax = pv.plots.bounds(evidence)
    drawn = {round(float(y), 6) for line in ax.lines for y in line.get_ydata()}
    assert {round(evidence.bounds(k).mean, 6) for k in (1, 5, 10, 50, 100)} <= drawn


def test_a_figure_for_a_page():
    history = pv.History([-3.0, -2.0], [-3.0, -2.5])
    one, other = (pv.plots.as_svg(lambda ax: pv.plots.training_curves(history, ax), name, "a <b>") for name in "ab")
    assert faults(f"<div>{one}{other}</div>", is_whole=False) == []
    assert 'aria-label="a &lt;b&gt;"' in one and "fill: currentColor" in one
    assert plt.get_fignums() == []


def test_pictures_for_a_page():
    images = torch.tensor([[0.0, 1.0], [1.0, 0.5]]).expand(2, 1, 2, 2)
    (first, second), (colour,) = pv.plots.as_png(images), pv.plots.as_png(torch.rand(1, 3, 4, 5))
    grey = plt.imread(io.BytesIO(first))[..., 0]
    assert first == second and grey[0, 0] == 1 and grey[0, 1] == 0 and 0 < grey[1, 1] < 1  # ink is dark
    assert plt.imread(io.BytesIO(colour)).shape[:2] == (4, 5)


def test_principal_components_are_those_of_largest_variance():
    torch.manual_seed(0)
    loc = torch.randn(500, 4) * torch.tensor([0.1, 3.0, 0.2, 1.0])
    ax = pv.plots.latent_codes(loc)
    spread = ax.lines[0].get_xydata().std(0)
    assert spread[0] == pytest.approx(loc[:, 1].std(correction=0).item(), rel=0.02)
    assert spread[1] == pytest.approx(loc[:, 3].std(correction=0).item(), rel=0.02)


def test_a_legend_has_the_names_of_labels():
    ax = pv.plots.latent_codes(torch.randn(3, 2), torch.tensor([2, 0, 2]), label_names=("B", "NK", "Dendritic"))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["B", "Dendritic"]


def test_the_grid_keeps_the_order_of_rows_and_columns():
    images = torch.arange(6).float().reshape(6, 1, 1, 1).expand(6, 1, 2, 2) / 10
    ax = pv.plots.image_grid(images, num_columns=3)
    picture = torch.as_tensor(ax.images[0].get_array())
    assert torch.allclose(picture[::2, ::2], torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]]))


def test_flat_images_that_are_no_squares():
    with pytest.raises(ValueError, match=r"images: expected flat squares; got 15 pixels"):
        pv.plots.image_grid(torch.rand(3, 15))
