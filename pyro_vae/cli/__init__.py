"""The command line, `pyro-vae`."""

from pyro_vae.cli.main import main, parser

__all__ = ["main", "parser"]
