import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from hstvg.scene.text import TextEncoder

SIZES = {"vocab_size": 384, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TextEncoder(width=16, layers=2, heads=2, max_tokens=12)


def word_tokenizer():
    """A tokenizer of a few words in one file, the form in which large encoders ship theirs."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "red": 3, "circle": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def save(folder, kind):
    torch.manual_seed(0)
    if kind == "umt5":
        UMT5EncoderModel(UMT5Config(**SIZES)).save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)
    else:
        T5EncoderModel(T5Config(**SIZES)).save_pretrained(folder)
        ByT5Tokenizer().save_pretrained(folder)
    return str(folder)


def test_bytes_by_hand(encoder):
    """A byte is its value + 3; every text ends with token 1 and is padded with token 0."""
    ids, mask = encoder.tokenize(["ab", ""])
    assert ids.tolist() == [[100, 101, 1], [1, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_the_empty_text_has_one_token(encoder):
    ids, mask = encoder.tokenize([""])
    assert ids.shape == mask.shape == (1, 1)
    assert torch.isfinite(encoder(ids, mask)).all()


def test_a_long_text_is_cut_and_still_ends(encoder):
    ids, mask = encoder.tokenize(["x" * 50])
    assert ids.tolist() == [[123] * 11 + [1]]
    assert mask.all()


@torch.no_grad()
def test_padding_does_not_change_the_tokens(encoder):
    short, mask_alone = encoder.tokenize(["abc"])
    ids, mask = encoder.tokenize(["abc", "abcdefghij"])
    states, alone = encoder(ids, mask), encoder(short, mask_alone)
    assert states.shape == (2, 11, 16)
    assert torch.allclose(states[:1, :4], alone, atol=1e-5)
    changed = torch.where(mask, ids, 77)
    assert torch.allclose(encoder(changed, mask)[:1, :4], alone, atol=1e-5)


@torch.no_grad()
def test_the_order_of_bytes_matters(encoder):
    states = encoder(*encoder.tokenize(["abcab", "bacab"]))
    assert not torch.allclose(states[0, 2:], states[1, 2:], atol=1e-3)


def test_the_byte_level_encoder_is_trained(encoder):
    encoder(*encoder.tokenize(["abc"])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@torch.no_grad()
def test_dropout_is_on_in_training_alone_and_follows_the_seed():
    encoder = TextEncoder(width=16, layers=1, heads=2, dropout=0.5)
    tokens = encoder.tokenize(["abc"])
    states = [encoder(*tokens) for _ in range(2) if torch.manual_seed(3)]
    assert torch.equal(*states)
    assert not torch.equal(encoder(*tokens), states[0])
    encoder.eval()
    assert torch.equal(encoder(*tokens), encoder(*tokens))


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_a_saved_encoder_loads_by_its_folder_and_is_frozen(tmp_path, kind):
    pretrained = TextEncoder(width=999, pretrained=save(tmp_path, kind))
    assert pretrained.width == 16
    assert not any(parameter.requires_grad for parameter in pretrained.parameters())
    ids, mask = pretrained.tokenize(["red circle", "red"])
    states = pretrained(ids, mask)
    assert not states.requires_grad
    shorter = pretrained(*pretrained.tokenize(["red"]))
    assert torch.allclose(states[1:, : shorter.shape[1]], shorter, atol=1e-5)
    assert torch.equal(pretrained.train()(ids, mask), states), "no dropout in frozen weights"


def test_a_saved_encoder_keeps_its_weights(tmp_path):
    pretrained = TextEncoder(pretrained=save(tmp_path, "t5"))
    weights = T5EncoderModel.from_pretrained(tmp_path).state_dict()
    for name, value in pretrained.encoder.state_dict().items():
        assert torch.equal(value, weights[name])
