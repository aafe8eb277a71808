"""Layouts on their way: what a clip shows where arrives with it, as pixels and as latents."""

import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hstvg.data.batch import write_member
from hstvg.data.sample import Window, read_layout
from hstvg.data.shapes import render, sample_scene
from hstvg.runtime.config import DataFacts, RunFacts
from hstvg.runtime.index import read_index, write_index
from hstvg.runtime.latents import Lineage
from hstvg.runtime.order import OrderLog
from hstvg.runtime.quarantine import Quarantine
from hstvg.runtime.reader import read_sample
from hstvg.runtime.shard import Sample, write_shard
from hstvg.runtime.source import ShapeSource
from hstvg.runtime.stream import WorkerStream, open_feed, ray_dataset
from hstvg.scene.syntax import MAX_OBJECTS, Scene

CLIPS, STEPS, BATCH, MICRO = 24, 6, 8, 2
WINDOW = {"num_frames": 8, "fps": 8.0, "height": 16, "width": 16}
SIZE = (4, 4, 4)


def is_footage(number: int) -> bool:
    """Every sixth clip comes without its scene, as anybody's footage does."""
    return number % 6 == 5


def facts_of(sample: Sample, number: int) -> dict:
    kept = {name: fact for name, fact in sample.facts.items() if name != "scene"}
    scene = {} if is_footage(number) else {"scene": sample.facts["scene"]}
    return kept | scene | {"split": "val" if number >= 20 else "train"}


@pytest.fixture(scope="module")
def made() -> list[Sample]:
    """Clips of 2 s with up to three objects; every other one is panned."""
    source = ShapeSource(num_clips=CLIPS, camera_fraction=0.5)
    samples = [source.sample(item) for item in source.items()]
    return [replace(one, facts=facts_of(one, number)) for number, one in enumerate(samples)]


@pytest.fixture(scope="module")
def videos(made, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("layouts") / "videos"
    (path / "shards").mkdir(parents=True)
    write_index(path, write_shard(path / "shards" / "000000.tar", iter(made)))
    return path


@pytest.fixture(scope="module")
def latents(made, tmp_path_factory) -> Path:
    """Three windows of each clip; every latent is the number of its own."""
    path = tmp_path_factory.mktemp("layouts") / "latents"
    lineage = Lineage(
        format=2,
        run="tok",
        weights="sha256:0",
        schedule=[[[1, 1, 1], list(SIZE)]],
        channels=3,
        crop="cover, centre",
        dtype="fp32",
        windows=3,
        source="videos",
        source_index="0" * 64,
        **WINDOW,
    )
    tensors = {
        name: torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, n, *SIZE)
        for name, n in {"latent": 3, "motion": 2, "motion_confidence": 1}.items()
    }
    (path / "shards").mkdir(parents=True)
    encoded = (replace(one, video=write_member(tensors), suffix="safetensors") for one in made)
    write_index(path, write_shard(path / "shards" / "000000.tar", encoded))
    (path / "dataset.json").write_text(json.dumps(lineage.record()))
    return path


def stream_of(path: Path, rank=0, world_size=1, *, shard=None, layout=True, **changes):
    run = RunFacts(name="run", steps=STEPS, global_batch=BATCH, micro_batch=MICRO, validate_clips=4)
    facts = {**WINDOW, "motion": True, "block_mb": 0.05, **changes}
    data = DataFacts(path=str(path), layout=layout, **facts)
    return WorkerStream(
        feed=open_feed(run, data),
        run=run,
        data=data,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        quarantine=Quarantine(path, max_fraction=1, epoch_clips=CLIPS, rank=rank, say=print),
        order=OrderLog(path, keep=False),
        shard=shard,
    )


def clips_of(stream: WorkerStream, first_step: int = 0) -> dict[int, dict]:
    """Position -> what came of a worker's clips up to the last step."""
    passes = (STEPS - first_step) * BATCH // MICRO // stream.world_size
    found = {}
    for batch in islice(stream.train(first_step), passes):
        values = getattr(batch, "latent", None)
        for i, position in enumerate(batch.positions.tolist()):
            found[position] = {
                "key": batch.keys[i],
                "boxes": batch.layout.boxes[i].tolist(),
                "present": batch.layout.present[i].tolist(),
                "labels": batch.layout.labels[i],
                "window": None if values is None else int(values[i].mean()),
            }
    return found


