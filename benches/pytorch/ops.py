"""The jobs of `kinglet bench op` with torch and bitsandbytes. kinglet defines the jobs (cli/src/bench/jobs.rs) and sends
each as JSON; a function here takes the job's sizes and returns a function that does it once."""

import statistics
import time

import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def gemm(job, m, k, n):
    def operand(rows, columns, transposed):
        return torch.randn(columns, rows).t() if transposed else torch.randn(rows, columns)

    dtype = DTYPES[job["dtype"]]
    # .to() keeps the strides.
    a = operand(m, k, job["transposed"][0] == "t").to(dtype)
    b = operand(k, n, job["transposed"][1] == "t").to(dtype)
    return lambda: a @ b


def attention(job, heads, length, width):
    q, k, v = (torch.randn(1, heads, length, width).to(DTYPES[job["dtype"]]).requires_grad_() for _ in range(3))
    gradient = torch.randn_like(q)

    def run():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(out, (q, k, v), gradient)

    return run


def four_bit(rows, columns, dtype):
    import bitsandbytes.functional as bnb

    return bnb.quantize_4bit(torch.randn(rows, columns).to(dtype), quant_type="nf4", compress_statistics=True)


def nf4_dequantize(job, rows, columns):
    import bitsandbytes.functional as bnb

    codes, state = four_bit(rows, columns, DTYPES[job["dtype"]])
    return lambda: bnb.dequantize_4bit(codes, state)


def nf4_quantize(job, rows, columns):
    import bitsandbytes.functional as bnb

    dense = torch.randn(rows, columns)
    return lambda: bnb.quantize_4bit(dense, quant_type="nf4", compress_statistics=True)


def nf4_layer(tokens, inputs, outputs, training):
    """A Linear4bit. In eval mode bitsandbytes repacks its weight for a fused kernel, where it has one."""
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=True)
    dense = torch.randn(outputs, inputs)
    layer.weight = bnb.nn.Params4bit(dense, requires_grad=False, quant_type="nf4", compress_statistics=True)
    layer = layer.to("cpu").train(training)
    x = torch.randn(tokens, inputs).bfloat16()

    def run():
        with torch.no_grad():
            layer(x)

    return run


def nf4_gemm(job, tokens, inputs, outputs):
    return nf4_layer(tokens, inputs, outputs, training=True)


def nf4_linear(job, inputs, outputs):
    return nf4_layer(1, inputs, outputs, training=False)


def adamw(job, parameters):
    parameter = torch.nn.Parameter(torch.full((parameters,), 0.5))
    parameter.grad = torch.full((parameters,), 0.01)
    return torch.optim.AdamW([parameter], lr=1e-4, weight_decay=0.0, fused=True).step


def cross_entropy(job, tokens, vocabulary, hidden):
    dtype = DTYPES[job["dtype"]]
    x = torch.randn(tokens, hidden).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, hidden)).to(dtype)
    targets = torch.arange(tokens) * 97 % vocabulary

    def run():
        # In f32, as transformers computes the loss.
        loss = F.cross_entropy((x @ weight.t()).float(), targets)
        torch.autograd.grad(loss, x)

    return run


def rms_norm(job, rows, width):
    dtype = DTYPES[job["dtype"]]
    x, weight = torch.randn(rows, width).to(dtype).requires_grad_(), torch.randn(width).to(dtype).requires_grad_()
    gradient = torch.randn(rows, width).to(dtype)

    def run():
        torch.autograd.grad(F.rms_norm(x, (width,), weight, 1e-5), (x, weight), gradient)

    return run


def swiglu(job, rows, width):
    gate, up = (torch.randn(rows, width).to(DTYPES[job["dtype"]]).requires_grad_() for _ in range(2))
    gradient = torch.randn_like(gate)

    def run():
        torch.autograd.grad(F.silu(gate) * up, (gate, up), gradient)

    return run


def rope(job, tokens, heads, width):
    """As transformers does it: x cos + rotate_half(x) sin."""
    dtype = DTYPES[job["dtype"]]
    x = torch.randn(1, heads, tokens, width).to(dtype).requires_grad_()
    gradient = torch.randn_like(x)
    angles = torch.outer(torch.arange(tokens).float(), 10_000.0 ** (-torch.arange(0, width, 2) / width))
    angles = torch.cat((angles, angles), -1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def run():
        low, high = x[..., : width // 2], x[..., width // 2 :]
        torch.autograd.grad(x * cos + torch.cat((-high, low), -1) * sin, x, gradient)

    return run


OPS = {
    "gemm": gemm, "attention": attention, "nf4-dequantize": nf4_dequantize, "nf4-gemm": nf4_gemm, "nf4-linear": nf4_linear,
    "nf4-quantize": nf4_quantize, "adamw": adamw, "cross-entropy": cross_entropy, "rms-norm": rms_norm, "swiglu": swiglu,
    "rope": rope,
}


class Ops:
    """Does jobs and keeps the inputs of the last one, so that rounds of it need not make them again."""

    def __init__(self):
        self.key, self.run = None, None

    def measure(self, job) -> dict:
        key = (job["op"], tuple(job["shape"]), job["dtype"], job["transposed"])
        if key != self.key:
            self.key, self.run = None, None  # the old inputs go before the new ones come
            self.run = OPS[job["op"]](job, *job["shape"])
            self.key = key
        return {"seconds": seconds(self.run, job["seconds"])}


def seconds(run, at_least: float) -> float:
    """The median of calls that take `at_least` seconds together, at least three, after one to warm up."""
    run()
    times, whole = [], 0.0
    while len(times) < 3 or whole < at_least:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        whole += times[-1]
    return statistics.median(times)
