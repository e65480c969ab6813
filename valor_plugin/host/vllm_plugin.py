"""Entry point of every vLLM process (entry point group `vllm.general_plugins`).

vLLM calls it in the engine core and its workers, which are not Ray workers: Ray's set-up hook does
not reach them. Outside of our runs it does nothing.
"""


def register() -> None:
    """Adapts vLLM to LLaVA models and, in CPU runs, its worker; vLLM calls it once per process."""
    from valor_plugin.host.settings import HostSettings

    settings = HostSettings.current()
    if settings is None:
        return
    if settings.device == "cpu":
        from valor_plugin.host import cpu

        cpu.install()
        cpu.adapt_vllm_worker()
    read_both_spellings()


def read_both_spellings() -> None:
    """Lets vLLM load what transformers 5.15 saves.

    A LLaVA that transformers built and saved has tower tensors without the `vision_model` that
    vLLM 0.29 looks for, and has them with it when it was loaded from an older file.
    """
    from vllm.model_executor.models.llava import LlavaForConditionalGeneration
    from vllm.model_executor.models.utils import WeightsMapper

    parts = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
    both = {f"vision_tower.{part}": f"vision_tower.vision_model.{part}" for part in parts}
    LlavaForConditionalGeneration.hf_to_vllm_mapper |= WeightsMapper(orig_to_new_prefix=both)
