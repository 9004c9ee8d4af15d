"""One line about the machine, for every benchmark's heading."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def describe_machine() -> str:
    """CPU model, instruction set, threads, torch; and the GPU if there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    cpu = names[0] if names else platform.processor()
    bf16 = "with" if {"amx_bf16", "avx512_bf16"} & set(flags) else "without"
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {bf16} bfloat16 instructions, {torch.get_num_threads()} threads, torch {torch.__version__}{gpu}"
