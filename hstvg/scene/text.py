"""Text to tokens: a T5 encoder, byte-level and trained along, or pretrained by id or path.

The byte-level default (arXiv 2105.13626) needs no vocabulary file. It knows only the words of the
captions it was trained on; a pretrained encoder of the same class knows a language.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

MAX_TOKENS = 128


class TextEncoder(nn.Module):
    """A T5 encoder stack behind one interface.

    Args:
        width: model width of the byte-level encoder.
        layers: its depth.
        heads: its attention heads.
        max_tokens: longer texts are cut.
        dropout: share of activations that training drops.
        pretrained: id or folder of a T5 or UMT5 encoder and its tokenizer; the other sizes are then
            its own, it is frozen, and drops nothing.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        max_tokens: int = MAX_TOKENS,
        dropout: float = 0.0,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

        self.max_tokens = max_tokens
        self.frozen = pretrained is not None
        if pretrained is None:
            self.tokenizer = ByT5Tokenizer()
            self.encoder = T5EncoderModel(
                T5Config(
                    vocab_size=384,
                    d_model=width,
                    d_kv=width // heads,
                    d_ff=2 * width,
                    num_layers=layers,
                    num_heads=heads,
                    feed_forward_proj="gated-gelu",
                    dropout_rate=dropout,
                    use_cache=False,
                )
            )
        else:
            self.tokenizer, self.encoder = _load_pretrained(pretrained)
            self.encoder.requires_grad_(False)
        self.width: int = self.encoder.config.d_model

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Token ids and their mask, padded to the longest text; every text has an end token."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        return tokens["input_ids"], tokens["attention_mask"].bool()

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        # As an additive bias, since of a mask the library asks its values, which meta tensors lack.
        bias = torch.zeros(mask.shape, dtype=self.encoder.dtype, device=mask.device)
        bias = bias.masked_fill(~mask, torch.finfo(bias.dtype).min)[:, None, None, :]
        bias = bias.expand(-1, 1, mask.shape[1], -1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder(input_ids=ids, attention_mask=bias).last_hidden_state


def _load_pretrained(source: str):
    """The encoder half alone: AutoModel on such a folder would add a random decoder."""
    from transformers import AutoConfig, AutoTokenizer, T5EncoderModel, UMT5EncoderModel

    config: Any = AutoConfig.from_pretrained(source)
    encoder_class = UMT5EncoderModel if config.model_type == "umt5" else T5EncoderModel
    if torch.get_default_device().type == "meta":  # only its sizes are wanted
        encoder = encoder_class(config)
    else:
        # Without dropout, which training mode would switch on in frozen weights too.
        encoder = encoder_class.from_pretrained(source, dropout_rate=0.0, use_safetensors=True)
    return AutoTokenizer.from_pretrained(source), encoder
