"""Data sets by name: real reading code on small files in the layout of their authors or torchvision's."""

import pickle
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vae as pv

scipy_io = pytest.importorskip("scipy.io")


def random_bytes(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes())


def write_pair(folder, prefix, num):
    write_idx(folder / f"{prefix}-images-idx3-ubyte", random_bytes(num, 28, 28))
    write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(num, dtype=np.uint8))


def write_kmnist(folder):
    write_pair(folder / "KMNIST" / "raw", "train", 7)
    write_pair(folder / "KMNIST" / "raw", "t10k", 3)


def write_emnist(folder):
    for kind in ("balanced", "letters"):
        write_pair(folder / "EMNIST" / "raw", f"emnist-{kind}-train", 7)
        write_pair(folder / "EMNIST" / "raw", f"emnist-{kind}-test", 3)


def write_omniglot(folder):
    """White paper with a black stroke across the upper half."""
    for part, num in (("images_background", 7), ("images_evaluation", 3)):
        for place in range(num):
            character = folder / "omniglot-py" / part / f"Alphabet_{place % 2}" / f"character0{place}"
            character.mkdir(parents=True)
            pixels = np.full((105, 105), 255, dtype=np.uint8)
            pixels[20:30] = 0
            Image.fromarray(pixels).convert("1").save(character / "0001_01.png")


def write_celeba(folder):
    """Images of 218 x 178 whose middle 148 x 148 is as grey as their number; the seventh is in no part."""
    images = folder / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    names = [f"00000{place}.jpg" for place in range(9)]
    for place, name in enumerate(names):
        pixels = np.zeros((218, 178, 3), dtype=np.uint8)
        pixels[35:183, 15:163] = 20 * (place + 1)
        Image.fromarray(pixels).save(images / name, quality=100)
    parts = [0, 0, 0, 2, 0, 1, 2, 0, 2]
    lines = [f"{name} {part}" for name, part in zip(names, parts, strict=True)]
    (folder / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    lines = [f"{name}  1 {'-1' if place % 2 else ' 1'}" for place, name in enumerate(names)]
    (folder / "celeba" / "list_attr_celeba.txt").write_text("\n".join(["9", "Young Smiling", *lines]) + "\n")


def write_cifar10(folder):
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, num in [*((f"data_batch_{place}", 2) for place in range(1, 6)), ("test_batch", 3)]:
        batch = {
            "data": random_bytes(num, 3072),
            "labels": list(range(num)),
            "batch_label": "",
            "filenames": ["a"] * num,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_svhn(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split, num in (("train", 7), ("test", 3)):
        images, labels = random_bytes(32, 32, 3, num), np.arange(10, 10 - num, -1, dtype=np.uint8)[:, None]
        scipy_io.savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels})


def write_static_mnist(folder):
    folder.mkdir(parents=True, exist_ok=True)
    train, valid, test = (random_bytes(num, 784) % 2 for num in (7, 4, 3))
    lines = (" ".join(map(str, row)) for row in train)
    (folder / "binarized_mnist_train.amat").write_text("\n".join(lines) + "\n")
    scipy_io.savemat(folder / "binarized_mnist_valid.mat", {"X": valid.astype(float)})
    np.savez(folder / "binarized_mnist_test.npz", x=test)


def write_frey_faces(folder):
    folder.mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(folder / "frey_rawface.mat", {"ff": random_bytes(560, 10)})


TYPES = [f"type {number}" for number in range(10)]


def write_pbmc68k(folder):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "pbmc68k_counts.npz",
        counts=random_bytes(10, 765).astype(np.uint16),
        cell_type=np.arange(10),
        names=TYPES,
    )


SOURCES = {
    "kmnist": (write_kmnist, (1, 28, 28), 7, 3),
    "emnist": (write_emnist, (1, 28, 28), 7, 3),
    "omniglot": (write_omniglot, (1, 28, 28), 7, 3),
    "celeba": (write_celeba, (3, 64, 64), 5, 3),
    "cifar-10": (write_cifar10, (3, 32, 32), 10, 3),
    "svhn": (write_svhn, (3, 32, 32), 7, 3),
    "static-mnist": (write_static_mnist, (1, 28, 28), 7, 3),
    "frey-faces": (write_frey_faces, (1, 28, 20), 9, 1),
    "pbmc-68k": (write_pbmc68k, (765,), 8, 2),
}
CARRIED = {
    "digits": ((1, 8, 8), 1438, 359),
    "photographs": ((3, 64, 64), 2 * 2 * 23 * 13, 2 * 23 * 5),
    "breast-cancer": ((30,), 456, 113),
    "wine": ((13,), 143, 35),
}


