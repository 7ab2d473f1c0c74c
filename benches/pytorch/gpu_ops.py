"""The twins of the ops that examples/gpu_times times, as PyTorch and bitsandbytes have them: a table by name.

Each takes the sizes that benches/shapes lists, in the order of its parameters, makes its data and gives what is to be timed. Data is
bf16 unless the name says otherwise. What kinglet has alone is not here.
"""

import math

import bitsandbytes
import torch
import torch.nn.functional as F

BF16, F32 = torch.bfloat16, torch.float32


class Data:
    """Makes random tensors on a device."""

    def __init__(self, device: str):
        self.device = device

    def normal(self, *shape, dtype=BF16):
        return torch.randn(*shape, dtype=dtype, device=self.device)

    def leaf(self, *shape):
        return self.normal(*shape).requires_grad_()

    def ids(self, limit: int, *shape):
        return torch.randint(0, limit, shape, device=self.device)


def gradient(y, *inputs):
    """The backward pass from y to the inputs, as often as it is called."""
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


# ---- Elements


def unary(f, dtype=BF16):
    def make(data, n):
        x = data.normal(n, dtype=dtype)
        return lambda: f(x)
    return make


def binary(f):
    def make(data, n):
        a, b = data.normal(n), data.normal(n)
        return lambda: f(a, b)
    return make


def where(data, n):
    a, b = data.normal(n), data.normal(n)
    mask = a < b
    return lambda: torch.where(mask, a, b)


def times_tensor(data, n):
    x, by = data.normal(n), torch.tensor(0.5, device=data.device)
    return lambda: x * by


def adamw(data, n):
    parameter = torch.full((n,), 0.5, device=data.device, requires_grad=True)
    parameter.grad = torch.full_like(parameter, 0.3)
    return torch.optim.AdamW([parameter], lr=1e-3, fused=True).step


# ---- Rows


def rows(f):
    """f of rows of a width and a weight."""
    def make(data, rows, width):
        x, weight = data.normal(rows, width), data.normal(width)
        return lambda: f(x, weight)
    return make


def rows_backward(f):
    """The gradient of f by its rows; the weight is frozen."""
    def make(data, rows, width):
        x, weight = data.leaf(rows, width), data.normal(width)
        return gradient(f(x, weight), x)
    return make


def softmax(x, _weight):
    return F.softmax(x, -1)


def rms_norm(x, weight):
    return F.rms_norm(x, weight.shape, weight, 1e-5)


def layer_norm(x, weight):
    return F.layer_norm(x, weight.shape, weight, weight, 1e-5)


def add_rms_norm(data, rows, width):
    x, residual, weight = data.normal(rows, width), data.normal(rows, width), data.normal(width)

    def both():
        total = x + residual
        return total, rms_norm(total, weight)
    return both


def swiglu(data, rows, width):
    gate, up = data.normal(rows, width), data.normal(rows, width)
    return lambda: F.silu(gate) * up


def swiglu_backward(data, rows, width):
    gate, up = data.leaf(rows, width), data.leaf(rows, width)
    return gradient(F.silu(gate) * up, gate, up)


def cross_entropy(data, rows, classes):
    logits, targets = data.normal(rows, classes), data.ids(classes, rows)
    return lambda: F.cross_entropy(logits, targets)


def cross_entropy_backward(data, rows, classes):
    logits, targets = data.leaf(rows, classes), data.ids(classes, rows)
    return gradient(F.cross_entropy(logits, targets), logits)


