"""The first line of every notebook: which device, and how Triton sources run on it."""

from __future__ import annotations

import os
import sys

import torch


def begin(seed: int = 0) -> torch.device:
    """The device of this lesson: a GPU where there is one, else the CPU, with Triton's interpreter.

    Seeds torch, and prints one line that says what runs. Call it before anything imports triton: its decorators read
    `TRITON_INTERPRET` once. Where triton was imported compiled already, kernels ask for a fresh kernel process.
    """
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        print(f"GPU: {torch.cuda.get_device_name()}; Triton kernels are compiled.")
        return torch.device("cuda")
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        print("CPU, but triton was imported before: restart the kernel and run from the top.")
        return torch.device("cpu")
    os.environ["TRITON_INTERPRET"] = "1"
    print("CPU: Triton kernels run in the interpreter, source line by source line.")
    return torch.device("cpu")
