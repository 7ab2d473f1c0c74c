#!/usr/bin/env python3
"""PyTorch's side of `kinglet bench`: reads one job a line from standard input, as JSON, and answers each with one line.

    echo '{"job": "about"}' | .venv/bin/python benches/pytorch/worker.py

An answer is what was measured, or {"error": text}. A job that needs a module which is not installed answers with
{"missing": name}. What libraries print goes to standard error.
"""

import json
import os
import sys
from importlib.metadata import version

MODULES = ("torch", "transformers", "peft", "bitsandbytes", "llama-cpp-python")


def about() -> dict:
    """Versions of what is installed, and what the tuned setting of torch really computes in."""
    versions = {}
    for name in MODULES:
        try:
            versions[name] = version(name)
        except Exception:
            pass
    import torch

    return {"versions": versions, "tuned_error": tuned_error(), "threads": torch.get_num_threads()}


def tune(tuned: bool) -> None:
    import torch

    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if tuned else "none"


def tuned_error() -> float:
    """The error of an f32 product under the tuned setting, beside one in f64: near 1e-7 where it is true f32, 1e-3 where
    operands are rounded to bf16."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    tune(True)
    error = ((a @ b) - exact).norm() / exact.norm()
    tune(False)
    return error.item()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    ops = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job["job"] != "llama_cpp":
                import torch

                torch.set_num_threads(job["threads"])
                tune(job.get("mode") == "tuned")
            if job["job"] == "about":
                answer = about()
            elif job["job"] == "folder":
                from common import hugging_face_folder

                answer = {"folder": str(hugging_face_folder(job["model"], "bf16"))}
            elif job["job"] == "op":
                from ops import Ops

                ops = ops or Ops()
                answer = ops.measure(job)
            elif job["job"] == "step":
                from step import measure

                answer = measure(job)
            elif job["job"] == "decode":
                from decode import measure

                answer = measure(job)
            elif job["job"] == "llama_cpp":
                from llama_cpp_decode import measure

                answer = measure(job)
            else:
                answer = {"error": f"no such job: {job['job']}"}
        except ModuleNotFoundError as error:
            answer = {"missing": error.name}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
