"""A training run as one HTML page."""

from pyro_vae.report.write import write_report

__all__ = ["write_report"]
