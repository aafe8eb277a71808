"""Tiny, randomly initialised video VAEs of diffusers, as their makers would publish them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Folders = dict[str, Path]


def wan() -> Any:
    """Strides 4, 4, 4."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    )


def wan_patched() -> Any:
    """As Wan 2.2 has it: patches of two pixels, residual steps. Strides 4, 8, 8."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
    )


def cogvideox() -> Any:
    """Strides 4, 8, 8."""
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        block_out_channels=(4, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.5,
    )


def ltx(**settings: Any) -> Any:
    """Strides 4, 4, 4."""
    from diffusers import AutoencoderKLLTXVideo

    sizes: dict[str, Any] = {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
        "patch_size": 1,
    }
    return AutoencoderKLLTXVideo(**{**sizes, **settings})


def ltx_timed() -> Any:
    """Its decoder wants to be told how noisy the latent is."""
    return ltx(timestep_conditioning=True)


VAES: dict[str, Callable[[], Any]] = {
    "wan": wan,
    "wan_patched": wan_patched,
    "cogvideox": cogvideox,
    "ltx": ltx,
    "ltx_timed": ltx_timed,
}


def save_vae(make: Callable[[], Any], folder: Path, seed: int = 0) -> Any:
    """Write a VAE as diffusers does and return it; none of its layers is silent."""
    torch.manual_seed(seed)
    vae = make().eval()
    with torch.no_grad():
        for weight in vae.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    vae.save_pretrained(folder)
    return vae
