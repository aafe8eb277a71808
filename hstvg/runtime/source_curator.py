"""What a curation pipeline of the NeMo Curator family has written, as a source.

Layout: clips/UUID.mp4 beside metas/v0/UUID.json, whose `windows` hold a caption per range of frames
in a field named after the model that wrote it, MODEL_caption or MODEL_enhanced_caption.

Source: NVIDIA-NeMo/Curator, ClipWriterStage; nvidia-cosmos/cosmos-curate, same name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hstvg.runtime.caption import clean, json_object, read_small
from hstvg.runtime.clip_rules import WHOLE, ClipRules, Cut, Span, clip_facts, readable
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.shard import Sample
from hstvg.runtime.source import Ask, Item, Refused, count_shards, inside, size_text
from hstvg.runtime.split import hold_out

CLIPS = "clips"
METAS = "metas/v0"
FILTERED = "filtered_clips"
ENHANCED, PLAIN = "_enhanced_caption", "_caption"


@dataclass(frozen=True, kw_only=True)
class CuratorSource:
    """Curated clips. Each captioned window is a sample; all of one source video share a split."""

    path: str
    caption_field: str | None = None
    """Such as qwen_caption. None takes an enhanced caption where there is one, else any; of
    several the first by name."""
    policy: str = "fit"
    """As `Form`, with the sizes and rate below."""
    max_side: int = 256
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    gop: int = 16
    min_frames: int = 2
    min_s: float = 0.0
    min_motion: float | None = None
    """Frame widths per second."""
    val_fraction: float = 0.05

    def __post_init__(self) -> None:
        # Absolute at once: a Ray worker has another working directory.
        object.__setattr__(self, "path", str(Path(self.path).expanduser().resolve()))
        self.rules  # noqa: B018  a size out of range dies here

    @property
    def root(self) -> Path:
        return Path(self.path)

    @property
    def rules(self) -> ClipRules:
        from hstvg.data.transcode import Form

        form = Form(
            policy=self.policy,
            max_side=self.max_side,
            height=self.height,
            width=self.width,
            fps=self.fps,
            gop=self.gop,
        )
        return ClipRules(
            form=form, min_frames=self.min_frames, min_s=self.min_s, min_motion=self.min_motion
        )

    def items(self) -> list[Item]:
        clips, metas = (
            {path.stem: path for path in (self.root / folder).glob(f"*{suffix}")}
            for folder, suffix in ((CLIPS, ".mp4"), (METAS, ".json"))
        )
        if not clips or not metas:
            raise ConfigError(
                f"source.path={self.path}: no {CLIPS}/*.mp4 with {METAS}/*.json; give the folder "
                "that the curator wrote to"
            )
        return [
            _item(self.root, name, clips.get(name), metas.get(name))
            for name in sorted(clips | metas)
        ]

    def outlook(self, items: Sequence[Item], clips_per_shard: int) -> str:
        clips = [item for item in items if "refusal" not in item]
        size = size_text(sum(item["stamps"][0][0] for item in clips))
        shards = count_shards(len(items), clips_per_shard)
        return f"the captioned windows of {len(clips)} clips ({size}) in at least {shards}"

    def settle(self, items: Sequence[Item], ask: Ask) -> list[Item]:
        metas = [item for item in items if "refusal" not in item]
        answers = ask("metas", self.source_video, metas)
        origins = {
            item["name"]: answer
            for item, answer in zip(metas, answers, strict=True)
            if isinstance(answer, str)
        }
        if len(set(origins.values())) < 2:
            origins = {name: name for name in origins}
        of_origin: dict[str, list[Item]] = {}
        for item in metas:
            if item["name"] in origins:
                of_origin.setdefault(origins[item["name"]], []).append(item)

        def usable(origin: str) -> bool:
            return any(
                ask("usable", self.is_usable, [item])[0] is True for item in of_origin[origin]
            )

        held_out = hold_out(of_origin, self.val_fraction, usable)
        return [{**item, "held_out": origins.get(item["name"]) in held_out} for item in items]

    def samples(self, item: Item) -> Iterator[Sample | Refused]:
        meta = self._meta(item)
        windows = meta.get("windows") or []
        if meta.get("valid") is False:
            raise Refused("invalid: so says its meta")
        captions = [self._caption(window) for window in windows]
        if not any(captions):
            raise Refused("no caption")
        path = inside(self.root, f"{CLIPS}/{item['name']}.mp4")
        spans = [WHOLE] if len(windows) == 1 else _spans(path, meta, windows)
        cuts = [Cut(*span, text) for span, text in zip(spans, captions, strict=True) if text]
        facts = clip_facts(held_out=item["held_out"], source=self.source_video(item))
        yield from (
            Refused(f"no caption: for its frames from {window['start_frame']} on")
            for window, text in zip(windows, captions, strict=True)
            if not text
        )
        yield from self.rules.clips(path, cuts, key=item["name"], facts=facts)

    def source_video(self, item: Item) -> str:
        """What the clip was cut from."""
        return str(self._meta(item).get("source_video") or item["name"])

    def is_usable(self, item: Item) -> bool:
        """Whether any clip comes of it."""
        outcomes = self.samples({**item, "held_out": True})
        return any(isinstance(outcome, Sample) for outcome in outcomes)

    def _meta(self, item: Item) -> dict[str, Any]:
        path = inside(self.root, f"{METAS}/{item['name']}.json")
        meta = json_object(read_small(path), path.name)
        if meta.get("span_uuid", item["name"]) != item["name"]:
            raise Refused(f"unreadable caption: {path.name} is about another clip")
        if not isinstance(meta.get("windows") or [], list):
            raise Refused(f"unreadable caption: the windows of {path.name} are no list")
        return meta

    def _caption(self, window: object) -> str:
        if not isinstance(window, dict):
            raise Refused("unreadable caption: a window is no object")
        fields = [self.caption_field] if self.caption_field else sorted(window, key=_rank)
        texts = (clean(window.get(name)) for name in fields if str(name).endswith(PLAIN))
        return next(filter(None, texts), "")


def _rank(field: str) -> tuple[bool, str]:
    """Enhanced captions come first."""
    return not field.endswith(ENHANCED), field


def _spans(path: Path, meta: Mapping[str, Any], windows: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Windows in seconds. Both of their ends are frames that belong to them."""
    fps = meta.get("framerate")
    if not isinstance(fps, int | float) or fps <= 0:
        from hstvg.data.video import probe_video

        with readable():
            fps = probe_video(path).fps
    spans: list[Span] = []
    for window in windows:
        first, last = window.get("start_frame"), window.get("end_frame")
        if not isinstance(first, int) or not isinstance(last, int) or not 0 <= first <= last:
            raise Refused("unreadable caption: a window does not say of which frames it is")
        spans.append((first / fps, (last + 1) / fps))
    return spans


def _item(root: Path, name: str, clip: Path | None, meta: Path | None) -> Item:
    item: Item = {"name": name}
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return item | {"refusal": "unusable name: letters, digits, - and _ make a key"}
    if clip is None:
        if (root / FILTERED / f"{name}.mp4").exists():
            return item | {"refusal": "filtered: out by the curator"}
        return item | {"refusal": f"missing: there is no {CLIPS}/{name}.mp4"}
    if meta is None:
        return item | {"refusal": f"no meta: there is no {METAS}/{name}.json"}
    stamps = [(path.lstat().st_size, path.lstat().st_mtime_ns) for path in (clip, meta)]
    return item | {"stamps": stamps}
