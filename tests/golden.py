"""Hashes of what the compiled ops give for the cases of cuda_on_cpu/cases.py, made on the CPU, kept in golden.json.

A GPU, another processor or another compiler has to come to the same bits: `test_golden.py`. Where a change of an op or
of its cases is meant: `python tests/golden.py` writes the file anew.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

import ssd_ext

sys.path.insert(0, str(Path(__file__).parent))
from cuda_on_cpu import cases

FILE = Path(__file__).parent / "golden.json"


def hashed(op: str, namespace=torch.ops.ssd_ext) -> str:
    """One hash of the results for all cases of an op."""
    total = hashlib.sha256()
    for arguments in cases.CASES[op]():
        if cases.takes_library_math(op, arguments):
            continue
        results = getattr(namespace, op)(*arguments)
        for result in [results] if isinstance(results, torch.Tensor) else results:
            total.update(f"{result.dtype}{tuple(result.shape)}".encode() + bytes(cases._bits(result).tolist()))
    return total.hexdigest()


if __name__ == "__main__":
    assert all("cpu" in ssd_ext.info().kernels[op] for op in cases.CASES), ssd_ext.info()
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(json.dumps({op: hashed(op) for op in cases.CASES}, indent=1) + "\n")
    os.replace(temporary, FILE)
