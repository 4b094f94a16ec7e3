"""The VAE, as a Pyro model and guide."""

from pyro_vae.vae.programs import Guide, Model
from pyro_vae.vae.vae import VAE

__all__ = ["VAE", "Guide", "Model"]
