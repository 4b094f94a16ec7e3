"""Data from files: what they hold is what is read, the same each time."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_files import table, write_arrays, write_photos, write_table

import pyro_vae as pv
from pyro_vae.data import _arrays, load, names_of_columns


def test_images_keep_channels_and_order_and_are_labelled_by_folder(tmp_path):
    folder = write_photos(tmp_path / "photos", 12)
    data = load(folder, split="all")
    assert data.x.shape == (12, 3, 48, 36) and data.labels.tolist() == [0] * 6 + [1] * 6
    first = np.array(Image.open(folder / "dark" / "000.png"))
    assert torch.equal((data.x[0] * 255).round().byte(), torch.from_numpy(first).permute(2, 0, 1))
    assert data.provenance.source == str(folder.resolve())


def test_images_in_one_folder_have_no_labels(tmp_path):
    folder = write_photos(tmp_path / "photos", 12) / "dark"
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    assert load(folder, split="all").labels is None and load(folder, split="all").x.shape[0] == 6


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 4), ("P", 3), ("LA", 4), ("CMYK", 3)]
)
def test_modes_of_images(mode, channels, tmp_path):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("RGB", (5, 4), (200, 30, 30)).convert(mode).save(tmp_path / f"0.{suffix}")
    Image.new("RGB", (5, 4), (0, 0, 0)).convert(mode).save(tmp_path / f"1.{suffix}")
    assert load(tmp_path, split="all", binarization=None).x.shape == (2, channels, 4, 5)


def test_resize_bends_and_crop_cuts(tmp_path):
    """A wide image, dark but for a light middle: resized it keeps all, cropped it keeps the middle."""
    pixels = np.zeros((8, 24), dtype="uint8")
    pixels[:, 8:16] = 255
    Image.fromarray(pixels).save(tmp_path / "0.png")
    resized, cropped = (
        load(tmp_path, split="all", image_size=(8, 8), image_fit=fit, binarization=None).x for fit in ("resize", "crop")
    )
    assert resized.shape == cropped.shape == (1, 1, 8, 8)
    assert resized[..., 0].max() < 0.1 and resized.mean() == pytest.approx(1 / 3, abs=0.05)
    assert cropped.min() > 0.9


def test_channels_are_converted(tmp_path):
    assert load(write_photos(tmp_path / "photos", 12), split="all", channels=1).x.shape == (12, 1, 48, 36)


def test_grey_images_are_binarized_and_others_are_not(tmp_path):
    data = load(write_arrays(tmp_path / "images.npz"), split="all")
    assert data.provenance.binarization == "dynamic" and data.grey is not None and data.x.shape[1:] == (1, 6, 5)
    assert load(tmp_path / "images.npz", split="all", binarization=None).grey is None
    assert load(write_table(tmp_path / "table.csv"), split="all").provenance.binarization is None


@pytest.mark.parametrize("shape", [(9,), (9, 4), (9, 4, 5), (9, 6, 5, 3), (9, 3, 6, 5), (9, 2, 4, 5, 6)])
def test_shapes_of_arrays(shape, tmp_path):
    values = np.random.default_rng(0).random(shape).astype("float32")
    np.save(tmp_path / "x.npy", values)
    x = load(tmp_path / "x.npy", split="all", binarization=None).x
    expected = {(9,): (9, 1), (9, 4, 5): (9, 1, 4, 5), (9, 6, 5, 3): (9, 3, 6, 5)}.get(shape, shape)
    assert x.shape == expected
    assert x.sum().item() == pytest.approx(values.sum(), rel=1e-5)


def test_bytes_are_grey_levels_unless_they_are_zeros_and_ones(tmp_path):
    np.save(tmp_path / "grey.npy", np.array([[0, 128, 255]], dtype="uint8"))
    np.save(tmp_path / "binary.npy", np.array([[0, 1, 1]], dtype="uint8"))
    np.save(tmp_path / "counts.npy", np.array([[0, 128, 255]], dtype="int64"))
    grey, binary, counts = (load(tmp_path / f"{name}.npy", split="all").x for name in ("grey", "binary", "counts"))
    assert torch.allclose(grey, torch.tensor([[0, 128 / 255, 1]]))
    assert binary.tolist() == [[0, 1, 1]] and counts.tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_tables(separator, header, tmp_path):
    lines = [separator.join(f"{x:.9g}" for x in row) for row in table(20)]
    text = "\n".join([*([separator.join("abc")] if header else []), *lines]) + "\n\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
    data = load(tmp_path / "t.csv", split="all")
    assert torch.allclose(data.x, torch.from_numpy(table(20)).float(), rtol=1e-5)
    assert names_of_columns(tmp_path / "t.csv") == (("a", "b", "c") if header else ("1", "2", "3"))


def test_a_column_of_labels(tmp_path):
    (tmp_path / "t.csv").write_text("a,Label,b\n1,0,2\n3,2,4\n")
    data = load(tmp_path / "t.csv", split="all")
    assert data.x.tolist() == [[1, 2], [3, 4]] and data.labels.tolist() == [0, 2]
    assert names_of_columns(tmp_path / "t.csv") == ("a", "b")


@pytest.mark.parametrize("word", ["", "NA", "nan", "null", "?"])
def test_missing_entries(word, tmp_path):
    (tmp_path / "t.csv").write_text(f"a,b\n1,{word}\n3,4\n5,6\n")
    kept = load(tmp_path / "t.csv", split="all", missing="keep")
    assert kept.x.isnan().tolist() == [[False, True], [False, False], [False, False]]
    assert load(tmp_path / "t.csv", split="all", missing="drop").x.tolist() == [[3, 4], [5, 6]]
    with pytest.raises(ValueError, match="data: expected complete data; got values missing in 1 of the 3 rows"):
        load(tmp_path / "t.csv", split="all")


def test_what_is_missing_in_binarized_images_stays_so(tmp_path):
    values = np.random.default_rng(0).random((20, 4, 4))
    values[3, 1] = np.nan
    np.savez(tmp_path / "x.npz", x=values)
    data = load(tmp_path / "x.npz", split="all", missing="keep")
    assert data.provenance.binarization == "dynamic"
    assert data.x[3, 0, 1].isnan().all() and int(data.x.isnan().sum()) == 4
    assert set(data.x[~data.x.isnan()].tolist()) == {0, 1}


def test_parts_do_not_overlap_and_are_the_same_each_time(tmp_path):
    path = write_table(tmp_path / "t.csv")
    train, test = (load(path, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (54, 6)
    rows = {tuple(row) for row in train.x.tolist()} | {tuple(row) for row in test.x.tolist()}
    assert len(rows) == 60
    assert load(path, split="test").provenance == test.provenance
    assert load(path, split="test", seed=1).provenance.sha256 != test.provenance.sha256
    assert len(load(path, split="test", num_test=20)) == 20


def test_a_name_is_read_by_its_own_reader(mnist_folder):
    data = load("mnist", data_dir=mnist_folder, split="test")
    same = pv.data.mnist(mnist_folder, split="test")
    assert data.provenance == same.provenance
    with pytest.raises(ValueError, match="split: expected 'train' or 'test' for mnist; got 'all'"):
        load("mnist", data_dir=mnist_folder, split="all")


def test_an_array_that_is_larger_than_it_may_be_is_not_read(tmp_path, monkeypatch):
    path = write_arrays(tmp_path / "images.npz")
    monkeypatch.setattr(_arrays, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="data: expected at most 0 GiB in .*; got x of shape"):
        load(path, split="all")


def test_nothing_is_unpickled(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (exec, ("raise SystemExit('it was run')",))

    np.savez(tmp_path / "x.npz", x=np.array([Malicious()]))
    np.save(tmp_path / "x.npy", np.array([Malicious()]))
    for path in (tmp_path / "x.npz", tmp_path / "x.npy"):
        with pytest.raises(ValueError, match="data: expected an array of real numbers in .* of dtype object"):
            load(path, split="all")


BAD = {
    "split": ({"split": "validation"}, ValueError, "split: expected one of 'train', 'test', 'all'"),
    "missing": ({"missing": "ignore"}, ValueError, "missing: expected one of 'refuse', 'drop', 'keep'"),
    "binarization": ({"binarization": "round"}, ValueError, "binarization: expected one of"),
    "num_test": ({"num_test": 1.5}, TypeError, "num_test: expected a whole number"),
    "image_size": ({"image_size": (8, 8)}, ValueError, "image_size: expected none, for data that are no folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options(case, tmp_path):
    options, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        load(write_table(tmp_path / "t.csv"), **options)


def test_bad_options_of_images(tmp_path):
    folder = write_photos(tmp_path / "photos", 4)
    for options, message in [
        ({"image_size": (8, 8, 8)}, "image_size: expected a height and a width"),
        ({"image_size": (8, 8), "image_fit": "stretch"}, "image_fit: expected one of"),
        ({"channels": 2}, "channels: expected one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(folder, split="all", **options)
    with pytest.raises(TypeError, match="data: expected a path or a name; got 3"):
        load(3)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": [1.5, None], "b": [1, 2], "label": [0, 1]}), tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", split="all", missing="keep")
    assert data.labels.tolist() == [0, 1] and names_of_columns(tmp_path / "t.parquet") == ("a", "b")
    assert data.x[0].tolist() == [1.5, 1] and data.x.isnan().tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("option", [{"image_size": (32, 32)}, {"channels": 1}, {"key": "x"}, {"num_test": 3}])
def test_data_by_name_take_no_options_of_files(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}: expected None for digits, whose form is its own; got"):
        pv.data.load("digits", split="test", **option)
