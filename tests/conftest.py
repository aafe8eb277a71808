"""Fixtures of the whole suite."""

import logging
import os
from collections.abc import Iterator

import pytest

# Read by Ray and DeepSpeed at import, in this process and in all that it starts.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["DS_ACCELERATOR"] = "cpu"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One private Ray for all tests marked `ray`; its four CPUs may be more than the machine has.

    Never `ray stop` in a test: it ends every Ray process of the user.
    """
    import ray

    # Workers must find the packages of this checkout, wherever pytest was started.
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=512 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield
    ray.shutdown()
