"""Fixtures of the runtime's tests."""

from pathlib import Path

import pytest
from damage import make_damaged_dataset, make_damaged_shards


@pytest.fixture(scope="session")
def damaged_shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind of `damage.SHARDS` -> a shard damaged in this way; leave the files as they are."""
    return make_damaged_shards(tmp_path_factory.mktemp("damaged") / "shards")


@pytest.fixture(scope="session")
def damaged_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a shard KIND.tar for each kind of damage; leave the files as they are."""
    return make_damaged_dataset(tmp_path_factory.mktemp("damaged") / "dataset")
