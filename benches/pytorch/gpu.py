#!/usr/bin/env python3
"""Times of PyTorch's ops and of a QLoRA step on a GPU, the twin of examples/gpu_times: the same shapes, the same names, one JSON object.

    .venv/bin/python benches/pytorch/gpu.py --beside KINGLET.json [--device cuda:0|cpu] [--small] [--shapes FILE]

The ops are in gpu_ops.py; the step is that of transformers and peft. An op's time is that between two CUDA events around as many calls
as fill 5 ms, the median of rounds in each of which every op has its turn. As many copies of an op take turns, each with data and a
result of its own, as did in what examples/gpu_times printed, KINGLET.json: enough that none finds its operands in L2. The step is wall
time between synchronisations. With `--device cpu --small` the times mean nothing, but the path is known to run. It has not run on a GPU
yet.
"""

import argparse
import gc
import json
import statistics
import time
from pathlib import Path

import bitsandbytes
import torch
from gpu_ops import BF16, OPS, Data
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM

SHAPES = Path(__file__).resolve().parents[1] / "shapes"


class Clock:
    """Milliseconds between two points of the device's work; on a CPU between two points in time."""

    def __init__(self, device: str):
        self.cuda = device.startswith("cuda")

    def point(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start, end) -> float:
        if not self.cuda:
            return (end - start) * 1e3
        end.synchronize()
        return start.elapsed_time(end)

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


class Turns:
    """Copies of a call that take turns; each keeps its result until it has the next, so that they have different ones."""

    def __init__(self, calls: list):
        self.calls, self.results, self.next = calls, [None] * len(calls), 0

    def start(self) -> None:
        self.results[self.next] = self.calls[self.next]()
        self.next = (self.next + 1) % len(self.calls)


def jobs(shapes: dict, device: str, copies: dict[str, int]):
    """Name and copies of every op that PyTorch has; the others kinglet has alone."""
    for op, lists in shapes["ops"].items():
        for sizes in lists if op in OPS else []:
            name = f"{op} {'x'.join(map(str, sizes))}"
            yield name, Turns([OPS[op](Data(device), *sizes) for _ in range(copies[name])])


def time_of(job: Turns, count: int, clock: Clock) -> float:
    """Milliseconds of each of `count` starts in a row."""
    start = clock.point()
    for _ in range(count):
        job.start()
    return clock.between(start, clock.point()) / count


def times(shapes: dict, copies: dict[str, int], device: str, rounds: int, clock: Clock) -> list[dict]:
    ready = dict(jobs(shapes, device, copies))
    counts, samples = {}, {op: [] for op in ready}
    for op, job in ready.items():
        time_of(job, 1 + len(job.calls), clock)
        counts[op] = int(min(max(5 / time_of(job, 1, clock), 1), 100))
    for _ in range(rounds):
        for op, job in ready.items():
            samples[op].append(time_of(job, counts[op], clock))
    return [{"op": op, "milliseconds": statistics.median(samples[op])} for op in ready]


def quantise(module: torch.nn.Module, device: str) -> None:
    """Every Linear but the output projection in NF4 with nested scales, one after the other."""
    for name, child in list(module.named_children()):
        if not isinstance(child, torch.nn.Linear) or name == "lm_head":
            quantise(child, device)
            continue
        layer = bitsandbytes.nn.Linear4bit(child.in_features, child.out_features, bias=False, compute_dtype=BF16, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(child.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True)
        setattr(module, name, layer.to(device))


def qlora_model(shapes: dict, device: str):
    config = AutoConfig.for_model(**shapes["model"])
    config.use_cache = False
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=BF16, attn_implementation="sdpa")
    quantise(model, device)
    model.is_loaded_in_4bit = True
    rank = shapes["step"]["rank"]
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.train()
    return model


def step(shapes: dict, device: str, clock: Clock) -> dict:
    """Seconds of QLoRA steps, and the memory that they take."""
    how = shapes["step"]
    model = qlora_model(shapes, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (how["rows"], how["length"]), device=device)
    seconds = []
    # Peak and pool are those of the steps, not of the loading.
    gc.collect()
    if clock.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(how["warmup"] + how["steps"]):
        clock.synchronize()
        start = time.perf_counter()
        with torch.autocast(device.split(":")[0], BF16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.synchronize()
        seconds.append(time.perf_counter() - start)
    peak, held = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if clock.cuda else (0, 0)
    return {"rows": how["rows"], "length": how["length"], "seconds": statistics.median(seconds[how["warmup"] :]),
            "loss": loss.item(), "peak_mib": peak >> 20, "held_mib": held >> 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="shapes that any machine can run, once")
    parser.add_argument("--shapes", type=Path)
    parser.add_argument("--beside", type=Path, required=True, help="what examples/gpu_times printed: it says how many copies of an op take turns")
    options = parser.parse_args()
    path = options.shapes or SHAPES / ("small.json" if options.small else "gpu.json")
    shapes, clock = json.loads(path.read_text()), Clock(options.device)
    torch.manual_seed(0)
    copies = {row["op"]: row["copies"] for row in json.loads(options.beside.read_text())["ops"]}
    ops = times(shapes, copies, options.device, 1 if options.small else 9, clock)
    name = torch.cuda.get_device_name(options.device) if clock.cuda else "cpu"
    versions = {"torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__}
    print(json.dumps({"what": "PyTorch", "device": name, **versions, "ops": ops, "qlora_step": step(shapes, options.device, clock)}))


if __name__ == "__main__":
    main()
