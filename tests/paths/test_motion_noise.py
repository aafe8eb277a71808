from math import sqrt

import pytest
import torch

from hstvg.paths.draws import Draws
from hstvg.paths.motion_noise import MotionNoise
from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.scales import Ladder, Scale, null_space, pool

CPU = torch.device("cpu")
T, H, W = 4, 3, 4
SECONDS = 0.25
NOISE = MotionNoise(seconds=SECONDS)
"""Of a frame 4 cells wide and 3 tall."""
SPEED = 1 / (W * SECONDS)
"""Frame widths per second of one cell per frame."""


def still(count=1, t=T, h=H, w=W):
    return torch.zeros(count, 2, t, h, w)


def shift(x, y, **size):
    """A whole frame that moves x, y cells per frame."""
    return still(**size) + SPEED * torch.tensor([x, y]).view(1, 2, 1, 1, 1)


def around(turn, grow):
    """Rotation by `turn` and growth by `grow` per frame, around the middle of the frame."""
    y, x = torch.meshgrid(
        torch.arange(H) + 0.5 - H / 2, torch.arange(W) + 0.5 - W / 2, indexing="ij"
    )
    field = SPEED * torch.stack([grow * x - turn * y, turn * x + grow * y])
    return field[None, :, None].expand(1, 2, T, H, W)


def wild(seed=0, count=1, t=T):
    return 2 * SPEED * torch.randn(count, 2, t, H, W, generator=torch.Generator().manual_seed(seed))


FIELDS = {
    "still": still(),
    "across": shift(0.6, -0.3),
    "out of the frame": shift(1.7, 0.0),
    "turning": around(0.5, 0.0),
    "growing": around(0.0, 0.4),
    "shrinking": around(0.0, -0.4),
    "wild": wild(),
    "not finite": torch.full((1, 2, T, H, W), float("inf")),
}


def draws(count=1, first=0):
    return Draws(0, range(first, first + count), CPU)


def white(count=1, channels=1, t=T, h=H, w=W, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, t, h, w, generator=generator)


def sample(motion, alpha=1.0, channels=1, noise=NOISE, size=None):
    """Alpha of 1, which no training draws, shows the particles alone."""
    count = len(motion)
    plain = white(count, channels, *(size or motion.shape[2:]))
    return noise.sample(plain, motion, torch.full((count,), alpha), draws(count))


@pytest.mark.parametrize("name", FIELDS)
def test_every_frame_is_white_and_frames_covary_as_the_closed_form_says(name):
    """Channels are independent, so that one clip of many channels is many draws."""
    count = 20_000
    for alpha in (1.0, 0.6):
        values = sample(FIELDS[name], alpha, count).noise.view(count, -1).double()
        assert values.mean(0).abs().max() < 0.03
        assert (values.var(0) - 1).abs().max() < 0.045  # 4.5 sigma, of 48 values
        kurtosis = ((values - values.mean(0)) ** 4).mean(0) / values.var(0) ** 2
        assert (kurtosis - 3).abs().max() < 0.16
        seen, sigma = torch.cov(values.T), NOISE.covariance(FIELDS[name][0], alpha)
        assert (seen - sigma).abs().max() < 0.045
        blocks = sigma.view(T, H * W, T, H * W).diagonal(dim1=0, dim2=2)
        assert torch.allclose(blocks, torch.eye(H * W).double()[..., None].expand_as(blocks))


@pytest.mark.parametrize("name", FIELDS)
def test_sigma_is_positive(name):
    for alpha, least in ((1.0, -1e-6), (0.9, 0.1 - 1e-6), (0.0, 1 - 1e-6)):
        sigma = NOISE.covariance(FIELDS[name][0], alpha)
        assert torch.allclose(sigma, sigma.T)
        assert torch.linalg.eigvalsh(sigma).min() >= least


def test_a_frame_that_rests_keeps_its_noise():
    noise = sample(still()).noise
    assert torch.equal(noise, noise[:, :, :1].expand_as(noise))
    assert noise.std() > 0.5


