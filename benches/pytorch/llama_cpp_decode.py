"""As decode.py with llama.cpp, under its Python package llama-cpp-python."""

import statistics
import time

from llama_cpp import Llama

from common import peak_mib

FIRST_PROMPT, REPEATS = 8, 3


def run_prompt(model: Llama, ids: list[int], new_tokens: int) -> tuple[float, float]:
    """Seconds until the first new token, and from there to the last."""
    model.reset()
    start = time.perf_counter()
    model.eval(ids)
    token = model.sample(temp=0.0)
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        model.eval([token])
        token = model.sample(temp=0.0)
    return first - start, time.perf_counter() - first


def measure(job) -> dict:
    prompt, new = job["prompt_tokens"], job["new_tokens"]
    model = Llama(job["model"], n_ctx=prompt + new, n_batch=512, n_threads=job["threads"], n_threads_batch=job["threads"],
                  verbose=False)
    ids = [i * 97 % model.n_vocab() for i in range(prompt)]
    run_prompt(model, ids[:FIRST_PROMPT], 1)
    first_token = time.time() - job["spawned"]
    runs = [run_prompt(model, ids, new) for _ in range(REPEATS)]
    prefill, rest = (statistics.median(column) for column in zip(*runs))
    return {"prefill_tokens_per_second": prompt / prefill, "decode_tokens_per_second": (new - 1) / rest,
            "first_token_seconds": first_token, "peak_mib": peak_mib()}
