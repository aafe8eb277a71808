"""Scores of a run on clips it was not trained on, with intervals, baselines and chance."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hstvg.data.optical_flow import estimate_flow
from hstvg.data.sample import Window
from hstvg.data.video import encode_video
from hstvg.generate.bundle import VideoModel
from hstvg.generate.workflow import to_frames, to_pixels, write_clips
from hstvg.metrics.coherence import Coherence
from hstvg.metrics.control import CHANCE, ControlAccuracy
from hstvg.metrics.flow_consistency import FlowConsistency
from hstvg.metrics.interval import mean_interval
from hstvg.metrics.layout import LayoutOverlap
from hstvg.metrics.reconstruction import Reconstruction
from hstvg.runtime.assemble import open_run
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.index import DatasetIndex, read_index
from hstvg.runtime.latents import refuse_latents
from hstvg.runtime.layout_scores import (
    layout_scores,
    overlaps_of,
    places_of,
    sample_placed,
)
from hstvg.runtime.lineage import write_json
from hstvg.runtime.reader import Reader, VideoOpener, references
from hstvg.runtime.sampling import (
    check_guided,
    check_kappa,
    check_layout,
    check_style,
    refusals,
    sampling_of,
)
from hstvg.runtime.style_scores import (
    Look,
    Reference,
    ReferenceClips,
    look_at,
    sample_like,
    style_scores,
)
from hstvg.runtime.worker_local import pick_device
from hstvg.scene.grammar import read_caption, style_of, write_caption
from hstvg.scene.layout import Places

SPLITS = {"val": "held-out", "unseen": "unseen combinations"}
"""Index split -> what it is called: new scenes of known combinations, or combinations unseen."""

NUM_SHUFFLES = 8


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is seen in clips, whoever made them; what a caption has to be known for is empty where
    it is not of the shape world."""

    control: ControlAccuracy = field(default_factory=ControlAccuracy.empty)
    coherence: Coherence = field(default_factory=Coherence.empty)
    flow: FlowConsistency = field(default_factory=FlowConsistency.empty)

    @classmethod
    def of(cls, clip: np.ndarray, caption: str, fps: float) -> "Judged":
        estimated = estimate_flow(clip, fps)
        seen = {
            "clips": [clip],
            "flows": [estimated.flow],
            "trusts": [estimated.confidence],
            "fps": fps,
        }
        coherence = Coherence.empty().update(**seen)
        if not _is_shape_world(caption):
            return cls(coherence=coherence)
        return cls(
            control=_judged([clip], [caption], fps),
            coherence=coherence,
            flow=FlowConsistency.empty().update(**seen, captions=[caption]),
        )

    def merge(self, other: "Judged") -> "Judged":
        return Judged(
            control=self.control.merge(other.control),
            coherence=self.coherence.merge(other.coherence),
            flow=self.flow.merge(other.flow),
        )

    def motion(self) -> dict[str, Any]:
        """Temporal residual, flicker and, where captions command a motion, its end-point error."""
        found = {**self.coherence.compute(), **self.flow.compute()}
        return {name: asdict(estimate) for name, estimate in found.items()}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A held-out clip, what the tokenizer makes of it, and the generator of its caption.

    Measured at once: of most clips the sample alone is kept, which other prompts judge, too.
    """

    split: str
    caption: str
    rebuilt: Reconstruction
    """Decoded from the latent z."""
    states: tuple[Reconstruction, ...]
    """Decoded from what the codes say up to each scale, z_hat_1 .. z_hat_K."""
    explained: tuple[float, ...]
    """Share of the variance of z that each of them holds."""
    real: Judged
    """The clip itself."""
    sample: np.ndarray | None
    """uint8 T H W 3."""
    looks: Mapping[str, Look]
    """Of the clip, its reconstruction and the samples, by name."""
    overlaps: Mapping[str, LayoutOverlap]
    """With what its scene shows where, of the same clips; nothing if nobody asked."""
    row: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Clips to show, by name; of the first few cases."""