@pytest.mark.parametrize(("x", "y"), [(1, 0), (-2, 0), (0, 1), (1, -1)])
def test_whole_cells_move_the_noise_exactly(x, y):
    noise = sample(shift(float(x), float(y)), channels=2).noise
    for before, after in zip(noise[:, :, :-1].unbind(2), noise[:, :, 1:].unbind(2), strict=True):
        shown = after.roll((-y, -x), dims=(-2, -1))
        rows, columns = slice(max(0, -y), H - max(0, y)), slice(max(0, -x), W - max(0, x))
        assert torch.equal(shown[..., rows, columns], before[..., rows, columns])
        # What comes into view is new.
        assert not torch.isclose(shown, before)[..., : max(0, -y), :].any()
        assert not torch.isclose(shown, before)[..., W - max(0, x) :].any()


def test_half_a_cell_shares_half_of_the_noise():
    sigma = NOISE.covariance(shift(0.5, 0.0)[0], 1.0).view(T, H, W, T, H, W)
    assert sigma[0, 1, 1, 1, 1, 1] == pytest.approx(0.5)
    assert sigma[0, 1, 1, 1, 1, 2] == pytest.approx(0.5)
    assert sigma[0, 1, 1, 2, 1, 2] == pytest.approx(1.0)
    assert sigma[0, 1, 1, 1, 2, 1] == 0


def test_frame_widths_are_the_unit_of_both_axes_whatever_the_shape_of_cells():
    """A latent of 4 x 8 cells whose noise has 4 x 4: a cell is twice as wide as tall."""
    size = (T, 4, 4)
    down = shift(0.0, 0.5, h=4, w=8)  # half a cell's width: a whole cell
    values = sample(down, size=size).noise[0, 0]
    assert torch.equal(values[1, 1:], values[0, :-1])
    right = shift(1.0, 0.0, h=4, w=8)
    values = sample(right, size=size).noise[0, 0]
    assert torch.equal(values[1, :, 1:], values[0, :, :-1])


