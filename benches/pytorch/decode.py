"""Reading a prompt and writing text with transformers, greedy, one sequence: the twin of kinglet's
cli/src/bench/measure.rs, which sends the job."""

import statistics
import time

import torch

from common import load, peak_mib

FIRST_PROMPT, REPEATS = 8, 3


@torch.no_grad()
def run_prompt(model, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds until the first new token, and from there to the last."""
    start = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
    return first - start, time.perf_counter() - first


def measure(job) -> dict:
    if job["quant"] == "fp4":
        return {"error": "fp4 is not measured"}
    torch.manual_seed(0)
    model = load(job["model"], job["dtype"], job["quant"] == "nf4").eval()
    ids = torch.randint(0, model.config.vocab_size, (1, job["prompt_tokens"]))
    run_prompt(model, ids[:, :FIRST_PROMPT], 1)
    first_token = time.time() - job["spawned"]
    runs = [run_prompt(model, ids, job["new_tokens"]) for _ in range(REPEATS)]
    prefill, rest = (statistics.median(column) for column in zip(*runs))
    return {"prefill_tokens_per_second": job["prompt_tokens"] / prefill,
            "decode_tokens_per_second": (job["new_tokens"] - 1) / rest, "first_token_seconds": first_token,
            "peak_mib": peak_mib()}
