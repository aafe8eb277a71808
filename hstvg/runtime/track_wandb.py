"""Weights & Biases as a mirror of metrics.jsonl: offline unless a key is set."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WandbTracker:
    """Mirrors a run to W&B. Its faults are let out: JsonlTracker guards whatever mirrors it.

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
        self.facts = {"project": project, "group": group, "id": run_name, "name": run_name}
        self.run_dir = run_dir
        self.config = dict(config)
        self.run: Any = None

    def begin(self, step: int) -> None:
        import wandb

        has_key = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").exists()
        self.run = wandb.init(
            **self.facts,
            dir=str(self.run_dir),
            config=self.config,
            resume="allow",
            # W&B reads WANDB_MODE itself where no mode is given.
            mode=None if "WANDB_MODE" in os.environ or has_key else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.run.define_metric("*", step_metric="train/step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"train/step": step, **values})

    def video(self, step: int, name: str, file: Path) -> None:
        import wandb

        video = wandb.Video(str(file), format="mp4")
        self.run.log({"train/step": step, f"samples/{name}": video})

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()
