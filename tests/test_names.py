"""No public name of a package hides one of its modules, so that `import ssd.x` gives the module x."""

import pytest
from own_process import printed_by

PACKAGES = ("ssd", "ssd.data", "ssd.export", "ssd_ext", "ssd_ext.ops")
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
