"""Draw the figure of a report: the top of a page as a wide screen shows it, and a phone in the dark. Needs Chromium.

python docs/make_report.py --data-dir data
"""

import argparse
import html
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

import pyro_vae as pv

WIDTH, PHONE, HEIGHT = 1180, 390, 1240
AROUND = """<body style="margin: 0; display: flex; gap: 24px; background: #8a9097">
<iframe srcdoc="{light}" style="width: {wide}px; height: {height}px; border: 0"></iframe>
<iframe srcdoc="{dark}" style="width: {phone}px; height: {height}px; border: 0"></iframe></body>"""


def report(data_dir: Path, folder: Path) -> str:
    """The page about a VAE that is trained for a minute."""
    torch.manual_seed(0)
    train, validation = pv.data.mnist(data_dir).first(12_000).hold_out(2000)
    test = pv.data.mnist(data_dir, split="test").first(500)
    vae = pv.VAE(
        pv.priors.StandardNormal(10),
        pv.likelihoods.Bernoulli(pv.nn.MLP(10, [200], 784, output_bias=torch.logit(train.mean, eps=1e-3))),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [200], 2 * 10, input_mean=train.mean)),
    )
    pv.fit(vae, train, validation=validation, num_epochs=10, run=folder / "digits")
    return pv.write_report(folder / "digits", test, num_data=24).read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "figures" / "report.png")
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("error: expected Chromium on the path; got none; install it.")

    with tempfile.TemporaryDirectory() as name:
        page = report(args.data_dir, Path(name))
        light = page.replace("(prefers-color-scheme: dark)", "not all")
        dark = page.replace("(prefers-color-scheme: dark)", "all")
        around = AROUND.format(light=html.escape(light), dark=html.escape(dark), wide=WIDTH, phone=PHONE, height=HEIGHT)
        (Path(name) / "around.html").write_text(around)
        size = f"--window-size={WIDTH + 24 + PHONE},{HEIGHT}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
        target = (Path(name) / "around.html").as_uri()
        subprocess.run([browser, *flags, f"--screenshot={args.output.absolute()}", target], check=True)


if __name__ == "__main__":
    main()
