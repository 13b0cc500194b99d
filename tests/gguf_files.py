"""Writes the tiny llama as a GGUF file, as llama.cpp lays it out."""

from pathlib import Path

import gguf
import numpy as np
import tiny

_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write(
    path: Path, *, without: set[str] = frozenset(), more: dict[str, np.ndarray] | None = None
) -> Path:
    """Write the tiny llama.

    Args:
        path: the file.
        without: names of tensors to leave out, as GGUF has them.
        more: further tensors.
    """
    model = tiny.model_of("llama")
    names = _NAMES | {
        f"model.layers.{n}.{own}": f"blk.{n}.{other}"
        for n in range(3)
        for own, other in _LAYER.items()
    }
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_name("tiny")
    for add, value in (
        (out.add_context_length, 128), (out.add_embedding_length, 32), (out.add_block_count, 3),
        (out.add_feed_forward_length, 48), (out.add_head_count, 4), (out.add_head_count_kv, 2),
        (out.add_layer_norm_rms_eps, model.config.rms_norm_eps), (out.add_rope_freq_base, 10000.0),
        (out.add_vocab_size, tiny.VOCAB), (out.add_rope_dimension_count, 8), (out.add_bos_token_id, 1),
        (out.add_eos_token_id, 2), (out.add_pad_token_id, 0), (out.add_tokenizer_model, "gpt2"),
    ):  # fmt: skip
        add(value)
    tokens = [
        token for token, _ in sorted(tiny.tokenizer().get_vocab().items(), key=lambda item: item[1])
    ]
    tokens += ["ab", "cd", "<|endoftext|>"]  # what the merges make, and what transformers would add
    tokens += [f"<x{n}>" for n in range(tiny.VOCAB - len(tokens))]
    out.add_token_list(tokens)
    out.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in tokens])
    out.add_token_merges(["a b", "c d"])  # of a single one, transformers before 5.20 reads a text
    for name, value in model.state_dict().items():
        module = names[name.removesuffix(".weight")]
        array = value.numpy().copy()
        if module.endswith(
            ("attn_q", "attn_k")
        ):  # llama.cpp turns neighbouring pairs where transformers turns halves
            heads = 4 if module.endswith("q") else 2
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if f"{module}.weight" not in without:
            out.add_tensor(f"{module}.weight", array)
    for name, array in (more or {}).items():
        out.add_tensor(name, array)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
