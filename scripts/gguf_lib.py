"""GGUF as convert_hf_to_gguf writes it, and its tokenizer read back."""

import json
from pathlib import Path

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def permute(weight: np.ndarray, heads: int, inverse: bool = False) -> np.ndarray:
    """Hugging Face's row order of q and k (halves) to llama.cpp's (interleaved pairs), as convert_hf_to_gguf does."""
    rows, *rest = weight.shape
    inner = (heads, rows // heads // 2, 2) if inverse else (heads, 2, rows // heads // 2)
    return weight.reshape(*inner, *rest).swapaxes(1, 2).reshape(weight.shape)


BLOCK_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    module, suffix = name.rsplit(".", 1)
    if module in TOP_NAMES:
        return f"{TOP_NAMES[module]}.{suffix}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{BLOCK_NAMES[rest]}.{suffix}"


def write_metadata(writer: gguf.GGUFWriter, config) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def permuted_heads(config, name: str) -> int | None:
    """The number of heads by which the rows of this tensor are permuted; only llama's q and k are."""
    if config.model_type != "llama":
        return None
    heads = {".q_proj.": config.num_attention_heads, ".k_proj.": config.num_key_value_heads}
    return next((count for part, count in heads.items() if part in name), None)


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, pre: str, scores: list[float] | None) -> None:
    """Vocabulary, special tokens and chat template. `scores` makes it a SentencePiece vocabulary."""
    backend = tokenizer.backend_tokenizer
    special = set(tokenizer.all_special_tokens) | {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    tokens = [token for token, _ in sorted(backend.get_vocab().items(), key=lambda item: item[1])]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN if t == "<unk>" else kinds.CONTROL if t in special
             else kinds.BYTE if scores and t.startswith("<0x") and len(t) == 6 else kinds.NORMAL for t in tokens]
    writer.add_tokenizer_model("llama" if scores else "gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if scores:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(True)
        writer.add_unk_token_id(0)
    else:
        merges = json.loads(backend.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(merge) for merge in merges])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(tokenizer("")["input_ids"] == [tokenizer.bos_token_id])
    writer.add_chat_template(tokenizer.chat_template)


def write_file(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path: Path, model, tokenizer: PreTrainedTokenizerFast, pre: str, kind: gguf.GGMLQuantizationType) -> None:
    """A whole model: matrices as `kind`, norms and biases as F32."""
    writer = gguf.GGUFWriter(path, model.config.model_type)
    write_metadata(writer, model.config)
    write_tokenizer(writer, tokenizer, pre, None)
    for name, parameter in model.named_parameters():
        weight, heads = parameter.detach().float().numpy(), permuted_heads(model.config, name)
        weight = permute(weight, heads) if heads else weight
        stored = kind if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(weight, stored), raw_dtype=stored)
    write_file(writer)


PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer and chat template of a GGUF whose tokenizer.ggml.model is "gpt2", with the pre-tokenizer it names.

    transformers' own conversion drops the pre-tokenizer (SmolLM2's splits digits one by one): its ids differ from llama.cpp's.
    """
    fields = gguf.GGUFReader(path).fields

    def field(name: str):
        return fields[f"tokenizer.{name}"].contents()

    tokens, kinds = field("ggml.tokens"), field("ggml.token_type")
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in field("ggml.merges")]))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[field("ggml.pre")]()
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    end = tokens[field("ggml.eos_token_id")]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end,
                                   chat_template=field("chat_template"), clean_up_tokenization_spaces=False)
