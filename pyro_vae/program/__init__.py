"""A (model, guide) pair as functions of its latents. Knows no VAE."""
