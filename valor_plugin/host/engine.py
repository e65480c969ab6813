"""Entry point of every vLLM process (entry point group `vllm.general_plugins`).

vLLM calls it in the engine core and its workers, which are not Ray workers: Ray's set-up hook does
not reach them. Outside of CPU runs of ours it does nothing.
"""


def register() -> None:
    """Adapts vLLM's worker; vLLM calls it once per process."""
    from valor_plugin.host.settings import HostSettings

    settings = HostSettings.current()
    if settings is not None and settings.device == "cpu":
        from valor_plugin.host import cpu

        cpu.install()
        cpu.adapt_vllm_worker()
