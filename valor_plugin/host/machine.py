"""What of this machine a run on GPUs needs: `openrlhf doctor` shows it, and `openrlhf train` warns
where something is not so."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reward_sdk.errors import one_line
from valor_plugin.host.memory import GB, Memory, SupervisedMemory
from valor_plugin.host.versions import installed


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: what was looked at, such as the name of a package.
        ok: whether what was looked at is as it must be; None where it may do and may not.
        detail: what was found, and what to do if it is not ok.
    """

    what: str
    ok: bool | None
    detail: str


_SHM = 1 * GB  # ours: Ray, NCCL and vLLM's processes share memory through it
_SHM_FOLDER = Path("/dev/shm")
_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_STATUS = Path("/proc/self/status")
_CAP_SYS_PTRACE = 19


def count_gpus() -> int:
    """How many GPUs torch sees; 0 without torch."""
    if installed("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def gpus() -> Iterator[Check]:
    """The GPUs, and whether driver, torch, NCCL and they go together; torch must be installed."""
    import torch

    if torch.version.cuda is None:
        yield Check("GPU", True, f"torch {torch.__version__} is a CPU build: runs use the CPU")
        return
    try:
        torch.cuda.init()
    except RuntimeError as error:  # which says whether driver or card is missing, or the former old
        why = str(error).split(". ")[0]
        yield Check(
            "GPU", False,
            f"torch {torch.__version__} is a CUDA build and finds no GPU: {why}. Compare "
            "`nvidia-smi`; for a machine without a GPU: make setup STACK=cpu",
        )  # fmt: skip
        return
    cards = range(torch.cuda.device_count())
    for i, (free, total) in enumerate(_memory()):
        name = torch.cuda.get_device_name(i)
        yield Check(f"GPU {i}", True, f"{name}, {free / GB:.1f} of {total / GB:.1f} GB are free")
    from torch.cuda import nccl

    version = ".".join(map(str, nccl.version()))
    what = f"a sum over {len(cards)} GPUs with NCCL {version}, CUDA {torch.version.cuda}"
    try:  # which also tells whether torch has kernels for the cards
        tensors = [torch.ones(4, device=f"cuda:{i}") for i in cards]
        nccl.all_reduce(tensors)
        right = all(tensor.tolist() == [len(cards)] * 4 for tensor in tensors)
        yield Check("NCCL", right, what if right else f"{what} is wrong")
    except RuntimeError as error:
        yield Check("NCCL", False, f"{what} fails: {one_line(error)}")


def system(colocated: bool = True) -> Iterator[Check]:
    """What the system must allow to a run on GPUs, and if policy and engine share them."""
    try:
        size = shutil.disk_usage(_SHM_FOLDER).total
    except OSError:
        size = 0
    detail = f"{_SHM_FOLDER} has {size / GB:.2f} GB"
    if size < _SHM:
        detail += f", and {_SHM / GB:.0f} GB is the least: start the container with --shm-size=8g"
    yield Check("shared memory", size >= _SHM or None, detail)
    if colocated:
        yield _cuda_ipc()
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    absent = [
        what
        for what, there in (("a C compiler", compiler), (str(headers), headers.is_file()))
        if not there
    ]
    detail = compiler or ""
    if absent:
        detail = f"{' and '.join(absent)}: not there, and Triton wants it for vLLM's kernels"
    yield Check("compiler", not absent or None, detail)


def _cuda_ipc() -> Check:
    """Whether a process may take a handle of another one of the same user."""
    try:
        scope = int(_PTRACE_SCOPE.read_text())
    except (OSError, ValueError):
        scope = 0
    status = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    may_trace = int(status["CapEff"], 16) >> _CAP_SYS_PTRACE & 1
    allowed = scope == 0 or (scope < 3 and may_trace)
    detail = f"kernel.yama.ptrace_scope is {scope}"
    if not allowed:
        detail += (
            ": with openrlhf.train.colocate_all, weights go to vLLM by CUDA IPC, which this can "
            "forbid (pidfd_getfd: Operation not permitted): sysctl kernel.yama.ptrace_scope=0"
        )
    return Check("CUDA IPC", bool(allowed) or None, detail)


def fits(memory: Memory | SupervisedMemory, gpus: int) -> Check:
    """Whether the first GPUs of this machine, as many as a run needs, have the memory free that it
    needs."""
    for i, (free, total) in enumerate(_memory()[:gpus]):
        if free < memory.of(total):
            return Check(
                "memory", None,
                f"{memory}; of {total / GB:.0f} GB, {memory.of(total) / GB:.0f} must be free, and "
                f"of GPU {i} {free / GB:.0f} are. {memory.advice}, let other programs end, or use "
                "more cards",
            )  # fmt: skip
    return Check("memory", True, f"{memory}; that much is free")


def _memory() -> list[tuple[float, float]]:
    """Free and whole memory of every GPU, in bytes, as `nvidia-smi` knows them: asking CUDA would
    take some of it for as long as this process lives."""
    import torch

    cards = []
    for i in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(i).total_memory
        try:
            free = total - torch.cuda.device_memory_used(i)
        except Exception:  # NVML is not everywhere, and has errors of its own
            free, _ = torch.cuda.mem_get_info(i)
        cards.append((free, total))
    return cards
