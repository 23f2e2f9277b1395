"""Models of the `transformers` library from their configurations: random weights, nothing is downloaded."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers
from torch import nn


class Logits(nn.Module):
    """A model of the library that returns its logits, called with keywords as its users do."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True).logits


def _wrap(kind, config, names=("input_ids",)):
    config.use_cache = False
    return Logits(kind(config), names)


def bert(size=768, layers=12, heads=12, words=30522, places=512):
    config = transformers.BertConfig(
        vocab_size=words,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * size,
        max_position_embeddings=places,
        num_labels=3,
    )
    return _wrap(transformers.BertForSequenceClassification, config)


def distilbert(size=768, layers=6, heads=12, words=30522, places=512):
    config = transformers.DistilBertConfig(
        vocab_size=words,
        dim=size,
        n_layers=layers,
        n_heads=heads,
        hidden_dim=4 * size,
        max_position_embeddings=places,
        num_labels=3,
    )
    return _wrap(transformers.DistilBertForSequenceClassification, config)


def electra(size=768, layers=12, heads=12, words=30522, places=512):
    config = transformers.ElectraConfig(
        vocab_size=words,
        embedding_size=size // 2,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * size,
        max_position_embeddings=places,
    )
    return _wrap(transformers.ElectraForTokenClassification, config)


def opt(size=768, layers=12, heads=12, words=50272):
    config = transformers.OPTConfig(
        vocab_size=words,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * size,
        max_position_embeddings=128,
        word_embed_proj_dim=size,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
    )
    return _wrap(transformers.OPTForCausalLM, config)


def gpt_neox(size=768, layers=12, heads=12, words=50432):
    config = transformers.GPTNeoXConfig(
        vocab_size=words,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * size,
        max_position_embeddings=128,
        rotary_pct=0.5,
    )
    return _wrap(transformers.GPTNeoXForCausalLM, config)


def segformer(sizes=(32, 64, 160, 256), heads=(1, 2, 5, 8), decoder=256, classes=150):
    config = transformers.SegformerConfig(
        hidden_sizes=list(sizes),
        num_attention_heads=list(heads),
        decoder_hidden_size=decoder,
        num_labels=classes,
    )
    return _wrap(transformers.SegformerForSemanticSegmentation, config, ("pixel_values",))


def wav2vec2(size=768, layers=12, heads=12, channels=512, words=32):
    config = transformers.Wav2Vec2Config(
        vocab_size=words,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * size,
        conv_dim=(channels,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        apply_spec_augment=False,
    )
    return _wrap(transformers.Wav2Vec2ForCTC, config, ("input_values",))


def gpt2(size=768, layers=12, heads=12, words=50257, places=1024):
    config = transformers.GPT2Config(vocab_size=words, n_embd=size, n_layer=layers, n_head=heads, n_positions=places)
    return _wrap(transformers.GPT2LMHeadModel, config)


def llama(size=768, layers=12, heads=12, groups=4, hidden=2048, words=32000):
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=hidden,
        max_position_embeddings=512,
    )
    return _wrap(transformers.LlamaForCausalLM, config)


def qwen3(size=768, layers=12, heads=12, groups=4, head=64, hidden=2048, words=32000):
    config = transformers.Qwen3Config(
        vocab_size=words,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        head_dim=head,
        num_key_value_heads=groups,
        intermediate_size=hidden,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return _wrap(transformers.Qwen3ForCausalLM, config)


def t5(size=512, layers=6, heads=8, head=64, hidden=2048, words=32128):
    config = transformers.T5Config(
        vocab_size=words,
        d_model=size,
        d_kv=head,
        d_ff=hidden,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    return _wrap(transformers.T5ForConditionalGeneration, config, ("input_ids", "decoder_input_ids"))


def whisper(size=384, layers=4, heads=6, words=51865, mels=80, places=1500):
    config = transformers.WhisperConfig(
        vocab_size=words,
        num_mel_bins=mels,
        d_model=size,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * size,
        decoder_ffn_dim=4 * size,
        max_source_positions=places,
        max_target_positions=448,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return _wrap(transformers.WhisperForConditionalGeneration, config, ("input_features", "decoder_input_ids"))
