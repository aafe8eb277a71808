"""The generators: what turns a condition into a latent."""
