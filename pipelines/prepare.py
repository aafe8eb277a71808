"""Turn clips into a data set: WebDataset shards of MP4 and JSON, and an index.

    python -m pipelines.prepare source=shapes source.num_clips=2048 out=data/shapes
    python -m pipelines.prepare source=folder source.path=DIR out=data/mine

A folder's captions come from NAME.txt, NAME.json {"caption": ...} or a table captions.csv, .jsonl
or .parquet with the columns file (path in DIR) and caption. What is refused, and why, is listed in
OUT/rejected.jsonl. The work spreads over the Ray cluster at RAY_ADDRESS, or over this machine's
CPUs. dry_run=true only says what would be made.
"""

from typing import Any

from hstvg.runtime.command import run_command


def main(config: dict[str, Any]) -> None:
    from pathlib import Path

    from hstvg.runtime.config import build
    from hstvg.runtime.ingest import ingest, preview

    source = build(config["source"])
    out = Path(config["out"])
    if config["dry_run"]:
        print(preview(source, out, config["clips_per_shard"]))
        return
    print(ingest(source, out, config["clips_per_shard"], num_cpus=config["num_cpus"]))


if __name__ == "__main__":
    run_command("prepare", __doc__ or "", main)
