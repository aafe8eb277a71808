"""Composition of configs: the only place that calls Hydra's compose and instantiate.

Two kinds of node. Facts of a run are the strict dataclasses below. Things with behaviour are
`_target_` plus constructor arguments: the constructor is their schema.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hstvg.runtime.errors import ConfigError

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"


@dataclass
class RunFacts:
    """Which run, how long, and how often it speaks. `name` is its identity: same name, same run."""

    name: str = MISSING
    root: str = "runs"
    steps: int = MISSING
    seed: int = 0
    global_batch: int = MISSING
    """Clips per optimiser step over all workers."""
    micro_batch: int = MISSING
    """Clips per forward pass of one worker."""
    checkpoint_every: int = 500
    """Steps."""
    keep_checkpoints: int = 2
    validate_every: int = 500
    """Steps."""
    validate_clips: int = 64
    sample_clips: int = 2
    """Held-out clips rebuilt, or captions sampled, at every checkpoint."""
    log_every: int = 25
    """Steps per progress line; metrics.jsonl has every step."""
    gradients_every: int = 0
    """Steps from one look at the terms' gradients at the trunk that their heads share to the next;
    0 is never."""
    compile: bool = False
    """torch.compile the stage: minutes at the start for faster steps, most of all on a GPU."""
    log_samples: bool = False
    """Write down every sample trained, in order/, so that the run can be audited."""


@dataclass
class DataFacts:
    """Which data set, and the window of video that one clip shows."""

    path: str = MISSING
    num_frames: int = MISSING
    fps: float = MISSING
    height: int = MISSING
    width: int = MISSING
    buckets: list[str] = field(default_factory=list)
    """Windows FRAMESxHEIGHTxWIDTH, of which each sample takes the one that suits it best; empty
    shows all through num_frames x height x width, in whose tokens the global batch is counted."""
    motion: bool = MISSING
    """Whether the stage needs the motion of clips; estimating it costs more than decoding."""
    style: bool = False
    """Whether half of the clips come with another one of their style, which their captions then do
    not name; for latents alone."""
    layout: bool = False
    """Whether clips come with what their scenes show where; of footage without a scene nothing is
    known."""
    decoder: str = "pyav"
    """pyav, or torchcodec where it is installed."""
    block_mb: float = 96.0
    """Decoded MB that one data task gives; large blocks cost less per clip, small ones less
    memory."""
    prefetch: int = 2
    """Blocks held ready per worker."""
    max_bad_fraction: float = 0.01
    """Damaged clips, as a share of all, above which a run stops."""


@dataclass
class OptimizerFacts:
    """AdamW with linear warm-up and a cosine to `final_lr_ratio`."""

    lr: float = MISSING
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.01
    warmup_steps: int = 100
    final_lr_ratio: float = 0.02
    clip_norm: float = 1.0
    ema_decay: float = 0.999


@dataclass
class TrainSchema:
    run: RunFacts = field(default_factory=RunFacts)
    data: DataFacts = field(default_factory=DataFacts)
    optimizer: OptimizerFacts = field(default_factory=OptimizerFacts)
    stage: Any = MISSING
    model: Any = MISSING
    tokenizer: Any = MISSING
    generator: Any = MISSING
    objective: Any = MISSING
    worker: Any = MISSING
    engine: Any = MISSING
    tracker: Any = MISSING
    adversary: Any = None
    """A discriminator that a tokenizer is trained against, late; none by default."""
    tokenizer_run: str | None = None
    """Run folder of the tokenizer that a generator is trained on."""
    audit: str | None = None
    """Run folder whose order of samples is to be checked, instead of training."""
    dry_run: bool = False


@dataclass
class SweepFacts:
    """How many trials, over which keys, judged by which held-out metric."""

    num_trials: int = 8
    max_concurrent: int = 1
    keys: list[str] = field(default_factory=list)
    """Override keys, each sampled log-uniformly from low to high."""
    low: float = 0.01
    high: float = 1.0
    metric: str = MISSING
    mode: str = "min"
    seed: int = 0


@dataclass
class SweepSchema(TrainSchema):
    sweep: SweepFacts = field(default_factory=SweepFacts)


@dataclass
class PrepareSchema:
    source: Any = MISSING
    out: str = MISSING
    verify: str | None = None
    """Data set to check, instead of making one."""
    clips_per_shard: int = 256
    num_cpus: int | None = None
    """CPUs given to a local Ray; null takes what the machine has."""
    dry_run: bool = False


@dataclass
class GenerateSchema:
    run: str = MISSING
    prompt: str | None = None
    prompts: str | None = None
    """File with one prompt a line."""
    out: str = MISSING
    duration_s: float | None = None
    """null writes one block, the length the generator was trained on."""
    kappa: int | None = None
    """Last scale that the next-scale transformer writes; 0 leaves all scales to the denoiser. null
    takes what the run was trained for."""
    given: str | None = None
    """Picture or video that the clips begin with."""
    show_scales: bool = False
    """Write every state on the way to the video, a row each, coarse to fine."""
    seed: int = 0
    steps: int = 12
    """Solver steps: per pyramid level of a denoiser, per scale of a flow head."""
    solver: str = "euler"
    """Of a denoiser: euler, or heun, whose steps cost two evaluations each."""
    guidance: float = 5.0
    """Classifier-free guidance weight; 1 turns it off."""
    temperature: float = 1.0
    """Of code probabilities; 0 takes the likeliest."""
    top_k: int = 0
    """Codes per channel to draw from; 0 is all."""
    top_p: float = 0.5
    """Draw from the likeliest codes that have this probability together."""
    motion_noise: float = 0.0
    """How much of the noise moves with the clip, below 1; for a denoiser trained with +noise=motion
    alone. Costs a second sample, which says how the clip moves."""
    scene: str | None = None
    """JSON of a Scene (hstvg/scene/syntax.py), whose objects are to be where it has them; for a
    generator of +layout=boxes. Its caption is the prompt if there is no other."""
    style_reference: str | None = None
    """Picture or video that the clips are to look like, for a generator of +term=style."""
    motion_guidance: float = 0.0
    style_guidance: float = 1.0
    """Weight of it; any other than 1 costs one more evaluation per step."""
    batch: int = 16
    upscale: int = 1
    """Whole-number nearest-neighbour enlargement of the written video."""
    gif: bool = False
    device: str = "auto"
    dry_run: bool = False


@dataclass
class EvaluateData:
    path: str = MISSING


@dataclass
class EvaluateSchema:
    run: str = MISSING
    data: EvaluateData = field(default_factory=EvaluateData)
    out: str | None = None
    """null writes to RUN/eval."""
    num_clips: int = 64
    """Clips, and so prompts, per split."""
    num_rows: int = 8
    """Clips kept as real | reconstruction | sample rows."""
    style_references: bool = False
    """Ask for every prompt twice more, without the words of its style: with a reference clip, which
    shows one, and without. For a generator of +term=style."""
    layouts: bool = False
    """Ask for every prompt once more, with the boxes of its own clip's scene. For a generator of
    +layout=boxes."""
    kappa: int | None = None
    steps: int = 12
    solver: str = "euler"
    guidance: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.5
    motion_noise: float = 0.0
    motion_guidance: float = 0.0
    style_guidance: float = 1.0
    seed: int = 0
    batch: int = 32
    device: str = "auto"
    dry_run: bool = False


@dataclass
class ReportSchema:
    run: str = MISSING
    dry_run: bool = False


@dataclass
class DemoSchema:
    num_clips: int = 4096
    prompts: list[str] = field(default_factory=list)
    dry_run: bool = False


def _register_schemas() -> None:
    store = ConfigStore.instance()
    for name, schema in {
        "prepare": PrepareSchema,
        "train": TrainSchema,
        "sweep": SweepSchema,
        "generate": GenerateSchema,
        "evaluate": EvaluateSchema,
        "report": ReportSchema,
        "demo": DemoSchema,
    }.items():
        store.store(name=f"{name}_schema", node=schema)


def compose(pipeline: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved config of a pipeline as a plain dict.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type; one line names it. A dry run
            may leave keys out.
    """
    _register_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        try:
            config = hydra_compose(pipeline, overrides=list(overrides))
            OmegaConf.resolve(config)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, pipeline, overrides)) from error
    missing = sorted(OmegaConf.missing_keys(config))
    looks_only = config.dry_run or config.get("audit") or config.get("verify")
    if missing and not looks_only:
        needed = " ".join(f"{key}=..." for key in missing)
        raise ConfigError(f"{pipeline}: missing {', '.join(missing)}; add {needed}")
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def show(pipeline: str) -> str:
    """The composed defaults of a pipeline as YAML, `???` where a value must be given."""
    _register_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return OmegaConf.to_yaml(hydra_compose(pipeline))


