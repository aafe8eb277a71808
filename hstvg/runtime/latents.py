"""Where the latents of a data set come from, in its dataset.json, and whether a run may have them.

Latents are worth nothing beside another tokenizer, and nobody would see it from the losses: a run
compares all that they depend on before any worker starts.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hstvg.data.latent import DTYPES, LatentLayout
from hstvg.data.sample import Window
from hstvg.generate.bundle import assemble
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.index import DatasetIndex
from hstvg.runtime.lineage import file_hash
from hstvg.runtime.source_latents import LatentSource
from hstvg.runtime.storage import exists, join, open_file
from hstvg.scales import ScaleSchedule
from hstvg.scene.text import MAX_TOKENS

KIND = "latents"
FORMAT = 2
"""Of the encoding: to be raised when the same clip and tokenizer give other members."""
CROP = "cover, centre"
"""How clips are brought to the window; see hstvg.data.decode."""
TEXT_MODELS = ("t5", "umt5")
TEXT_FILES = (".json", ".safetensors", ".model", ".txt")


@dataclass(frozen=True, kw_only=True)
class TextLineage:
    """The frozen encoder that captions were encoded with."""

    pretrained: str
    identity: str
    """Of its weights and vocabulary: a digest of the folder, or the commit of the hub's model."""
    max_tokens: int
    width: int
    longest: int = 0
    """Tokens of the longest caption."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What latents were made with."""

    format: int
    run: str
    """Folder of the tokenizer's run."""
    weights: str
    """Digest of the tokenizer's model.safetensors."""
    schedule: list[list[list[int]]]
    """Of the tokenizer's latent: segments of scales, coarse to fine, t, h, w each."""
    channels: int
    num_frames: int
    fps: float
    height: int
    width: int
    crop: str
    dtype: str
    windows: int
    """Per clip."""
    source: str
    """Location of the data set of videos."""
    source_index: str
    """Hash of its index."""
    text: TextLineage | None = None

    @property
    def layout(self) -> LatentLayout:
        t, h, w = ScaleSchedule(self.schedule).size
        return LatentLayout(
            windows=self.windows,
            channels=self.channels,
            size=(t, h, w),
            dtype=self.dtype,
            text_width=self.text.width if self.text else 0,
            text_tokens=self.text.longest if self.text else 0,
        )

    @property
    def window(self) -> Window:
        """Of a clip, that a latent was made of."""
        return Window(
            num_frames=self.num_frames, fps=self.fps, height=self.height, width=self.width
        )

    def record(self) -> dict[str, Any]:
        """As dataset.json holds it."""
        return {"kind": KIND, KIND: asdict(self)}


def read_lineage(root: str | Path) -> Lineage | None:
    """The lineage of the data set at `root`, a folder or a URI; None if it holds videos.

    Raises:
        ConfigError: its dataset.json is damaged.
    """
    file = join(str(root), "dataset.json")
    try:
        if not exists(file):
            return None
        with open_file(file) as stream:
            record = json.loads(stream.read())
        if record.get("kind") != KIND:
            return None
        facts = record[KIND]
        text = TextLineage(**facts["text"]) if facts["text"] else None
        lineage = Lineage(**{**facts, "text": text})
        if lineage.dtype not in DTYPES or not lineage.layout.channels:
            raise ValueError("no such dtype or channels")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{file} is damaged ({cause}); make the data set again") from error
    return lineage


def tokenizer_facts(run: str | Path, window: Mapping[str, Any], node: Any) -> dict[str, Any]:
    """The fields of a lineage that follow from a tokenizer's run and the code.

    Args:
        window: num_frames, fps, height and width.
        node: of the tokenizer's config.
    """
    import torch

    with torch.device("meta"):
        tokenizer = assemble(node)
    return {
        "format": FORMAT,
        "weights": file_hash(Path(run) / "export" / "model.safetensors"),
        "schedule": [[list(scale) for scale in ladder] for ladder in tokenizer.schedule],
        "channels": tokenizer.channels,
        **{name: window[name] for name in ("num_frames", "fps", "height", "width")},
        "crop": CROP,
    }


