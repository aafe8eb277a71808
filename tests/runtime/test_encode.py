"""Latents: a data set encoded once, and training on it as if it were encoded in the step."""

import json
import re
import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from hstvg.data.sample import Window, read_clip
from hstvg.generate.bundle import load_model
from hstvg.runtime import encode as encode_module
from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.encode import encode, shards_of, would_encode
from hstvg.runtime.errors import CommandError, ConfigError
from hstvg.runtime.evaluation import evaluate
from hstvg.runtime.index import read_index, write_index
from hstvg.runtime.latents import read_lineage
from hstvg.runtime.launch import run_training
from hstvg.runtime.order import OrderLog
from hstvg.runtime.quarantine import Quarantine
from hstvg.runtime.shard import checksum
from hstvg.runtime.source_latents import LatentSource
from hstvg.runtime.stream import WorkerStream, open_feed, ray_dataset
from hstvg.runtime.track_jsonl import read_metrics
from hstvg.runtime.verify import verify
from hstvg.train.generator_stage import encode_batch

pytestmark = pytest.mark.ray

LOCAL = ("worker=local", "worker.threads=1", "engine=torch")
WHOLE = "data.num_frames=16"
"""As long as the clips are, so that a window has one place only."""
TEXT_SIZES = {"vocab_size": 384, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2}


@pytest.fixture(scope="module")
def tokenizer(run_locally, tmp_path_factory) -> Path:
    return run_locally(tmp_path_factory.mktemp("runs"), "tok", WHOLE, "run.steps=2")


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    T5EncoderModel(T5Config(**TEXT_SIZES, num_heads=2)).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def latents(ray_cluster, shapes_dataset, tokenizer, text_encoder, tmp_path_factory) -> Path:
    """All of the shape world in fp32, with texts."""
    out = tmp_path_factory.mktemp("latents") / "latents"
    encode(source_of(shapes_dataset, tokenizer, text=text_encoder), out)
    return out


def source_of(path: Path, run: Path, **changes) -> LatentSource:
    facts = {"path": str(path), "tokenizer_run": str(run), "dtype": "fp32", **changes}
    return LatentSource(**facts)


def rows_of(path: Path) -> list[dict]:
    return read_index(path).table.to_pylist()


def members_of(path: Path, row: dict) -> tuple[bytes, bytes]:
    whole = (path / row["shard"]).read_bytes()
    return tuple(
        whole[row[offset] : row[offset] + row[size]]
        for offset, size in (("offset", "size"), ("json_offset", "json_size"))
    )


def content_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*.*")}


def numbers(run: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def damage(path: Path, key: str, junk: bytes = b"\0" * 40) -> None:
    (row,) = [row for row in rows_of(path) if row["key"] == key]
    with (path / row["shard"]).open("r+b") as shard:
        shard.seek(row["offset"] + 8)
        shard.write(junk)


# ---- the pass ---------------------------------------------------------------------------------


def test_a_shard_of_latents_mirrors_its_shard_of_videos(latents, shapes_dataset, tokenizer):
    videos, encoded = rows_of(shapes_dataset), rows_of(latents)
    same = ("shard", "key", "num_frames", "width", "height", "fps", "caption", "split")
    assert [[row[name] for name in same] for row in encoded] == [
        [row[name] for name in same] for row in videos
    ]
    model = load_model(tokenizer / "export")
    for row, video in list(zip(encoded, videos, strict=True))[::13]:
        member, facts = members_of(latents, row)
        clip, before = members_of(shapes_dataset, video)
        assert facts == before
        assert row["checksum"] == checksum(member)
        found = load(member)
        assert set(found) == {"latent", "motion", "motion_confidence", "text"}
        shown = read_clip(
            clip,
            duration_s=2.0,
            scene=None,
            window=Window(num_frames=16, fps=8.0, height=16, width=16),
            start=0.0,
            motion=False,
            decoder="pyav",
        )["pixels"]
        pixels = torch.from_numpy(shown).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        want = model.tokenizer.encode(pixels)
        assert torch.allclose(found["latent"], want, atol=1e-5)
        assert found["text"].shape == (len(row["caption"].encode()) + 1, 16)
    assert "is whole" in str(verify(latents))


def test_the_data_set_says_what_it_was_made_with(latents, shapes_dataset, tokenizer):
    record = json.loads((latents / "dataset.json").read_text())
    lineage = read_lineage(latents)
    assert record["kind"] == "latents"
    assert lineage.source_index == read_index(shapes_dataset).hash
    assert (lineage.run, lineage.source) == (str(tokenizer), str(shapes_dataset))
    assert lineage.schedule == [[[1, 1, 1], [2, 1, 1], [4, 2, 2], [8, 4, 4]]]
    assert (lineage.dtype, lineage.windows, lineage.format) == ("fp32", 1, 2)
    assert lineage.text.longest == max(len(row["caption"]) + 1 for row in rows_of(latents))
    assert read_lineage(shapes_dataset) is None


def test_a_killed_pass_goes_on_and_ends_in_the_same_bytes(
    latents, shapes_dataset, tokenizer, text_encoder, tmp_path, monkeypatch, capsys
):
    source, out = source_of(shapes_dataset, tokenizer, text=text_encoder), tmp_path / "out"
    work = encode_module.work

    def killed(job, parts, records):
        work(job, parts[:1], records)
        (job.folder / "shards" / ".000001.tar.7.tmp").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encode_module, "work", killed)
        with pytest.raises(KeyboardInterrupt):
            encode(source, out)
    assert not out.exists()
    kept = tmp_path / ".out.prepare-partial" / "dataset" / "shards" / "000000.tar"
    before = kept.stat()
    capsys.readouterr()
    assert encode(source, out).num_clips == 96
    assert "continuing: 1 of 2 shards are there" in capsys.readouterr().err
    after = (out / "shards" / "000000.tar").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert content_of(out) == content_of(latents)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "already prepared" in str(encode(source, out))
    with pytest.raises(ConfigError, match="with other settings"):
        encode(source_of(shapes_dataset, tokenizer, dtype="bf16"), out)


