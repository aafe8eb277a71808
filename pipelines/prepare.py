"""Turn clips into a data set: WebDataset shards of MP4 and JSON, and an index.

    python -m pipelines.prepare source=shapes source.num_clips=2048 out=data/shapes
    python -m pipelines.prepare source=folder source.path=DIR out=data/mine
    python -m pipelines.prepare source=curator source.path=DIR out=data/mine
    python -m pipelines.prepare source=webdataset source.path=DIR out=data/mine
    python -m pipelines.prepare source=latents source.path=data/mine source.tokenizer_run=runs/tok \
        out=data/mine-latents
    python -m pipelines.prepare verify=data/mine

shapes      renders clips of moving shapes.
folder      takes any videos below DIR. Captions come from NAME.txt, NAME.json {"caption": ...} or a
            table captions.csv, .jsonl or .parquet with the columns file (path in DIR) and caption.
            source.max_s=10 cuts long footage up, source.cuts=true at its scene cuts,
            source.dedup=60 drops near duplicates, source.min_motion=0.01 drops still clips.
curator     takes what NeMo Curator wrote: DIR/clips/*.mp4 with DIR/metas/v0/*.json.
webdataset  indexes tar shards of KEY.mp4 with KEY.json {"caption": ...} or KEY.txt where they lie.
            DIR may be a pattern such as 'DIR/train-*.tar'. Nothing is copied or written there.
latents     encodes a data set with a trained tokenizer, for stage=generator to train on without
            decoding or encoding anything. source.text=ID encodes the captions too, with the frozen
            encoder of generator.text.pretrained=ID.

What is refused, and why, is listed in OUT/rejected.jsonl. The work spreads over the Ray cluster at
RAY_ADDRESS, or over this machine's CPUs. Stopped half-way, the same command goes on from there.
verify checks every byte of a data set and writes nothing. dry_run=true only says what would be
made. The keys of each source are listed in conf/source/.
"""

from typing import Any

from hstvg.runtime.command import run_command


def main(config: dict[str, Any]) -> None:
    from pathlib import Path

    from hstvg.runtime.config import build
    from hstvg.runtime.ingest import ingest, preview
    from hstvg.runtime.source_latents import LatentSource
    from hstvg.runtime.verify import outlook, verify

    if config["verify"] is not None:
        path = Path(config["verify"])
        if config["dry_run"]:
            print(outlook(path))
            return
        verdict = verify(path, num_cpus=config["num_cpus"])
        print(verdict)
        verdict.check()
        return
    source = build(config["source"])
    out = Path(config["out"])
    if isinstance(source, LatentSource):
        from hstvg.runtime.encode import encode, would_encode

        if config["dry_run"]:
            print(would_encode(source, out))
        else:
            print(encode(source, out, num_cpus=config["num_cpus"]))
    elif config["dry_run"]:
        print(preview(source, out, config["clips_per_shard"]))
    else:
        print(ingest(source, out, config["clips_per_shard"], num_cpus=config["num_cpus"]))


if __name__ == "__main__":
    run_command("prepare", __doc__ or "", main)