def test_fewer_frames_of_a_clip_are_further_apart():
    values = sample(shift(0.5, 0.0), size=(T // 2, H, W)).noise[0, 0]
    assert torch.equal(values[1, :, 1:], values[0, :, :-1])


def test_coarser_noise_moves_by_the_mean_of_what_it_covers():
    motion = still(h=4, w=8)
    motion[:, 0, :, :, ::2] = 2 * SPEED  # a whole cell of 4, for half of what lies in it
    values = sample(motion, size=(T, 2, 4)).noise[0, 0]
    assert torch.equal(values[1, :, 1:], values[0, :, :-1])


def test_alpha_of_zero_is_the_white_noise_bit_by_bit():
    plain = white(2, 3)
    alpha = torch.tensor([0.0, 0.5])
    noise = NOISE.sample(plain, wild(count=2), alpha, draws(2)).noise
    assert torch.equal(noise[0], plain[0])
    assert not torch.isclose(noise[1], plain[1]).all()


def test_a_mixture_is_of_both():
    plain, motion = white(), shift(1.0, 0.0)
    mixed = NOISE.sample(plain, motion, torch.tensor([0.36]), draws()).noise
    assert torch.allclose(mixed, 0.6 * sample(motion).noise + 0.8 * plain, atol=1e-6)


def test_noise_belongs_to_its_clip():
    motion, plain, alpha = wild(count=3), white(3, 2), torch.tensor([0.9, 0.3, 0.5])
    together = NOISE.sample(plain, motion, alpha, draws(3))
    row = slice(1, 2)
    alone = NOISE.sample(plain[row], motion[row], alpha[row], draws(1, first=1))
    assert torch.equal(alone.noise, together.noise[row])
    for name in ("place", "speed", "values"):
        mine, all_of_them = getattr(alone.particles, name), getattr(together.particles, name)
        assert torch.equal(mine, all_of_them[row])


@pytest.mark.parametrize(("cut", "overlap"), [(1, 0), (4, 0), (7, 0), (1, 3), (4, 2), (7, 1)])
def test_blocks_in_a_row_are_one_long_block(cut, overlap):
    """Bit by bit, wherever it is cut and however many frames both have; here through growth, loss
    and refilling of cells."""
    t, end = 2 * T, cut + overlap
    motion, plain, alpha = wild(count=2, t=t), white(2, 3, t), torch.tensor([0.9, 0.4])
    whole = NOISE.sample(plain, motion, alpha, draws(2))
    begun = NOISE.sample(plain[:, :, :end], motion[:, :, :end], alpha, draws(2), overlap=overlap)
    ended = NOISE.sample(
        plain[:, :, cut:], motion[:, :, cut:], alpha, draws(2), after=begun.particles
    )
    assert begun.particles.frame == cut
    assert torch.equal(begun.noise, whole.noise[:, :, :end])
    assert torch.equal(ended.noise, whole.noise[:, :, cut:])
    assert torch.equal(ended.particles.place, whole.particles.place)
    assert ended.particles.frame == t


def test_a_block_may_begin_between_two_frames():
    """Half a frame after the last but one of a pan of a cell per frame: half a cell further."""
    channels, motion = 20_000, shift(1.0, 0.0)
    plain, alpha = white(1, channels), torch.tensor([1.0])
    begun = NOISE.sample(plain, motion, alpha, draws(), overlap=1.5)
    ended = NOISE.sample(plain, motion, alpha, draws(), after=begun.particles)
    before, after = (values[0, :, at] for values, at in ((begun.noise, T - 2), (ended.noise, 0)))
    for x in range(1, W):
        own = (after[..., x] * before[..., x]).mean()
        left = (after[..., x] * before[..., x - 1]).mean()
        assert (float(own), float(left)) == pytest.approx((0.5, 0.5), abs=0.03)


def test_what_left_the_frame_does_not_come_back():
    there_and_back = torch.cat([shift(2.0, 0.0, t=1), shift(-2.0, 0.0, t=1)], dim=2)
    motion = torch.cat([there_and_back, still(t=1)], dim=2)
    values = sample(motion).noise[0, 0]
    assert torch.equal(values[2, :, :2], values[0, :, :2])
    assert not torch.isclose(values[2, :, 2:], values[0, :, 2:]).any()


def test_cells_that_empty_are_filled_for_good():
    """A pan that drains the frame again and again leaves noise that moves, not noise that boils."""
    t = 40
    values = sample(shift(1.0, 0.0, t=t)).noise[0, 0]
    assert torch.equal(values[-1, :, 1:], values[-2, :, :-1])


def test_a_crowd_keeps_what_moves_and_never_runs_out_of_slots():
    """All flow into one column for long: what moves covers what rests there."""
    motion = still()
    motion[:, 0, :, :, 0] = SPEED  # the outer columns move onto the next ones, which rest
    motion[:, 0, :, :, -1] = -SPEED
    values = sample(motion).noise[0, 0]
    assert torch.equal(values[1, :, 1], values[0, :, 0])
    assert torch.equal(values[1, :, -2], values[0, :, -1])
    t = 30
    inwards = around(0.3, -0.7)[:, :, :1].expand(1, 2, t, H, W)
    late = sample(inwards, channels=4000).noise[0, :, -1].flatten(1)
    assert (torch.cov(late.T) - torch.eye(H * W)).abs().max() < 0.1


@pytest.mark.parametrize("k", [1, 2, 3])
def test_any_number_of_particles_serves(k):
    noise = MotionNoise(seconds=SECONDS, particles=k)
    values = sample(wild(), channels=4000, noise=noise).noise.view(4000, -1)
    assert (values.var(0) - 1).abs().max() < 0.1
    assert noise.covariance(wild()[0], 1.0).diagonal() == pytest.approx(1.0)


def test_alphas_of_training():
    alpha = NOISE.draw_alpha(draws(4000))
    assert (alpha == 0).float().mean() == pytest.approx(0.5, abs=0.03)
    moving = alpha[alpha > 0]
    assert moving.mean() == pytest.approx(0.45, abs=0.02)
    assert 0.85 < moving.max() < 0.9
    assert torch.equal(NOISE.draw_alpha(draws(1, first=7)), alpha[7:8])


@pytest.mark.parametrize("boundaries", [(0.5, 1.0), (0.3, 0.6, 1.0)])
def test_jumps_keep_the_noise_of_training(boundaries):
    """Where the data is 0 a level ends and starts with noise alone, whose covariance must agree."""
    count, last = len(boundaries), len(boundaries) - 1
    flow, clips = PyramidFlow(boundaries=boundaries), 60_000
    scales = Ladder([(2, 1, 2), (2, 2, 4), (4, 2, 4)][:count])
    motion, alpha = shift(0.5, 0.0, t=4, h=4, w=8), torch.tensor([0.9])

    def noise(level, seed):
        plain = white(1, clips, *scales[level], seed=seed)
        made = NOISE.colour(plain, scales[0], motion, alpha, draws(1, seed))
        return made.noise.transpose(0, 1)

    x = noise(0, 10)
    for level in range(1, count):
        end = (1 - boundaries[level - 1]) * x
        plain = white(clips, 1, *scales[level], seed=20 + level)
        a = flow.start_share(level, scales[level].volume // scales[level - 1].volume)
        x = flow.jump(end, level, scales[level], plain) / (1 - a)
    arrived, trained = (torch.cov(n.flatten(1).T) for n in (x, noise(last, 30)))
    assert (arrived - trained).abs().max() < 0.03
    assert (trained - torch.eye(len(trained))).abs().max() > 0.06


def test_the_coarsest_noise_is_that_of_the_particles_and_white_noise_stays_itself():
    plain, motion = white(2, 3, 4, 4, 4), 2 * wild(count=2)[:, :, :, :2, :2].repeat(1, 1, 1, 2, 2)
    alpha, coarsest = torch.tensor([0.0, 0.7]), Scale(2, 2, 2)
    level = NOISE.colour(plain, coarsest, motion, alpha, draws(2)).noise
    assert torch.equal(level[0], plain[0])
    seen = sqrt(8) * pool(plain, coarsest)
    moved = NOISE.sample(seen, motion, alpha, draws(2)).noise
    assert torch.allclose(sqrt(8) * pool(level, coarsest), moved, atol=1e-5)
    assert torch.allclose(null_space(level, coarsest), null_space(plain, coarsest), atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0.0}, {"particles": 0}, {"plain": 1.5}, {"most": 1.0}]
)
def test_arguments_out_of_range_are_refused(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{name}=.* is out of its range"):
        MotionNoise(**({"seconds": SECONDS} | wrong))


def test_frames_of_the_meta_device_have_shapes():
    """A dry run counts without memory, so no shape may depend on values."""
    meta = torch.device("meta")
    noise = NOISE.sample(
        torch.empty(2, 3, T, H, W, device=meta),
        torch.empty(2, 2, T, H, W, device=meta),
        torch.empty(2, device=meta),
        Draws(0, [0, 1], meta),
    )
    assert noise.noise.shape == (2, 3, T, H, W)


def test_correlation_of_a_slow_move_falls_evenly():
    """A frame that moves a quarter of a cell per frame shares 3/4, 1/2, 1/4 of a cell's noise."""
    sigma = NOISE.covariance(shift(0.25, 0.0)[0], 1.0).view(T, H, W, T, H, W)
    assert [sigma[0, 1, 1, t, 1, 1].item() for t in range(T)] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert sigma[0, 1, 1, 3, 1, 2].item() == pytest.approx(0.75)
    assert sigma[0, 1, 0, 3, 1, 0].item() == pytest.approx(sqrt(4 * 4) / sqrt(16 * 4))
