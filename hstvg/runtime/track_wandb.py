"""Weights & Biases as a mirror of metrics.jsonl: offline unless a key is set."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class WandbTracker:
    """Mirrors a run to W&B; after its first fault it falls silent, and the run goes on.

    Args:
        project: W&B project.
        group: W&B group, e.g. the sweep a trial belongs to.
        run_name: the run's name, which is also its id, so that a resumed run goes on in one chart.
        run_dir: the run folder.
        config: the resolved config.
    """

    def __init__(
        self,
        *,
        run_name: str,
        run_dir: Path,
        config: Mapping[str, Any],
        project: str = "hstvg",
        group: str | None = None,
    ) -> None:
        import wandb

        self.wandb = wandb
        self.run = None
        self._try(self._start, project, group, run_name, run_dir, config)

    def _start(
        self,
        project: str,
        group: str | None,
        run_name: str,
        run_dir: Path,
        config: Mapping[str, Any],
    ) -> None:
        has_key = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").exists()
        self.run = self.wandb.init(
            project=project,
            group=group,
            id=run_name,
            name=run_name,
            dir=str(run_dir),
            config=dict(config),
            resume="allow",
            # W&B reads WANDB_MODE itself where no mode is given.
            mode=None if "WANDB_MODE" in os.environ or has_key else "offline",
            settings=self.wandb.Settings(silent=True, console="off"),
        )
        self.run.define_metric("*", step_metric="train/step")

    def begin(self, step: int) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self.run is not None:
            self._try(self.run.log, {"train/step": step, **values})

    def video(self, step: int, name: str, file: Path) -> None:
        if self.run is not None:
            video = self.wandb.Video(str(file), format="mp4")
            self._try(self.run.log, {"train/step": step, f"samples/{name}": video})

    def close(self) -> None:
        if self.run is not None:
            self._try(self.run.finish)

    def _try(self, action: Callable[..., object], *arguments: object) -> None:
        try:
            action(*arguments)
        except Exception as error:
            print(f"W&B mirror off: {error}", file=sys.stderr, flush=True)
            self.run = None
