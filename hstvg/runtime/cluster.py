"""Reaching a Ray cluster: the one named by RAY_ADDRESS, else a private one on this machine."""

import logging
import os
import socket
from typing import Any

from hstvg.runtime.errors import CommandError


def connect(num_cpus: int | None = None) -> None:
    """Join the cluster at RAY_ADDRESS or start a local one; does nothing if already connected.

    Args:
        num_cpus: CPUs of a local cluster; None takes what the machine has. A cluster that is
            joined has its own.

    Raises:
        CommandError: RAY_ADDRESS is set and nothing answers there, or Ray does not start.
    """
    # Read by Ray at import, so set first; what the person has set stays.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "").strip()
    where: dict[str, Any] = {"address": address} if address else _local(num_cpus)
    try:
        _knock(address)
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError, TimeoutError
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address:
            raise CommandError(
                f"no Ray cluster at RAY_ADDRESS={address} ({cause}); start it with "
                "`ray start --head`, or unset RAY_ADDRESS to work on this machine alone"
            ) from error
        raise CommandError(f"Ray does not start on this machine: {cause}") from error


def _knock(address: str) -> None:
    """Fail at once where nobody listens: Ray itself would try again for more than ten minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _local(num_cpus: int | None) -> dict[str, Any]:
    # "local" never joins a stranger's cluster that happens to run on this machine.
    return {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
