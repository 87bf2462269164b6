"""A language model on `nn.LSTM`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from meshwright.task import Task
from meshwright.zoo.gpt import next_token_loss
from meshwright.zoo.sizes import config_of
from meshwright.zoo.text import batches


@dataclass(frozen=True)
class LSTMConfig:
    layers: int = 3
    width: int = 2048
    vocab: int = 32768
    seq_len: int = 64
    dropout: float = 0.1
    global_batch: int = 128


SIZES = {
    "tiny": LSTMConfig(2, width=16, vocab=64, seq_len=8, dropout=0.0, global_batch=8),
    "small": LSTMConfig(2, width=256, vocab=256, seq_len=64, global_batch=32),
    "full": LSTMConfig(),
}


class LSTMLanguageModel(nn.Module):
    """`model(ids) -> logits`, ids [B, S] int64, logits [B, S, V]."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(
            config.width,
            config.width,
            num_layers=config.layers,
            dropout=config.dropout if config.layers > 1 else 0.0,
            batch_first=True,
        )
        self.head = nn.Linear(config.width, config.vocab)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.dropout(self.embedding(ids)))
        logits: Tensor = self.head(self.dropout(states))
        return logits


def lstm_task(
    size: str = "small",
    layers: int | None = None,
    width: int | None = None,
    vocab: int | None = None,
    seq_len: int | None = None,
    dropout: float | None = None,
    global_batch: int | None = None,
) -> Task:
    """Next-byte prediction; `size=full` has 235 million parameters."""
    config = config_of(
        SIZES, size, layers=layers, width=width, vocab=vocab, seq_len=seq_len, dropout=dropout,
        global_batch=global_batch,
    )  # fmt: skip
    text = batches(0, config.global_batch, config.seq_len, config.vocab)
    return Task(
        model=partial(LSTMLanguageModel, config),
        loss=next_token_loss,
        batch=text[0],
        name="lstm",
    )
