"""Settings say which of them is out of its range, all in the same words."""

from collections.abc import Mapping
from typing import Any


def check_ranges(settings: Any, wrong: Mapping[str, bool], group: str = "") -> None:
    """Raises ValueError for the first field that is wrong.

    Args:
        wrong: by name of a field.
        group: of the config, that the fields stand in; with a dot.
    """
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        raise ValueError(f"{group}{name}={getattr(settings, name)} is out of its range")
