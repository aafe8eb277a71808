"""HSTVG: hierarchical spatial-temporal video generators, trained on Ray."""

__version__ = "0.1.0"
