"""The commands of the house: each composes a config and starts what it names."""
