from collections.abc import Callable
from pathlib import Path

import pytest

HST = ("stage=generator", "generator=hst")


@pytest.fixture(scope="session")
def run_of_hst(tmp_path_factory, run_locally: Callable[..., Path]) -> Callable[..., Path]:
    """Trains a tiny denoiser beside a tokenizer, `tok`, and a denoiser that is told in words alone,
    `words`: run_of_hst(name, *overrides) -> the folder of all of these runs."""
    root = tmp_path_factory.mktemp("runs_of_hst")
    run_locally(root, "tok")
    tokenizer = f"tokenizer_run={root / 'tok'}"
    run_locally(root, "words", *HST, tokenizer)

    def run(name: str, *overrides: str) -> Path:
        run_locally(root, name, *HST, tokenizer, *overrides)
        return root

    return run
