"""Latents before the training: a data set of videos, encoded once by a trained tokenizer.

Tasks read and decode on the CPUs, actors encode, one per GPU or, without GPUs, per CPU. Every shard
of videos becomes one shard of latents with its name, its keys and its order, so that a pass that
was stopped goes on with the shards that are missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from hstvg.data.batch import to_batch, write_member
from hstvg.data.latent import read_windows
from hstvg.data.sample import Window
from hstvg.generate.bundle import load_model
from hstvg.runtime.errors import CommandError
from hstvg.runtime.index import DatasetIndex, read_index
from hstvg.runtime.ingest import DATASET, Made, Summary, finished, grow, shard_facts, shards_there
from hstvg.runtime.latents import identity_of, lineage_of
from hstvg.runtime.lineage import file_hash
from hstvg.runtime.reader import DAMAGE, read_sample
from hstvg.runtime.shard import Sample, write_shard
from hstvg.runtime.source import Item, one_line, size_text
from hstvg.runtime.source_latents import LatentSource
from hstvg.runtime.work import Result, work
from hstvg.scene.text import TextEncoder
from hstvg.train.generator_stage import encode_batch

COLUMNS = ("num_frames", "width", "height", "fps", "caption", "split")
"""Of the index; they complete the JSON of footage that lies in foreign shards."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENCODER_RETRIES = 3
"""Of a batch whose encoder died, for example with its node."""


def would_encode(source: LatentSource, out: Path) -> str:
    """What `encode` would do, in one line.

    Raises:
        ConfigError: as `encode`.
    """
    index = read_index(source.path)
    lineage = lineage_of(source, index)
    layout = lineage.layout
    if existing := finished(out.expanduser().resolve(), identity_of(lineage)):
        return str(existing)
    shape = "x".join(map(str, (layout.channels, *layout.size)))
    size = size_text(len(index) * source.windows * layout.clip_bytes)
    return (
        f"{out} would get {len(index)} clips in {len(shards_of(index))} shards, "
        f"{source.windows} latents of {shape} in {source.dtype} each, about {size}"
        + (" and their captions" if source.text else "")
    )


def encode(source: LatentSource, out: Path, num_cpus: int | None = None) -> Summary:
    """Make the data set `out` of the latents of `source` on Ray, or go on making it.

    Raises:
        ConfigError: there is nothing to encode, or nothing to encode with; nothing was started.
        CommandError: no clip could be encoded, storage or an encoder failed, or no Ray.
    """
    index = read_index(source.path)
    lineage, shards = lineage_of(source, index), shards_of(index)

    def make(folder: Path) -> Made:
        with encoders(source, lineage.weights, len(shards)) as crew, plain_errors():
            job = EncodeJob(
                source=source,
                window=lineage.window,
                table=index.table,
                folder=folder / DATASET,
                names=tuple(shards),
                crew=crew,
            )
            results = work(job, list(shards.values()), folder / "records")
        text = lineage.text
        if text is not None:
            text = replace(text, longest=max(result["longest_text"] for result in results))
        return results, replace(lineage, text=text).record()

    return grow(out, identity_of(lineage), make, num_cpus)