def build(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Instantiate a `_target_` node with real objects inside, never DictConfigs.

    Raises:
        ConfigError: the constructor does not take these arguments.
    """
    try:
        return instantiate(dict(node), _convert_="all", **arguments)
    except HydraException as error:
        name = str(node.get("_target_", "")).rpartition(".")[2]
        raise ConfigError(f"{name}: {error.__cause__ or _first_line(error)}") from error


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a config."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _explain(error: Exception, pipeline: str, overrides: Sequence[str]) -> str:
    """Hydra's many lines as one: what is wrong, and what was probably meant."""
    text = " ".join(str(error).split())
    cause = " ".join(str(error.__cause__ or "").split())
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    if unknown:
        key = unknown.group(1) or unknown.group(2)
        near = difflib.get_close_matches(key, _known_keys(pipeline, overrides), n=1)
        # A key that the defaults know was put out of reach by a choice made beside it.
        lost = key in _known_keys(pipeline, [])
        hint = f"did you mean {near[0]}?" if near and not lost else "see --help"
        return f"{pipeline}: unknown key {key}; {hint}"
    choice = re.search(
        r"Could not find '([^']+)' Available options in '[^']+': (.*?)( Config |$)", text
    )
    if choice:
        return f"{pipeline}: there is no {choice.group(1)}; choose from {choice.group(2)}"
    detail = cause.split(" full_key:")[0]
    return f"{pipeline}: {text.split(' full_key:')[0]}{': ' if detail else ''}{detail}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _known_keys(pipeline: str, overrides: Sequence[str]) -> list[str]:
    """All that can be overridden, given the files that the overrides choose."""
    groups = [path.name for path in CONF_DIR.iterdir() if path.is_dir()]
    choices = [item for item in overrides if item.lstrip("+").split("=")[0] in groups]

    def leaves(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [prefix] + [
            key
            for name, child in node.items()
            for key in leaves(child, f"{prefix}.{name}".strip("."))
        ]

    config = hydra_compose(pipeline, overrides=choices)
    return leaves(OmegaConf.to_container(config, throw_on_missing=False), "")