def evaluate(config: dict[str, Any]) -> dict[str, Any]:
    """Score a run, write metrics.json, rows.json and the rows' videos, and return the scores.

    Raises:
        ConfigError: no such run or data set, or the data set has no held-out clips.
    """
    model = open_run(config["run"])
    if model.generator is not None:
        check_kappa(sampling_of(config), model.generator)
    refuse_latents(config["data"]["path"], "an evaluation")
    index = read_index(config["data"]["path"])
    splits = [name for name in SPLITS if len(index.rows_of(name))]
    if not splits:
        raise ConfigError(
            f"{config['data']['path']} has no held-out clips; prepare more, or raise "
            "source.val_fraction"
        )
    others = None
    if config["style_references"]:
        check_style("style_references=true", model)
        others = ReferenceClips(index, splits, model.window, config["seed"])
    else:
        check_guided("style_references=true", config)
    if config["layouts"]:
        check_layout("layouts=true", model)
    if config["dry_run"]:
        print(f"{config['num_clips']} clips of {', '.join(SPLITS[name] for name in splits)}")
        return {}
    out = Path(config["out"] or Path(config["run"]) / "eval")
    cases = [case for split in splits for case in _cases(model, index, split, config, others)]
    scores = {
        "run": str(config["run"]),
        "step": model.step,
        "data": {"path": index.root, "index": index.hash},
        "num_clips": len(cases),
        "settings": {**asdict(sampling_of(config)), "seed": config["seed"]},
        "tokenizer": _tokenizer_scores(cases),
        "scales": _scale_scores(model, cases),
    }
    if model.generator is not None:
        of_split = {
            SPLITS[split]: [case for case in cases if case.split == split] for split in splits
        }
        scores |= _sample_scores(of_split, model.window.fps, config, others)
    _write(out, scores, cases, model.window, config["num_rows"])
    print(summary(scores))
    print(out / "metrics.json")
    return scores


def _sample_scores(
    cases: Mapping[str, Sequence[Case]],
    fps: float,
    config: Mapping[str, Any],
    others: ReferenceClips | None,
) -> dict[str, Any]:
    """What is seen in the samples, by split: how they move, and as far as it is known what they
    were to show, in which style and where."""
    judged = {name: _judge_samples(some, fps) for name, some in cases.items()}
    scores: dict[str, Any] = {
        "motion": {
            name: {"generated": ours.motion(), "real": _all(case.real for case in some).motion()}
            for (name, some), ours in zip(cases.items(), judged.values(), strict=True)
        }
    }
    captions = [case.caption for some in cases.values() for case in some]
    if all(_is_shape_world(caption) for caption in captions):
        scores["control"] = {
            name: _control_scores(some, judged[name], fps) for name, some in cases.items()
        }
        scores["chance"] = dict(CHANCE)
    asked = Counter(style for said in captions if (style := style_of(said)) is not None)
    if others is not None or len(asked) > 1:
        scores["style"] = {
            name: style_scores([case.looks for case in some]) for name, some in cases.items()
        }
        # Without references, that of saying always what is asked for most.
        chance = max(asked.values()) / asked.total() if others is None else others.chance
        scores["chance"] = {**CHANCE, "style": chance}
    if config["layouts"]:
        scores["layout"] = {
            name: layout_scores([case.overlaps for case in some]) for name, some in cases.items()
        }
    return scores


def summary(scores: Mapping[str, Any]) -> str:
    """The scores as a small table of text."""
    lines = [
        f"tokenizer {name} {_shown(estimate)}" for name, estimate in scores["tokenizer"].items()
    ]
    for row in scores["scales"]:
        shown = "  ".join(f"{name} {_shown(row[name])}" for name in ("psnr", "ssim", "explained"))
        lines.append(f"  up to {row['scale']:<12} {shown}  entropy {row['entropy']:.2f}")
    for split, rows in scores.get("control", {}).items():
        counts = {value["n"] for value in rows["generated"].values()} or {0}
        lines.append(f"{split} prompts, n={counts.pop()}")
        for name, values in rows.items():
            shown = "  ".join(f"{key} {_shown(value)}" for key, value in values.items())
            lines.append(f"  {name:<10} {shown}")
        chance = "  ".join(f"{key} {value:.2f}" for key, value in scores["chance"].items())
        lines.append(f"  {'chance':<10} {chance}")
    for split, rows in scores.get("style", {}).items():
        lines.append(f"{split} prompts, styles")
        for name, values in rows.items():
            shown = "  ".join(f"{key} {_shown(value)}" for key, value in values.items())
            lines.append(f"  {name:<14} {shown}")
    for split, rows in scores.get("layout", {}).items():
        shown = "  ".join(f"{name} {_shown(value)}" for name, value in rows.items())
        lines.append(f"{split}, overlap with the layout  {shown}")
    for split, rows in scores.get("motion", {}).items():
        for name, values in rows.items():
            shown = "  ".join(f"{key} {_shown(value)}" for key, value in values.items())
            lines.append(f"{split}, {name:<10} {shown}")
    return "\n".join(lines)


