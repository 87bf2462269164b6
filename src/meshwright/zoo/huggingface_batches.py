"""Example batches for Hugging Face models: random data of the form that training feeds them.

Every maker takes the config, the batch's sizes by name and a seeded generator,
and gives the model's keyword arguments. Token ids are [batch, sequence], labels
that don't count are -100.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from meshwright.zoo.huggingface_config import image_part, text_part

Batch = dict[str, Tensor]
Sizes = Mapping[str, int | float]
BatchMaker = Callable[[Any, Sizes, torch.Generator], Batch]

IGNORED = -100  # labels that the loss leaves out, as torch.nn.CrossEntropyLoss does
_MASKED_SHARE = 0.15  # of the tokens, as in BERT (Devlin et al., 2018)
_CHOICES = 4


def causal_lm(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    batch = _text(config, sizes, generator)
    return {**batch, "labels": _kept(batch, batch["input_ids"])}  # the model shifts labels itself


def masked_lm(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    """Some tokens replaced by one, which the model is to find again."""
    batch = _text(config, sizes, generator)
    ids = batch["input_ids"]
    chosen = torch.rand(ids.shape, generator=generator) < _MASKED_SHARE
    chosen[:, 0] = True  # so that every sequence has something to find
    if "attention_mask" in batch:
        chosen &= batch["attention_mask"] == 1
    labels = ids.masked_fill(~chosen, IGNORED)
    # Configs don't name the mask token; any one will do for random text.
    masked = ids.masked_fill(chosen, text_part(config).vocab_size - 1)
    return {**batch, "input_ids": masked, "labels": labels}


def seq2seq(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    """Sources with a mask, and targets; the model makes its decoder's inputs from those."""
    return {**_text(config, sizes, generator), "labels": _targets(config, sizes, generator)}


def speech_seq2seq(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    """Features [batch, mel bins, frames] of the one length that such models take, and targets."""
    frames = 2 * config.max_source_positions  # the convolutions in front halve them
    shape = (int(sizes["global_batch"]), config.num_mel_bins, frames)
    features = torch.randn(shape, generator=generator)
    return {"input_features": features, "labels": _targets(config, sizes, generator)}


def sequence_classification(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    return {**_text(config, sizes, generator), "labels": _classes(config, sizes, generator)}


def token_classification(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    batch = _text(config, sizes, generator)
    shape = batch["input_ids"].shape
    labels = torch.randint(config.num_labels, shape, generator=generator)
    return {**batch, "labels": _kept(batch, labels)}


def question_answering(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    batch = _text(config, sizes, generator)
    rows, length = batch["input_ids"].shape
    ends = torch.randint(length, (2, rows), generator=generator).sort(dim=0).values
    return {**batch, "start_positions": ends[0], "end_positions": ends[1]}


def multiple_choice(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    """Token ids are [batch, choice, sequence]."""
    rows = int(sizes["global_batch"])
    batch = _text(config, {**sizes, "global_batch": rows * _CHOICES}, generator)
    choices = {name: item.view(rows, _CHOICES, *item.shape[1:]) for name, item in batch.items()}
    return {**choices, "labels": torch.randint(_CHOICES, (rows,), generator=generator)}


def image_classification(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    return {**_images(config, sizes, generator), "labels": _classes(config, sizes, generator)}


def semantic_segmentation(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    """A class for each pixel; some pixels belong to none."""
    batch = _images(config, sizes, generator)
    rows, _, *image = batch["pixel_values"].shape
    labels = torch.randint(config.num_labels, (rows, *image), generator=generator)
    unknown = torch.rand(labels.shape, generator=generator) < 0.05
    ignored = getattr(config, "semantic_loss_ignore_index", IGNORED)
    return {**batch, "labels": labels.masked_fill(unknown, ignored)}


def contrastive(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    """Images, each with its text, which ends in the token that such models pool at."""
    batch = _text(config, sizes, generator)
    text = text_part(config)
    end = getattr(text, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < text.vocab_size:
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids))
        ids[torch.arange(len(ids)), mask.sum(dim=1) - 1] = end
    return {**batch, **_images(config, sizes, generator)}


def audio_classification(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    return {**_waves(sizes, generator), "labels": _classes(config, sizes, generator)}


def ctc(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    return {**_waves(sizes, generator), "labels": _targets(config, sizes, generator)}


def _text(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    """Token ids; with padding, sequences of several lengths and the mask that tells them."""
    text = text_part(config)
    rows, length = int(sizes["global_batch"]), int(sizes["seq_len"])
    batch = {"input_ids": _tokens(text, (rows, length), generator)}
    if sizes["padding"]:
        shortest = max(1, round(length * (1 - 2 * sizes["padding"])))
        mask = _lengths_mask(rows, length, shortest, generator)
        pad = text.pad_token_id if isinstance(text.pad_token_id, int) else 0
        batch["input_ids"].masked_fill_(~mask, pad)
        batch["attention_mask"] = mask.long()
    if hasattr(text, "max_2d_position_embeddings"):
        # Boxes of words on a page, from top left to bottom right.
        corners = torch.randint(
            text.max_2d_position_embeddings, (2, 2, rows, length), generator=generator
        )
        low, high = corners.sort(dim=0).values
        batch["bbox"] = torch.stack((low[0], low[1], high[0], high[1]), dim=-1)
    return batch


def _lengths_mask(rows: int, length: int, shortest: int, generator: torch.Generator) -> Tensor:
    """Lengths from `shortest` to all, the first row whole, as batches are padded to the longest."""
    lengths = torch.randint(shortest, length + 1, (rows, 1), generator=generator)
    lengths[0] = length
    return torch.arange(length) < lengths


def _targets(config: Any, sizes: Sizes, generator: torch.Generator) -> Tensor:
    rows, length = int(sizes["global_batch"]), int(sizes["target_len"])
    targets = _tokens(text_part(config), (rows, length), generator)
    if sizes.get("padding"):
        shortest = max(1, round(length * (1 - 2 * sizes["padding"])))
        mask = _lengths_mask(rows, length, shortest, generator)
        targets.masked_fill_(~mask, IGNORED)
    return targets


def _tokens(text: Any, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    ids = torch.randint(text.vocab_size, shape, generator=generator)
    pad = getattr(text, "pad_token_id", None)
    if isinstance(pad, int) and 0 <= pad < text.vocab_size:
        # Several models tell padding by this token, wherever it stands.
        ids = torch.where(ids == pad, (pad + 1) % text.vocab_size, ids)
    return ids


def _kept(batch: Batch, labels: Tensor) -> Tensor:
    """The labels of what is no padding."""
    mask = batch.get("attention_mask")
    return labels.clone() if mask is None else labels.masked_fill(mask == 0, IGNORED)


def _classes(config: Any, sizes: Sizes, generator: torch.Generator) -> Tensor:
    return torch.randint(config.num_labels, (int(sizes["global_batch"]),), generator=generator)


def _images(config: Any, sizes: Sizes, generator: torch.Generator) -> Batch:
    """Pixels [batch, channel, height, width], as normalised as image processors give them."""
    vision = image_part(config)
    size = sizes.get("image_size") or getattr(vision, "image_size", None)
    height, width = (size, size) if isinstance(size, int) else size  # type: ignore[misc]
    shape = (int(sizes["global_batch"]), getattr(vision, "num_channels", 3), height, width)
    return {"pixel_values": torch.randn(shape, generator=generator)}


def _waves(sizes: Sizes, generator: torch.Generator) -> Batch:
    shape = (int(sizes["global_batch"]), int(sizes["samples"]))
    return {"input_values": torch.randn(shape, generator=generator)}
