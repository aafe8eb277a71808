"""Measurements with intervals: small values that are updated, merged and computed."""
