"""Bad input ends a command with code 2 and one line that says what to do; nothing is written, and no traceback shown."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from small_files import SMALL, command, write_arrays, write_photos, write_table


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that are as they should be, and many that are not."""
    folder = tmp_path_factory.mktemp("files")
    write_table(folder / "table.csv")
    write_table(folder / "holes.csv", missing={(3, 1)})
    write_arrays(folder / "images.npz")
    write_photos(folder / "photos", 24)
    np.savez(folder / "pair.npz", a=np.zeros((9, 2)), b=np.zeros((9, 2)))
    np.savez(folder / "objects.npz", x=np.array([{}, {}]))
    np.savez(folder / "text.npz", x=np.array(["a", "b"]))
    np.savez(folder / "labels.npz", x=np.random.default_rng(0).random((30, 2)), labels=np.arange(30) + 0.5)
    np.savez(folder / "huge_label.npz", x=np.random.default_rng(0).random((30, 2)), labels=np.arange(30) * 1000)
    np.savez(folder / "infinite.npz", x=np.full((30, 2), np.inf))
    np.save(folder / "number.npy", np.array(3.0))
    (folder / "truncated.npz").write_bytes((folder / "images.npz").read_bytes()[:300])
    (folder / "truncated.npy").write_bytes(b"\x93NUMPY\x01\x00")
    bomb(folder / "bomb.npz")
    (folder / "text.csv").write_text("a,b\n1,2\n3,red\n")
    (folder / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (folder / "twice.csv").write_text("a,a\n1,2\n3,4\n")
    (folder / "empty.csv").write_text("")
    (folder / "names.csv").write_text("a,b\n")
    (folder / "label.csv").write_text("label\n1\n2\n")
    (folder / "half.csv").write_text("a,label\n1,0.5\n2,1\n")
    (folder / "latin.csv").write_bytes("größe,b\n1,2\n".encode("latin-1"))
    (folder / "few.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "table.parquet").write_bytes(b"PAR1")
    (folder / "movie.mp4").write_bytes(b"")
    (folder / "nothing").mkdir()
    mixed(folder / "mixed", (8, 6), (6, 8), "RGB")
    mixed(folder / "channels", (8, 6), (8, 6), "L")
    mixed(folder / "broken", (8, 6), (8, 6), "RGB")
    (folder / "broken" / "9.png").write_bytes(b"no image")
    mixed(folder / "cut", (8, 6), (8, 6), "RGB")
    whole = (folder / "photos" / "dark" / "000.png").read_bytes()
    (folder / "cut" / "9.png").write_bytes(whole[: len(whole) // 2])
    (folder / "deep").mkdir()
    Image.fromarray(np.zeros((4, 4), dtype="uint16")).save(folder / "deep" / "0.png")
    (folder / "unknown.toml").write_text("num_epoch = 3\n")
    (folder / "wrong.toml").write_text('num_epochs = "many"\n')
    (folder / "broken.toml").write_text("num_epochs = \n")
    (folder / "settings").mkdir()
    (folder / "settings" / "settings.json").write_text("{}")
    (folder / "python").mkdir()
    (folder / "python" / "config.json").write_text("{}")
    return folder


def mixed(folder, size, other, mode):
    folder.mkdir()
    Image.new("RGB", size).save(folder / "0.png")
    Image.new(mode, other).save(folder / "1.png")


def bomb(path):
    """A few bytes whose header claims 4 TiB."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


T = "train new --data"

CASES = {
    # the command line
    "no command": ("", r"COMMAND: expected a value; got none; see pyro-vae --help"),
    "an unknown command": ("trian new", r"COMMAND: expected one of train, .*; got 'trian'; did you mean train\?"),
    "no run": ("train", r"run: expected a value; got none; see pyro-vae train --help"),
    "an unknown option": (f"{T} table.csv --num-epoch 3", r"--num-epoch: expected an option of pyro-vae train; got '--num-epoch'; did you mean --num-epochs\?"),
    "an abbreviation": (f"{T} table.csv --learn 3", r"--learn: expected an option .*did you mean --learning-rate\?|--learn: expected an option"),
    "one argument too many": (f"{T} table.csv more", r"more: expected no further argument"),
    "no value": (f"{T} table.csv --seed", r"--seed: expected a value; got none"),
    "no data": ("train new", r"--data: expected what to train on; got none; pass mnist"),
    "a number that is none": (f"{T} table.csv --num-epochs five", r"--num-epochs: expected a whole number of 1 or more; got 'five'"),
    "zero epochs": (f"{T} table.csv --num-epochs 0", r"--num-epochs: expected a whole number of 1 or more; got '0'"),
    "a fraction of a batch": (f"{T} table.csv --batch-size 1.5", r"--batch-size: expected a whole number of 1 or more; got '1.5'"),
    "a negative seed": (f"{T} table.csv --seed -1", r"--seed: expected a whole number of 0 or more; got '-1'"),
    "a learning rate of NaN": (f"{T} table.csv --learning-rate nan", r"--learning-rate: expected a finite number above 0; got 'nan'"),
    "widths with commas": (f"{T} table.csv --hidden-dims 200,200", r"--hidden-dims: expected whole numbers of 1 or more; got '200,200'; pass them apart, 200 200"),
    "another likelihood": (f"{T} table.csv --likelihood poison", r"--likelihood: expected one of bernoulli, .*; got 'poison'"),
    "another size": (f"{T} photos --image-size 48", r"--image-size: expected height x width, in pixels; got '48'; pass 64x48, say"),
    "another estimator": ("evaluate RUN --estimator aiz", r"--estimator: expected one of .*; got 'aiz'; did you mean ais\?"),
    "another device": (f"{T} table.csv --device gpu", r"--device: expected a device of this machine; got gpu"),
    # options that do not fit together
    "resize and crop": (f"{T} photos --image-size 8x6 --resize --crop", r"--crop: expected one of --resize and --crop; got both"),
    "crop to what": (f"{T} photos --crop", r"--crop: expected a size to bring images to; got none; pass --image-size"),
    "five channels": (f"{T} photos --channels 5", r"--channels: expected 1, 3 or 4; got 5"),
    "a scale that is learned": (f"{T} table.csv --likelihood gaussian-learned --scale 1", r"--scale: expected --likelihood gaussian"),
    "a floor that is none": (f"{T} table.csv --likelihood gaussian --min-scale 1", r"--min-scale: expected a likelihood with a learned scale"),
    "binarized and Gaussian": (f"{T} images.npz --likelihood gaussian --binarization dynamic", r"--binarization: expected --likelihood bernoulli"),
    "standardized pixels": (f"{T} images.npz --standardize", r"--standardize: expected a table of real numbers"),
    "stop by nothing": (f"{T} table.csv --early-stopping 3 --num-validation 0", r"--early-stopping: expected validation data"),
    "options of another VAE": (f"{T} table.csv --vae a:b --latent-dim 2", r"--latent-dim: expected no options of the VAE beside --vae"),
    "outliers under counts": (f"{T} table.csv --likelihood poisson --standardize", r"--standardize: expected a likelihood of real numbers; got poisson"),
    "components of one Gaussian": (f"{T} table.csv --num-components 5", r"--num-components: expected --prior mixture or vamp; got standard-normal"),
    "pseudo-inputs and labels": (f"{T} table.csv --conditional --prior vamp", r"--prior: expected one that does not run the encoder, beside --conditional"),
    "convolutions of columns": (f"{T} table.csv --network convolutional", r"--network: expected images, for convolutional; got data of shape \(3,\)"),
    "one particle": (f"{T} table.csv --objective iwelbo", r"--num-particles: expected two or more, for iwelbo; got 1"),
    "free bits of a matrix": (
        f"{T} table.csv --objective beta --free-bits 0.1 --posterior full-rank", r"--free-bits: expected --posterior diagonal.*got full-rank; leave"
    ),
    "free bits from a mixture": (
        f"{T} table.csv --objective beta --free-bits 0.1 --prior mixture", r"--free-bits: expected --prior standard-normal.*got mixture; leave"
    ),
    "a weight below nothing": (f"{T} table.csv --objective beta --beta -1", r"--beta: expected a finite number from 0; got"),
    "a weight of nothing": (f"{T} table.csv --free-bits 0.1", r"--free-bits: expected --objective beta; got mean-field"),
    "counts that are none": (f"{T} table.csv --likelihood poisson", r"--data: expected values in the likelihood's support, .*; got -0.739092 at index .*; pass counts"),
    "a table under Bernoulli": (f"{T} table.csv --likelihood bernoulli", r"--likelihood: expected zeros and ones, for bernoulli; got numbers from .*gaussian-learned"),
    "labels that are not there": (f"{T} table.csv --conditional", r"--conditional: expected data with labels; got none"),
    "labels that are years": (f"{T} huge_label.npz --conditional", r"--conditional: expected classes numbered from 0, at most 1,000"),
    "held out of mnist": (f"{T} mnist --num-test 5", r"--num-test: expected none, as mnist has a test part of its own"),
    "held out twice": (f"{T} table.csv --test table.csv --num-test 5", r"--num-test: expected none beside --test"),
    "all held out": (f"{T} table.csv --num-test 60", r"--num-test: expected fewer than the 60 data"),
    "all to validate": (f"{T} table.csv --num-validation 60", r"--num-validation: expected fewer than the 54 training data"),
    "two data": (f"{T} few.csv", r"--num-test: expected fewer than the 2 data, of which a tenth"),
    "test data of another form": (f"{T} table.csv --test images.npz", r"--test: expected data of shape \(3,\); got \(1, 6, 5\)"),
    # a VAE of the user's own
    "a function without a module": (f"{T} table.csv --vae make", r"--vae: expected package.module:make_vae; got 'make'"),
    "a module that is not there": (f"{T} table.csv --vae no_such_module:make", r"--vae: expected a module 'no_such_module' that can be imported; got ModuleNotFoundError"),
    "a function that is not there": (f"{T} table.csv --vae json:make", r"--vae: expected a function 'make' in 'json'; got None"),
    "a function that makes no VAE": (f"{T} table.csv --vae builtins:dict", r"--vae: expected a pyro_vae.VAE from builtins:dict; got a dict|--vae: expected a VAE from builtins:dict"),
    "a function that fails": (f"{T} table.csv --vae json:loads", r"--vae: expected a VAE from json:loads; got TypeError in .*line \d+"),
    # data
    "no such file": (f"{T} tabel.csv", r"--data: expected mnist, fashion-mnist, .*or the path .*; got .*tabel.csv', which is not there"),
    "no such name": (f"{T} minst", r"--data: expected mnist, .*did you mean 'mnist'\?"),
    "another kind of file": (f"{T} movie.mp4", r"--data: expected a folder of images or a file \.npz"),
    "a folder without images": (f"{T} nothing", r"--data: expected a folder of images; got .*nothing', which holds none"),
    "images of two sizes": (f"{T} mixed", r"--data: expected images of one size, height x width; got 6x8 in '0.png' and 8x6 in '1.png'; .*--image-size 64x48"),
    "images of two kinds": (f"{T} channels", r"--data: expected images with as many channels each; got 3 in '0.png' and 1 in '1.png'.*--channels"),
    "a file that is no image": (f"{T} broken", r"--data: expected images that can be read; got .*9.png'"),
    "half an image": (f"{T} cut --image-size 8x6", r"--data: expected images that can be read; got .*9.png'"),
    "images of 16 bits": (f"{T} deep", r"--data: expected images of 8 bits; got .*0.png' of mode I"),
    "arrays without x": (f"{T} pair.npz", r"--key: expected an array 'x' in .*; got 'a', 'b'; name"),
    "a key of a table": (f"{T} table.csv --key a", r"--key: expected none, for data that are no .npz file"),
    "a size of a table": (f"{T} table.csv --image-size 4x4", r"--image-size: expected none, for data that are no folder of images"),
    "an array of objects": (f"{T} objects.npz", r"--data: expected an array of real numbers in .*; got x of dtype object"),
    "an array of text": (f"{T} text.npz", r"--data: expected an array of real numbers in .*; got x of dtype <U1"),
    "a bomb": (f"{T} bomb.npz", r"--data: expected at most 16 GiB in .*; got x of shape \(1048576, 1048576\), 4,096 GiB"),
    "half a file": (f"{T} truncated.npz", r"--data: expected a file that numpy saved; got .*truncated.npz'"),
    "half a header": (f"{T} truncated.npy", r"--data: expected a file that numpy saved; got .*truncated.npy'"),
    "a number alone": (f"{T} number.npy", r"--data: expected rows of numbers in .*; got an array of shape \(\)"),
    "infinite numbers": (f"{T} infinite.npz", r"--data: expected numbers that float32 can hold in .*; got infinite or larger ones in 30"),
    "labels of halves": (f"{T} labels.npz", r"labels: expected whole numbers of shape \(30,\)"),
    "text in a table": (f"{T} text.csv", r"--data: expected numbers in .*; got 'red' in line 3, column 'b'"),
    "a short line": (f"{T} ragged.csv", r"--data: expected 2 columns in each line of .*; got 1 in line 3"),
    "a name twice": (f"{T} twice.csv", r"--data: expected a name for each column of .*; got 'a' twice"),
    "an empty table": (f"{T} empty.csv", r"--data: expected a table of numbers; got .*which is empty"),
    "names alone": (f"{T} names.csv", r"--data: expected rows of numbers in .*; got a line of names alone"),
    "labels alone": (f"{T} label.csv", r"--data: expected data beside the labels"),
    "half a label": (f"{T} half.csv", r"labels: expected whole numbers in column 'label'"),
    "another encoding": (f"{T} latin.csv", r"--data: expected a table as text in UTF-8"),
    "no pyarrow, or no parquet": (f"{T} table.parquet", r"--data: expected the package pyarrow, .*pip install pyarrow|--data: expected a parquet file"),
    "holes": (f"{T} holes.csv", r"--data: expected complete data; got values missing in 1 of the 60 rows .*--missing keep.*impute"),
    # TOML
    "no TOML file": ("train new --config none.toml", r"--config: expected a TOML file that can be read; got 'none.toml' \(No such file"),
    "an unknown key": ("train new --config unknown.toml", r"--config: expected settings of train in .*; got 'num_epoch'; did you mean num_epochs\?"),
    "a wrong value": ("train new --config wrong.toml", r"num_epochs in 'wrong.toml': expected a whole number of 1 or more; got 'many'"),
    "broken TOML": ("train new --config broken.toml", r"--config: expected a TOML file; got 'broken.toml' \("),
    # runs
    "a run that is there": ("train RUN --data table.csv", r"run: expected a new or an empty folder; got .*pass --resume"),
    "a run that is a file": ("train table.csv --data table.csv", r"run: expected a folder; got the file 'table.csv'"),
    "nothing to resume": (f"{T} table.csv --resume", r"--resume: expected a folder with a run to go on with; got 'new'"),
    "resumed with another seed": ("train RUN --resume --seed 7", r"--seed: expected 0, as the run in .* was started with; got 7"),
    "resumed with other data": ("train RUN --resume --data few.csv", r"--data: expected .*as the run in .* was started with; got .*few.csv"),
    "no such run": ("evaluate new", r"run: expected the folder of a run; got 'new', which is not there; train it: pyro-vae train new"),
    "a folder that is no run": ("info nothing", r"run: expected the folder of a run; got 'nothing', which is not one"),
    "a run of pv.fit": ("info python", r"run: expected a run that pyro-vae trained; got 'python', which pv.fit did from Python"),
    "damaged settings": ("info settings", r"settings.json: expected the settings that training wrote; got files that are damaged"),
    # other commands
    "an option of another estimator": ("evaluate RUN --num-temperatures 5", r"--num-temperatures: expected an option of log_evidence; .*--estimator ais or bdmc"),
    "a tolerance of nothing": ("evaluate RUN --tolerance 0", r"--tolerance: expected a finite number above 0; got '0'"),
    "too small a budget": ("evaluate RUN --max-evaluations 5", r"--max-evaluations: expected at least \d+"),
    "no output": ("sample RUN", r"--output: expected a value; got none"),
    "a picture of a table": ("sample RUN --output new.png", r"--output: expected a name that ends in .npz, .csv; got 'new.png', for data that are no images"),
    "another kind of picture": ("sample RUN --output new.docx", r"--output: expected a name that ends in"),
    "a folder that is not there": ("sample RUN --output new/a.csv", r"--output: expected a file in a folder that is there; got 'new/a.csv'; mkdir -p new"),
    "a label without classes": ("sample RUN --label 1 --output new.csv", r"--label: expected none, for a VAE that is not conditional"),
    "nothing missing": ("impute RUN --output new.csv", r"--data: expected entries that are missing; got 60 complete data"),
    "missing in other data": ("impute RUN --data images.npz", r"--data: expected data of shape \(3,\)"),
    "compared with nothing": ("compare RUN RUN", r"run: expected a run that was evaluated; got .*which was not; pyro-vae evaluate"),
    "described, and not there": ("data nowhere.npz", r"source: expected|data: expected mnist, fashion-mnist, .*or the path"),
}  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert command(f"train @0 --data @1 {SMALL} --num-epochs 1", folder, files / "table.csv") == 0
    return folder


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_with_one_line(case, files, run_folder, monkeypatch, capsys):
    import re

    line, message = CASES[case]
    monkeypatch.chdir(files)
    capsys.readouterr()
    before = {path for folder in (files, run_folder) for path in folder.rglob("*")}
    assert command(line.replace("RUN", str(run_folder))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert re.search(message, err), err
    assert len(err) < 700
    assert {path for folder in (files, run_folder) for path in folder.rglob("*")} == before


def test_the_table_is_long_enough():
    assert len(CASES) >= 40


def test_an_error_of_the_program_s_own_shows_its_traceback(run_folder, monkeypatch):
    """What is no sentence about input is not called bad input."""
    from pyro_vae.cli import info

    def broken(folder):
        raise ValueError("list index out of range")

    monkeypatch.setattr(info, "OpenRun", broken)
    with pytest.raises(ValueError, match="list index"):
        command("info @0", run_folder)


def test_json_is_one_object_and_nothing_else(run_folder, capsys):
    capsys.readouterr()
    assert command("info @0 --json", run_folder) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(run_folder)


def test_too_many_pixels(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write_photos(tmp_path / "photos", 12)
    assert command(f"train @0 --data @1 {SMALL}", tmp_path / "run", tmp_path / "photos") == 2
    assert "expected images of at most 100 pixels; got" in capsys.readouterr().err
