import pytest
import torch

from hstvg.metrics.reconstruction import BEST_PSNR, Reconstruction
from hstvg.types import Metric


@pytest.fixture
def clips():
    return torch.rand(5, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))


def test_psnr_by_hand(clips):
    reference = torch.full_like(clips, 100 / 255)
    found = Reconstruction.empty().update(
        reconstructed=torch.full_like(clips, 110 / 255), reference=reference
    )
    # 20 log10(255 / 10)
    assert found.compute()["psnr"].value == pytest.approx(28.1308, abs=1e-3)


def test_equal_clips_are_perfect(clips):
    found = Reconstruction.empty().update(reconstructed=clips, reference=clips).compute()
    assert found["psnr"].value == BEST_PSNR
    assert found["ssim"].value == pytest.approx(1.0)
    assert found["ssim"].n == 5


def test_merging_equals_the_union(clips):
    noisy = clips + 0.1 * torch.randn(clips.shape, generator=torch.Generator().manual_seed(1))
    empty = Reconstruction.empty()
    whole = empty.update(reconstructed=noisy, reference=clips)
    parts = [empty.update(reconstructed=noisy[p], reference=clips[p]) for p in ([0, 1], [2, 3, 4])]
    first, second = (
        {k: vars(v) for k, v in m.compute().items()} for m in (whole, parts[1].merge(parts[0]))
    )
    for name in first:
        assert second[name] == pytest.approx(first[name], rel=1e-5)


def test_it_is_a_metric_and_empty_has_nothing_to_say():
    assert isinstance(Reconstruction.empty(), Metric)
    assert Reconstruction.empty().compute() == {}
