"""No public name of a package hides one of its modules, so that `import ssd.x` gives the module x."""

from pathlib import Path

import pytest
from own_process import printed_by

import ssd_ext

ROOT = Path(ssd_ext.__file__).parents[1]
PACKAGES = sorted(
    ".".join(file.parent.relative_to(ROOT).parts)
    for package in ("ssd", "ssd_ext")
    for file in (ROOT / package).rglob("__init__.py")
)
CODE = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.iter_modules(package.__path__):
    full = f"{package.__name__}.{module.name}"
    if module.name.startswith(("_cpu", "_cuda", "__main__")):  # libraries, no modules of Python; `python -m ssd`
        continue
    present = vars(package).get(module.name)
    assert present is None or present is sys.modules.get(full), full
    assert importlib.import_module(full) is getattr(package, module.name), full
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_hides_a_module(package):
    printed_by(CODE, package)