def _cases(
    model: VideoModel,
    index: DatasetIndex,
    split: str,
    config: Mapping[str, Any],
    others: ReferenceClips | None,
) -> Iterator[Case]:
    rows = index.rows_of(split)[: config["num_clips"]]
    opener = VideoOpener(windows=[model.window], seed=0, motion=False, layout=config["layouts"])
    reader = Reader(root=index.root, opener=opener, spares=index.take(rows).to_pylist())
    device = pick_device(config["device"])
    model.to(device)
    for first in range(0, len(rows), config["batch"]):
        part = rows[first : first + config["batch"]]
        block = reader(references(index.take(part), part, 0))
        captions = [str(caption) for caption in block["caption"]]
        real = block["pixels"]
        with torch.no_grad():
            z = model.tokenizer.encode(to_pixels(real, device))
            codec = model.tokenizer.codec
            levels = codec.pyramid(codec.split(z).states, z.shape[2:]).levels
            rebuilt = to_frames(model.tokenizer.decode(z))
            states = [to_frames(model.tokenizer.decode(level)) for level in levels]
            explained = torch.stack([_explained(level, z) for level in levels], dim=1).tolist()
        shown = [None if others is None else others.of(int(row)) for row in part]
        placed = places_of(block) if config["layouts"] else None
        samples = _samples(model, captions, shown, placed, first, config, device)
        for i, caption in enumerate(captions):
            if block["reason"][i]:
                print(f"left out {block['key'][i]}: {block['reason'][i]}", file=sys.stderr)
                continue
            clips = {"real": real[i], "reconstruction": rebuilt[i], **samples[i]}
            yield Case(
                split=split,
                caption=caption,
                rebuilt=_compared(rebuilt[i], real[i]),
                states=tuple(_compared(state[i], real[i]) for state in states),
                explained=tuple(explained[i]),
                real=Judged.of(real[i], caption, model.window.fps),
                sample=clips.get("generated"),
                looks=look_at(clips, caption, shown[i], model.window.fps),
                overlaps=overlaps_of(clips, caption, placed[i] if placed else None),
                row=_row(clips, shown[i]) if first + i < config["num_rows"] else {},
            )


def _samples(
    model: VideoModel,
    captions: Sequence[str],
    shown: Sequence[Reference | None],
    placed: Sequence[Places] | None,
    first: int,
    config: Mapping[str, Any],
    device: torch.device,
) -> Sequence[Mapping[str, np.ndarray]]:
    """Per caption, by name, what the generator makes of it; nothing where there is none."""
    if model.generator is None:
        return [{} for _ in captions]
    how: dict[str, Any] = {"settings": sampling_of(config), "device": device}
    how |= {"seed": config["seed"], "first": first}
    with refusals():
        samples = [{"generated": clip} for clip in write_clips(model, captions, **how)]
        known = [reference for reference in shown if reference is not None]
        if known:
            both = sample_like(model, captions, known, **how)
            samples = [own | like for own, like in zip(samples, both, strict=True)]
        if placed is not None:
            there = sample_placed(model, captions, placed, **how)
            samples = [own | one for own, one in zip(samples, there, strict=True)]
    return samples


def _row(clips: Mapping[str, np.ndarray], reference: Reference | None) -> Mapping[str, np.ndarray]:
    """Clips to show, by the names of the page."""
    row = {name: clips[name] for name in ("real", "reconstruction")}
    row |= {"sample": clips["generated"]} if "generated" in clips else {}
    row |= {"placed": clips["placed"]} if "placed" in clips else {}
    if reference is None:
        return row
    return row | {"reference": reference.frames, "like_reference": clips["reference"]}


def _explained(state: Tensor, z: Tensor) -> Tensor:
    """Per clip: 1 - |z - z_hat|^2 / |z|^2, of a standardised latent."""
    return 1 - (z - state).square().flatten(1).sum(1) / z.square().flatten(1).sum(1)


def _tokenizer_scores(cases: Sequence[Case]) -> dict[str, Any]:
    return _together([case.rebuilt for case in cases])


