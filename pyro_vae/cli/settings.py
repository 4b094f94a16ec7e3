"""The settings of a training run: one table, from which flags, TOML keys and their help are made."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pyro_vae.cli.failure import refuse
from pyro_vae.cli.kinds import FLAG, IMAGE_SIZE, SEED, TEXT, Kind, choice, number, several, whole
from pyro_vae.data import NAMES

__all__ = [
    "KINDS",
    "LEARNED_SCALE",
    "NUM_COMPONENTS",
    "PATHS",
    "REAL",
    "Settings",
    "flag_of",
    "read_toml",
    "read_value",
]

LEARNED_SCALE = ("gaussian-learned", "gaussian-per-pixel", "laplace", "student-t")
REAL = ("gaussian", *LEARNED_SCALE)
"""Likelihoods of real numbers, for which columns of a table are standardized."""
LIKELIHOODS = ("bernoulli", "continuous-bernoulli", "beta", *REAL, "log-normal", "poisson", "negative-binomial")
NUM_COMPONENTS = {"mixture": 10, "vamp": 500}
"""Priors that are mixtures, and how many components they have by default."""
OF_THE_VAE = (
    "prior", "num_components", "likelihood", "scale", "min_scale", "posterior", "network", "latent_dim", "hidden_dims"
)  # fmt: skip
PATHS = ("data", "test", "data_dir")
FREE_TO_CHANGE = {"num_epochs", "device"}
"""What a resumed run may have otherwise."""


def option(group: str, kind: Kind, text: str, default: Any = None) -> Any:
    """Declare a setting: where help lists it, what it takes, and what it is."""
    return field(default=default, metadata={"group": group, "kind": kind, "help": text})


@dataclass(frozen=True)
class Settings:
    """What a run is trained with. None is for what the data decide."""

    data: str | None = option(
        "data",
        TEXT,
        f"{', '.join(NAMES)}; or the path of a folder of images, or of an .npz, .npy, .csv or .parquet file",
    )
    test: str | None = option(
        "data", TEXT, "another path, with the test data; by default a share of --data is held out"
    )
    num_test: int | None = option("data", whole(), "how many data to hold out, by default a tenth, at most 1,000")
    num_validation: int | None = option(
        "data", whole(0), "how many more to hold out, for the ELBO after each epoch; by default a tenth, at most 5,000"
    )
    num_train: int | None = option("data", whole(), "train on the first N only, for a quick look")
    missing: str = option(
        "data",
        choice("refuse", "drop", "keep"),
        "rows that lack a value: refuse them, drop them, or keep them, to learn from what was observed; "
        "default %(default)s",
        "refuse",
    )
    image_size: tuple[int, ...] | None = option(
        "data", IMAGE_SIZE, "bring all images to this size, by --resize or --crop"
    )
    image_fit: str | None = option("data", choice("resize", "crop"), "how to bring images to --image-size")
    channels: int | None = option("data", whole(), "convert images to 1, 3 or 4 channels")
    key: str | None = option("data", TEXT, "the array of an .npz file, by default x")
    data_dir: str = option(
        "data", TEXT, "where data sets with a name lie, or are downloaded to; default %(default)s", "data"
    )
    binarization: str | None = option(
        "data",
        choice("dynamic", "static", "threshold", "none"),
        "of grey levels; default dynamic, for Bernoulli pixels",
    )
    standardize: bool | None = option(
        "data", FLAG, "give columns of a table mean 0 and deviation 1; by default for Gaussian tables"
    )
    conditional: bool = option("data", FLAG, "train p(x|label), with the labels as context of all parts", False)
    vae: str | None = option(
        "VAE",
        TEXT,
        "your own, package.module:make_vae, called with the data set, or without arguments if it takes none",
    )
    prior: str | None = option(
        "VAE",
        choice("standard-normal", *NUM_COMPONENTS, "flow"),
        "p(z), default standard-normal; vamp is a VampPrior; flow takes the package zuko",
    )
    num_components: int | None = option(
        "VAE", whole(), "of --prior mixture, default 10, or the pseudo-inputs of --prior vamp, default 500"
    )
    likelihood: str | None = option(
        "VAE",
        choice(*LIKELIHOODS),
        "p(x|z); by default bernoulli for binary data and grey images, and gaussian-learned for all other",
    )
    scale: float | None = option("VAE", number(), "the standard deviation of --likelihood gaussian, default 0.1")
    min_scale: float | None = option("VAE", number(), "the least that a learned scale can be, default 0.01")
    posterior: str | None = option(
        "VAE", choice("diagonal", "full-rank", "flow"), "q(z|x), default diagonal; flow takes the package zuko"
    )
    network: str | None = option(
        "VAE",
        choice("mlp", "convolutional"),
        "of encoder and decoder, default mlp; convolutional is for images, with --hidden-dims between them and z",
    )
    latent_dim: int | None = option("VAE", whole(), "numbers in z; default 50, or half as many as there are columns")
    hidden_dims: tuple[int, ...] | None = option(
        "VAE",
        several(whole()),
        "widths of the decoder's hidden layers, the encoder's in reverse; default 200 200, or none beside convolutions",
    )
    num_epochs: int = option("training", whole(), "default %(default)s", 20)
    batch_size: int = option("training", whole(), "default %(default)s", 100)
    objective: str = option(
        "training",
        choice("mean-field", "trace", "iwelbo", "beta"),
        "the ELBO with the formula of its KL term, or with draws of it; the importance-weighted bound of "
        "--num-particles; or the ELBO with --beta and --free-bits; default %(default)s",
        "mean-field",
    )
    beta: float | None = option(
        "training", number(may_be_least=True), "the weight of the KL term with --objective beta, default 1"
    )
    free_bits: float | None = option(
        "training",
        number(metavar="NATS", may_be_least=True),
        "what each latent number may say for free with --objective beta, default 0",
    )
    num_particles: int = option("training", whole(), "draws of z for each datum and step, default %(default)s", 1)
    learning_rate: float = option("training", number(), "of Adam, default %(default)s", 1e-3)
    kl_warmup: float | None = option(
        "training", number(metavar="EPOCHS"), "epochs over which the weight of the KL term grows to 1"
    )
    early_stopping: int | None = option(
        "training", whole(metavar="EPOCHS"), "stop when the validation ELBO has not grown for so many epochs"
    )
    clip_grad_norm: float | None = option("training", number(), "the largest norm of a gradient")
    seed: int = option("training", SEED, "of everything that is random, default %(default)s", 0)
    device: str = option("training", TEXT, "where to train, cpu or cuda; default %(default)s", "cpu")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        """Make settings, and check what must fit together before any data are read."""
        settings = cls(**values)
        _refuse_what_does_not_fit(settings)
        return replace(settings, **settings._paths())

    @classmethod
    def kept(cls, values: dict[str, Any]) -> Settings:
        """Read what `as_dict` wrote; raise a TypeError or ValueError for anything else."""
        read: dict[str, Any] = {}
        for name, value in values.items():
            read[name] = None if value is None else KINDS[name].read(value)
        return cls(**read)

    def _paths(self) -> dict[str, Any]:
        """Make paths absolute, so that a run can be read from elsewhere."""
        paths = {name: getattr(self, name) for name in PATHS}
        is_path = {name: path for name, path in paths.items() if path is not None and path not in NAMES}
        return {name: str(Path(path).absolute()) for name, path in is_path.items()}

    def refuse_others(self, given: dict[str, Any], run: Path) -> None:
        """Refuse values that differ from those the run was started with."""
        for name, value in given.items():
            before = getattr(self, name)
            if name not in FREE_TO_CHANGE and value != before:
                refuse(
                    flag_of(name),
                    f"{before!r}, as the run in {str(run)!r} was started with",
                    repr(value),
                    "leave it out, or train another run",
                )

    def command(self, run: Path) -> list[str]:
        """Return the command that trains the same."""
        words = ["pyro-vae", "train", str(run)]
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and value != each.default:
                words += _typed(each.name, value)
        return words

    def as_dict(self) -> dict[str, Any]:
        """Return all settings, for JSON."""
        return asdict(self)


KINDS: dict[str, Kind] = {each.name: each.metadata["kind"] for each in fields(Settings)}


def _typed(name: str, value: Any) -> list[str]:
    """Return a setting as it is typed."""
    if name == "image_fit":
        return [f"--{value}"]
    if isinstance(value, bool):
        return [flag_of(name) if value else flag_of(f"no_{name}")]
    if name == "image_size":
        return [flag_of(name), "x".join(map(str, value))]
    return [flag_of(name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def read_value(label: str, kind: Kind, value: Any) -> Any:
    """Read a value of a flag or of TOML, or refuse it."""
    try:
        return kind.read(value)
    except (TypeError, ValueError, OverflowError):
        found = " ".join(map(str, value)) if isinstance(value, list) else value
        refuse(label, kind.expected, repr(found), kind.remedy)


def read_toml(path: str) -> dict[str, Any]:
    """Read settings from a file."""
    try:
        with Path(path).open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        refuse("--config", "a TOML file that can be read", f"{path!r} ({error.strerror})", "check the path")
    except (ValueError, RecursionError) as error:  # no TOML, no text, a number of thousands of digits, or deeply nested
        refuse("--config", "a TOML file", f"{path!r} ({error})", 'write lines such as likelihood = "bernoulli"')
    for name in values:
        if name not in KINDS:
            near = difflib.get_close_matches(name.replace("-", "_"), KINDS, n=1, cutoff=0.4)
            remedy = f"did you mean {near[0]}?" if near else "see pyro-vae train --help"
            refuse("--config", f"settings of train in {path!r}", repr(name), remedy)
    return {name: read_value(f"{name} in {path!r}", KINDS[name], value) for name, value in values.items()}


def _refuse_what_does_not_fit(settings: Settings) -> None:
    for is_wrong, *words in _contradictions(settings):
        if is_wrong:
            refuse(*words)
    if settings.vae is not None:
        _refuse_beside_the_users_own(settings, settings.vae)


def _contradictions(settings: Settings) -> Iterator[tuple[bool, str, str, str, str]]:
    """Yield what does not fit together: whether it is so, the flag, what is expected, what was found, what to do."""
    yield from _contradictions_of_data(settings)
    yield from _contradictions_of_parts(settings)
    yield from _contradictions_of_training(settings)


def _contradictions_of_data(settings: Settings) -> Iterator[tuple[bool, str, str, str, str]]:
    likelihood = settings.likelihood
    yield (
        settings.data is None,
        "--data", "what to train on", "none", "pass mnist, a folder of images, or an .npz or .csv file",
    )  # fmt: skip
    yield (
        settings.image_fit is not None and settings.image_size is None,
        f"--{settings.image_fit}", "a size to bring images to", "none", "pass --image-size 64x48, say",
    )  # fmt: skip
    yield (
        settings.channels not in (None, 1, 3, 4),
        "--channels", "1, 3 or 4", str(settings.channels), "pick one of them",
    )  # fmt: skip
    yield (
        settings.binarization not in (None, "none") and likelihood not in (None, "bernoulli"),
        "--binarization", "--likelihood bernoulli, whose data are zeros and ones", str(likelihood),
        "leave one of them out",
    )  # fmt: skip
    yield (
        bool(settings.standardize) and likelihood not in (None, *REAL),
        "--standardize", "a likelihood of real numbers", str(likelihood), "leave one of them out",
    )  # fmt: skip


def _contradictions_of_parts(settings: Settings) -> Iterator[tuple[bool, str, str, str, str]]:
    likelihood, prior = settings.likelihood, settings.prior or "standard-normal"
    yield (
        settings.scale is not None and likelihood != "gaussian",
        "--scale", "--likelihood gaussian, whose scale is fixed", f"--likelihood {likelihood}",
        "add it, or leave --scale out",
    )  # fmt: skip
    yield (
        settings.min_scale is not None and likelihood not in (None, *LEARNED_SCALE),
        "--min-scale", "a likelihood with a learned scale", str(likelihood),
        "leave it out, or pass --likelihood gaussian-learned",
    )  # fmt: skip
    yield (
        settings.num_components is not None and prior not in NUM_COMPONENTS,
        "--num-components", "--prior mixture or vamp", prior, "leave it out",
    )  # fmt: skip
    yield (
        settings.conditional and prior == "vamp",
        "--prior", "one that does not run the encoder, beside --conditional", prior, "pass --prior mixture, say",
    )  # fmt: skip


def _contradictions_of_training(settings: Settings) -> Iterator[tuple[bool, str, str, str, str]]:
    objective, prior = settings.objective, settings.prior or "standard-normal"
    yield (
        objective == "iwelbo" and settings.num_particles == 1,
        "--num-particles", "two or more, for iwelbo", "1", "pass 5, say; of one particle it is the ELBO",
    )  # fmt: skip
    yield (
        (settings.beta, settings.free_bits) != (None, None) and objective != "beta",
        flag_of("free_bits" if settings.beta is None else "beta"), "--objective beta", objective,
        "add it, or leave this out",
    )  # fmt: skip
    yield (
        bool(settings.free_bits) and settings.posterior not in (None, "diagonal"),
        "--free-bits", "--posterior diagonal, whose KL divergence has a part for each latent number",
        str(settings.posterior), "leave one of them out",
    )  # fmt: skip
    yield (
        bool(settings.free_bits) and prior != "standard-normal",
        "--free-bits", "--prior standard-normal, from which there is a KL divergence in closed form", prior,
        "leave one of them out",
    )  # fmt: skip
    yield (
        settings.early_stopping is not None and settings.num_validation == 0,
        "--early-stopping", "validation data to stop by", "--num-validation 0", "leave one of them out",
    )  # fmt: skip


def _refuse_beside_the_users_own(settings: Settings, vae: str) -> None:
    own = [name for name in OF_THE_VAE if getattr(settings, name) is not None]
    if own:
        refuse(flag_of(own[0]), "no options of the VAE beside --vae, which makes it", "one", "leave one of them out")
    if ":" not in vae:
        refuse("--vae", "package.module:make_vae", repr(vae), "write the module and the function, with a colon between")
