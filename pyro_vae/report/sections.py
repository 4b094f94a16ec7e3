"""The sections of a report, each made from what was found."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pyro_vae.evidence.summary as of_evidence
from pyro_vae import _html, plots
from pyro_vae._html import Card, Remark
from pyro_vae._random import seeded
from pyro_vae.diagnostics import LatentUse
from pyro_vae.evidence.comparison import compare
from pyro_vae.evidence.psis import khat_threshold
from pyro_vae.evidence.result import Evidence
from pyro_vae.report.findings import Evaluated, Findings
from pyro_vae.report.page import Section, document, figure, figures, heading, paragraph
from pyro_vae.report.setup import differing, how_to_repeat, kind_of, set_up
from pyro_vae.report.shown import Shown
from pyro_vae.training.history import History

__all__ = ["page_of"]

NUM_PICTURES, NUM_ROWS = 16, 6
NUM_WORST = 8
NUM_CODES = 1000


def page_of(findings: Findings, seed: int) -> str:
    """Make the page."""
    record = findings.record
    saved = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.saved_at))
    sections = [
        Section("summary", "In short", _summary(findings)),
        Section("training", "Training", _training(record.history)),
        Section("data", "What it makes of data", _pictures(findings, seed)),
        Section("latents", "Latent space", _latents(findings)),
        Section("evidence", "log p(x)", _evidence(findings.evaluated)),
        Section("worst", "Worst data", _worst(findings)),
        Section("comparison", "Beside another run", _comparison(findings)),
        Section("set-up", "What was trained on what", set_up(record, findings.data)),
        Section("repeat", "To run it again", how_to_repeat(record, findings, seed)),
    ]
    trained = f"{len(record.history)} epochs in {_duration(sum(record.history.seconds))}"
    lead = f"{kind_of(record, findings.vae)}. {trained}; the last checkpoint is of {saved}."
    return document(
        record.name, lead, sections, "Numbers are nats per datum, unless they say otherwise. Data are counted from 0."
    )


def _summary(findings: Findings) -> str:
    """Say how good the model is, what to doubt, and what to do about it."""
    history, evaluated = findings.record.history, findings.evaluated
    cards, remarks = [], []
    if evaluated is not None:
        usual = None if evaluated.usual is evaluated.evidence else evaluated.usual
        cards += of_evidence.cards_of(evaluated.evidence, usual)
        remarks += of_evidence.remarks_of(evaluated.evidence)
    if isinstance(findings.use, LatentUse):
        total = sum(value.numel() for value in findings.use.activity.values())
        cards.append(Card("active units", f"{findings.use.num_active} of {total}", note="latent numbers in use"))
        remarks += _collapse(findings.use)
    remarks += _of_training(history)
    if evaluated is None:
        why = "The program and data to evaluate it on are both needed: pass data=... and vae=... to write_report."
        remarks.insert(0, Remark("log p(x) is not on this page", why[0].lower() + why[1:-1]))
    return _html.cards(cards) + _html.remarks(sorted(remarks, key=lambda remark: not remark.remedy))


def _collapse(use: LatentUse) -> list[Remark]:
    if use.num_active:
        return []
    return [
        Remark(
            "No latent number is active: q(z|x) says nothing of x",
            "let the KL term grow slowly, fit(..., kl_warmup=10), or give the decoder less freedom",
        )
    ]


def _of_training(history: History) -> list[Remark]:
    elbos = history.validation_elbo
    if len(elbos) < 3:
        return []
    best = max(range(len(elbos)), key=elbos.__getitem__)
    if best == len(elbos) - 1:
        return [Remark("The validation ELBO was best in the last epoch", "more epochs may raise it further")]
    what = f"The validation ELBO was best after epoch {best + 1} of {len(elbos)}"
    return [Remark(f"{what}; load(run) takes the parameters of that epoch")]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _training(history: History) -> str:
    if not len(history):
        return paragraph("No epoch is finished.")
    curves = figure(
        plots.as_svg(lambda ax: plots.training_curves(history, ax), "training", "ELBO against the epoch"),
        _last_elbos(history),
    )
    if not history.rate:
        return figures(curves)
    path = figure(
        plots.as_svg(lambda ax: plots.rate_and_distortion(history, ax), "path", "distortion against rate, by epoch"),
        "The ELBO is -(rate + distortion). Rate is what the code z says of a datum, distortion what it leaves out.",
    )
    return figures(curves, path)


def _last_elbos(history: History) -> str:
    last = f"The last epoch: {history.train_elbo[-1]:.2f} in training"
    return f"{last}, {history.validation_elbo[-1]:.2f} in validation." if history.validation_elbo else f"{last}."


def _pictures(findings: Findings, seed: int) -> str:
    vae, data = findings.vae, findings.data
    if data is None:
        return paragraph("Not shown: there are no data to show. Pass data=... to write_report.")
    shown = Shown.like(data.x[:NUM_CODES])
    some = data.first(NUM_PICTURES if shown.shape else NUM_ROWS)
    if vae is None:
        why = "A pair (model, guide) does not say which of its sites is a reconstruction, so that data stand alone."
        return paragraph(why, shown.scaling) + shown.html([some.x], ["datum"])
    try:
        reconstructed = vae.reconstruct(*some.args)
    except ValueError as error:  # of a likelihood with neither mean nor mode
        return paragraph(f"Reconstructions are not shown: {error}") + shown.html([some.x], ["original"])
    originals = vae.check(some.x)
    names, place = ["original", "reconstructed"], "below" if shown.shape else "in the second row of each"
    parts = [
        heading("Originals and reconstructions"),
        paragraph(f"The first data; {place}, the mean of p(x|z) at the mean of q(z|x).", shown.scaling),
        shown.html([originals, reconstructed], names),
        heading("Draws from the prior"),
        _prior_draws(findings, shown, seed),
    ]
    return "".join(parts)


@torch.no_grad()
def _prior_draws(findings: Findings, shown: Shown, seed: int) -> str:
    vae, data = findings.vae, findings.data
    assert vae is not None and data is not None
    some = data.first(NUM_PICTURES if shown.shape else NUM_ROWS)
    context = some.args[1:]
    with seeded(next(vae.parameters()).device, seed):
        prior = vae.prior(*context)
        z = prior.sample() if context and prior.batch_shape else prior.sample((len(some.x),))
        means = _mean(vae.decode(z, *context))
    if means is None:
        return paragraph("Not shown: the likelihood has no mean that Pyro knows.")
    given = ", given the context of the data above" if context else ""
    return paragraph(f"The mean of p(x|z), z drawn from the prior{given}.") + shown.html([means], ["draw"])


def _mean(distribution: Any) -> Tensor | None:
    try:
        return distribution.mean
    except NotImplementedError:
        return None


@torch.no_grad()
def _latents(findings: Findings) -> str:
    use, shown = findings.use, _codes(findings)
    if isinstance(use, str):
        return figures(*shown) + paragraph(f"The use of the latents is not shown: {use}.")
    activity = plots.as_svg(lambda ax: plots.activity(use, ax), "activity", "how much each latent number varies")
    shown.append(figure(activity, "A latent number is active if the mean of q(z|x) varies over data."))
    rows = [
        ("rate, KL(q(z|x) || p(z))", use.rate, "what a code says of its datum"),
        ("mutual information I(x; z)", use.mutual_information, "what of it tells data apart"),
        ("KL(q(z) || p(z))", use.aggregate_kl, "what is lost because codes together are not the prior"),
    ]
    return figures(*shown) + _html.table(rows, ("over these data", "nats", ""))


def _codes(findings: Findings) -> list[str]:
    """Show the means of q(z|x), if it has means and there are enough of them to spread."""
    vae, data = findings.vae, findings.data
    if vae is None or data is None or len(data.x) < 2:
        return []
    some = data.first(NUM_CODES)
    means = _mean(vae.encode(*some.args))
    if means is None:
        return []
    codes, labels, names = means.flatten(1), _few(some.labels), some.label_names
    svg = plots.as_svg(
        lambda ax: plots.latent_codes(codes, labels, ax, label_names=names), "codes", "latent codes in the plane"
    )
    how = "" if codes.shape[1] <= 2 else ", in the plane where they spread most"
    return [
        figure(svg, f"Means of q(z|x) of {len(codes):,} data{how}{'' if labels is None else ', coloured by label'}.")
    ]


def _few(labels: Tensor | None) -> Tensor | None:
    """Return labels, if they are so few that colours tell them apart."""
    return labels if labels is not None and len(labels.unique()) <= 10 else None


def _evidence(evaluated: Evaluated | None) -> str:
    if evaluated is None:
        return ""
    evidence, usual = evaluated.evidence, evaluated.usual
    parts = [
        *map(paragraph, _in_words(evaluated)),
        figures(*_estimates(evidence), *([] if usual is None or usual is evidence else _usual(usual))),
        heading("Figures"),
        _html.table(_figures(evidence), ("", "nats per datum", "")),
        heading("Estimators"),
        _html.table(_estimators(evidence), ("estimator", "data", "of them reliable", "evaluations a datum")),
    ]
    return "".join(parts)


def _in_words(evaluated: Evaluated) -> list[str]:
    evidence, usual = evaluated.evidence, evaluated.usual
    words = [
        f"What is shown: {evaluated.how}, with seed {evidence.seed}. The mean of log p(x) over these "
        f"{len(evidence):,} data is {evidence.mean:.3f}; other random draws would change it by about "
        f"{evidence.mean_std_error:.3f}, other data of the same kind by {evidence.sampling_error:.3f}.",
    ]
    if evidence.is_bound:
        words.append(
            f"The certificate: it is above {evidence.certified_lower_bound():.3f}, with a probability of 999 in 1,000, "
            "whatever the variance of the weights is. That holds for these data, and rests on independent draws alone."
        )
    if usual is not None and usual is not evidence:
        less = evidence.mean - usual.mean
        words.append(
            f"The usual estimate, {of_evidence.how(usual)}, says {usual.mean:.3f}: {abs(less):.3f} nats "
            f"{'lower' if less > 0 else 'higher'}. It is reliable for {int(usual.reliable.sum()):,} of these data."
        )
    return words


def _estimates(evidence: Evidence) -> list[str]:
    has_bounds = len(evidence.all_bounds) > 1
    draw = plots.bounds if has_bounds else plots.gaps
    left = plots.as_svg(lambda ax: draw(evidence, ax), "estimate", "log p(x), its bounds and the ELBO")
    caption = "Averages over more draws bound log p(x) more tightly." if has_bounds else GAPS
    return [figure(left, caption), *_tails(evidence, "tails")]


GAPS = "What lies between the two is KL(q(z|x) || p(z|x)): how far the guide is from the posterior."


def _tails(evidence: Evidence, name: str) -> list[str]:
    """Show k-hat where it is known for most data; annealed ones have effective chains instead."""
    if evidence.khat.isnan().double().mean() < 0.5:
        svg = plots.as_svg(lambda ax: plots.khat(evidence, ax), name, "Pareto k-hat of each datum")
        return [figure(svg, f"k-hat says how heavy the tail of the weights is. {_above(evidence)}")]
    svg = plots.as_svg(lambda ax: plots.effective_chains(evidence, ax), name, "effective sample size of each datum")
    return [figure(svg, "Where few draws or chains carry all the weight, the error cannot be trusted.")]


def _above(evidence: Evidence) -> str:
    known = evidence.khat[~evidence.khat.isnan()]
    if evidence.num_samples is None:
        return ""
    above = int((known > khat_threshold(evidence.num_samples)).sum())
    return f"It is above the threshold for {above:,} of {len(known):,} data."


def _usual(usual: Evidence) -> list[str]:
    svg = plots.as_svg(lambda ax: plots.bounds(usual, ax), "usual", "bounds from draws of the guide")
    caption = "The usual estimate, by draws from the guide. Where the curve still rises at its end, it is too low."
    return [figure(svg, caption), *_tails(usual, "usual-tails")]


def _figures(evidence: Evidence) -> list[tuple[str, float, str]]:
    rows = [
        ("ELBO", evidence.guide_elbo.mean, of_evidence.plus_minus(evidence.guide_elbo.mean_std_error, "±")),
        ("rate", evidence.rate.mean().item(), "KL(q(z|x) || p(z)), what the code z says of a datum"),
        ("distortion", evidence.distortion.mean().item(), "-log p(x|z), what z leaves out"),
        *(
            (f"L_{bound.k}", bound.mean, f"bound from {bound.k:,} draws")
            for bound in evidence.all_bounds.values()
            if 1 < bound.k < max(evidence.all_bounds)
        ),
        ("log p(x)", evidence.mean, of_evidence.plus_minus(evidence.mean_std_error, "±")),
        ("gap, log p(x) - ELBO", evidence.gap.mean().item(), "estimates KL(q(z|x) || p(z|x))"),
    ]
    if evidence.observed.kind == "probability" and not evidence.observed.is_masked:
        rows.append(("bits per dimension", evidence.bits_per_dim().mean().item(), "-log p(x) / (D ln 2), not in nats"))
    return rows


def _estimators(evidence: Evidence) -> list[tuple[str, int, int, int]]:
    rows = []
    for name, number in Counter(evidence.method).most_common():
        chosen = torch.tensor([each == name for each in evidence.method])
        cost = evidence.num_evaluations[chosen].double().mean().item()
        rows.append((name, number, int(evidence.reliable[chosen].sum()), round(cost)))
    return rows


def _worst(findings: Findings) -> str:
    """Show the data with the lowest log p(x), and those whose estimate is least to be trusted."""
    if findings.evaluated is None:
        return ""
    evidence = findings.evaluated.evidence
    lowest = evidence.log_evidence.argsort()[:NUM_WORST]
    doubt = torch.where(evidence.reliable, 0.0, 1e6) + evidence.std_error.nan_to_num(1e3)
    doubtful = doubt.argsort(descending=True)[:NUM_WORST]
    return "".join(
        [
            heading("Lowest log p(x)"),
            paragraph("What the model explains worst, by its own account: other kinds of data, or mistakes in them."),
            _some_data(findings, lowest, lambda datum: _numbers_of(evidence, datum)),
            heading("Least certain"),
            paragraph("Where the estimate is to be trusted least: first what is not reliable, then by its error."),
            _some_data(findings, doubtful, lambda datum: _numbers_of(evidence, datum)),
        ]
    )


def _numbers_of(evidence: Evidence, datum: int) -> str:
    khat, ess = evidence.khat[datum].item(), evidence.ess[datum].item()
    tail = f"{ess:.1f} effective chains" if math.isnan(khat) else f"k-hat {khat:.2f}"
    number = f"{evidence.log_evidence[datum]:.2f} ± {evidence.std_error[datum]:.2f}"
    doubt = "" if evidence.reliable[datum] else "\nnot reliable"
    return f"datum {datum}\n{number}\n{tail}{doubt}"


def _some_data(findings: Findings, rows: Tensor, caption: Callable[[int], str]) -> str:
    """Show some of the data with their numbers, and beside them their reconstructions where there are any."""
    captions = [caption(datum) for datum in rows.tolist()]
    if findings.data is None:
        return _html.table([[each] for each in captions])
    args = tuple(_picked(each, len(findings.data.x), rows) for each in findings.data.args)
    shown = Shown.like(findings.data.x[:NUM_CODES])
    if findings.vae is None:
        return shown.html([args[0]], ["datum"], captions)
    try:
        both = [findings.vae.check(args[0]), findings.vae.reconstruct(*args)]
    except ValueError:  # said above, with the first data
        return shown.html([args[0]], ["original"], captions)
    return shown.html(both, ["original", "reconstructed"], captions, beside=True)


def _picked(value: Any, num_data: int, rows: Tensor) -> Any:
    return value[rows.to(value.device)] if getattr(value, "shape", ())[:1] == (num_data,) else value


def _comparison(findings: Findings) -> str:
    if findings.other is None or findings.evaluated is None:
        return ""
    record, evidence = findings.other
    a, b = findings.record.name, "the other" if record is None else record.name
    comparison = compare(findings.evaluated.evidence, evidence)
    histogram = plots.as_svg(lambda ax: plots.differences(comparison, ax), "differences", "differences of log p(x)")
    order = comparison.difference.argsort()

    def of_one(datum: int) -> str:
        return f"datum {datum}\n{comparison.difference[datum]:+.2f}"

    parts = [
        paragraph(f"a is {a}, b is {b}; both on the same {len(evidence):,} data, paired."),
        _html.cards(of_evidence.compared(comparison)),
        _html.remarks(of_evidence.verdict(comparison, a, b)),
        figures(figure(histogram, "One number a datum: how much more likely the first model makes it.")),
        heading(f"{b} is better"),
        _some_data(findings, order[: NUM_WORST // 2], of_one),
        heading(f"{a} is better"),
        _some_data(findings, order.flip(0)[: NUM_WORST // 2], of_one),
    ]
    if record is not None:
        rows = differing(findings.record, record)
        parts += [heading("Settings that differ"), _html.table(rows, ("", a, b)) if rows else paragraph("None.")]
    return "".join(parts)
