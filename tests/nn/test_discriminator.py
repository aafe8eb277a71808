import pytest
import torch

from hstvg.nn.discriminator import PatchDiscriminator


def clips(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "patches"), [((16, 32, 32), 2 * 4 * 4), ((1, 16, 24), 1 * 2 * 3), ((17, 9, 1), 3 * 2)]
)
def test_clips_of_any_size_have_patches(size, patches):
    judge = PatchDiscriminator(base=4, depth=3)
    assert judge(clips(2, 3, *size)).shape == (2, patches)


def test_a_clip_is_judged_alike_in_any_batch():
    judge, pixels = PatchDiscriminator(base=4, depth=2), clips(4, 3, 4, 8, 8)
    parts = torch.cat([judge(pixels[:1]), judge(pixels[1:])])
    assert torch.allclose(judge(pixels), parts, atol=1e-6)


def test_a_patch_is_as_large_as_it_says():
    judge, pixels = PatchDiscriminator(base=4, depth=2), clips(1, 3, 8, 16, 32).requires_grad_()
    judge.norms = torch.nn.ModuleList([torch.nn.Identity()] * 2)  # which see the whole clip
    (slope,) = torch.autograd.grad(judge(pixels).view(2, 4, 8)[1, 2, 4], pixels)
    for axis in (2, 3, 4):
        seen = slope.abs().sum([other for other in range(5) if other != axis]).nonzero()
        assert len(seen) == 7  # 2^3 - 1
