"""What the fixture scripts share: random models, golden files, a tiny tokenizer.

All randomness is numpy's PCG64 with a seed per tensor name, so a fixture does not change with the version of torch.
"""

import json
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
IGNORE = -100


def versions(*packages: str) -> dict[str, str]:
    """The package versions a fixture was made with, for its golden.json."""
    return {name: version(name).split("+")[0] for name in packages}


def rng(*key: object) -> np.random.Generator:
    """A generator that depends on nothing but `key`."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def random_weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """f32 values of a scale that keeps activations near one. Norms and biases are far from 1 and 0: dropping one shows."""
    noise = rng(seed, name).standard_normal(shape, dtype=np.float32)
    if name.endswith("bias"):
        return np.float32(0.4) * noise
    if len(shape) == 1:
        return 1.0 + np.float32(0.4) * noise
    if "embed_tokens" in name:
        return np.float32(0.35) * noise
    return noise * np.float32(1.2 / np.sqrt(shape[1]))


def fill(model: torch.nn.Module, seed: int) -> None:
    """Gives every parameter of `model` its random weight, in f32."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(random_weight(seed, name, tuple(parameter.shape))))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def masked_targets(seed: int, ids: np.ndarray) -> np.ndarray:
    """targets[i] is the token that position i must predict: the next one, or -100 for a third of them and the last."""
    targets = np.append(ids[1:], IGNORE).astype(np.int64)
    targets[rng(seed, "mask", len(ids)).random(len(ids)) < 0.33] = IGNORE
    targets[-1] = IGNORE
    return targets


def target_loss_sum(logits: torch.Tensor, targets: np.ndarray) -> torch.Tensor:
    """Summed cross-entropy of one segment, `logits` [tokens, vocab], over its targets."""
    return torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(targets), ignore_index=IGNORE, reduction="sum"
    )


def save_tensors(path: Path, tensors: dict[str, np.ndarray | torch.Tensor]) -> None:
    """Writes safetensors; integers become i32."""

    def plain(value: np.ndarray | torch.Tensor) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value.detach()
        return tensor.to(torch.int32).contiguous() if tensor.dtype == torch.int64 else tensor.contiguous().clone()

    save_file({name: plain(value) for name, value in tensors.items()}, path, metadata={"format": "pt"})


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_tokenizer(vocab_size: int, texts: list[str]):
    """A byte-level BPE with SmolLM's pre-tokenizer (digits one by one), ChatML's special tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>", unk_token="<|endoftext|>",
        pad_token="<|im_end|>", chat_template=CHATML, clean_up_tokenization_spaces=False, model_max_length=512,
    )


def render(tokenizer, messages: list[dict], end: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a single-turn conversation up to and with the turn's end, and its targets.

    Targets are the assistant's text and `end`, each at the position before it; what the template puts after is cut off.
    """
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    text = prompt + messages[-1]["content"] + end
    assert tokenizer.apply_chat_template(messages, tokenize=False).startswith(text), "the template rewrites the answer"
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    targets = np.append(ids[1:], IGNORE)
    targets[: start - 1] = IGNORE
    return ids, targets


def alpaca_messages(row: dict) -> list[dict]:
    """An Alpaca row as one user turn (instruction, newline, input) and one assistant turn."""
    user = row["instruction"] + ("\n" + row["input"] if row.get("input") else "")
    return [{"role": "user", "content": user}, {"role": "assistant", "content": row["output"]}]
