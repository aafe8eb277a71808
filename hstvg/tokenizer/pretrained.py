"""PretrainedTokenizer: a video VAE that others have trained, with this house's codec on its latent.

The VAE comes from diffusers (Wan, CogVideoX, LTX-Video; see hstvg.tokenizer.vae_family) and stays
as it is. Stage 1 then trains the codec alone: what its upsamplers guess of detail, and its
statistics. All else serves as if it were a VideoTokenizer.

    PretrainedTokenizer(pretrained="ORG/MODEL", subfolder="vae", clip_size=(17, 256, 256))
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.tokenizer.quantiser import Quantiser
from hstvg.tokenizer.scale_tokenizer import ScaleTokenizer, Schedule
from hstvg.tokenizer.vae_family import FAMILIES

WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model-?????-of-?????.safetensors",
)
"""The names that diffusers gives them: one file, or several with their index."""


class PretrainedTokenizer(ScaleTokenizer):
    """A frozen VAE of diffusers behind the surface of every tokenizer.

    Its latent is standardised by moments measured on the clips of the run, as that of any other
    tokenizer: mean 0 and variance 1 are promised of those clips, and the VAE's own moments are of
    what it was trained on. They begin at the VAE's own, where its config has any.

    A bundle holds its weights, named vae.*, and in its config what builds the VAE: it loads without
    the hub and without the folder that the VAE came from.

    Args:
        clip_size: frames, rows and columns of one training clip; fixes the scales of the codec. All
            these VAEs want 1 + n x st frames.
        pretrained: id on the hub, or folder, of the VAE: config.json and safetensors.
        subfolder: of that, where the VAE lies; "vae" in the folder of a whole pipeline.
        revision: branch, tag or commit on the hub.
        vae: its config; builds it without weights, and stands in place of `pretrained`.
        schedule: the kind of its scales, or their sizes: a list of segments of [t, h, w].
        quantiser: of the codec's residuals.

    Raises:
        ValueError: the VAE is of no known family, its files are not whole, the clip does not fit
            it, or diffusers is not there.
    """

    def __init__(
        self,
        *,
        clip_size: Sequence[int],
        pretrained: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        vae: Mapping[str, Any] | None = None,
        schedule: Schedule = "cubic",
        quantiser: Quantiser | None = None,
    ) -> None:
        if (pretrained is None) == (vae is None):
            raise ValueError("give the VAE: pretrained=FOLDER, or an id on the hub")
        if pretrained is None:
            assert vae is not None
            config, model = dict(vae), _untrained(vae)
        elif torch.get_default_device().type == "meta":  # only its sizes are wanted
            config = read_config(fetch(pretrained, subfolder, revision, weights=False))
            model = _untrained(config)
        else:
            folder = fetch(pretrained, subfolder, revision, weights=True)
            config, model = read_config(folder), _trained(folder)
        family = FAMILIES[config["_class_name"]](model)
        super().__init__(
            clip_size=clip_size,
            strides=family.strides,
            channels=family.channels,
            first_alone=True,
            schedule=schedule,
            quantiser=quantiser,
            frames=family.frames,
        )
        self.streams_exactly = family.streams_exactly
        self.vae = model.eval().requires_grad_(False)
        self.config = config
        self._family = family
        with torch.no_grad():
            mean, deviation = family.moments()
            self.mean.value.copy_(mean)
            self.square.value.copy_(mean.square() + deviation.square())

    def train(self, mode: bool = True) -> "PretrainedTokenizer":
        super().train(mode)
        self.vae.eval()  # it learns nothing, so it drops nothing
        return self

    def portable(self, node: Mapping[str, Any]) -> dict[str, Any]:
        source = ("pretrained", "subfolder", "revision")
        return {key: value for key, value in node.items() if key not in source} | {
            "vae": self.config
        }

    def _encoded(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C2 t h w"]:
        return self._family.encode(pixels.to(self._dtype))

    def _decoded(self, raw: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        return self._family.decode(raw.to(self._dtype))

    def _encoded_stream(
        self, chunks: Iterable[Float[Tensor, "B 3 _T H W"]]
    ) -> Iterator[Float[Tensor, "B C2 _t h w"]]:
        return self._family.encode_stream(pixels.to(self._dtype) for pixels in chunks)

    def _decoded_stream(
        self, chunks: Iterable[Float[Tensor, "B C _t h w"]]
    ) -> Iterator[Float[Tensor, "B 3 _T H W"]]:
        return self._family.decode_stream(raw.to(self._dtype) for raw in chunks)

    @property
    def _dtype(self) -> torch.dtype:
        """An engine may have made the weights bfloat16."""
        return next(self.vae.parameters()).dtype


def fetch(pretrained: str, subfolder: str | None, revision: str | None, *, weights: bool) -> Path:
    """The folder of a VAE; from the hub, a copy on this machine.

    Args:
        weights: whether they are wanted, or the config alone.

    Raises:
        ValueError: there is none.
    """
    folder = Path(pretrained)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        prefix = f"{subfolder}/" if subfolder else ""
        names = ("config.json", *(WEIGHTS if weights else ()))
        try:
            folder = Path(
                snapshot_download(
                    pretrained,
                    revision=revision,
                    allow_patterns=[f"{prefix}{name}" for name in names],
                )
            )
        except (OSError, ValueError) as error:
            cause = str(error).strip().splitlines()[0]
            raise ValueError(f"{pretrained} is no folder, and the hub: {cause}") from error
    return folder / subfolder if subfolder else folder


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a VAE, with what diffusers builds it from and nothing of where it lay.

    Raises:
        ValueError: there is none, or of no known family.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        name = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no VAE of diffusers; in a whole pipeline it has a folder of its own: "
            "give subfolder=vae"
        ) from error
    return {"_class_name": name} | {
        key: value for key, value in config.items() if not key.startswith("_")
    }


def vae_files(folder: Path) -> list[Path]:
    """The files that make up a VAE, its config first.

    Raises:
        ValueError: it has no weights that are read here.
    """
    weights = sorted(path for name in WEIGHTS for path in folder.glob(name))
    if not weights:
        raise ValueError(f"{folder} has no {WEIGHTS[0]}; pickled weights are not read")
    return [folder / "config.json", *weights]


def _class_of(config: Mapping[str, Any]) -> Any:
    name = str(config.get("_class_name"))
    if name not in FAMILIES:
        raise ValueError(f"{name} is no VAE that is known here; choose from {', '.join(FAMILIES)}")
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("a pretrained VAE needs diffusers; pip install 'hstvg[vae]'") from error
    return getattr(diffusers, name)


def _untrained(config: Mapping[str, Any]) -> Any:
    """A VAE of a config, with weights that wait to be loaded."""
    return _class_of(config).from_config(dict(config))


def _trained(folder: Path) -> Any:
    """A VAE with its weights, float32."""
    vae_files(folder)
    model, found = _class_of(read_config(folder)).from_pretrained(
        folder,
        torch_dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        low_cpu_mem_usage=False,  # else it asks for one library more
        output_loading_info=True,
    )
    # diffusers would leave them to chance and say so in a log.
    lacking = [*found["missing_keys"], *found["mismatched_keys"]]
    if lacking:
        raise ValueError(f"{folder} lacks weights of its VAE: {', '.join(map(str, lacking[:4]))}")
    return model
