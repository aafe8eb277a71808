import pytest
import torch

from hstvg.nn.conv import TimeCache
from hstvg.nn.resample import Factor, from_depth, to_depth
from hstvg.tokenizer.network import Decoder, Encoder, steps_of

NETWORKS = {
    "plain": {},
    "haar": {"haar": True},
    "flat patch": {"patch": (1, 2, 4)},
    "no steps": {"strides": (4, 2, 2), "patch": (4, 2, 2)},
    "first alone": {"first_alone": True},
    "first alone, haar": {"first_alone": True, "haar": True, "strides": (4, 4, 4)},
}
each_network = pytest.mark.parametrize("options", NETWORKS.values(), ids=list(NETWORKS))


@pytest.fixture(autouse=True)
def _no_gradient():
    with torch.no_grad():
        yield


def network(kind, *, strides=(2, 4, 4), patch=(2, 2, 2), awake=True, **options):
    """An encoder to 2 x 3 channels or a decoder of 3; awake, its zero-initialised layers speak."""
    torch.manual_seed(0)
    channels = 6 if kind is Encoder else 3
    made = kind(Factor(*strides), channels, 4, 1, patch=Factor(*patch), **options)
    for parameter in made.parameters() if awake else ():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def video(network, groups=4):
    """Pixels of so many groups of frames."""
    t, alone = network.strides.t, network.first_alone
    frames = 1 + t * (groups - 1) if alone else t * groups
    return torch.randn(2, 3, frames, 8, 16, generator=torch.Generator().manual_seed(1))