def test_a_damaged_clip_is_refused_and_the_others_are_not(
    ray_cluster, shapes_dataset, tokenizer, tmp_path
):
    videos = Path(shutil.copytree(shapes_dataset, tmp_path / "videos"))
    keys = [row["key"] for row in rows_of(videos)]
    for key in (keys[3], keys[60]):
        damage(videos, key)
    source = source_of(videos, tokenizer, dtype="bf16", windows=2)
    assert "96 clips in 2 shards, 2 latents of 4x8x4x4 in bf16" in would_encode(
        source, tmp_path / "out"
    )
    summary = encode(source, tmp_path / "out")
    assert (summary.num_clips, summary.refused) == (94, {"damaged": 2})
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == [keys[3], keys[60]]
    assert "checksum" in lines[0]
    rows = rows_of(tmp_path / "out")
    assert [row["key"] for row in rows] == [k for k in keys if k not in (keys[3], keys[60])]
    found = load(members_of(tmp_path / "out", rows[0])[0])
    assert found["latent"].shape == (2, 4, 8, 4, 4)
    assert found["latent"].dtype == found["motion"].dtype == torch.bfloat16


def test_two_shards_of_one_name_do_not_become_one(shapes_dataset, tmp_path):
    rows = rows_of(shapes_dataset)
    moved = [{**row, "shard": f"/{i % 2}/a.tar"} for i, row in enumerate(rows)]
    shards = shards_of(write_index(tmp_path, moved))
    assert list(shards) == ["a.tar", "000001-a.tar"]
    assert [item["row"] for item in shards["a.tar"]] == list(range(0, 96, 2))
    assert shards["a.tar"][1]["name"] == rows[2]["key"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"windows": 0}, r"source\.windows=0"),
        ({"dtype": "int8"}, "choose from fp32, bf16, fp16"),
        ({"text": "."}, "byte-level encoder is trained with its generator"),
        ({"path": "."}, r"no index\.parquet"),
        ({"tokenizer_run": "."}, "holds no finished tokenizer"),
    ],
)
def test_what_cannot_be_encoded_is_refused_in_one_line(
    changes, said, shapes_dataset, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = {"path": str(shapes_dataset), "tokenizer_run": str(tokenizer), **changes}
    with pytest.raises(ConfigError, match=said) as caught:
        encode(LatentSource(**given), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_latents_are_not_encoded_again(latents, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="holds latents, and source=latents needs"):
        encode(source_of(latents, tokenizer), tmp_path / "out")


# ---- training ---------------------------------------------------------------------------------


def generator_on(path: Path, tokenizer: Path, *more: str) -> list[str]:
    run = f"tokenizer_run={tokenizer}"
    return ["stage=generator", WHOLE, f"data.path={path}", run, *more]


def test_a_generator_learns_the_same_from_latents(
    latents, shapes_dataset, tokenizer, run_locally, tmp_path
):
    """The text lies there too, but a byte-level encoder has to see the captions."""
    runs = [
        run_locally(tmp_path, name, *generator_on(path, tokenizer))
        for name, path in (("videos", shapes_dataset), ("latents", latents))
    ]
    first, second = map(numbers, runs)
    assert len(first) == 4
    assert any("val/diffusion" in line for line in first)
    for line, other in zip(first, second, strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    assert len(list((runs[1] / "samples").glob("*.mp4"))) == 2
    load_model(runs[1] / "export")


def test_encoded_texts_teach_the_same_too(
    latents, shapes_dataset, tokenizer, text_encoder, run_locally, tmp_path
):
    more = (f"++generator.text.pretrained={text_encoder}", "generator.text_dropout=0.4")
    videos, encoded = (
        numbers(run_locally(tmp_path, name, *generator_on(path, tokenizer, *more)))
        for name, path in (("videos", shapes_dataset), ("latents", latents))
    )
    for line, other in zip(videos, encoded, strict=True):
        assert line == pytest.approx(other, rel=1e-5)


def test_latents_of_the_tokenizer_before_are_refused(
    latents, tokenizer, run_locally, compose_run, tmp_path
):
    other = run_locally(tmp_path, "tok", WHOLE, "run.steps=3")
    arguments = compose_run(tmp_path, "gen", *LOCAL, *generator_on(latents, other))
    with pytest.raises(
        ConfigError, match="was made by another tokenizer: weights sha256:"
    ) as found:
        run_training(*arguments)
    assert re.search(
        r"weights sha256:\w+\.\. and now sha256:\w+\.\.; run source=latents again", str(found.value)
    )
    assert not (tmp_path / "gen").exists()


CHANGES = {
    "fps 4 and now 8": {"fps": 4.0},
    "num_frames 8 and now 16; height 32 and now 16": {"num_frames": 8, "height": 32},
    "schedule 1x2x2 . 1x1x1 7x2x2 and now 1x1x1 2x1x1 4x2x2 8x4x4;": {
        "schedule": [[[1, 2, 2]], [[1, 1, 1], [7, 2, 2]]]
    },
    "crop squeeze and now cover, centre": {"crop": "squeeze"},
    "format 1 and now 2": {"format": 1},
    "is damaged .no such dtype": {"dtype": "int4"},
}


@pytest.mark.parametrize("said", CHANGES)
def test_every_fact_that_differs_is_named(said, latents, tokenizer, compose_run, tmp_path):
    path = Path(shutil.copytree(latents, tmp_path / "changed"))
    record = json.loads((path / "dataset.json").read_text())
    record["latents"] |= CHANGES[said]
    (path / "dataset.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=said):
        run_training(*compose_run(tmp_path, "gen", *LOCAL, *generator_on(path, tokenizer)))


def test_texts_of_another_encoder_are_refused(
    latents, tokenizer, text_encoder, compose_run, tmp_path
):
    folder = Path(shutil.copytree(text_encoder, tmp_path / "t5"))
    torch.manual_seed(1)
    T5EncoderModel(T5Config(**TEXT_SIZES, num_heads=2)).save_pretrained(folder)
    for more, said in (
        ([f"++generator.text.pretrained={folder}"], "text encoder sha256"),
        (
            [f"++generator.text.pretrained={text_encoder}", "++generator.text.max_tokens=7"],
            "text.max_tokens 128 and now 7",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            run_training(
                *compose_run(tmp_path, "gen", *LOCAL, *generator_on(latents, tokenizer, *more))
            )


def test_what_needs_pixels_is_refused(latents, shapes_dataset, tokenizer, compose_run, tmp_path):
    with pytest.raises(ConfigError, match=f"stage=tokenizer cannot learn.*{shapes_dataset}"):
        run_training(*compose_run(tmp_path, "tok", *LOCAL, WHOLE, f"data.path={latents}"))
    buckets = generator_on(latents, tokenizer, "data.buckets=[8x16x16]")
    with pytest.raises(ConfigError, match=r"leave data\.buckets out"):
        run_training(*compose_run(tmp_path, "gen", *LOCAL, *buckets))
    with pytest.raises(ConfigError, match=f"an evaluation needs the videos.*{shapes_dataset}"):
        evaluate({"run": str(tokenizer), "data": {"path": str(latents)}, "dry_run": False})


# ---- the stream -------------------------------------------------------------------------------


def stream_of(path: Path, shard=None, **asked) -> WorkerStream:
    run = RunFacts(name="x", steps=6, global_batch=8, micro_batch=4)
    window = {"num_frames": 16, "fps": 8.0, "height": 16, "width": 16}
    data = DataFacts(path=str(path), motion=True, block_mb=0.1, **window, **asked)
    return WorkerStream(
        feed=open_feed(run, data),
        run=run,
        data=data,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        quarantine=Quarantine(path, max_fraction=1, epoch_clips=80, rank=0, say=print),
        order=OrderLog(path, keep=False),
        shard=shard,
    )


def clips_of(stream: WorkerStream) -> list[dict]:
    names = ("latent", "motion", "motion_confidence", "text", "text_mask", "keys", "captions")
    return [{name: getattr(batch, name) for name in names} for batch in islice(stream.train(0), 12)]


def from_ray(path: Path) -> list[dict]:
    stream = stream_of(path)
    dataset = ray_dataset(stream.feed, stream.run, stream.data, 1, 0)
    dataset.context.execution_options.preserve_order = True
    (shard,) = dataset.streaming_split(1, equal=True)
    return clips_of(stream_of(path, shard))


def test_ray_data_brings_the_same_latents(latents):
    import ray
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    got = ray.get(ray.remote(num_cpus=0)(from_ray).remote(latents))
    for one, other in zip(got, clips_of(stream_of(latents)), strict=True):
        for name, value in one.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(value, other[name]), name


def test_latents_come_in_the_order_of_their_videos(latents, shapes_dataset):
    first, second = (
        [batch.keys for batch in islice(stream_of(path).train(3), 9)]
        for path in (latents, shapes_dataset)
    )
    assert first == second


def test_layouts_of_latents_are_those_of_their_videos(latents, shapes_dataset, tokenizer):
    model = load_model(tokenizer / "export")
    streams = [stream_of(path, layout=True).train(0) for path in (latents, shapes_dataset)]
    for before, video in islice(zip(*streams, strict=True), 4):
        now = encode_batch(model.tokenizer, video)
        assert torch.allclose(now.latent, before.latent, atol=1e-5)
        assert torch.allclose(now.layout.boxes, before.layout.boxes, atol=1e-5)
        assert now.layout.labels == before.layout.labels
        assert torch.equal(now.layout.present, before.layout.present)
        assert now.layout.present[:, 0].all()


def test_a_window_belongs_to_the_position(ray_cluster, shapes_dataset, latents, tmp_path):
    """Two windows of which one is zeros: both are drawn, and each position keeps its own."""
    path = Path(shutil.copytree(latents, tmp_path / "two"))
    record = json.loads((path / "dataset.json").read_text())
    record["latents"] |= {"windows": 2}
    (path / "dataset.json").write_text(json.dumps(record))
    rewrite(
        path,
        lambda tensors: {
            name: value if name == "text" else torch.cat([value, torch.zeros_like(value)])
            for name, value in tensors.items()
        },
    )
    empty = [
        [not clip.any() for batch in islice(stream_of(path).train(0), 12) for clip in batch.latent]
        for _ in range(2)
    ]
    assert empty[0] == empty[1]
    assert 12 < sum(empty[0]) < 36


def rewrite(path: Path, change) -> None:
    """Put changed members at the end of their shards, and right checksums into the index."""
    rows = []
    for row in rows_of(path):
        tensors = load(members_of(path, row)[0])
        member = save(change(tensors))
        with (path / row["shard"]).open("ab") as shard:
            rows.append({**row, "offset": shard.tell(), "size": len(member)})
            shard.write(member)
        rows[-1]["checksum"] = checksum(member)
    write_index(path, rows)


def test_a_damaged_member_is_replaced_and_named(latents, tmp_path):
    path = Path(shutil.copytree(latents, tmp_path / "damaged"))
    whole = clips_of(stream_of(latents))
    key = whole[0]["keys"][2]
    damage(path, key)
    stream = stream_of(path)
    got = clips_of(stream)
    (found,) = [item for item in stream.substitutions() if item.position == 2]
    assert found.key == key
    assert "checksum" in found.reason
    assert torch.equal(got[1]["latent"], whole[1]["latent"])


def test_members_that_are_not_what_the_data_set_says_never_crash(latents, tmp_path):
    """With right checksums: made by a foreign hand. Spares are of that make too."""
    path = Path(shutil.copytree(latents, tmp_path / "foreign"))
    rewrite(path, lambda tensors: {**tensors, "latent": torch.zeros(1, 4, 8, 4, 400)})
    with pytest.raises(CommandError, match=r"cannot be read .* bytes of latents; at most"):
        clips_of(stream_of(path))


def test_a_dry_run_counts_no_encoding(
    latents, shapes_dataset, tokenizer, compose_run, tmp_path, capsys
):
    counted = []
    for path in (shapes_dataset, latents):
        more = generator_on(path, tokenizer, "dry_run=true")
        run_training(*compose_run(tmp_path, "gen", *LOCAL, *more))
        said = capsys.readouterr().out
        counted.append(float(re.search(r"operations +(\S+) TFLOP", said).group(1)))
    assert 0 < counted[1] < counted[0]
    assert np.isfinite(counted).all()
