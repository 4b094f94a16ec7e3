"""A (model, guide) pair as functions of its latents; no VAE is needed."""