def latent(network, groups=4):
    _, h, w = network.strides
    return torch.randn(2, 3, groups, 8 // h, 16 // w, generator=torch.Generator().manual_seed(2))


def first_frame(network, group):
    """Of a group."""
    if network.first_alone:
        return 1 + (group - 1) * network.strides.t if group else 0
    return group * network.strides.t


@each_network
def test_shapes(options):
    encoder, decoder = network(Encoder, **options), network(Decoder, **options)
    pixels, z = video(encoder), latent(decoder)
    assert encoder(pixels).shape == (2, 6, *z.shape[2:])
    assert decoder(z).shape == pixels.shape
    image, cell = video(encoder, groups=1), latent(decoder, groups=1)
    assert image.shape[2] == (1 if encoder.first_alone else encoder.strides.t)
    assert encoder(image).shape[2] == 1
    assert decoder(cell).shape == image.shape


@each_network
def test_encoding_does_not_see_the_future(options):
    encoder = network(Encoder, **options)
    pixels = video(encoder)
    before = encoder(pixels)
    for frame in range(1, pixels.shape[2]):
        changed = pixels.clone()
        changed[:, :, frame] *= -0.5
        after = encoder(changed)
        group = max(g for g in range(4) if first_frame(encoder, g) <= frame)
        assert torch.equal(before[:, :, :group], after[:, :, :group])
        assert not torch.equal(before[:, :, group], after[:, :, group])


@each_network
def test_decoding_does_not_see_the_future(options):
    decoder = network(Decoder, **options)
    z = latent(decoder)
    before = decoder(z)
    for group in range(4):
        changed = z.clone()
        changed[:, :, group] += 1
        after = decoder(changed)
        first = first_frame(decoder, group)
        assert torch.equal(before[:, :, :first], after[:, :, :first])
        assert not torch.equal(before[:, :, first], after[:, :, first])


@each_network
def test_the_past_is_seen(options):
    encoder, decoder = network(Encoder, **options), network(Decoder, **options)
    pixels, z = video(encoder), latent(decoder)
    earlier, coarser = pixels.clone(), z.clone()
    earlier[:, :, 0] += 1
    coarser[:, :, 0] += 1
    assert not torch.equal(encoder(earlier)[:, :, 1], encoder(pixels)[:, :, 1])
    second = first_frame(decoder, 1)
    assert not torch.equal(decoder(coarser)[:, :, second], decoder(z)[:, :, second])


@each_network
@pytest.mark.parametrize("lengths", [(4,), (1, 3), (3, 1), (1, 2, 1), (1, 1, 1, 1)])
def test_chunks_give_what_the_whole_does(options, lengths):
    encoder, decoder = network(Encoder, **options), network(Decoder, **options)
    pixels, z = video(encoder), latent(decoder)
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    cuts = [first_frame(encoder, end) for end in ends]
    frames = [cut - before for before, cut in zip([0, *cuts], cuts, strict=False)]
    for half, whole, sizes in ((encoder, pixels, frames), (decoder, z, lengths)):
        past = TimeCache()
        chunks = [half(chunk, past) for chunk in whole.split(sizes, dim=2)]
        assert torch.allclose(torch.cat(chunks, dim=2), half(whole), atol=1e-5)


@pytest.mark.parametrize("haar", [False, True])
def test_a_first_frame_alone_is_an_image(haar):
    encoder = network(Encoder, first_alone=True, haar=haar)
    decoder = network(Decoder, first_alone=True, haar=haar)
    pixels, z = video(encoder), latent(decoder)
    assert torch.allclose(encoder(pixels[:, :, :1]), encoder(pixels)[:, :, :1], atol=1e-5)
    assert torch.allclose(decoder(z[:, :, :1]), decoder(z)[:, :, :1], atol=1e-5)


def test_a_first_frame_alone_is_a_group_that_stands_still():
    """The frame `strides.t` times, as the other kind of network would see it."""
    options = {"strides": (4, 4, 4)}
    pixels = video(network(Encoder, first_alone=True, **options))
    still = torch.cat([pixels[:, :, :1].expand(-1, -1, 3, -1, -1), pixels], dim=2)
    alone = network(Encoder, first_alone=True, **options)(pixels)
    assert torch.allclose(alone, network(Encoder, **options)(still), atol=1e-6)


@each_network
def test_training_starts_with_the_linear_shortcut(options):
    encoder = network(Encoder, awake=False, **options)
    decoder = network(Decoder, awake=False, **options)
    pixels, z = video(encoder), latent(decoder)
    alone = encoder.first_alone
    if alone:
        still = pixels[:, :, :1].expand(-1, -1, encoder.strides.t - 1, -1, -1)
        pixels = torch.cat([still, pixels], dim=2)
    linear = encoder.shortcut(to_depth(pixels, encoder.strides))
    assert torch.equal(encoder(pixels[:, :, encoder.strides.t - 1 :] if alone else pixels), linear)
    blocks = from_depth(decoder.shortcut(z), decoder.strides)
    assert torch.equal(decoder(z), blocks[:, :, decoder.strides.t - 1 :] if alone else blocks)


def test_training_starts_with_little_noise():
    """A log-variance of -6 is a deviation of 0.05."""
    encoder = network(Encoder, awake=False)
    mean, logvar = encoder(video(encoder)).chunk(2, dim=1)
    assert torch.equal(logvar, torch.full_like(logvar, -6.0))
    assert mean.std() > 0.1


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_haar_turns_what_the_deep_path_sees(kind):
    plain, turned = (network(kind, haar=haar) for haar in (False, True))
    given = video(plain) if kind is Encoder else latent(plain)
    assert not torch.allclose(plain(given), turned(given), atol=1e-2)
    plain, turned = (network(kind, haar=haar, awake=False) for haar in (False, True))
    assert torch.equal(plain(given), turned(given))


@pytest.mark.parametrize(
    ("strides", "patch", "expected"),
    [
        ((2, 2, 2), (2, 2, 2), []),
        ((2, 4, 4), (2, 2, 2), [(1, 2, 2)]),
        ((8, 4, 2), (2, 2, 2), [(2, 2, 1), (2, 1, 1)]),
        ((4, 8, 8), (1, 4, 4), [(2, 2, 2), (2, 1, 1)]),
        ((3, 6, 12), (3, 3, 3), [(1, 2, 2), (1, 1, 2)]),
    ],
)
def test_steps_by_hand(strides, patch, expected):
    assert steps_of(Factor(*strides), Factor(*patch)) == expected


@pytest.mark.parametrize(
    ("strides", "patch"),
    [
        *[((1, 4, 4), (2, 2, 2)), ((2, 6, 4), (2, 2, 2)), ((3, 4, 4), (2, 2, 2))],
        *[((2, 4, 1), (2, 2, 2)), ((2, 12, 12), (2, 4, 4)), ((2, 4, 4), (2, 8, 4))],
    ],
)
def test_strides_that_no_steps_make_up_are_refused(strides, patch):
    with pytest.raises(ValueError, match="not powers of two of at least"):
        steps_of(Factor(*strides), Factor(*patch))