def everywhere(path: Path, world_size: int, first_step: int = 0) -> dict[int, dict]:
    found = {}
    for rank in range(world_size):
        found |= clips_of(stream_of(path, rank, world_size), first_step)
    return found


def drawn(scene: Scene, start_s: float) -> np.ndarray:
    """Boxes O T 4 of a window as the renderer draws them."""
    return render(scene, start_s=start_s, **WINDOW).boxes.transpose(1, 0, 2)


def check(clip: dict, facts: dict, boxes: np.ndarray | None) -> None:
    """That a clip came with these boxes of all its objects, and with nothing else."""
    names = (
        [] if boxes is None else [f"{o['colour']} {o['shape']}" for o in facts["scene"]["objects"]]
    )
    missing = MAX_OBJECTS - len(names)
    assert clip["labels"] == (*names, *[""] * missing)
    assert clip["present"] == [True] * len(names) + [False] * missing
    got = np.array(clip["boxes"])
    assert not got[len(names) :].any()
    if boxes is not None:
        assert np.allclose(got[: len(names)], boxes, atol=1e-5)


# ---- pixels -----------------------------------------------------------------------------------


def test_videos_come_with_the_boxes_of_their_windows(videos, made):
    known = {sample.key: sample.facts for sample in made}
    clips = clips_of(stream_of(videos))
    assert len(clips) == STEPS * BATCH
    kinds = set()
    for position, clip in clips.items():
        facts = known[clip["key"]]
        start_s = np.random.default_rng((0, position)).random()  # of 1 s of 2
        scene = facts.get("scene") and Scene.model_validate(facts["scene"])
        check(clip, facts, drawn(scene, start_s) if scene else None)
        kinds.add((sum(clip["present"]), bool(scene) and scene.camera != "still"))
    assert {count for count, _ in kinds} == {0, 1, 2, 3}
    assert {panned for _, panned in kinds} == {True, False}


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("kind", ["videos", "latents"])
def test_any_number_of_workers_gets_the_same_layouts(kind, world_size, request):
    path = request.getfixturevalue(kind)
    assert everywhere(path, world_size) == everywhere(path, 1)


@pytest.mark.parametrize("kind", ["videos", "latents"])
def test_a_resumed_stream_has_the_layouts_it_had(kind, request):
    path = request.getfixturevalue(kind)
    whole = everywhere(path, 1)
    resumed = everywhere(path, 2, first_step=4)
    assert resumed == {place: clip for place, clip in whole.items() if place >= 4 * BATCH}


@pytest.mark.parametrize("kind", ["videos", "latents"])
def test_held_out_clips_have_layouts_too(kind, request):
    for batch in stream_of(request.getfixturevalue(kind)).held_out():
        known = [not is_footage(int(key)) for key in batch.keys]
        assert batch.layout.present.any(1).tolist() == known


