#!/usr/bin/env python3
"""The real run with torch, PEFT and bitsandbytes: fine-tune on the package rows, exact match on unseen section rows.

    .venv/bin/python benches/pytorch/eval_section.py --model models-cache/SmolLM2-135M-Instruct.Q4_1.gguf

The settings are those of `kinglet finetune --method qlora --quant nf4 --lora-r 16 --learning-rate 5e-4 --max-steps 60
--per-device-train-batch-size 8 --max-length 256 --seed 1`: rank 16, alpha 32 on every Linear, AdamW, linear decay with no
warm-up, clipping at 1, loss over the assistant's text and the turn's end. Prints one JSON line with exact match before and
after (greedy, the quantised base), the losses, and the time.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import transformers

from common import add_lora, hugging_face_folder, load, peak_mib, setting
from fixture_lib import IGNORE, alpaca_messages, render

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "data"


def read(paths: list[Path]) -> list[dict]:
    return [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]


def training_rows(rows: list[dict], tokenizer, max_length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, labels) of each row that keeps a target within `max_length`; labels are at their own position."""
    kept = []
    for row in rows:
        ids, targets = render(tokenizer, alpaca_messages(row), tokenizer.eos_token)
        ids, targets = torch.from_numpy(ids)[:max_length], torch.from_numpy(targets)
        labels = torch.cat([torch.tensor([IGNORE]), targets])[: len(ids)]
        if (labels != IGNORE).any():
            kept.append((ids, labels))
    return kept


def padded(rows: list[tuple[torch.Tensor, torch.Tensor]], pad: int) -> dict[str, torch.Tensor]:
    ids, labels = zip(*rows)
    pad_to = torch.nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(row) for row in ids])
    width = int(lengths.max())
    return {
        "input_ids": pad_to(ids, batch_first=True, padding_value=pad),
        "labels": pad_to(labels, batch_first=True, padding_value=IGNORE),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
    }


@torch.no_grad()
def exact_match(model, tokenizer, rows: list[dict], max_new_tokens: int) -> tuple[float, list[str]]:
    # Not model.eval(): there is no dropout here, and in eval mode bitsandbytes 0.50 repacks the weights on the CPU for a
    # bf16 kernel that has no gradient, so that the training after it would be wrong.
    model.train()
    answers = []
    for row in rows:
        messages = alpaca_messages(row)[:1]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens,
                             do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return sum(a == row["output"].strip() for a, row in zip(answers, rows)) / len(rows), answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a .gguf file or a Hugging Face folder")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="of weights and activations; with qlora of the activations")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--data", type=Path, nargs="+", default=[EXAMPLES / "section-train.jsonl", EXAMPLES / "synopsis-train.jsonl"])
    parser.add_argument("--eval-data", type=Path, default=EXAMPLES / "section-valid.jsonl")
    parser.add_argument("--method", choices=("qlora", "lora"), default="qlora")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    qlora = options.method == "qlora"
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = hugging_face_folder(options.model, "f32")
    model, tokenizer = load(folder, options.dtype, qlora), transformers.AutoTokenizer.from_pretrained(folder)
    held_out = read([options.eval_data])
    before, _ = exact_match(model, tokenizer, held_out, options.max_new_tokens)

    rows = training_rows(read(options.data), tokenizer, options.max_length)
    model = add_lora(model, options.rank, 2 * options.rank, qlora)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
    scheduler = transformers.get_scheduler("linear", optimizer, 0, options.max_steps)
    order, losses, tokens, start = [], [], 0, time.perf_counter()
    for _ in range(options.max_steps):
        if len(order) < options.batch:
            order = torch.randperm(len(rows)).tolist()
        picked, order = order[: options.batch], order[options.batch :]
        batch = padded([rows[i] for i in picked], tokenizer.pad_token_id)
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        tokens += int(batch["attention_mask"].sum())
    seconds = time.perf_counter() - start
    after, answers = exact_match(model, tokenizer, held_out, options.max_new_tokens)
    print(json.dumps({
        "bench": "eval_section", "method": options.method, **setting(options), "rows": len(held_out),
        "exact_match_before": before, "exact_match_after": after, "first_loss": losses[0],
        "last_losses": sum(losses[-10:]) / len(losses[-10:]), "train_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1), "peak_mib": round(peak_mib()), "answers": answers[:5],
    }))


if __name__ == "__main__":
    main()
