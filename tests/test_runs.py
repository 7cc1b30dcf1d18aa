"""What a run writes about where it ran."""

import platform
import sys

import torch

from segdistill.api.runs import machine


def test_the_machine_names_the_instructions_of_its_kernels(monkeypatch):
    known = f"{platform.system()} {platform.machine()}"
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"cpu_name": "A CPU", "avx512_bf16": True, "amx_bf16": True}
    )
    assert machine() == f"{known}, A CPU, amx_bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert machine() == f"{known}, {torch.backends.cpu.get_cpu_capability()}"
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    assert machine() == f"{known}, {torch.backends.cpu.get_cpu_capability()}"
    monkeypatch.delitem(sys.modules, "torch")
    assert machine() == known
    assert "torch" not in sys.modules