@pytest.mark.parametrize("kind", ["videos", "latents"])
def test_a_substitute_shows_its_own_layout(kind, request, made, tmp_path):
    path = request.getfixturevalue(kind)
    whole = clips_of(stream_of(path))
    clip = next(clip for clip in whole.values() if any(clip["present"]))
    rows = read_index(path).table.to_pylist()
    (tmp_path / "shards").symlink_to(path / "shards")
    for row in rows:
        if row["key"] == clip["key"]:
            row["json_checksum"] = "sha256:0"
    write_index(tmp_path, rows)
    for file in path.glob("dataset.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stream = stream_of(tmp_path)
    got = clips_of(stream)
    (found, *_) = [item for item in stream.substitutions() if item.key == clip["key"]]
    facts = {sample.key: sample.facts for sample in made}[found.substitute]
    names = [f"{o['colour']} {o['shape']}" for o in facts.get("scene", {"objects": []})["objects"]]
    assert [label for label in got[found.position]["labels"] if label] == names


@pytest.mark.parametrize("kind", ["videos", "latents"])
def test_nobody_is_told_by_default_and_all_else_is_the_same(kind, request):
    path = request.getfixturevalue(kind)
    told, untold = stream_of(path), stream_of(path, layout=False)
    for one, other in zip(islice(told.train(0), 4), islice(untold.train(0), 4), strict=True):
        assert other.layout is None
        for name in ("captions", "keys"):
            assert getattr(one, name) == getattr(other, name)
        for name in ("motion", "pixels" if kind == "videos" else "latent"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert untold.feed.opener.needs_facts == (kind == "videos")


def test_a_wide_window_shows_the_middle_of_a_square_clip():
    scene = sample_scene(1, camera_fraction=0.0, style_fraction=0.0)
    facts = {"scene": scene.model_dump(mode="json"), "width": 32, "height": 32}
    how = {"duration_s": 2.0, "start": 0.0, "moments": np.zeros(1)}
    square = read_layout(facts, window=Window(**WINDOW), **how)["boxes"]
    wide = read_layout(facts, window=Window(**{**WINDOW, "width": 32}), **how)["boxes"]
    count = len(scene.objects)
    assert np.allclose(wide[:count, :, ::2], square[:count, :, ::2])
    # The upper and the lower quarter are cut off, and the rest is twice as high on screen.
    assert np.allclose(wide[:count, :, 1::2], 2 * square[:count, :, 1::2] - 0.5)
    high = read_layout(facts, window=Window(**{**WINDOW, "height": 32}), **how)["boxes"]
    assert np.allclose(high[:count, :, ::2], 2 * square[:count, :, ::2] - 0.5)
    assert not wide[count:].any()


# ---- latents ----------------------------------------------------------------------------------


def test_latents_come_with_the_boxes_of_the_window_they_were_made_of(latents, made):
    known = {sample.key: sample.facts for sample in made}
    windows = set()
    for clip in clips_of(stream_of(latents)).values():
        facts = known[clip["key"]]
        windows.add(clip["window"])
        boxes = None
        if "scene" in facts:
            # Window k of three begins at (k + 1/2) / 3 of 1 s; a latent frame holds two.
            frames = drawn(Scene.model_validate(facts["scene"]), (clip["window"] + 0.5) / 3)
            boxes = (frames[:, ::2] + frames[:, 1::2]) / 2
        check(clip, facts, boxes)
    assert windows == {0, 1, 2}


def test_partners_and_layouts_come_together(latents):
    alone = clips_of(stream_of(latents))
    stream = stream_of(latents, style=True)
    batches = list(islice(stream.train(0), STEPS * BATCH // MICRO))
    assert any(batch.style.known.any() for batch in batches)
    for batch in batches:
        for i, position in enumerate(batch.positions.tolist()):
            assert batch.layout.boxes[i].tolist() == alone[position]["boxes"]


def test_a_clip_of_latents_weighs_what_travels(latents):
    with_it, without = (stream_of(latents, layout=asked).feed for asked in (True, False))
    row = {**with_it.index.table.slice(0, 1).to_pylist()[0], "position": 0, "window": 0}
    member, facts = read_sample(str(latents), row, facts=True)
    arrays = with_it.opener(row, member, facts)
    assert sum(array.nbytes for array in arrays.values()) == with_it.opener.clip_bytes(0)
    assert with_it.opener.clip_bytes(0) > without.opener.clip_bytes(0)


# ---- Ray Data ---------------------------------------------------------------------------------


def from_ray(path: Path) -> dict[int, dict]:
    stream = stream_of(path)
    dataset = ray_dataset(stream.feed, stream.run, stream.data, 1, 0)
    dataset.context.execution_options.preserve_order = True
    (shard,) = dataset.streaming_split(1, equal=True)
    return clips_of(stream_of(path, shard=shard))


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["videos", "latents"])
def test_ray_data_brings_the_same_layouts(ray_cluster, kind, request):
    import ray
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    path = request.getfixturevalue(kind)
    assert ray.get(ray.remote(num_cpus=0)(from_ray).remote(path)) == clips_of(stream_of(path))
