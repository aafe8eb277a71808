"""Probability paths from noise to data, and the random draws that travel them."""
