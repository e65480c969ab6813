"""What is replaced where, in one table; the set-up hook of every Ray worker."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

HOST_VERSION = "0.11.2"

SEAMS = (  # what is replaced, by which file of this folder, in which processes
    ("openrlhf.models.actor:Actor.__init__", "actor", "policy"),
    ("openrlhf.utils.deepspeed.deepspeed:get_optimizer_grouped_parameters", "actor", "policy"),
    ("openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer.broadcast_to_vllm", "actor", "policy"),
    ("openrlhf.trainer.ppo_trainer:BasePPOTrainer.__init__", "sampling", "trainer"),
    ("openrlhf.trainer.ppo_trainer:prepare_datasets", "sampling", "trainer"),
    ("openrlhf.trainer.ppo_utils.samples_generator:SamplesGenerator._dispatch_prompts_to_vllm",
     "sampling", "trainer"),
    ("openrlhf.trainer.ppo_utils.samples_generator:SamplesGenerator._generate_vllm", "sampling",
     "trainer"),
    ("openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker"
     ".compute_advantages_and_returns", "advantage", "trainer"),
    ("transformers.models.llava.modeling_llava:LlavaModel.get_image_features", "images", "policy"),
    ("openrlhf.utils.vlm_utils:process_prompt_with_images", "images", "rollout"),
    ("openrlhf.utils.vlm_utils:merge_mm_train_inputs", "images", "policy"),
    ("openrlhf.trainer.ray.ppo_actor:merge_mm_train_inputs", "images", "policy"),
    ("openrlhf.trainer.ray.launcher:RayActorGroup._initiate_actors", "reference", "driver"),
    ("openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker._dispatch_forward",
     "reference", "trainer"),
    ("openrlhf.utils.deepspeed:DeepspeedStrategy._ds_init_train_model", "reference", "policy"),
    ("openrlhf.trainer.ray.launcher:BaseModelActor", "reference", "policy"),
    ("openrlhf.utils.deepspeed:DeepspeedStrategy.save_model", "checkpoint", "policy"),
    ("openrlhf.utils.agent:SingleTurnAgentExecutor.execute", "executor", "rollout"),
    ("vllm.model_executor.models.llava:LlavaForConditionalGeneration.hf_to_vllm_mapper", "engine",
     "vLLM"),
)  # fmt: skip
"""Beside these: `cpu` stands in for calls that only CUDA has, in CPU mode, everywhere."""
_installed = False


def check_host() -> str | None:
    """Why this plugin cannot drive the installed OpenRLHF, or None if it can."""
    try:
        found = version("openrlhf")
    except PackageNotFoundError:
        return (
            f"OpenRLHF is not installed. Install it with `pip install valor-rrg[openrlhf]` "
            f"(OpenRLHF {HOST_VERSION}); without a GPU, `make` installs the CPU stack."
        )
    if found != HOST_VERSION:
        return (
            f"OpenRLHF {found} is installed, but this plugin replaces parts of OpenRLHF "
            f"{HOST_VERSION} and was tested with no other. "
            f"Install it with `pip install openrlhf=={HOST_VERSION}`."
        )
    return None


def install() -> None:
    """Adapts the host in this process, once; a no-op outside of our runs. Ray calls it in every
    worker before any task is unpickled, and the driver calls it before it runs the host."""
    global _installed
    from valor_plugin.host.settings import HostSettings

    settings = HostSettings.current()
    if settings is None or _installed:
        return
    _installed = True
    if settings.device == "cpu":
        from valor_plugin.host import cpu

        cpu.install()
        cpu.adapt_host()

    from valor_plugin.host import actor, advantage, checkpoint, images, reference, sampling

    lora = settings.lora
    actor.install(settings.train, lora.rank, lora.alpha, settings.rollout_images)
    images.install()
    if reference.is_shared(settings.train):
        reference.install()
    sampling.install(settings.banned_tokens, settings.seed, settings.deterministic)
    advantage.install(settings.advantage.rank, settings.advantage.tie_tolerance)
    checkpoint.install()
