"""Clips as pure functions: the synthetic shape world, video bytes and optical flow."""
