"""Blocks without a domain."""