def rotated(x, cos, sin):
    """As transformers has it."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def angles(data, tokens, head_dim):
    return data.normal(tokens, 1, head_dim), data.normal(tokens, 1, head_dim)


def rope(data, tokens, heads, head_dim):
    x, (cos, sin) = data.normal(tokens, heads, head_dim), angles(data, tokens, head_dim)
    return lambda: rotated(x, cos, sin)


def rope_backward(data, tokens, heads, head_dim):
    x, (cos, sin) = data.leaf(tokens, heads, head_dim), angles(data, tokens, head_dim)
    return gradient(rotated(x, cos, sin), x)


def embedding(data, tokens, vocabulary, width):
    table, ids = data.normal(vocabulary, width), data.ids(vocabulary, tokens)
    return lambda: F.embedding(ids, table)


def embedding_backward(data, tokens, vocabulary, width):
    """Rows that are added to those of a gradient; PyTorch adds in any order."""
    dy, ids = data.normal(tokens, width, dtype=F32), data.ids(vocabulary, tokens)
    total = torch.zeros(vocabulary, width, device=data.device)
    return lambda: total.index_add_(0, ids, dy)


def gather(data, rows, width, picked):
    x, index = data.normal(rows, width), data.ids(width, rows, picked)
    return lambda: torch.gather(x, 1, index)


def sample(data, rows, vocabulary, temperature=0.7, top_k=50, top_p=0.9):
    """Top-k, then top-p among those, then a draw: nothing is sorted but what top-k leaves."""
    logits = data.normal(rows, vocabulary, dtype=F32)
    top_k = min(top_k, vocabulary)

    def choose():
        values, ids = torch.topk(logits / temperature, top_k)
        weights = F.softmax(values, -1)
        before = weights.cumsum(-1) - weights
        drawn = torch.multinomial(weights.masked_fill(before >= top_p, 0.0), 1)
        return ids.gather(-1, drawn)
    return choose


# ---- Products


def matmul(data, m, n, k):
    a, b = data.normal(m, k), data.normal(n, k).t()
    return lambda: a @ b


class Adapted:
    """A layer with an adapter whose factors have the dtype of the data."""

    def __init__(self, data, rows, outputs, inputs, rank):
        self.x, self.weight = data.leaf(rows, inputs), data.normal(outputs, inputs)
        self.a, self.b = data.leaf(rank, inputs), data.leaf(outputs, rank)

    def forward(self):
        return F.linear(self.x, self.weight) + 2.0 * F.linear(F.linear(self.x, self.a), self.b)


def lora(data, *sizes):
    return torch.no_grad()(Adapted(data, *sizes).forward)


def lora_both_ways(data, *sizes):
    layer = Adapted(data, *sizes)
    dy = torch.randn_like(layer.forward())
    return lambda: torch.autograd.grad(layer.forward(), (layer.x, layer.a, layer.b), dy)


def loss(data, rows, vocabulary, width):
    x, weight, targets = data.leaf(rows, width), data.normal(vocabulary, width), data.ids(vocabulary, rows)
    return lambda: torch.autograd.grad(F.cross_entropy(F.linear(x, weight), targets), x)


def four_bit(data, outputs, inputs):
    return bitsandbytes.functional.quantize_4bit(
        data.normal(outputs, inputs), blocksize=64, quant_type="nf4", compress_statistics=True)


def quantise(data, outputs, inputs):
    dense = data.normal(outputs, inputs)
    return lambda: bitsandbytes.functional.quantize_4bit(dense, blocksize=64, quant_type="nf4", compress_statistics=True)


def dequantise(data, outputs, inputs):
    blocks, state = four_bit(data, outputs, inputs)
    return lambda: bitsandbytes.functional.dequantize_4bit(blocks, state)


def nf4(data, rows, outputs, inputs):
    x, (blocks, state) = data.normal(rows, inputs), four_bit(data, outputs, inputs)
    return lambda: bitsandbytes.matmul_4bit(x, blocks.t(), quant_state=state)


def nf4_backward(data, rows, outputs, inputs):
    x, (blocks, state) = data.leaf(rows, inputs), four_bit(data, outputs, inputs)
    return gradient(bitsandbytes.matmul_4bit(x, blocks.t(), quant_state=state), x)


# ---- Attention


class Rows:
    """Causal attention of rows of one length, by SDPA."""

    def __init__(self, data, rows, length, heads, kv_heads, head_dim):
        self.q = data.leaf(rows, heads, length, head_dim)
        self.k, self.v = (data.leaf(rows, kv_heads, length, head_dim) for _ in range(2))

    def forward(self):
        scale = 1 / math.sqrt(self.q.shape[-1])
        return F.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=True, scale=scale, enable_gqa=True)


class Varying:
    """Causal attention of segments that end at `offsets`, seen through a window; on a GPU by torch's varlen_attn."""

    def __init__(self, data, offsets, window, heads, kv_heads, head_dim):
        self.offsets, self.window = offsets, window
        self.q = data.leaf(offsets[-1], heads, head_dim)
        self.k, self.v = (data.leaf(offsets[-1], kv_heads, head_dim) for _ in range(2))
        self.ends = torch.tensor(offsets, dtype=torch.int32, device=data.device)

    def forward(self):
        if not self.q.is_cuda:
            return self.one_by_one()
        from torch.nn.attention.varlen import varlen_attn

        longest = max(end - start for start, end in zip(self.offsets, self.offsets[1:]))
        before = -1 if self.window is None else self.window - 1
        return varlen_attn(
            self.q, self.k, self.v, self.ends, self.ends, longest, longest, window_size=(before, 0), enable_gqa=True)

    def one_by_one(self):
        """The same where there is no varlen_attn, to try the path."""
        outputs = []
        for start, end in zip(self.offsets, self.offsets[1:]):
            q, k, v = (x[start:end].transpose(0, 1)[None] for x in (self.q, self.k, self.v))
            distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
            seen = (distance >= 0) & (distance < (self.window or end - start))
            outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1))
        return torch.cat(outputs)


