"""Makes a tiny Llama with random weights as a GGUF file: a real model for a real engine, from nothing.

Its tokens are the 256 bytes, a few merges and three specials. The weights come from a fixed seed, so at temperature
0 the same prompt has the same answer on each start. The output rows of everything but printable ASCII are 0: what it
says is nonsense, but text, and it never ends by itself.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

_SPECIALS = ("<s>", "</s>", "<pad>")
_MERGES = ("t h", "th e", "Ġ the", "i n", "a n")
_WIDTH, _FORWARD, _LAYERS, _HEADS, _CONTEXT = 64, 128, 2, 2, 4096
_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

Tensor = npt.NDArray[np.float32]


def make(path: Path) -> None:
    """Write the model to `path`, about half a megabyte."""
    tokens = [*_SPECIALS, *_byte_tokens(), *(merge.replace(" ", "") for merge in _MERGES)]
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, tokens)
    for name, tensor in _tensors(tokens).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _byte_tokens() -> list[str]:
    """GPT-2's names of the 256 bytes: printable ones are themselves, the others follow from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _describe(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    writer.add_name("tiny")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in _SPECIALS else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(list(_MERGES))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_chat_template(_CHAT_TEMPLATE)


def _tensors(tokens: list[str]) -> dict[str, Tensor]:
    random = np.random.default_rng(0)

    def weights(*shape: int) -> Tensor:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    said = np.array([token.isascii() and token not in _SPECIALS for token in tokens], np.float32)
    tensors = {
        "token_embd.weight": weights(len(tokens), _WIDTH),
        "output_norm.weight": np.ones(_WIDTH, np.float32),
        "output.weight": weights(len(tokens), _WIDTH) * said[:, None],
    }
    square, wide, back = (_WIDTH, _WIDTH), (_FORWARD, _WIDTH), (_WIDTH, _FORWARD)
    for block in (f"blk.{i}" for i in range(_LAYERS)):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"{block}.{name}.weight"] = weights(*square)
        for name, shape in (("ffn_gate", wide), ("ffn_up", wide), ("ffn_down", back)):
            tensors[f"{block}.{name}.weight"] = weights(*shape)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"{block}.{name}.weight"] = np.ones(_WIDTH, np.float32)
    return tensors
