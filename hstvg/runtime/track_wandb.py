"""Weights & Biases as a mirror of metrics.jsonl: offline unless a key is set."""

import os
import sys
from collections.abc import Mapping
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

        has_key = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").exists()
        self.wandb = wandb
        self.run = wandb.init(
            project=project,
            group=group,
            id=run_name,
            name=run_name,
            dir=str(run_dir),
            config=dict(config),
            resume="allow",
            mode=os.environ.get("WANDB_MODE") or ("online" if has_key else "offline"),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.run.define_metric("*", step_metric="train/step")

    def begin(self, step: int) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self.run.log({"train/step": step, **values}))

    def video(self, step: int, name: str, file: Path) -> None:
        video = self.wandb.Video(str(file), format="mp4")
        self._try(lambda: self.run.log({"train/step": step, f"samples/{name}": video}))

    def close(self) -> None:
        self._try(self.run.finish)

    def _try(self, action) -> None:
        if self.run is None:
            return
        try:
            action()
        except Exception as error:
            print(f"W&B mirror off: {error}", file=sys.stderr, flush=True)
            self.run = None
