"""A byte-level BPE tokenizer out of a GGUF's metadata, with the pre-tokenizer that the file names.

transformers' own conversion drops the pre-tokenizer (SmolLM2's splits digits one by one), so its ids differ from llama.cpp's.
"""

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}


def read_tokenizer(path) -> PreTrainedTokenizerFast:
    """The tokenizer and chat template of a GGUF whose tokenizer.ggml.model is "gpt2"."""
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
