"""Training without a platform: the two stages, the loop, and the ports it talks through."""
