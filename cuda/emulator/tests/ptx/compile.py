#!/usr/bin/env python3
"""Compiles the .cu files of this folder to the PTX that the tests read.

Needs NVRTC from a Python wheel: pip install 'nvidia-cuda-nvrtc==13.0.*'. Uses no GPU and no CUDA headers.
"""
import ctypes
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).parent
OPTIONS = ["--fmad=false", "-lineinfo", "--std=c++17"]


def load_nvrtc():
    for folder in map(pathlib.Path, sys.path):
        for path in sorted(folder.glob("nvidia/*/lib/libnvrtc.so.*")):
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
    sys.exit("no NVRTC: pip install 'nvidia-cuda-nvrtc==13.0.*'")


def compile_to_ptx(nvrtc, path, arch):
    program = ctypes.c_void_p()
    name = path.name.encode()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), path.read_bytes(), name, 0, None, None))
    options = [f"--gpu-architecture=compute_{arch}", *OPTIONS]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    log = ctypes.create_string_buffer(size.value)
    check(nvrtc.nvrtcGetProgramLog(program, log))
    if log.value:
        print(log.value.decode(), file=sys.stderr)
    check(status)
    check(nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    check(nvrtc.nvrtcGetPTX(program, text))
    return text.value


def check(status):
    if status != 0:
        sys.exit(f"NVRTC error {status}")


nvrtc = load_nvrtc()
for path in sorted(FOLDER.glob("*.cu")):
    # NVRTC puts the folder that it runs in before the name.
    ptx = re.sub(rb'"[^"\n]*/(\w+\.cu)"', rb'"\1"', compile_to_ptx(nvrtc, path, 80))
    path.with_suffix(".ptx").write_bytes(ptx)
