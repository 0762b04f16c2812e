"""The hashes in tests/ops: of what the compiled ops give for all cases, made on the CPU.

A GPU, another processor or another compiler has to come to the same bits: `kernels/test_golden.py`. Where a change of
an op or of its cases is meant: `python tests/golden.py` puts the new hashes into the files.
"""

import hashlib
import sys
from pathlib import Path

import torch

import ssd_ext

sys.path.insert(0, str(Path(__file__).parent))
import compare
from ops import OPS


def hashed(op: str, namespace=torch.ops.ssd_ext) -> str:
    """One hash of the results for all cases of an op."""
    total = hashlib.sha256()
    for arguments in OPS[op].cases():
        if compare.takes_library_math(op, arguments):
            continue
        for result in compare.as_tuple(getattr(namespace, op)(*arguments)):
            total.update(f"{result.dtype}{tuple(result.shape)}".encode() + bytes(compare.bits(result).tolist()))
    return total.hexdigest()


if __name__ == "__main__":
    assert all("cpu" in ssd_ext.info().kernels[op] for op in OPS), ssd_ext.info()
    new = {op.golden: hashed(op.name) for op in OPS.values()}
    for path in Path(__file__).parent.glob("ops/*.py"):
        text = path.read_text()
        for old, hash_ in new.items():
            text = text.replace(f'golden="{old}"', f'golden="{hash_}"')
        path.write_text(text)