def _scale_scores(model: VideoModel, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Per level, coarse to fine: what the codes up to it keep of the clips and of their latent."""
    codec = model.tokenizer.codec
    entropy = codec.entropy().tolist()
    rows = []
    for level in range(codec.schedule.num_levels):
        rungs = [rung for rung in codec.schedule.rungs if rung.depth == level]
        kinds = {rung.kind: str(rung.scale) for rung in rungs}
        rows.append(
            {
                "scale": " | ".join(kinds.values()),
                "tokens": sum(rung.scale.volume for rung in rungs),
                "entropy": min(entropy[kind] for kind in kinds),
                "explained": asdict(mean_interval([case.explained[level] for case in cases])),
                **_together([case.states[level] for case in cases]),
            }
        )
    return rows


def _compared(clip: np.ndarray, real: np.ndarray) -> Reconstruction:
    ours, theirs = (
        torch.from_numpy(frames[None]).permute(0, 4, 1, 2, 3).float() / 255
        for frames in (clip, real)
    )
    return Reconstruction.empty().update(reconstructed=ours, reference=theirs)


def _together(parts: Sequence[Reconstruction]) -> dict[str, Any]:
    whole = reduce(Reconstruction.merge, parts, Reconstruction.empty())
    return {name: asdict(estimate) for name, estimate in whole.compute().items()}


def _all(parts: Iterable[Judged]) -> Judged:
    return reduce(Judged.merge, parts, Judged())


def _judge_samples(cases: Sequence[Case], fps: float) -> Judged:
    return _all(
        Judged.of(case.sample, case.caption, fps) for case in cases if case.sample is not None
    )


def _control_scores(cases: Sequence[Case], generated: Judged, fps: float) -> dict[str, Any]:
    """Generated clips beside what bounds them: real clips, wrong prompts, a frozen frame."""
    samples = [case.sample for case in cases if case.sample is not None]
    captions = [case.caption for case in cases]
    frozen = [np.repeat(clip[:1], len(clip), axis=0) for clip in samples]
    rows = {
        "generated": generated.control,
        "real": _all(case.real for case in cases).control,
        "shuffled": _judged_by_others(samples, captions, fps),
        "frozen": _judged(frozen, captions, fps),
    }
    return {
        name: {key: asdict(estimate) for key, estimate in metric.compute().items()}
        for name, metric in rows.items()
    }


def _judged(clips: Sequence[np.ndarray], captions: Sequence[str], fps: float) -> ControlAccuracy:
    return ControlAccuracy.empty().update(generated=clips, captions=captions, fps=fps)


def _judged_by_others(
    clips: Sequence[np.ndarray], captions: Sequence[str], fps: float
) -> ControlAccuracy:
    """Every clip judged by the prompts of other clips, in its own style.

    One shuffle of few captions matches too often or too rarely by luck, so the mean over several is
    taken; they are no new clips, so the interval stays that of one.
    """
    count = min(NUM_SHUFFLES, len(captions) - 1)
    turns = [round((i + 1) * len(captions) / (count + 1)) for i in range(count)]
    metric = ControlAccuracy.empty()
    for turn in turns:
        others = [
            write_caption(replace(read_caption(other), style=read_caption(own).style))
            for own, other in zip(captions, [*captions[turn:], *captions[:turn]], strict=True)
        ]
        metric = metric.merge(_judged(clips, others, fps))
    return ControlAccuracy(
        right=tuple(round(right / max(count, 1)) for right in metric.right),
        num_objects=metric.num_objects // max(count, 1),
    )


def _is_shape_world(caption: str) -> bool:
    try:
        read_caption(caption)
    except ValueError:
        return False
    return True


def _write(
    out: Path, scores: Mapping[str, Any], cases: Sequence[Case], window: Window, num_rows: int
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    chosen = [
        case
        for split in SPLITS
        for case in [c for c in cases if c.split == split][: math.ceil(num_rows / 2)]
    ]
    rows = []
    for number, case in enumerate(chosen[:num_rows]):
        row = {"caption": case.caption, "split": SPLITS[case.split]}
        for name, clip in case.row.items():
            row[name] = f"{name}_{number:02d}.mp4"
            (out / row[name]).write_bytes(encode_video(clip, window.fps))
        rows.append(row)
    write_json(out / "rows.json", rows)
    write_json(out / "metrics.json", scores)


def _shown(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