def load(name, folder, **options):
    return pv.data.load(name, data_dir=folder, download=False, **options)


@pytest.mark.parametrize("name", SOURCES)
def test_small_files(name, tmp_path):
    write, shape, num_train, num_test = SOURCES[name]
    write(tmp_path)
    train, test = (load(name, tmp_path, split=split) for split in ("train", "test"))
    assert train.x.shape == (num_train, *shape) and test.x.shape == (num_test, *shape)
    assert train.provenance.split == "train" and train.provenance.num_data == num_train
    assert load(name, tmp_path).provenance == train.provenance != test.provenance
    assert name == "pbmc-68k" or (train.x.min() >= 0 and train.x.max() <= 1)


@pytest.mark.parametrize("name", CARRIED)
def test_data_that_a_package_carries(name, tmp_path):
    pytest.importorskip("sklearn")
    shape, num_train, num_test = CARRIED[name]
    train, test = (load(name, tmp_path, split=split) for split in ("train", "test"))
    assert train.x.shape == (num_train, *shape) and test.x.shape == (num_test, *shape)
    assert train.labels.unique().equal(test.labels.unique()) and "scikit-learn" in train.provenance.source
    seen = {row.numpy().tobytes() for row in (train.x if train.grey is None else train.grey)}
    unseen = [row.numpy().tobytes() in seen for row in (test.x if test.grey is None else test.grey)]
    assert not any(unseen)


def test_every_name_is_tested():
    assert pv.data.NAMES.keys() == {"mnist", "fashion-mnist"} | SOURCES.keys() | CARRIED.keys()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_bytes(path):
    path.write_bytes(b"x" * 100)


@pytest.mark.parametrize("damage", [cut, other_bytes, Path.unlink])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("kmnist", "KMNIST/raw/train-images-idx3-ubyte"),
        ("emnist", "EMNIST/raw/emnist-balanced-train-labels-idx1-ubyte"),
        ("omniglot", "omniglot-py/images_background/Alphabet_0/character00/0001_01.png"),
        ("celeba", "celeba/img_align_celeba/000001.jpg"),
        ("celeba", "celeba/list_eval_partition.txt"),
        ("cifar-10", "cifar-10-batches-py/data_batch_3"),
        ("svhn", "train_32x32.mat"),
        ("static-mnist", "binarized_mnist_train.amat"),
        ("frey-faces", "frey_rawface.mat"),
        ("pbmc-68k", "pbmc68k_counts.npz"),
    ],
)
def test_damaged_files(name, file, damage, tmp_path):
    SOURCES[name][0](tmp_path)
    load(name, tmp_path)
    damage(tmp_path / file)
    if damage is Path.unlink and name == "omniglot":  # no list says which images there are
        assert len(load(name, tmp_path)) == 6
        return
    error = FileNotFoundError if damage is Path.unlink and not file.endswith("jpg") else ValueError
    with pytest.raises(error, match=r"data_dir: (expected|no files)|data: expected"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file"), [("static-mnist", "binarized_mnist_train.amat"), ("celeba", "celeba/list_eval_partition.txt")]
)
def test_a_file_that_ends_with_a_row_too_few_is_warned_of(name, file, tmp_path):
    """A list or a table that is cut at the end of a line is well-formed."""
    SOURCES[name][0](tmp_path)
    path = tmp_path / file
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    with pytest.warns(UserWarning, match="data_dir: expected the [0-9,]+ data of .*not comparable"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "removed"), [("svhn", "train_32x32.mat"), ("omniglot", "omniglot-py/images_background")]
)
def test_the_part_that_is_asked_for_is_downloaded_where_the_other_is_there(name, removed, tmp_path, monkeypatch):
    SOURCES[name][0](tmp_path)
    path = tmp_path / removed
    path.rename(tmp_path / "elsewhere")
    asked_for = []
    monkeypatch.setattr(
        "pyro_vae.data._torchvision._download",
        lambda data_dir, name: asked_for.append((tmp_path / "elsewhere").rename(path)),
    )
    assert len(pv.data.load(name, data_dir=tmp_path, split="test")) == 3 and not asked_for
    assert len(pv.data.load(name, data_dir=tmp_path)) == 7 and asked_for


