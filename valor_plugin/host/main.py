"""The driver process of a run: starts Ray with our hooks, then the host's own entry point.

`valor_plugin.run.process` starts `python -m valor_plugin.host.main RAY_DIR -- HOST ARGUMENTS`, with
the run's settings in the environment.
"""

from __future__ import annotations

import os
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from valor_plugin import records
from valor_plugin.host import cluster, failures, seams
from valor_plugin.host.options import MODULE
from valor_plugin.host.settings import HostSettings


def main() -> None:
    ray_dir, _, *arguments = sys.argv[1:]
    settings = HostSettings.current()
    if settings is None:
        raise SystemExit("start a run with `openrlhf train`")
    try:
        _run(settings, ray_dir, arguments)
    except Exception as error:
        told = failures.failure("driver", error)
        records.append(Path(settings.records, records.FAILURES), told)
        raise


def _run(settings: HostSettings, ray_dir: str, arguments: list[str]) -> None:
    environment = {
        **settings.environment(),
        "TOKENIZERS_PARALLELISM": "false",
        # The host's own defaults, which it does not set when Ray is up already.
        "NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "WARN"),
        "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
    }
    if settings.device == "cuda":
        # Our hook runs, and CUDA may be initialised, before Ray would hide the other GPUs from a
        # worker; the host then takes its GPU by index instead.
        environment["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"
        # flashinfer compiles its sampler at the first start, if there is a CUDA toolkit.
        environment["VLLM_USE_FLASHINFER_SAMPLER"] = os.environ.get(
            "VLLM_USE_FLASHINFER_SAMPLER", "0"
        )
    if settings.device == "cpu":
        from valor_plugin.host import cpu

        environment |= cpu.ENVIRONMENT
        environment["OMP_NUM_THREADS"] = str(os.cpu_count())
    os.environ.update(environment)
    address, hook = cluster.joined(), "valor_plugin.host.seams.start_worker"
    options: dict[str, Any]
    if address is None:
        cluster.close_to_strangers()
        # Workers inherit the environment, so that Ray may start them before it knows of any task:
        # one for every actor, which import while the driver does.
        os.environ[cluster.HOOK] = hook
        options = {"_temp_dir": ray_dir, "include_dashboard": False, "num_cpus": settings.actors}
        if settings.device == "cpu":
            options["num_gpus"] = cpu.LOGICAL_GPUS
    else:  # Ray logs a runtime environment
        runtime = {"worker_process_setup_hook": hook, "env_vars": environment}
        options = {"runtime_env": runtime}
    import ray

    seams.adapt()
    with ThreadPoolExecutor(1) as beside:  # the host is imported while Ray starts
        found = beside.submit(seams.find_all, settings)
        ray.init(address=address or "local", **options)
        found.result()
    sys.argv = [MODULE, *arguments]
    runpy.run_module(MODULE, run_name="__main__")
    ray.shutdown()


if __name__ == "__main__":
    main()
