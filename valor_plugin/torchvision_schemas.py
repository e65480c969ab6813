"""Makes a CUDA build of torchvision importable beside a CPU build of torch.

torchvision registers fake kernels for two of its compiled operators at import. Where its
compiled library cannot be loaded (`libc10_cuda.so` is missing), their schemas do not exist and
`import torchvision` fails, and with it torchxrayvision and parts of transformers. Defining the
two schemas is enough for everything that is pure Python; the operators themselves stay without
a kernel. torch calls `define` at the end of `import torch` in every process (entry point group
`torch.backends`), so this module imports nothing heavy and must not raise.
"""

import sys
from importlib.util import find_spec

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries = []  # a Library's definitions vanish when it is collected


def define() -> None:
    """Defines `torchvision::nms` and `torchvision::qnms`, only for a CPU torch beside a CUDA
    torchvision."""
    torch = sys.modules["torch"]
    if torch.version.cuda is not None or torch.version.hip is not None or not _cuda_torchvision():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    _libraries.append(library)


def _cuda_torchvision() -> bool:
    """Whether the installed torchvision was built for CUDA, read from its version file."""
    spec = find_spec("torchvision")  # finds the package without importing it
    if spec is None or spec.origin is None:
        return False
    try:
        with open(spec.origin.replace("__init__.py", "version.py"), encoding="utf-8") as file:
            return "cuda = None" not in file.read()
    except OSError:
        return False