def packed(data, segments, tokens, *heads):
    return Varying(data, [tokens * i * i // segments**2 for i in range(segments + 1)], None, *heads)


def window(data, window, rows, length, *heads):
    return Varying(data, [row * length for row in range(rows + 1)], window, *heads)


def forward(make):
    return lambda data, *sizes: torch.no_grad()(make(data, *sizes).forward)


def backward(make):
    def both(data, *sizes):
        op = make(data, *sizes)
        return gradient(op.forward(), op.q, op.k, op.v)
    return both


def decode_attention(data, keys, heads, kv_heads, head_dim):
    q, k, v = data.normal(1, heads, 1, head_dim), data.normal(1, kv_heads, keys, head_dim), data.normal(1, kv_heads, keys, head_dim)
    return lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


OPS = {
    "copy f32": unary(torch.clone, F32),
    "cast to f32": unary(lambda x: x.to(F32)),
    "add": binary(torch.add),
    "multiply": binary(torch.mul),
    "less than": binary(torch.lt),
    "where": where,
    "concatenate": binary(lambda a, b: torch.cat((a, b))),
    "times a number": unary(lambda x: x * 0.5),
    "times a tensor of one element": times_tensor,
    "SiLU": unary(F.silu),
    "dropout": unary(lambda x: F.dropout(x, 0.1)),
    "normal f32": lambda data, n: lambda: data.normal(n, dtype=F32),
    "AdamW f32": adamw,
    "gradient norm f32": unary(lambda x: torch.nn.utils.get_total_norm([x]), F32),
    "sum of rows": rows(lambda x, _: x.sum(1)),
    "sum of columns": rows(lambda x, _: x.sum(0)),
    "softmax": rows(softmax),
    "softmax backward": rows_backward(softmax),
    "cross entropy": cross_entropy,
    "cross entropy backward": cross_entropy_backward,
    "RMSNorm": rows(rms_norm),
    "RMSNorm backward": rows_backward(rms_norm),
    "add and RMSNorm": add_rms_norm,
    "LayerNorm": rows(layer_norm),
    "LayerNorm backward": rows_backward(layer_norm),
    "SwiGLU": swiglu,
    "SwiGLU backward": swiglu_backward,
    "RoPE": rope,
    "RoPE backward": rope_backward,
    "embedding": embedding,
    "embedding backward f32": embedding_backward,
    "gather": gather,
    "sample f32": sample,
    "matmul": matmul,
    "LoRA linear": lora,
    "LoRA linear both ways": lora_both_ways,
    "projection and loss with dX": loss,
    "NF4 quantise": quantise,
    "NF4 dequantise": dequantise,
    "NF4 linear": nf4,
    "NF4 linear backward": nf4_backward,
    "attention": forward(Rows),
    "attention backward": backward(Rows),
    "packed attention": forward(packed),
    "packed attention backward": backward(packed),
    "window attention": forward(window),
    "window attention backward": backward(window),
    "decode attention": decode_attention,
}
