"""What a Hugging Face model is trained for: which head it gets, and which batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from meshwright.errors import ModelError
from meshwright.zoo import huggingface_batches as batches
from meshwright.zoo.huggingface_config import image_part, import_transformers, positions
from meshwright.zoo.options import Option


def _contrastive_loss(model: nn.Module, batch: Any) -> Tensor:
    loss: Tensor = model(**batch, return_loss=True).loss
    return loss


@dataclass(frozen=True)
class Kind:
    """A way of training.

    auto, mapping: transformers' names of the class that builds such models, and
    of the table of those it can build. sizes: the batch's options beside
    `global_batch`, with defaults. loss: None when labels in the batch are enough.
    """

    auto: str
    mapping: str
    batch: batches.BatchMaker
    sizes: Mapping[str, int | float]
    loss: Callable[[nn.Module, Any], Tensor] | None = None


_WHOLE = MappingProxyType({"seq_len": 128, "padding": 0.0})  # pretraining packs its sequences
_PADDED = MappingProxyType({"seq_len": 128, "padding": 0.2})
_PAIRS = MappingProxyType({"seq_len": 128, "target_len": 64, "padding": 0.2})
_IMAGE = MappingProxyType({"image_size": 224})
_AUDIO = MappingProxyType({"samples": 16000})

# In the order in which a config that names no architecture is tried.
KINDS: Mapping[str, Kind] = MappingProxyType({
    "contrastive": Kind(
        "AutoModelForZeroShotImageClassification",
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING",
        batches.contrastive, {**_PADDED, **_IMAGE}, _contrastive_loss,
    ),
    "speech-seq2seq": Kind(
        "AutoModelForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
        batches.speech_seq2seq, {"target_len": 64, "padding": 0.2},
    ),
    "seq2seq": Kind(
        "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
        batches.seq2seq, _PAIRS,
    ),
    "ctc": Kind(
        "AutoModelForCTC", "MODEL_FOR_CTC_MAPPING",
        batches.ctc, {**_AUDIO, "target_len": 16, "padding": 0.2},
    ),
    "audio-classification": Kind(
        "AutoModelForAudioClassification", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING",
        batches.audio_classification, _AUDIO,
    ),
    "masked-lm": Kind(
        "AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING", batches.masked_lm, _PADDED,
    ),
    "causal-lm": Kind(
        "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING", batches.causal_lm, _WHOLE,
    ),
    "image-classification": Kind(
        "AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
        batches.image_classification, _IMAGE,
    ),
    "semantic-segmentation": Kind(
        "AutoModelForSemanticSegmentation", "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING",
        batches.semantic_segmentation, _IMAGE,
    ),
    "sequence-classification": Kind(
        "AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
        batches.sequence_classification, _PADDED,
    ),
    "token-classification": Kind(
        "AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
        batches.token_classification, _PADDED,
    ),
    "question-answering": Kind(
        "AutoModelForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
        batches.question_answering, _PADDED,
    ),
    "multiple-choice": Kind(
        "AutoModelForMultipleChoice", "MODEL_FOR_MULTIPLE_CHOICE_MAPPING",
        batches.multiple_choice, _PADDED,
    ),
})  # fmt: skip


def pick(config: Any, task: Option | None) -> str:
    """The kind that `task` names, else that of the config's architecture, else of its type.

    A bare model, whose name ends in Model, says nothing of its training, so that
    its type decides. Raises ModelError for a kind that the model can't be
    trained as, and an architecture of no known kind.
    """
    fitting = [name for name in KINDS if _classes_of(config, name)]
    can_be = f"task={' or '.join(fitting)}" if fitting else "another model"
    if task is not None:
        if task not in KINDS:
            raise ModelError(f"task is {task!r}.", f"Give task={' or '.join(KINDS)}.")
        if task not in fitting:
            raise ModelError(
                f"transformers has no {config.model_type} for task={task}.",
                f"Give {can_be}, or write a factory that builds the model.",
            )
        return str(task)
    for architecture in config.architectures or ():
        for name in fitting:
            if architecture in _classes_of(config, name):
                return name
        # Heads that go by several names, as GPT2LMHeadModel, are in the tables above.
        if not architecture.endswith("Model"):
            raise ModelError(
                f"{architecture} is a model that hf: has no example batch for.",
                f"Give {can_be}, or write a factory that builds the model and its batch.",
            )
    if not fitting:
        raise ModelError(
            f"hf: knows no way to train a model of type {config.model_type}.",
            "Write a factory that builds the model and its batch.",
        )
    decodes_only = getattr(config, "is_decoder", False) and not config.is_encoder_decoder
    if decodes_only and "causal-lm" in fitting:
        return "causal-lm"
    return fitting[0]


def architecture(config: Any, name: str) -> Any:
    """transformers' class of the model that trains as the kind `name`: the config's own, if any."""
    classes = _classes_of(config, name)
    chosen = next((item for item in config.architectures or () if item in classes), classes[0])
    return getattr(import_transformers(), chosen)


def _classes_of(config: Any, name: str) -> tuple[str, ...]:
    """Names of transformers' classes that train a model of this config as the kind `name`."""
    table = getattr(import_transformers(), KINDS[name].mapping)
    if type(config) not in table:
        return ()
    found = table[type(config)]
    return tuple(item.__name__ for item in (found if isinstance(found, tuple) else (found,)))


def default_sizes(kind: Kind, config: Any) -> dict[str, int | float]:
    """The batch's options for this model, with defaults that it can take."""
    sizes: dict[str, int | float] = {"global_batch": 8, **kind.sizes}
    if getattr(image_part(config), "image_size", None) is not None:
        sizes.pop("image_size", None)  # it is a field of the config
    longest = positions(config)
    for name in ("seq_len", "target_len"):
        if name in sizes and longest is not None:
            sizes[name] = min(int(sizes[name]), longest)
    return sizes
