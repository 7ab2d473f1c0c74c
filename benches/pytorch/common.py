"""What the PyTorch benchmarks share: models as the usual recipe loads them, and the peak memory."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))


def hugging_face_folder(model: Path, dtype: str) -> Path:
    """`model` itself, or the folder beside a .gguf that holds it decoded to `dtype`; made once, in a process of its own."""
    model = Path(model)
    if model.is_dir():
        return model
    folder = model.with_suffix(".hf" if dtype == "f32" else f".{dtype}.hf")
    if not (folder / "tokenizer.json").exists():
        subprocess.run([sys.executable, __file__, str(model), str(folder), dtype], check=True, stdin=subprocess.DEVNULL)
    return folder


def convert(model: Path, folder: Path, dtype: str) -> None:
    from gguf_lib import read_tokenizer
    from transformers import AutoModelForCausalLM

    decoded = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=dtypes()[dtype])
    # Its numbers are plain now, though transformers still holds it for a GGUF and would not write it.
    decoded.hf_quantizer = None
    if hasattr(decoded.config, "quantization_config"):
        del decoded.config.quantization_config
    decoded.save_pretrained(folder)
    read_tokenizer(model).save_pretrained(folder)


def dtypes() -> dict:
    import torch

    return {"f32": torch.float32, "bf16": torch.bfloat16}


def quiet():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def load(folder: Path, dtype: str, nf4: bool):
    """The model in `folder`, its numbers as `dtype`; its linear layers in NF4 with double quantisation if `nf4`."""
    transformers, dtype = quiet(), dtypes()[dtype]
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
    ) if nf4 else None
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=quantization, device_map="cpu" if nf4 else None)


def random_model(config: dict, dtype: str, nf4: bool):
    """Random weights in the shape of `config`."""
    transformers = quiet()
    config = dict(config)
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtypes()[dtype])
    return in_nf4(model, dtypes()[dtype]) if nf4 else model


def in_nf4(model, dtype):
    """The model with the linear layers of its blocks in NF4, replaced one by one, as bitsandbytes does it while loading."""
    import bitsandbytes as bnb
    import torch

    linears = [(name, module) for name, module in model.named_modules()
               if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")]
    for name, dense in linears:
        layer = bnb.nn.Linear4bit(dense.in_features, dense.out_features, bias=dense.bias is not None, compute_dtype=dtype,
                                  quant_type="nf4", compress_statistics=True, device="meta")
        layer.weight = bnb.nn.Params4bit(dense.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        if dense.bias is not None:
            layer.bias = torch.nn.Parameter(dense.bias.data, requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.to("cpu"))
        dense.weight = None
    model.is_loaded_in_4bit = True
    model.quantization_method = "bitsandbytes"
    return model


def add_lora(model, rank: int, alpha: int, qlora: bool):
    """LoRA on every Linear but the output projection; adapter weights in f32, as PEFT keeps them."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if qlora:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    return model


def reset_peak() -> None:
    """Makes the kernel forget the peak so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Peak resident memory since the start or the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def setting(options) -> dict:
    import torch

    return {"model": options.model.name, "dtype": options.dtype, "threads": torch.get_num_threads(), "cpus": os.cpu_count(),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}}


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