def identify_text(pretrained: str) -> tuple[str, int]:
    """The identity of a text encoder, by folder or id, and its width; the weights are not loaded.

    Raises:
        ConfigError: there is none.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(pretrained)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{pretrained}: no T5 or UMT5 encoder there ({str(error).splitlines()[0]})"
        ) from error
    if config.model_type not in TEXT_MODELS:
        raise ConfigError(f"{pretrained}: a {config.model_type}, no T5 or UMT5 encoder")
    folder = Path(pretrained)
    if not folder.is_dir():
        return f"{pretrained}@{config._commit_hash}", config.d_model
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in TEXT_FILES):
        digest.update(f"{path.name}={file_hash(path)};".encode())
    return f"sha256:{digest.hexdigest()}", config.d_model


def lineage_of(source: LatentSource, index: DatasetIndex) -> Lineage:
    """What the latents will be made with.

    Args:
        index: of the data set at source.path.

    Raises:
        ConfigError: a setting is none, there is no such tokenizer or encoder, or the data set holds
            latents.
    """
    for name in ("windows", "max_tokens", "batch"):
        if getattr(source, name) < 1:
            raise ConfigError(f"source.{name}={getattr(source, name)}: must be at least 1")
    if source.dtype not in DTYPES:
        raise ConfigError(f"source.dtype={source.dtype}: choose from {', '.join(DTYPES)}")
    refuse_latents(source.path, "source=latents")
    try:
        known = json.loads((source.export / "config.json").read_text())
        facts = tokenizer_facts(source.tokenizer_run, known["window"], known["tokenizer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"source.tokenizer_run={source.tokenizer_run} holds no finished tokenizer; train one "
            "with python -m pipelines.train stage=tokenizer"
        ) from error
    return Lineage(
        run=source.tokenizer_run,
        dtype=source.dtype,
        windows=source.windows,
        source=source.path,
        source_index=index.hash,
        text=_text_lineage(source),
        **facts,
    )


def identity_of(lineage: Lineage) -> str:
    """Names what latents are made from, wherever that lies."""
    text = lineage.text and replace(lineage.text, pretrained="")
    said = asdict(replace(lineage, run="", source="", text=text))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _text_lineage(source: LatentSource) -> TextLineage | None:
    if source.text is None:
        return None
    try:
        identity, width = identify_text(source.text)
    except ConfigError as error:
        raise ConfigError(
            f"source.text={error}; the byte-level encoder is trained with its generator, so its "
            "output cannot be stored: leave source.text out for it"
        ) from error
    return TextLineage(
        pretrained=source.text, identity=identity, max_tokens=source.max_tokens, width=width
    )


def check_latents(config: Mapping[str, Any]) -> None:
    """Whether a settled run may train on its data set, if that holds latents.

    Raises:
        ConfigError: it may not; names every field that differs.
    """
    path = config["data"]["path"]
    lineage = read_lineage(path)
    if config["data"]["style"] and lineage is None:
        raise ConfigError(
            f"{path} holds videos, and data.style=true reads two clips for one, which is cheap of "
            f"latents alone; make some with python -m pipelines.prepare source=latents "
            f"source.path={path} source.tokenizer_run={config['tokenizer_run']} out=ANOTHER"
        )
    if lineage is None:
        return
    if config["generator"] is None:
        raise ConfigError(
            f"{path} holds latents, of which stage={config['stage']['name']} cannot learn; give "
            f"data.path={lineage.source}, the videos that they were made from"
        )
    if config["data"]["buckets"]:
        raise ConfigError(f"{path} holds latents of one size; leave data.buckets out")
    facts = tokenizer_facts(config["tokenizer_run"], config["data"], config["tokenizer"])
    differing = _differing({name: getattr(lineage, name) for name in facts}, facts)
    kind = "by another tokenizer" if lineage.weights != facts["weights"] else "for another run"
    node = config["generator"]["text"]
    if lineage.text and node.get("pretrained"):
        if config["data"]["style"]:
            raise ConfigError(
                f"{path} holds encoded captions, of which data.style=true cannot take the style "
                "away; run source=latents again without source.text"
            )
        known = {
            "text encoder": lineage.text.identity,
            "text.max_tokens": lineage.text.max_tokens,
        }
        now = {
            "text encoder": identify_text(node["pretrained"])[0],
            "text.max_tokens": node.get("max_tokens", MAX_TOKENS),
        }
        differing += _differing(known, now)
    if differing:
        raise ConfigError(
            f"{path} was made {kind}: {'; '.join(differing)}; run source=latents again, "
            f"python -m pipelines.prepare source=latents source.path={lineage.source} "
            f"source.tokenizer_run={config['tokenizer_run']} out=ANOTHER"
        )


def refuse_latents(root: str | Path, purpose: str) -> None:
    """Raises ConfigError if the data set holds latents, which are of no use for `purpose`."""
    lineage = read_lineage(root)
    if lineage is not None:
        raise ConfigError(
            f"{root} holds latents, and {purpose} needs the videos that they were made from: "
            f"give {lineage.source}"
        )


def _differing(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {_shown(known[name])} and now {_shown(now[name])}"
        for name in known
        if known[name] != now[name]
    ]


def _shown(value: Any) -> str:
    """As short as it can be told from another."""
    if isinstance(value, str) and value.startswith("sha256:"):
        return f"{value[:15]}.."
    if isinstance(value, list):
        return str(ScaleSchedule(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