def shards_of(index: DatasetIndex) -> dict[str, list[Item]]:
    """Name of each shard to be -> the samples that go into it, in the order of the index."""
    numbers = index.shard_numbers
    order = np.argsort(numbers, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    shards: dict[str, list[Item]] = {}
    for rows in sorted(groups, key=lambda rows: rows[0]):
        location = index.table.column("shard")[int(rows[0])].as_py()
        name = location.partition("?")[0].rpartition("/")[2]
        if name in shards:  # of two folders of foreign shards
            name = f"{len(shards):06d}-{name}"
        keys = index.table.column("key").take(rows).to_pylist()
        places = zip(keys, rows.tolist(), strict=True)
        shards[name] = [{"name": key, "row": row} for key, row in places]
    return shards


# ---- the encoders -----------------------------------------------------------------------------


class LatentEncoder:
    """A tokenizer, and a text encoder if wanted, on one device; a Ray actor.

    Raises:
        CommandError: the tokenizer is not the one that the pass began with.
    """

    def __init__(self, source: LatentSource, weights: str) -> None:
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        if not cuda:
            torch.set_num_threads(1)  # there is an encoder for every core
        if file_hash(source.export / "model.safetensors") != weights:
            raise CommandError(f"{source.tokenizer_run} was trained anew; start the pass again")
        model = load_model(source.export).to(self.device)
        self.tokenizer, self.fps = model.tokenizer, model.window.fps
        self.dtype = TYPES[source.dtype]
        self.text: TextEncoder | None = None
        if source.text is not None:
            self.text = TextEncoder(pretrained=source.text, max_tokens=source.max_tokens)
            self.text.to(self.device)

    def ready(self) -> None:
        """Returns once the models are loaded."""

    @torch.no_grad()
    def encode(
        self, clips: Mapping[str, np.ndarray], captions: Sequence[str]
    ) -> list[dict[str, Tensor]]:
        """The tensors of each clip's member, on the CPU.

        Args:
            clips: pixels, motion and motion_confidence of `read_windows`, stacked over clips.

        Raises:
            CommandError: the device has not enough memory.
        """
        texts = {"caption": np.array(captions), "key": np.array(captions)}
        places = np.arange(len(captions))
        try:
            windows = []
            for k in range(clips["pixels"].shape[1]):
                arrays = {name: values[:, k] for name, values in clips.items()}
                batch = to_batch({**arrays, **texts, "position": places}, self.fps, self.device)
                windows.append(encode_batch(self.tokenizer, batch))
            states, lengths = self._encode_texts(captions)
        except torch.OutOfMemoryError as error:
            raise CommandError(
                f"an encoder ran out of memory with {len(captions)} clips; lower source.batch and "
                "run the same command again to go on from here"
            ) from error
        names = ("latent", "motion", "motion_confidence")
        stacked = {
            name: torch.stack([getattr(window, name) for window in windows], dim=1)
            .to(self.dtype)
            .cpu()
            for name in names
        }
        return [
            {name: values[i] for name, values in stacked.items()}
            | ({"text": states[i, : lengths[i]]} if self.text else {})
            for i in range(len(captions))
        ]

    def _encode_texts(self, captions: Sequence[str]) -> tuple[Tensor, list[int]]:
        if self.text is None:
            return torch.empty(0), []
        ids, mask = (part.to(self.device) for part in self.text.tokenize(captions))
        return self.text(ids, mask).to(self.dtype).cpu(), mask.sum(1).tolist()


@contextmanager
def encoders(source: LatentSource, weights: str, most: int) -> Iterator[list[Any]]:
    """At most so many actors with a LatentEncoder: one per GPU or, without GPUs, per CPU.

    Raises:
        CommandError: one cannot be started.
    """
    import ray
    from ray.exceptions import RayActorError

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    actor: Any = ray.remote(LatentEncoder).options(
        num_gpus=1 if gpus else 0,
        # None: the tasks that decode need them, and wait while an actor works.
        num_cpus=0,
        scheduling_strategy="SPREAD",
        max_restarts=-1,
        max_task_retries=ENCODER_RETRIES,
    )
    number = min(most, gpus or max(1, int(resources.get("CPU", 1))))
    crew = [actor.remote(source, weights) for _ in range(number)]
    try:
        try:
            ray.get([encoder.ready.remote() for encoder in crew])
        except RayActorError as error:
            said = str(error).strip().splitlines()[-1].strip()
            raise CommandError(f"an encoder cannot be started: {said}") from error
        yield crew
    finally:
        for encoder in crew:
            ray.kill(encoder)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise a CommandError of another process as what it was there."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RayActorError):
            raise CommandError(
                f"an encoder died ({one_line(cause)}); run the same command again to go on"
            ) from error
        if isinstance(cause, CommandError):
            raise cause from error
        raise


# ---- the work of one shard --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Makes a shard of latents of every shard of videos."""

    source: LatentSource
    window: Window
    table: pa.Table
    """The index of the videos."""
    folder: Path
    names: Sequence[str]
    """Of the shards."""
    crew: Sequence[Any]
    """Actors with a LatentEncoder."""
    name: str = "shards"

    def run(self, number: int, items: Sequence[Item]) -> Result:
        rejected: list[dict[str, str]] = []
        longest = 0

        def samples() -> Iterator[Sample]:
            nonlocal longest
            encoder = self.crew[number % len(self.crew)]
            for clip, tensors in self._encoded(encoder, items, rejected):
                if "text" in tensors:
                    longest = max(longest, len(tensors["text"]))
                yield Sample(
                    key=clip.row["key"],
                    video=write_member(tensors),
                    facts=clip.facts | {name: clip.row[name] for name in COLUMNS},
                    suffix="safetensors",
                )

        rows = write_shard(self.folder / "shards" / self.names[number], samples())
        shards = {rows[0]["shard"]: shard_facts(self.folder, rows)} if rows else {}
        return {"rows": rows, "rejected": rejected, "shards": shards, "longest_text": longest}

    def attempt(self, item: Item) -> None:
        self._read(item)

    def holds(self, result: Result) -> bool:
        return shards_there(self.folder, result)

    def _encoded(
        self, encoder: Any, items: Sequence[Item], rejected: list[dict[str, str]]
    ) -> Iterator[tuple["_Clip", dict[str, Tensor]]]:
        """The clips with their tensors; the next batch is decoded while one is being encoded."""
        under_way: list[tuple[list[_Clip], Any]] = []
        for clips in self._batches(items, rejected):
            arrays = {
                name: np.stack([clip.arrays[name] for clip in clips]) for name in clips[0].arrays
            }
            captions = [clip.row["caption"] for clip in clips]
            under_way.append((clips, encoder.encode.remote(arrays, captions)))
            if len(under_way) > 1:
                yield from _results(*under_way.pop(0), rejected)
        for clips, future in under_way:
            yield from _results(clips, future, rejected)

    def _batches(
        self, items: Sequence[Item], rejected: list[dict[str, str]]
    ) -> Iterator[list["_Clip"]]:
        """Decoded clips, in batches that follow from the items alone: so do the bytes."""
        clips: list[_Clip] = []
        for item in items:
            if "refusal" in item:
                rejected.append({"source": item["name"], "reason": item["refusal"]})
                continue
            try:
                clips.append(self._read(item))
            except DAMAGE as error:
                rejected.append({"source": item["name"], "reason": f"damaged: {one_line(error)}"})
            if len(clips) == self.source.batch:
                yield clips
                clips = []
        if clips:
            yield clips

    def _read(self, item: Item) -> "_Clip":
        """Raises DAMAGE."""
        (row,) = self.table.slice(item["row"], 1).to_pylist()
        video, facts = read_sample(self.source.path, row, facts=True)
        arrays = read_windows(
            video,
            duration_s=row["num_frames"] / row["fps"],
            scene=facts.get("scene"),
            window=self.window,
            count=self.source.windows,
        )
        return _Clip(row=row, facts=facts, arrays=arrays)


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """A decoded sample."""

    row: Mapping[str, Any]
    """Of the index."""
    facts: dict[str, Any]
    """Its JSON member."""
    arrays: dict[str, np.ndarray]


def _results(
    clips: Sequence[_Clip], future: Any, rejected: list[dict[str, str]]
) -> Iterator[tuple[_Clip, dict[str, Tensor]]]:
    import ray

    with plain_errors():
        encoded = ray.get(future)
    for clip, tensors in zip(clips, encoded, strict=True):
        wild = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
        if wild:
            reason = f"not finite: its {wild[0]} has values beyond {tensors[wild[0]].dtype}"
            rejected.append({"source": clip.row["key"], "reason": reason})
        else:
            yield clip, tensors
