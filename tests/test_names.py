"""No public name of a package hides one of its modules, so that `import ssd.x` gives the module x; none is missing."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
from own_process import printed_by

import ssd_ext
import ssd_ext.ops

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


def test_every_public_name_of_an_op_is_one_of_the_package():
    modules = [import_module(f"ssd_ext.ops.{module.name}") for module in iter_modules(ssd_ext.ops.__path__)]
    public = {name: getattr(module, name) for module in modules for name in module.__all__}
    assert public == {name: getattr(ssd_ext, name) for name in ssd_ext.__all__ if name not in ("Info", "info")}
