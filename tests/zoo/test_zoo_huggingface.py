"""Hugging Face configs become tasks: the head that they ask for, and a batch that it trains on."""

from __future__ import annotations

import json

import pytest
import torch

from meshwright.capture.loss import run_loss
from meshwright.errors import ModelError
from meshwright.zoo.reference import load_task

pytest.importorskip("transformers", reason="the hf extra is not installed")

BERT = {
    "model_type": "bert", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 67, "max_position_embeddings": 40,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 67}
BART = {
    "model_type": "bart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "vocab_size": 67, "max_position_embeddings": 40,
}  # fmt: skip
VIT = {
    "model_type": "vit", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
SEGFORMER = {
    "model_type": "segformer", "num_encoder_blocks": 1, "depths": [1], "sr_ratios": [1],
    "hidden_sizes": [16], "patch_sizes": [7], "strides": [4], "num_attention_heads": [2],
    "mlp_ratios": [2], "decoder_hidden_size": 8,
}  # fmt: skip
CLIP = {
    "model_type": "clip",
    "projection_dim": 8,
    "text_config": {**BERT, "model_type": "clip_text_model", "max_position_embeddings": 20},
    "vision_config": {**VIT, "model_type": "clip_vision_model"},
}
WHISPER = {
    **BART, "model_type": "whisper", "max_source_positions": 12, "max_target_positions": 16,
    "num_mel_bins": 6, "pad_token_id": 1, "decoder_start_token_id": 2,
}  # fmt: skip
WAV2VEC2 = {
    **BERT, "model_type": "wav2vec2", "conv_dim": [8, 8], "conv_stride": [5, 2],
    "conv_kernel": [10, 3], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip

EXPECTED = {
    # (config, architecture, task): (class, names of the batch)
    "bert": (BERT, None, None, "BertForMaskedLM", "input_ids attention_mask labels"),
    "bert-classes": (BERT, "BertForSequenceClassification", None, "BertForSequenceClassification",
                     "input_ids attention_mask labels"),
    "bert-tokens": (BERT, None, "token-classification", "BertForTokenClassification",
                    "input_ids attention_mask labels"),
    "bert-answers": (BERT, None, "question-answering", "BertForQuestionAnswering",
                     "input_ids attention_mask start_positions end_positions"),
    "bert-choices": (BERT, "BertForMultipleChoice", None, "BertForMultipleChoice",
                     "input_ids attention_mask labels"),
    "bert-decoder": ({**BERT, "is_decoder": True}, None, None, "BertLMHeadModel",
                     "input_ids labels"),
    "bert-bare": (BERT, "BertModel", None, "BertForMaskedLM", "input_ids attention_mask labels"),
    "gpt2": (GPT2, None, None, "GPT2LMHeadModel", "input_ids labels"),
    "gpt2-classes": (GPT2, None, "sequence-classification", "GPT2ForSequenceClassification",
                     "input_ids attention_mask labels"),
    "fnet": ({**BERT, "model_type": "fnet"}, None, None, "FNetForMaskedLM", "input_ids labels"),
    "bart": (BART, None, None, "BartForConditionalGeneration", "input_ids attention_mask labels"),
    "vit": (VIT, None, None, "ViTForImageClassification", "pixel_values labels"),
    "segformer": (SEGFORMER, "SegformerForSemanticSegmentation", None,
                  "SegformerForSemanticSegmentation", "pixel_values labels"),
    "clip": (CLIP, "CLIPModel", None, "CLIPModel", "input_ids attention_mask pixel_values"),
    "whisper": (WHISPER, None, None, "WhisperForConditionalGeneration", "input_features labels"),
    "audio": (WAV2VEC2, "Wav2Vec2ForSequenceClassification", None,
              "Wav2Vec2ForSequenceClassification", "input_values labels"),
    "ctc": (WAV2VEC2, "Wav2Vec2ForCTC", None, "Wav2Vec2ForCTC", "input_values labels"),
    "layoutlm": ({**BERT, "model_type": "layoutlm"}, None, None, "LayoutLMForMaskedLM",
                 "input_ids attention_mask bbox labels"),
}  # fmt: skip


def load(tmp_path, config, **options):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return load_task(f"hf:{path}", options)


def small(config, task=None):
    """Options that keep a batch small, as far as the model takes them."""
    options = {"global_batch": "4"}
    if config is SEGFORMER:
        options["image_size"] = "32"
    if config is WAV2VEC2:
        options["samples"] = "400"
    return options | ({"task": task} if task else {})


@pytest.mark.parametrize("name", EXPECTED)
def test_a_config_says_what_it_is_trained_for(tmp_path, name):
    config, architecture, task, expected, names = EXPECTED[name]
    fields = config | ({"architectures": [architecture]} if architecture else {})
    made = load(tmp_path, fields, **small(config, task))
    assert set(made.batch) == set(names.split())
    assert all(len(item) == 4 for item in made.batch.values())
    model = made.model()
    assert type(model).__name__ == expected
    assert model.training
    loss = run_loss(made, model, made.batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_masked_tokens_are_those_with_labels(tmp_path):
    batch = load(tmp_path, BERT, seq_len=40, global_batch=16).batch
    mask, labels = batch["attention_mask"].bool(), batch["labels"]
    kept = labels != -100
    assert kept[:, 0].all()
    assert not kept[~mask].any()
    assert 0.05 < kept[mask].float().mean() < 0.3
    assert (batch["input_ids"][kept] == 66).all()
    assert mask[0].all()
    assert 0.05 < (~mask).float().mean() < 0.35
    assert (batch["input_ids"][~mask] == 0).all()


def test_padding_is_at_the_end_and_out_of_the_loss(tmp_path):
    batch = load(tmp_path, GPT2, seq_len=20, padding="0.3").batch
    mask = batch["attention_mask"]
    assert torch.equal(mask, mask.sort(dim=1, descending=True).values)
    assert ((batch["labels"] == -100) == (mask == 0)).all()
    assert "attention_mask" not in load(tmp_path, GPT2, seq_len=20).batch


def test_lengths_default_to_what_the_model_has_positions_for(tmp_path):
    assert load(tmp_path, BERT).batch["input_ids"].shape == (8, 40)
    roberta = {**BERT, "model_type": "roberta", "pad_token_id": 1}
    batch = load(tmp_path, roberta).batch
    assert batch["input_ids"].shape == (8, 38)
    assert load(tmp_path, CLIP).batch["input_ids"].shape == (8, 20)


def test_options_reach_the_parts_of_a_config(tmp_path):
    options = {"text_config.num_hidden_layers": "2", "vision_config.image_size": "24"}
    made = load(tmp_path, CLIP, **options)
    config = made.model().config
    assert config.text_config.num_hidden_layers == 2
    assert config.text_config.vocab_size == 67
    assert made.batch["pixel_values"].shape == (8, 3, 24, 24)


def test_the_way_of_attention_can_be_chosen(tmp_path):
    for given in ("sdpa", "eager"):
        model = load(tmp_path, BERT, attn_implementation=given).model()
        assert model.config._attn_implementation == given


def test_floating_inputs_have_the_dtype_of_the_model(tmp_path):
    made = load(tmp_path, VIT, dtype="bfloat16")
    assert made.batch["pixel_values"].dtype == torch.bfloat16
    assert made.batch["labels"].dtype == torch.int64


def test_loading_twice_gives_the_same_batch(tmp_path):
    one, other = load(tmp_path, CLIP).batch, load(tmp_path, CLIP).batch
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("config", "options", "says", "remedy"),
    [
        (BERT, {"task": "sorting"}, "task is 'sorting'", "task=contrastive or "),
        (VIT, {"task": "causal-lm"}, "no vit for task=causal-lm", "task=image-classification"),
        ({**BERT, "architectures": ["BertForPreTraining"]}, {}, "BertForPreTraining",
         "task=masked-lm"),
        ({"model_type": "encodec"}, {}, "no way to train a model of type encodec", "factory"),
        (BERT, {"target_len": "4"}, "no option target_len", "seq_len"),
        (BERT, {"padding": "1.5"}, "padding is 1.5", "0.1"),
        (BERT, {"padding": "some"}, "padding", "0.1"),
        (BERT, {"attn_implementation": "fast"}, "attn_implementation is 'fast'", "eager"),
        (BERT, {"global_batch": "0"}, "global_batch is 0", "global_batch=1"),
        (CLIP, {"text_config.hidden_sizes": "4"}, "no option", "text_config.hidden_size"),
        (CLIP, {"seq_len": "21"}, "has 20 positions", "seq_len=20"),
        ({**BERT, "model_type": "roberta", "pad_token_id": 1}, {"seq_len": "39"},
         "has 38 positions", "seq_len=38"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, config, options, says, remedy):
    with pytest.raises(ModelError) as caught:
        load(tmp_path, config, **options)
    assert says in caught.value.message
    assert remedy in caught.value.remedy


def test_a_model_that_transformers_refuses_to_build_is_named(tmp_path):
    made = load(tmp_path, BERT, hidden_size="15")
    with pytest.raises(ModelError, match="can't build a model of bert"):
        made.model()
