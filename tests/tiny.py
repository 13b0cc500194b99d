"""Tiny random models of many families, built from their configs, and a tokenizer to go with them."""

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
VOCAB = 300

_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "num_local_experts": 4,
}

#: model_type (and a variant after the colon) → what its config needs beside, or instead of, the common sizes.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"head_dim": 8, "sliding_window": None},
    "mixtral": _MOE | {"head_dim": 8, "sliding_window": None},
    "gemma": {"head_dim": 8, "num_key_value_heads": 1},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64},
    "phi": {"num_key_value_heads": 4},
    "phi3": {},
    "phi3:longrope": {
        "original_max_position_embeddings": 24, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 24, "attention_factor": 1.0, "factor": 5.0,
        },
    },
    "gpt2": _GPT,
    "gpt_neox": {"num_key_value_heads": None},
    "gptj": _GPT | {"rotary_dim": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": None},
    "opt:post": {
        "ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": None, "do_layer_norm_before": False,
    },
    "bloom": {"n_layer": 3, "n_head": 4},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "alibi": False},
    "falcon:new": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "falcon:alibi": {"new_decoder_architecture": False, "multi_query": False, "parallel_attn": False, "alibi": True},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 128, "vocab_size": VOCAB},
    "olmo2": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": None},
    "cohere": {},
    "granite": {"residual_multiplier": 0.22, "attention_multiplier": 0.35, "embedding_multiplier": 12.0},
    "qwen2_moe": _MOE | {"shared_expert_intermediate_size": 24, "decoder_sparse_step": 1},
    "qwen3_moe": _MOE | {"head_dim": 8, "decoder_sparse_step": 1},
    "gpt_oss": _MOE | {"head_dim": 8, "sliding_window": 64},
    "qwen3_next": _MOE | {
        "head_dim": 8, "num_hidden_layers": 4, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 1,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "codegen": _GPT | {"rotary_dim": 4},
    "gpt_bigcode": _GPT | {"multi_query": True},
    "olmo": {},
    "smollm3": {"no_rope_layers": None},
    "glm4": {"head_dim": 8},
    "ernie4_5": {"head_dim": 8},
    "nemotron": {"head_dim": 8},
    "persimmon": {"num_key_value_heads": 4},
}  # fmt: skip
_OWN_SIZES = {"mpt"}


def config_of(family: str) -> Any:
    """The config of a tiny model of a family."""
    own = FAMILIES[family]
    base = {} if "n_embd" in own or family in _OWN_SIZES else _COMMON
    values = {
        key: value
        for key, value in (base | own).items()
        if value is not None or key == "sliding_window"
    }
    return AutoConfig.for_model(family.partition(":")[0], **values)


@cache
def model_of(family: str, attention: str | None = "eager") -> Any:
    """A tiny random model of a family, float32, in evaluation mode; equal on every call."""
    torch.manual_seed(0)
    options = {"attn_implementation": attention} if attention else {}
    model = AutoModelForCausalLM.from_config(
        config_of(family), dtype=torch.float32, **options
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for (
        parameter
    ) in model.parameters():  # biases and norms too: their defaults, 0 and 1, would hide mistakes
        noise = torch.randn(parameter.shape, generator=generator) * (
            0.2 if parameter.ndim > 1 else 0.1
        )
        parameter.data.add_(noise.to(parameter.dtype))
    return model


@cache
def tokenizer(template: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every byte is a token, so that any text can be written, some only in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    result = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>",
        additional_special_tokens=SPECIAL[3:],
    )  # fmt: skip
    if template:
        result.chat_template = TEMPLATE
    return result
