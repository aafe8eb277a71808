"""Partners on their way: latents whose clips come with another one of their style."""

import json

import pytest
import torch

from hstvg.data.batch import write_member
from hstvg.nn.haar_bank import style_statistics
from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.index import read_index, write_index
from hstvg.runtime.latents import Lineage, check_latents
from hstvg.runtime.order import OrderLog
from hstvg.runtime.quarantine import Quarantine
from hstvg.runtime.shard import Sample, write_shard
from hstvg.runtime.stream import WorkerStream, open_feed
from hstvg.scene.grammar import STYLES

SIZE = (2, 4, 4)
WORDS = "a red circle moves right"
WINDOW = {"num_frames": 4, "fps": 4.0, "height": 8, "width": 8}
STEPS, BATCH = 8, 8


@pytest.fixture
def latents(tmp_path):
    """24 clips, a third each plain, in stripes and blurred; every latent is another number."""
    lineage = Lineage(
        format=2,
        run="tok",
        weights="sha256:0",
        schedule=[[[1, 1, 1], list(SIZE)]],
        channels=3,
        crop="cover, centre",
        dtype="fp32",
        windows=1,
        source="videos",
        source_index="0" * 64,
        **WINDOW,
    )

    def samples():
        for i in range(24):
            style = STYLES[i % 3]
            caption = WORDS if style == "plain" else f"{WORDS}, in {style} style"
            shapes = {"latent": 3, "motion": 2, "motion_confidence": 1}
            tensors = {name: torch.full((1, n, *SIZE), float(i)) for name, n in shapes.items()}
            facts = {"num_frames": 4, "width": 8, "height": 8, "fps": 4.0, "caption": caption}
            yield Sample(
                key=f"{i:04d}",
                video=write_member(tensors),
                facts=facts | {"split": "val" if i >= 18 else "train"},
                suffix="safetensors",
            )

    (tmp_path / "shards").mkdir()
    write_index(tmp_path, write_shard(tmp_path / "shards" / "000000.tar", samples()))
    (tmp_path / "dataset.json").write_text(json.dumps(lineage.record()))
    return tmp_path


def stream_of(path, rank=0, world_size=1, style=True):
    run = RunFacts(name="run", steps=STEPS, global_batch=BATCH, micro_batch=2, validate_clips=6)
    data = DataFacts(path=str(path), motion=True, style=style, **WINDOW)
    return WorkerStream(
        feed=open_feed(run, data),
        run=run,
        data=data,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        quarantine=Quarantine(path, max_fraction=1, epoch_clips=24, rank=rank, say=print),
        order=OrderLog(path, keep=False),
    )


def clips_of(path, world_size=1):
    """Position -> key, caption and the number of the partner, of all workers; None without one."""
    found = {}
    for rank in range(world_size):
        stream = stream_of(path, rank, world_size)
        passes = STEPS * BATCH // 2 // world_size
        for _, batch in zip(range(passes), stream.train(0), strict=False):
            numbers = batch.style.statistics[:, 0].tolist()  # the mean of an even latent
            partners = [
                int(number) if known else None
                for number, known in zip(numbers, batch.style.known.tolist(), strict=True)
            ]
            facts = zip(batch.keys, batch.captions, partners, strict=True)
            found |= dict(zip(batch.positions.tolist(), facts, strict=True))
    return found


def test_a_reference_shows_the_style_and_the_caption_does_not(latents):
    found = clips_of(latents).values()
    assert len(found) == STEPS * BATCH
    for key, caption, partner in found:
        own = int(key)
        if partner is None:
            assert ("style" in caption) == (own % 3 != 0)
        else:
            assert caption == WORDS
            assert partner != own
            assert partner % 3 == own % 3
            assert partner < 18  # the others are held out
    alone = sum(partner is None for _, _, partner in found)
    assert 0.3 < alone / len(found) < 0.7


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_workers_meets_the_same_partners(latents, world_size):
    assert clips_of(latents, world_size) == clips_of(latents)


def test_held_out_clips_have_held_out_partners(latents):
    batches = list(stream_of(latents).held_out())
    partners = [
        (int(key), int(number))
        for batch in batches
        for key, number, known in zip(
            batch.keys, batch.style.statistics[:, 0], batch.style.known, strict=True
        )
        if known
    ]
    assert partners
    for own, partner in partners:
        assert partner >= 18
        assert partner != own
        assert partner % 3 == own % 3


def test_statistics_are_those_of_the_partner(latents):
    (batch,) = (batch for _, batch in zip(range(1), stream_of(latents).train(0), strict=False))
    for number, row in zip(batch.style.statistics[:, 0], batch.style.statistics, strict=True):
        even = torch.full((1, 3, *SIZE), float(number))
        assert torch.allclose(style_statistics(even)[0], row, atol=1e-4)


def test_nobody_is_asked_for_partners_by_default(latents):
    stream = stream_of(latents, style=False)
    batch = next(iter(stream.train(0)))
    assert batch.style is None
    assert stream.feed.opener.clip_bytes(0) < stream_of(latents).feed.opener.clip_bytes(0)


def test_a_damaged_partner_leaves_the_words(latents):
    whole = clips_of(latents)
    position, (_, _, partner) = next(item for item in whole.items() if item[1][2] is not None)
    table = read_index(latents).table
    row = table.slice(partner, 1).to_pylist()[0]
    with (latents / row["shard"]).open("r+b") as shard:
        shard.seek(row["offset"] + row["size"] - 8)
        shard.write(b"\1" * 8)
    key, caption, found = clips_of(latents)[position]
    assert found is None
    assert ("style" in caption) == (int(key) % 3 != 0)


def test_videos_are_refused_in_one_line(tmp_path):
    config = {"data": {"path": str(tmp_path), "style": True}, "tokenizer_run": "runs/tok"}
    with pytest.raises(ConfigError, match=r"holds videos, and data\.style=true"):
        check_latents(config)
