"""The README: its Python runs."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


SMALLER = {
    "x[:10]": "x[:2]",
    "tolerance=0.05": "tolerance=0.05, max_evaluations=1000",
    "num_temperatures=100": "num_temperatures=10",
    "num_data=10": "num_data=2, num_temperatures=10",
    "inference_gap(vae.model, vae.guide, x)": "inference_gap(vae.model, vae.guide, x, num_steps=20)",
    "posterior_samples(vae.model, vae.guide, x)": "posterior_samples(vae.model, vae.guide, x, num_samples=20)",
}
"""Numbers of the README, and those that show in less time that it runs."""


@pytest.mark.filterwarnings("ignore:no files of MNIST")
@pytest.mark.parametrize(
    "smaller", [SMALLER, pytest.param({}, marks=pytest.mark.slow)], ids=["smaller", "as it stands"]
)
def test_the_python_in_the_readme_runs(smaller, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "pyro_vae.data._torchvision._download", lambda data_dir, name: "a download is not tried in a test"
    )
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for there, here in smaller.items():
        assert there in block
        block = block.replace(there, here)
    exec(compile(block, "README.md", "exec"), {})
    assert "certified lower bound" in capsys.readouterr().out


def test_the_readme_links_to_files_that_exist():
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