def test_omniglot_of_one_alphabet(tmp_path):
    write_omniglot(tmp_path)
    folder = tmp_path / "omniglot-py" / "images_background"
    others = sorted(folder.iterdir())[1:]
    for other in others:
        shutil.rmtree(other)
    assert load("omniglot", tmp_path).labels.unique().tolist() == [0]


@pytest.mark.parametrize("option", ["split", "pixels", "binarization"])
def test_options_are_checked_before_files_are_looked_for(option, tmp_path):
    load_one = pv.data.cifar10 if option == "pixels" else pv.data.kmnist
    with pytest.raises(ValueError, match=f"{option}: expected one of"):
        load_one(tmp_path / "nowhere", download=False, **{option: "other"})


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_there(name, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"data_dir: .*; (put|pip install)"):
        load(name, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


TORCHVISION = {
    "KMNIST": ("kmnist", [{}]),
    "EMNIST": ("emnist", [{"split": "balanced"}]),
    "Omniglot": ("omniglot", [{"background": True}, {"background": False}]),
    "CelebA": ("celeba", [{}]),
    "CIFAR10": ("cifar-10", [{}]),
    "SVHN": ("svhn", [{"split": "train"}, {"split": "test"}]),
}


@pytest.mark.parametrize("kind", TORCHVISION)
def test_a_download_arrives_in_the_data_folder(kind, tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    name, asked_for = TORCHVISION[kind]
    called = []

    def fetch(root, download, **options):
        if not called:
            SOURCES[name][0](Path(root))
            (Path(root) / "archive.zip").write_bytes(b"")
        called.append(options)

    monkeypatch.setattr(torchvision.datasets, kind, fetch)
    here = pv.data.load(name, data_dir=tmp_path / "here")
    assert called == asked_for and not (tmp_path / "here" / "archive.zip").exists()
    SOURCES[name][0](tmp_path / "there")
    assert load(name, tmp_path / "there").provenance == here.provenance == load(name, tmp_path / "here").provenance


@pytest.mark.parametrize(("kind", "options"), [("KMNIST", {}), ("EMNIST", {"split": "letters"})])
def test_the_same_as_torchvision_reads(kind, options, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    {"KMNIST": write_kmnist, "EMNIST": write_emnist}[kind](tmp_path)
    ours = (
        pv.data.kmnist(tmp_path, binarization=None)
        if kind == "KMNIST"
        else pv.data.emnist(tmp_path, kind="letters", binarization=None)
    )
    theirs = getattr(torchvision.datasets, kind)
    monkeypatched = theirs._check_exists
    try:
        theirs._check_exists = lambda self: True  # the other files of theirs are not there
        found = theirs(tmp_path, train=True, **options)
    finally:
        theirs._check_exists = monkeypatched
    images = found.data.swapaxes(-1, -2) if kind == "EMNIST" else found.data  # torchvision leaves them on their side
    assert torch.equal((ours.x[:, 0] * 255).round().byte(), images) and torch.equal(ours.labels, found.targets)


def test_cifar10_and_svhn_as_torchvision_reads_them(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision").datasets
    write_cifar10(tmp_path)
    write_svhn(tmp_path)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    cifar, theirs = pv.data.cifar10(tmp_path, pixels="bytes", download=False), datasets.CIFAR10(tmp_path)
    assert np.array_equal(cifar.x.permute(0, 2, 3, 1).numpy(), theirs.data) and cifar.labels.tolist() == theirs.targets
    svhn, theirs = pv.data.svhn(tmp_path, pixels="bytes", download=False), datasets.SVHN(tmp_path)
    assert np.array_equal(svhn.x.numpy(), theirs.data) and svhn.labels.tolist() == theirs.labels.tolist()
    assert svhn.labels.tolist() == [0, 9, 8, 7, 6, 5, 4]


def test_no_code_runs_from_a_pickle(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (exec, ("raise SystemExit('it was run')",))

    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({"data": Malicious(), "labels": []}))
    with pytest.raises(ValueError, match=r"data_dir: expected a batch of CIFAR-10 .*it asks for builtins.exec"):
        load("cifar-10", tmp_path, split="test")


def test_another_batch_of_the_canonical_size_is_found(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    write_svhn(tmp_path)
    monkeypatch.setattr(sys.modules["pyro_vae.data.cifar10"], "_CANONICAL_SIZE", 3)
    monkeypatch.setitem(sys.modules["pyro_vae.data.svhn"]._CANONICAL_SIZE, "test", 3)
    for name in ("cifar-10", "svhn"):
        with pytest.raises(ValueError, match="another md5 than"):
            load(name, tmp_path, split="test")
        load(name, tmp_path, split="train")


def test_strokes_of_omniglot_are_light(tmp_path):
    write_omniglot(tmp_path)
    data = pv.data.omniglot(tmp_path, binarization=None)
    assert data.x[:, :, 6].min() > 0.9 and data.x[:, :, 14:].max() == 0
    assert data.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_the_middle_of_faces_and_an_attribute(tmp_path):
    write_celeba(tmp_path)
    data = pv.data.celeba(tmp_path, attribute="Smiling", pixels="bytes", download=False)
    assert data.x.dtype == torch.uint8 and data.labels.tolist() == [1, 0, 1, 1, 0]
    assert torch.allclose(data.x.float().mean((1, 2, 3)), torch.tensor([20.0, 40, 60, 100, 160]), atol=2)
    assert pv.data.celeba(tmp_path, split="validation", image_size=20, download=False).x.shape == (1, 3, 20, 20)
    assert pv.data.celeba(tmp_path, num_data=2, download=False).x.shape[0] == 2
    with pytest.raises(ValueError, match="attribute: expected one of 'Young', 'Smiling'"):
        pv.data.celeba(tmp_path, attribute="Hat", download=False)
    with pytest.raises(ValueError, match="crop: expected at most the 178 pixels of"):
        pv.data.celeba(tmp_path, crop=200, download=False)


def test_frey_faces_in_both_kinds_of_file(tmp_path):
    """A column of the .mat file is an image, row after row."""
    images = random_bytes(10, 28, 20)
    for kind in ("mat", "npz"):
        (tmp_path / kind).mkdir()
    scipy_io.savemat(tmp_path / "mat" / "frey_rawface.mat", {"ff": images.reshape(10, 560).T})
    np.savez(tmp_path / "npz" / "frey_faces.npz", images=images)
    one, other = (pv.data.frey_faces(tmp_path / kind, pixels="bytes") for kind in ("mat", "npz"))
    assert torch.equal(one.x, other.x)
    test = pv.data.frey_faces(tmp_path / "mat", split="test", pixels="bytes")
    parts = [{row.numpy().tobytes() for row in part.x} for part in (one, test)]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == {row.tobytes() for row in images}


def test_static_mnist_in_all_kinds_of_file(tmp_path):
    write_static_mnist(tmp_path)
    for split, num in (("train", 7), ("validation", 4), ("test", 3)):
        x = pv.data.static_mnist(tmp_path, split=split).x
        assert np.array_equal(x.reshape(num, 784).numpy(), random_bytes(num, 784) % 2)


@pytest.mark.parametrize("content", ["0 1 2\n", "0 1\n", ""])
def test_other_numbers_than_zeros_and_ones(content, tmp_path):
    (tmp_path / "binarized_mnist_train.amat").write_text(content)
    with pytest.raises(ValueError, match="data_dir: expected rows of 784 zeros and ones"):
        pv.data.static_mnist(tmp_path)


def test_photographs_are_cut_where_they_should_be():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    china, flower = sklearn_datasets.load_sample_images().images
    train = pv.data.photographs(patch_size=100, stride=50, pixels="bytes")
    test = pv.data.photographs(split="test", patch_size=100, stride=50, pixels="bytes")
    first = torch.from_numpy(china[:100, :100].copy()).permute(2, 0, 1)
    assert torch.equal(train.x[0], first)
    corner = torch.from_numpy(flower[50:150, 256:356].copy()).permute(2, 0, 1)
    assert torch.equal(test.x[test.labels == 1][1], corner)
    with pytest.raises(ValueError, match="patch_size: expected at most 128 to test; got 129"):
        pv.data.photographs(split="test", patch_size=129)


def write_h5ad(path, counts, totals):
    """What scanpy's package carries: logarithms of scaled counts in sparse rows, and the total of each cell."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True)
    rows, columns = counts.nonzero()
    logarithms = np.log1p(counts * 10_000 / totals[:, None])[rows, columns].astype(np.float32)
    cells = np.zeros(len(counts), dtype=[("index", "S16"), ("bulk_labels", "i1"), ("n_counts", "<f4")])
    cells["bulk_labels"], cells["n_counts"] = np.arange(len(counts)) % 3, totals
    with h5py.File(path, "w") as file:
        file["raw.X/data"], file["raw.X/indices"] = logarithms, columns.astype(np.int32)
        file["raw.X/indptr"] = np.concatenate([[0], np.bincount(rows, minlength=len(counts)).cumsum()]).astype(np.int32)
        file["uns/bulk_labels_categories"] = [b"B", b"NK", b"Dendritic"]
        file["raw.var"], file["obs"] = np.zeros(counts.shape[1], dtype=[("index", "S13")]), cells


@pytest.fixture
def scanpy(tmp_path, monkeypatch):
    """The folder of a package that carries a small file; and its counts."""
    counts = np.random.default_rng(0).poisson(2.0, (10, 6))
    write_h5ad(tmp_path / "scanpy" / "datasets" / "10x_pbmc68k_reduced.h5ad", counts, 100 * (1 + np.arange(10)))
    (tmp_path / "scanpy" / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "scanpy" / "datasets" / "10x_pbmc68k_reduced.h5ad", counts


def test_counts_are_whole_again(scanpy, tmp_path):
    _, counts = scanpy
    parts = [pv.data.pbmc68k(tmp_path, split=split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [8, 2] and "scanpy" in parts[0].provenance.source
    found = sorted(
        (*row.tolist(), int(label)) for part in parts for row, label in zip(part.x, part.labels, strict=True)
    )
    assert found == sorted((*row, place % 3) for place, row in enumerate(counts.tolist()))
    assert parts[1].label_names == ("B", "NK", "Dendritic")


def test_names_of_labels(tmp_path):
    write_pbmc68k(tmp_path)
    cells = pv.data.pbmc68k(tmp_path)
    assert cells.label_names == cells.first(3).label_names == cells.hold_out(2)[1].label_names == tuple(TYPES)
    pytest.importorskip("sklearn")
    assert pv.data.breast_cancer().label_names == ("malignant", "benign")


@pytest.mark.parametrize("damage", [cut, other_bytes])
def test_a_damaged_file_of_scanpy(scanpy, damage, tmp_path):
    damage(scanpy[0])
    with pytest.raises(ValueError, match="data_dir: expected counts of molecules, cells x genes"):
        pv.data.pbmc68k(tmp_path)


def test_counts_that_are_not_whole(scanpy, tmp_path):
    path, counts = scanpy
    path.unlink()
    path.parent.rmdir()
    write_h5ad(path, counts + 0.4, 100 * (1 + np.arange(10)))
    with pytest.raises(ValueError, match="data_dir: expected counts of molecules.*got a count of"):
        pv.data.pbmc68k(tmp_path)


BAD = {
    "split": (lambda: pv.data.cifar10(split="valid"), "split: expected one of"),
    "pixels": (lambda: pv.data.photographs(pixels="float"), "pixels: expected one of 'unit', 'bytes'; got 'float'"),
    "kind": (lambda: pv.data.emnist(kind="all"), "kind: expected one of 'balanced'"),
    "binarization": (lambda: pv.data.load("wine", binarization="static"), "binarization: expected none for wine; got 'static'"),
    "split of a table": (lambda: pv.data.wine(split="all"), "split: expected one of 'train', 'test'"),
    "both parts": (lambda: pv.data.load("digits", split="all"), "split: expected 'train' or 'test' for digits"),
    "part of digits": (lambda: pv.data.static_mnist(split="valid"), "split: expected one of 'train', 'validation', 'test'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("package", "name"), [("sklearn", "digits"), ("scipy.io", "frey-faces"), ("scipy.io", "svhn"), ("h5py", "pbmc-68k")]
)
def test_a_package_that_is_missing_is_named(package, name, tmp_path, monkeypatch, request):
    if name in SOURCES and name != "pbmc-68k":
        SOURCES[name][0](tmp_path)
    if name == "pbmc-68k":
        request.getfixturevalue("scanpy")
    monkeypatch.setitem(sys.modules, package, None)
    remedy = {"sklearn": "scikit-learn", "scipy.io": "scipy", "h5py": "h5py"}[package]
    with pytest.raises(ImportError, match=f"pip install {remedy}"):
        load(name, tmp_path)
