"""A run as one HTML page: what it says, that it needs nothing else, and how a browser shows it."""

import functools
import hashlib
import json
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from page import BROWSER, Page, faults, seen

import pyro_vae as pv
from pyro_vae.report.shown import image_shape

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


def vae_of(num_columns, context=(), likelihood=pv.likelihoods.Bernoulli):
    torch.manual_seed(1)
    extra = sum(context)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        likelihood(pv.nn.MLP(2 + extra, [8], num_columns)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(num_columns + extra, [8], 4)),
        **({"context_shapes": [(each,) for each in context]} if context else {}),
    )


def images(num_data, seed, shape=(1, 8, 8)):
    """A bright half, which of four turns a label tells."""
    labels = torch.arange(num_data) % 4
    grey = torch.zeros(num_data, *shape)
    for place, label in enumerate(labels.tolist()):
        half = grey[place].transpose(-1, -2) if label % 2 else grey[place]
        half[..., : 4 if label < 2 else 2, :] = 0.9
    name = "turns <b>"
    return pv.data.from_tensor(grey, labels, name=name, binarization="static", seed=seed)


def trained(folder, vae, data, **options):
    pv.fit(vae, data, num_epochs=3, batch_size=20, run=folder, progress=False, **options)
    return folder


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """What the page evaluates itself takes pilots from the guide alone."""
    monkeypatch.setattr(
        "pyro_vae.report.findings.log_evidence", functools.partial(pv.log_evidence, max_evaluations=500)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Images with labels, and validation."""
    vae = vae_of(64)
    return trained(tmp_path_factory.mktemp("runs") / "a", vae, images(60, 0), validation=images(20, 1))


@pytest.fixture(scope="module")
def test_images():
    return images(30, 2)


@pytest.fixture(scope="module")
def evidence(run, test_images):
    vae = pv.load(run)
    return pv.ais(vae.model, vae.guide, test_images.x[:12], num_temperatures=5, num_chains=8, seed=3)


@pytest.fixture(scope="module")
def page(run, test_images, evidence):
    return pv.write_report(run, test_images, evidence=evidence, progress=False).read_text()


def test_the_page_needs_nothing_but_itself(page):
    assert faults(page) == []
    parsed = Page(page)
    assert len(parsed.all("img")) == 2 * 16 + 16 + 2 * 8 + 2 * 8 and len(parsed.all("svg")) >= 7
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page and "@media print" in page


BROKEN = {
    "</section>": ("</div>", "</div> closes another element"),
    "<h1>": ('<h1 id="summary">', "the id summary is there twice"),
    "<main>": ('<main><img src="https://example.org/a.png" alt="a">', "leaves the page"),
    "<footer>": ('<footer onclick="go()">', "<footer> runs code"),
    "</body>": ("<script></script></body>", "<script> has no place here"),
    'alt="original 0"': ('alt=""', "a picture without alt text"),
    'href="#training"': ('href="#elsewhere"', "points to nothing"),
    "<title>": ("<title></title><b>", "no title"),
    'name="viewport"': ('name="other"', "no viewport"),
    "</style>": ("body { background: url(https://example.org) }</style>", "url(https://example.org) leaves the page"),
}


@pytest.mark.parametrize("place", BROKEN)
def test_a_fault_would_be_found(page, place):
    instead, fault = BROKEN[place]
    assert place in page
    assert any(fault in each for each in faults(page.replace(place, instead, 1)))


def test_what_the_page_says(page, evidence, run):
    text = Page(page).text
    history = pv.training.run.last_checkpoint(run).training["history"]
    for number in (
        f"{evidence.mean:.3f}",
        f"{evidence.mean_std_error:.3f}",
        f"{evidence.certified_lower_bound():.3f}",
        f"{evidence.guide_elbo.mean:.3f}",
        f"{history['train_elbo'][-1]:.2f} in training, {history['validation_elbo'][-1]:.2f} in validation",
        f"datum {int(evidence.log_evidence.argmin())} {evidence.log_evidence.min():.2f}",
    ):
        assert number in text
    assert "the evaluation that was passed, with seed 3" in text
    assert "name turns <b>, split all" in text and images(60, 0).provenance.sha256 in text
    assert "pv.fit( vae, data, num_epochs=3, batch_size=20, )" in text and "optim=" not in text
    assert "posterior=pv.posteriors.DiagonalNormal(network=pv.nn.MLP(in_shape=[64], hidden_dims=[8]" in text
    assert f"pv.load({str(run)!r})" in text


def test_the_usual_estimate_stands_beside(page, run, test_images, evidence):
    vae = pv.load(run)
    usual = pv.importance_sampling(vae.model, vae.guide, test_images.x[:12], num_samples=1000)
    difference = evidence.mean - usual.mean
    assert (
        f"says {usual.mean:.3f}: {abs(difference):.3f} nats {'lower' if difference > 0 else 'higher'}"
        in Page(page).text
    )
    assert re.search(rf"the usual estimate +{usual.mean:.3f} +\+- {usual.mean_std_error:.3f}", evidence.summary(usual))
    with pytest.raises(ValueError, match="usual: expected evidence of the same data"):
        evidence.summary(pv.importance_sampling(vae.model, vae.guide, test_images.x[:5], num_samples=10))


def test_nothing_from_files_is_trusted(run, test_images, tmp_path):
    folder = tmp_path / "a<b>&'"
    trained(folder, vae_of(64), test_images)
    config = json.loads((folder / "config.json").read_text())
    config |= {EVIL: EVIL, "num_epochs": EVIL, "versions": {EVIL: [EVIL]}, "parameters": EVIL, "data": {EVIL: EVIL}}
    config |= {"optim": {"optimizer": EVIL, "options": EVIL}, "objective": {"objective": EVIL, "num_particles": EVIL}}
    config["validation"] = [EVIL, {EVIL: {EVIL: EVIL}}]
    (folder / "config.json").write_text(json.dumps(config))
    last = json.loads((folder / "last.json").read_text())
    last["config"] = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    (folder / "last.json").write_text(json.dumps(last))
    data = pv.data.from_tensor(test_images.x, name=EVIL, split=EVIL)
    for settings, other in ((None, run), ({"command": [EVIL, 3], EVIL: {EVIL: EVIL}}, None)):
        if settings:
            (folder / "settings.json").write_text(json.dumps(settings))
        written = pv.write_report(folder, data, num_data=3, compare_with=other, progress=False).read_text()
        assert faults(written) == [] and EVIL in Page(written).text
        assert "<title>a&lt;b&gt;&amp;&#x27;</title>" in written


def table(num_data, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_data, 12, generator=generator) * 3


def gaussian_pair():
    """A model and a guide, neither of them a module."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    return model, guide


def of_a_table(folder):
    vae = vae_of(12, likelihood=pv.likelihoods.Gaussian)
    return trained(folder, vae, table(40, 0)), {"data": table(20, 1)}


def of_images_in_colour(folder):
    x = images(20, 0, (3, 4, 5)).x * 4 - 1
    vae = vae_of(60, likelihood=pv.likelihoods.Gaussian)
    return trained(folder, vae, x), {"data": x}


def of_images_with_context(folder):
    some = images(40, 0)
    context = torch.nn.functional.one_hot(some.labels, 4).float()
    return trained(folder, vae_of(64, (4,)), (some.x, context)), {"data": (some, context)}


def of_a_pair(folder):
    pair = gaussian_pair()
    return trained(folder, pair, torch.randn(40)), {"data": torch.randn(20), "vae": pair}


def of_a_pair_by_its_evidence_alone(folder):
    pair = gaussian_pair()
    return trained(folder, pair, torch.randn(40)), {"evidence": pv.log_evidence(*pair, torch.randn(10))}


def of_training_alone(folder):
    return trained(folder, vae_of(64), images(40, 0)), {}


KINDS = {
    of_a_table: ["[7]", "The first 8 of 12 columns", "draw"],
    of_images_in_colour: ["Pictures are scaled: -1 to 3 is the whole range", "Draws from the prior"],
    of_images_with_context: [
        "given the context of the data above",
        "log_evidence, called for this page on the first 4",
    ],
    of_a_pair: ["A pair (model, guide) does not say", "pv.log_evidence(model, guide, test_data"],
    of_a_pair_by_its_evidence_alone: ["the program is not here", "whose origin is not on record"],
    of_training_alone: ["Log p(x) is not on this page", "there are no data to show"],
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run(kind, tmp_path):
    folder, given = kind(tmp_path / "run")
    output = tmp_path / "page.html"
    assert pv.write_report(folder, **given, output=output, num_data=4, progress=False) == output
    written = output.read_text()
    assert faults(written) == []
    for words in KINDS[kind]:
        assert words in Page(written).text
    assert bool(Page(written).all("img")) == ("images" in kind.__name__)


def test_two_runs(run, test_images, evidence, tmp_path):
    other = trained(tmp_path / "b", vae_of(64), images(60, 0), kl_warmup=2)
    written = pv.write_report(run, test_images, evidence=evidence, compare_with=other, progress=False).read_text()
    text = Page(written).text
    vae = pv.load(other)
    comparison = pv.compare(evidence, pv.log_evidence(vae.model, vae.guide, test_images.x[:12], max_evaluations=500))
    assert faults(written) == []
    assert f"{comparison.mean:+.3f} ± {comparison.std_error:.3f}" in text and "kl_warmup None 2" in text
    largest = int(comparison.difference.argmax())
    assert f"datum {largest} {comparison.difference[largest]:+.2f}" in text
    told_apart = abs(comparison.mean) > 2 * comparison.std_error
    assert ("explains such data better" in text) == told_apart


def test_runs_that_cannot_be_shown(run, test_images, evidence, tmp_path):
    with pytest.raises(ValueError, match="run: expected a folder that fit.* kept a run in"):
        pv.write_report(tmp_path, test_images)
    with pytest.raises(ValueError, match="evidence: expected that of the first 12 of the data"):
        annealed = pv.ais(pv.load(run).model, pv.load(run).guide, test_images.x[5:17], num_temperatures=2)
        pv.write_report(run, test_images, evidence=annealed, progress=False)
    with pytest.raises(ValueError, match="compare_with: expected Evidence, or data"):
        pv.write_report(run, compare_with=run)
    with pytest.raises(ValueError, match="expected evidence of the same data"):
        fewer = pv.importance_sampling(pv.load(run).model, pv.load(run).guide, test_images.x[:5], num_samples=30)
        pv.write_report(run, test_images, evidence=evidence, compare_with=fewer, progress=False)


SHAPES = {
    (1, 8, 8): (1, 8, 8),
    (3, 4, 5): (3, 4, 5),
    (8, 9): (1, 8, 9),
    (64,): (1, 8, 8),
    (16,): None,
    (63,): None,
    (2, 8, 8): None,
    (): None,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_which_data_are_images(shape):
    assert image_shape(torch.rand(5, *shape)) == SHAPES[shape]
    if len(shape) < 3:
        assert image_shape(torch.rand(5, *shape) * 2) is None


def test_a_notebook_shows_the_same_cards(evidence):
    other = pv.evidence.Comparison(torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.1]), 1)
    history = pv.History([-3.0, -2.0], [], [1.0, 1.0], [2.0, 1.0], [0.1, 0.1])
    for result, words in (
        (evidence, "certified lower bound"),
        (other, "NOT reliable for 1 of 2"),
        (history, "2 epochs"),
    ):
        shown = result._repr_html_()
        assert faults(shown, is_whole=False) == [] and words in Page(shown).text and "pv-card" in shown


needs_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed to show the page in")


@needs_a_browser
@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_shows_it(page, width, tmp_path):
    layout, complaints, asked = seen(page, width, tmp_path)
    assert complaints == [] and asked == set()
    parsed = Page(page)
    assert layout["images"] == layout["loaded"] == len(parsed.all("img"))
    assert layout["figures"] == len(parsed.all("svg"))
    assert layout["needs"] <= layout["width"] <= width  # nothing sticks out to the right


@needs_a_browser
def test_words_in_a_table_are_not_broken_on_a_phone(tmp_path):
    run, options = of_a_table(tmp_path / "run")
    text = pv.write_report(run, **options, progress=False).read_text()
    layout, *_ = seen(text, 390, tmp_path)
    assert layout["broken"] == [] and layout["needs"] <= 390
    bad = text.replace("</style>", ".pv-table td { overflow-wrap: anywhere; }</style>", 1)
    assert "reconstructed" in seen(bad, 390, tmp_path)[0]["broken"]


@needs_a_browser
def test_a_browser_would_find_faults(page, tmp_path):
    """The twin: a request, a broken picture, a script, and something too wide, without the policy that forbids them."""
    bad = re.sub("<meta http-equiv[^>]*>", "", page).replace(
        "<main>",
        '<main><img src="http://127.0.0.1:9/a.png" alt=""><script>console.error("a")</script>'
        '<p style="width: 3000px">wide</p>',
    )
    layout, complaints, asked = seen(bad, 390, tmp_path)
    assert complaints and any("127.0.0.1:9" in url for url in asked)
    assert layout["loaded"] < layout["images"] and layout["needs"] > 390


def test_another_run_whose_folder_cannot_bring_its_program_back(run, test_images, evidence, tmp_path):
    vae, x = vae_of(64), test_images.x[:12]
    pair = vae.model, vae.guide
    pv.fit(pair, images(60, 0).x, num_epochs=1, batch_size=20, run=tmp_path / "pair", progress=False)
    options = {"evidence": evidence, "progress": False, "output": tmp_path / "page.html"}
    page = pv.write_report(run, test_images, compare_with=(tmp_path / "pair", pair), **options).read_text()
    comparison = pv.compare(evidence, pv.log_evidence(*pair, x, max_evaluations=500))
    assert f"{comparison.mean:+.3f} ± {comparison.std_error:.3f}" in Page(page).text
