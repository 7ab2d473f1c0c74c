#!/usr/bin/env python3
"""Prefill and decode speed with transformers, greedy, one sequence.

    venv/bin/python benches/pytorch/generate.py --model models-cache/SmolLM2-135M-Instruct.Q4_1.gguf [--dtype bf16]

Prints one JSON line: prefill_tokens_per_second and decode_tokens_per_second (medians over --repeats), peak_mib.
"""

import argparse
import json
import statistics
import time

import torch

from common import add_model_options, load, peak_mib, setting


@torch.no_grad()
def one_run(model, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds for the prompt, and for each token after it on average."""
    start = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(new_tokens):
        token = out.logits[:, -1:].argmax(-1)
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
    return prefill, (time.perf_counter() - start) / new_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    torch.manual_seed(0)
    model, _ = load(options)
    model.eval()
    ids = torch.randint(0, model.config.vocab_size, (1, options.prompt_tokens))
    one_run(model, ids, 4)
    runs = [one_run(model, ids, options.new_tokens) for _ in range(options.repeats)]
    prefill, decode = (statistics.median(column) for column in zip(*runs))
    print(json.dumps({
        "bench": "generate", **setting(options), "prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens,
        "prefill_tokens_per_second": round(options.prompt_tokens / prefill, 1),
        "decode_tokens_per_second": round(1 / decode, 2), "peak_mib": round(peak_mib()),
    }))


if __name__ == "__main__":
    main()
