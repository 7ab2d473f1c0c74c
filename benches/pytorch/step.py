"""A training step (forward, backward, clipping, AdamW) with torch, PEFT and bitsandbytes: the twin of kinglet's
cli/src/bench/measure.rs, which sends the job. LoRA on every Linear, random ids, every position a target."""

import contextlib
import statistics
import time

import torch

from common import add_lora, load, peak_mib, random_model, reset_peak


def measure(job) -> dict:
    torch.manual_seed(0)
    qlora = job["method"] == "qlora"
    # Under autocast weights are f32 and products bf16; in 4 bits they are decoded to bf16.
    autocast = job["mode"] == "autocast"
    dtype = "f32" if autocast and not qlora else job["dtype"]
    if job["model"]:
        model = load(job["model"], dtype, qlora)
    else:
        model = random_model(job["config"], dtype, qlora)
        reset_peak()  # to invent weights takes more memory than to read them
    if job["method"] != "full":
        # PEFT's recipe makes all that is not quantised f32; as loaded, it stays bf16.
        model = add_lora(model, job["lora_r"], 2 * job["lora_r"], qlora and job["mode"] != "as_loaded")
    model.train()
    if job["checkpointing"]:
        if job["method"] != "full":
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (job["batch"], job["length"]))
    computes = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()

    ready = time.time() - job["spawned"]
    seconds = []
    for _ in range(1 + job["steps"]):
        start = time.perf_counter()
        with computes:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {"tokens_per_second": ids.numel() / statistics.median(seconds[1:]), "peak_mib": peak_mib(),
            "ready_seconds": ready, "loss": loss.item()}
