"""Two layers of latents, z2 ~ N(0, I), z1 ~ p(z1|z2), x ~ p(x|z1), with two kinds of guide, beside one layer.

    python examples/two_layers.py            # some minutes on two CPU cores

Sizes and guide are those of Burda et al. (2016), Importance weighted autoencoders. The other guide, and the warm-up
without which it is the worst of the three, are those of Sønderby et al. (2016), Ladder variational autoencoders.
"""

from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
from common import arguments, digits
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.nn import MLP

IMAGE = (1, 28, 28)


class BottomUp(nn.Module):
    """q(z1|x) q(z2|z1)."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.prior = pv.priors.StandardNormal(50)
        self.given_z2 = pv.priors.ConditionalNormal(MLP(50, [100, 100], 2 * 100))
        self.likelihood = pv.likelihoods.Bernoulli(MLP(100, [200, 200], IMAGE, output_bias=mean.logit(eps=1e-3)))
        self.first = pv.posteriors.DiagonalNormal(MLP(IMAGE, [200, 200], 2 * 100, input_mean=mean))
        self.second = pv.posteriors.DiagonalNormal(MLP(100, [100, 100], 2 * 50))

    def model(self, x: Tensor) -> None:
        pyro.module("two_layers", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.prior())
            z1 = pyro.sample("z1", self.given_z2(z2))
            pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("two_layers", self)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.first(x))
            pyro.sample("z2", self.second(z1))

    def sample(self, num_samples: int) -> Tensor:
        return self.likelihood(self.given_z2(self.prior().sample((num_samples,))).sample()).sample()


class Ladder(BottomUp):
    """q(z2|x) q(z1|x, z2), where q(z1|x, z2) is proportional to p(z1|z2) N(z1; what the first layer says of x)."""

    def guide(self, x: Tensor) -> None:
        pyro.module("two_layers", self)
        seen = self.first(x).base_dist
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.second(seen.loc))
            expected = self.given_z2(z2).base_dist
            precision = seen.scale**-2 + expected.scale**-2
            loc = (seen.loc * seen.scale**-2 + expected.loc * expected.scale**-2) / precision
            pyro.sample("z1", dist.Normal(loc, precision**-0.5).to_event(1))


def one_layer(mean: Tensor) -> pv.VAE:
    likelihood = pv.likelihoods.Bernoulli(MLP(50, [200, 200], IMAGE, output_bias=mean.logit(eps=1e-3)))
    posterior = pv.posteriors.DiagonalNormal(MLP(IMAGE, [200, 200], 2 * 50, input_mean=mean))
    return pv.VAE(pv.priors.StandardNormal(50), likelihood, posterior)


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=10)
    train, test = digits(args)
    x, most = (test.x[:5], 500) if args.smoke else (test.x[:100], 6000)
    found, makers = {}, {"one layer": one_layer, "bottom-up": BottomUp, "ladder": Ladder}
    figure, (activity, *grids) = plt.subplots(1, 4, figsize=(15, 4), width_ratios=[1.6, 1, 1, 1], layout="constrained")
    for (name, make), colour in zip(makers.items(), ("C0", "C1", "C2"), strict=True):
        pyro.clear_param_store()
        net: Any = make(train.mean)
        pair = net.model, net.guide
        history = pv.fit(pair, train, num_epochs=args.num_epochs, kl_warmup=3, seed=args.seed, progress=False)
        found[name] = pv.log_evidence(*pair, x, tolerance=0.1, max_evaluations=most, seed=args.seed)
        print(f"\n{name}: {history}\n{found[name].summary()}")
        use = pv.latent_use(*pair, test.x[:1000])
        for site, each in use.activity.items():
            print(f"{int((each > use.threshold).sum())} of {len(each)} units of {site} are active")
            style = "--" if site == "z2" else "-"
            activity.semilogy(each.sort(descending=True)[0], style, color=colour, label=f"{name}, {site}")
        pv.plots.image_grid(net.sample(25), grids[len(found) - 1], title=f"Drawn: {name}")

    for name in ("bottom-up", "ladder"):
        print(f"{name} less one layer, paired: {pv.compare(found[name], found['one layer'])}")
    activity.set(ylim=1e-5, xlabel="latent number, sorted", ylabel="variance of E(z|x)", title="Activity")
    activity.legend(fontsize="small")
    figure.savefig(args.output / "two_layers.png", dpi=100)


if __name__ == "__main__":
    main()
