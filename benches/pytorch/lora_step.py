#!/usr/bin/env python3
"""One LoRA or QLoRA training step (forward, backward, clipping, AdamW) with torch, PEFT and bitsandbytes.

    venv/bin/python benches/pytorch/lora_step.py --model models-cache/SmolLM2-135M-Instruct.Q4_1.gguf [--qlora] [--dtype bf16]

Rank 16 on every Linear, random ids, every position a target. Prints one JSON line: tokens_per_second (median over the
steps after warm-up), peak_mib (resident, whole process) and peak_steps_mib (after loading).
"""

import argparse
import json
import statistics
import time

import torch

from common import add_lora, add_model_options, load, peak_mib, reset_peak, setting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--qlora", action="store_true", help="NF4 base with double quantisation")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    options = parser.parse_args()

    torch.manual_seed(0)
    model, _ = load(options, options.qlora)
    model = add_lora(model, options.rank, 2 * options.rank, options.qlora)
    if options.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
    ids = torch.randint(0, model.config.vocab_size, (options.batch, options.length))

    loading_peak = peak_mib()
    reset_peak()
    seconds = []
    for _ in range(options.warmup + options.steps):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)

    timed = seconds[options.warmup :]
    steps_peak = peak_mib()
    print(json.dumps({
        "bench": "lora_step", "method": "qlora" if options.qlora else "lora", **setting(options),
        "batch": options.batch, "length": options.length, "rank": options.rank, "checkpointing": options.checkpointing,
        "tokens_per_second": round(options.batch * options.length / statistics.median(timed), 1),
        "step_seconds": [round(s, 3) for s in timed],
        "peak_mib": round(max(loading_peak, steps_peak)), "peak_steps_mib": round(steps_peak), "loss": loss.item(),
    }))


if __name__ == "__main__":
    main()
