"""What the PyTorch benchmarks share: loading the model as the usual recipe does, and reading the peak memory."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def add_model_options(parser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="a .gguf file or a Hugging Face folder")
    parser.add_argument("--dtype", choices=DTYPES, default="f32", help="of weights and activations; with --qlora of the activations")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")


def hugging_face_folder(model: Path) -> Path:
    """`model` itself, or the folder beside a .gguf that holds it decoded to f32; made once, in a process of its own."""
    if model.is_dir():
        return model
    folder = model.with_suffix(".hf")
    if not (folder / "tokenizer.json").exists():
        subprocess.run([sys.executable, __file__, str(model), str(folder)], check=True)
    return folder


def convert(model: Path, folder: Path) -> None:
    from gguf_lib import read_tokenizer

    decoded = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
    # It is plain f32 now, though transformers still holds it for a GGUF and would not write it.
    decoded.hf_quantizer = None
    if hasattr(decoded.config, "quantization_config"):
        del decoded.config.quantization_config
    decoded.save_pretrained(folder)
    read_tokenizer(model).save_pretrained(folder)


def load(options, qlora: bool = False):
    """Model and tokenizer; NF4 with double quantisation if `qlora`."""
    if options.threads:
        torch.set_num_threads(options.threads)
    folder, dtype = hugging_face_folder(options.model), DTYPES[options.dtype]
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=dtype) if qlora else None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantization,
                                                 device_map="cpu" if qlora else None)
    return model, AutoTokenizer.from_pretrained(folder)


def add_lora(model, rank: int, alpha: int, qlora: bool):
    """LoRA on every Linear but the output projection; adapter weights in f32, as PEFT keeps them."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if qlora:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    return model


def reset_peak() -> None:
    """Makes the kernel forget the peak so far, so that loading does not hide the steps."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Peak resident memory since the start or the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def setting(options) -> dict:
    return {"model": options.model.name, "dtype": options.dtype, "threads": torch.get_num_threads(), "cpus": os.cpu_count(),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}}


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
