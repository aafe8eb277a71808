"""Write one self-contained HTML page about a run: runs/NAME/report.html.

python -m pipelines.report run=runs/gen
"""

from typing import Any

from hstvg.runtime.command import run_command


def main(config: dict[str, Any]) -> None:
    from pathlib import Path

    from hstvg.report.page import write_report
    from hstvg.runtime.errors import ConfigError

    if config["dry_run"]:
        print(Path(config["run"]) / "report.html")
        return
    try:
        print(write_report(Path(config["run"])))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error


if __name__ == "__main__":
    run_command("report", __doc__, main)
