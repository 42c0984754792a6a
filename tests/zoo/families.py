"""Tiny classifiers of the families that people train, from their configurations: nothing is downloaded.

Every tensor is drawn at random, so that no exporter can drop or merge one, and a value tells which tensor it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from torch import Tensor, nn

CLASSES = 3
LENGTH = 6
VOCABULARY = 24
SAMPLES = 6
"""Rows of the batch that is analysed."""

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A family: its module and its inputs by name."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    """Number of samples → inputs in the order of the module's arguments."""


class Logits(nn.Module):
    """A model of transformers as a function of tensors that returns the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class ImageLogits(Logits):
    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits  # type: ignore[no-any-return]


class TokenLogits(Logits):
    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids).logits  # type: ignore[no-any-return]


class MaskedLogits(Logits):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """A backbone without a classifier under a mean over positions and a linear head."""

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(width, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.model(input_ids=input_ids).last_hidden_state.mean(1))
        return logits


def tokens(samples: int) -> Inputs:
    """Token ids from 2 and a mask that hides the end of every second row; 0 fills what is hidden."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(2, VOCABULARY, (samples, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[1::2, LENGTH - 2 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def ids_only(samples: int) -> Inputs:
    generator = torch.Generator().manual_seed(8)
    return {"input_ids": torch.randint(2, VOCABULARY, (samples, LENGTH), generator=generator)}


def images(samples: int) -> Inputs:
    generator = torch.Generator().manual_seed(9)
    return {"pixel_values": torch.randn(samples, 3, 32, 32, generator=generator)}


def randomise(module: nn.Module) -> nn.Module:
    """Draw all parameters and running statistics; scales around 1, variances positive."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            drawn = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + drawn.abs())
            elif name.endswith("running_mean"):
                tensor.copy_(0.3 * drawn)
            elif not isinstance(tensor, nn.Parameter):
                continue
            elif tensor.ndim == 1 and not name.endswith(("bias", "token")):
                tensor.copy_(1 + 0.2 * drawn)
            elif tensor.ndim <= 1 or "embed" in name or "position" in name or "token" in name:
                tensor.copy_(0.3 * drawn)
            else:
                tensor.copy_(1.4 * drawn / tensor[0].numel() ** 0.5)
    return module.eval()


def _text(config: type[Any], model: type[Any], inputs: Callable[[int], Inputs], attention: str, **more: Any) -> Family:
    def build() -> nn.Module:
        settings = config(
            vocab_size=VOCABULARY, num_labels=CLASSES, pad_token_id=0, attn_implementation=attention, **more
        )
        return randomise((MaskedLogits if inputs is tokens else TokenLogits)(model(settings)))

    return Family(build, inputs)


def _image(config: type[Any], model: type[Any], attention: str | None = None, **more: Any) -> Family:
    def build() -> nn.Module:
        extra = {"attn_implementation": attention} if attention else {}
        return randomise(ImageLogits(model(config(num_labels=CLASSES, **extra, **more))))

    return Family(build, images)


def _mamba() -> nn.Module:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2, conv_kernel=3, use_mambapy=False,
        use_cache=False,
    )  # fmt: skip
    return randomise(Pooled(transformers.MambaModel(config), 16))


_ENCODER: Mapping[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
_BERT = {**_ENCODER, "max_position_embeddings": 12}
_GPT2: Mapping[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12, "use_cache": False}
_t = transformers

FAMILIES: dict[str, Family] = {
    "ResNet": _image(
        _t.ResNetConfig, _t.ResNetForImageClassification,
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
    ),
    "ConvNeXt": _image(
        _t.ConvNextConfig, _t.ConvNextForImageClassification, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2,
    ),
    "MobileNetV2": _image(
        _t.MobileNetV2Config, _t.MobileNetV2ForImageClassification, depth_multiplier=0.1, min_depth=4,
        depth_divisible_by=4, image_size=32, finegrained_output=False,
    ),
    "ViT, eager": _image(_t.ViTConfig, _t.ViTForImageClassification, "eager", image_size=32, patch_size=8, **_ENCODER),
    "ViT, sdpa": _image(_t.ViTConfig, _t.ViTForImageClassification, "sdpa", image_size=32, patch_size=8, **_ENCODER),
    "Swin": _image(
        _t.SwinConfig, _t.SwinForImageClassification, image_size=32, patch_size=4, embed_dim=8, depths=[2, 1],
        num_heads=[2, 2], window_size=4,
    ),
    "BERT, eager": _text(_t.BertConfig, _t.BertForSequenceClassification, tokens, "eager", **_BERT),
    "BERT, sdpa": _text(_t.BertConfig, _t.BertForSequenceClassification, tokens, "sdpa", **_BERT),
    "BERT, sdpa, no mask": _text(_t.BertConfig, _t.BertForSequenceClassification, ids_only, "sdpa", **_BERT),
    "DistilBERT, eager": _text(
        _t.DistilBertConfig, _t.DistilBertForSequenceClassification, tokens, "eager", dim=16, n_layers=2, n_heads=2,
        hidden_dim=32, max_position_embeddings=12,
    ),
    "DistilBERT, sdpa": _text(
        _t.DistilBertConfig, _t.DistilBertForSequenceClassification, tokens, "sdpa", dim=16, n_layers=2, n_heads=2,
        hidden_dim=32, max_position_embeddings=12,
    ),
    "RoBERTa, eager": _text(_t.RobertaConfig, _t.RobertaForSequenceClassification, tokens, "eager", **_BERT),
    "RoBERTa, sdpa": _text(_t.RobertaConfig, _t.RobertaForSequenceClassification, tokens, "sdpa", **_BERT),
    "GPT-2, eager": _text(
        _t.GPT2Config, _t.GPT2ForSequenceClassification, tokens, "eager", **_GPT2,
    ),
    "GPT-2, sdpa": _text(
        _t.GPT2Config, _t.GPT2ForSequenceClassification, tokens, "sdpa", **_GPT2,
    ),
    "GPT-2, sdpa, no mask": _text(
        _t.GPT2Config, _t.GPT2ForSequenceClassification, ids_only, "sdpa", **_GPT2,
    ),
    "Llama, eager": _text(
        _t.LlamaConfig, _t.LlamaForSequenceClassification, tokens, "eager", num_key_value_heads=1, use_cache=False,
        **_BERT,
    ),
    "Llama, sdpa": _text(
        _t.LlamaConfig, _t.LlamaForSequenceClassification, tokens, "sdpa", num_key_value_heads=1, use_cache=False,
        **_BERT,
    ),
    "Mamba": Family(_mamba, ids_only),
}  # fmt: skip
