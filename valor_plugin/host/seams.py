"""What is replaced in the host, in one table, and the loop that does it.

A wrapper is a function of this folder, named "file:function": given what stands at the target and
the run's settings, it returns what shall stand there. It is put there as soon as the target's
module has been imported, so that no process imports what it does not use. Ray runs `start_worker`
in every worker before any task is unpickled; the driver looks for every target before it runs the
host; vLLM's processes, which are no Ray workers, come through `valor_plugin.host.vllm_plugin`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from reward_sdk.errors import one_line
from valor_plugin.host import reference
from valor_plugin.host.settings import HostSettings


class SeamError(Exception):
    """The installed host has no such place, so this plugin does not fit it."""


def _always(settings: HostSettings) -> bool:
    """always"""
    return True


def _on_cpu(settings: HostSettings) -> bool:
    """without a GPU"""
    return settings.device == "cpu"


def _with_shared_reference(settings: HostSettings) -> bool:
    """where the policy is its own reference"""
    return reference.is_shared(settings.trainable)


def _repeatable(settings: HostSettings) -> bool:
    """with full determinism"""
    return settings.deterministic


@dataclass(frozen=True)
class Seam:
    """One replacement.

    Attributes:
        target: what is replaced, as "module:attribute".
        wrapper: what replaces it, as "file:function" of this folder.
        process: which processes feel it: driver, trainer, policy, rollout, vLLM, or all.
        wanted: whether a run with such settings needs the replacement; the docstring of this
            function says when.
    """

    target: str
    wrapper: str
    process: str
    wanted: Callable[[HostSettings], bool] = _always

    @property
    def module(self) -> str:
        """The module that holds the target."""
        return self.target.partition(":")[0]

    def find(self) -> tuple[Any, str, Any]:
        """The object that holds the target, the target's name in it, and the target.

        Raises:
            SeamError: the installed host has no such place.
        """
        *outer, name = self.target.partition(":")[2].split(".")
        try:
            owner: Any = import_module(self.module)
            for step in outer:
                owner = getattr(owner, step)
            return owner, name, getattr(owner, name)
        except Exception as error:  # importing the host can fail in any way
            raise SeamError(
                f"{self.target} is not there: {one_line(error)}; install the tested versions"
            ) from error

    def apply(self, settings: HostSettings) -> None:
        """Puts the wrapper in the target's place."""
        owner, name, found = self.find()
        file, _, function = self.wrapper.partition(":")
        wrap = getattr(import_module(f"valor_plugin.host.{file}"), function)
        setattr(owner, name, wrap(found, settings))


_MAKER = "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker"
_SAMPLES = "openrlhf.trainer.ppo_utils.samples_generator:SamplesGenerator"
_DEEPSPEED = "openrlhf.utils.deepspeed.deepspeed"

SEAMS = (
    # What only CUDA has; first, because the host's modules ask for it when they are imported.
    Seam("torch.cuda:current_device", "cpu:device_name", "all", _on_cpu),
    Seam("torch.cuda:current_stream", "cpu:nothing", "all", _on_cpu),
    Seam("torch.cuda:set_device", "cpu:nothing", "all", _on_cpu),
    Seam("torch.cuda:synchronize", "cpu:nothing", "all", _on_cpu),
    Seam("torch.cuda:empty_cache", "cpu:nothing", "all", _on_cpu),
    Seam("deepspeed.runtime.zero.partition_parameters:Init._allgather_params_coalesced",
         "cpu:gather_one_by_one", "policy", _on_cpu),
    Seam(f"{_DEEPSPEED}:init_device_mesh", "cpu:cpu_mesh", "policy", _on_cpu),
    Seam("openrlhf.trainer.ppo_utils.replay_buffer:torch", "cpu:torch_on_cpu", "policy", _on_cpu),
    Seam("deepspeed.comm.torch:build_shm_op", "cpu:nothing", "policy", _on_cpu),
    Seam("openrlhf.utils.distributed_util:stateless_init_process_group", "cpu:sync_over_tcp",
         "all", _on_cpu),
    # A run that has its own Ray is closed to others.
    Seam("torch.distributed.rendezvous:TCPStore", "cluster:listen_on_loopback", "all"),
    # A model folder's code is never executed.
    Seam("transformers.dynamic_module_utils:get_class_in_module", "policy:run_no_code", "all"),
    # Which parts train, and what of them goes where.
    Seam("openrlhf.models.actor:Actor.__init__", "policy:train_parts", "policy"),
    Seam(f"{_DEEPSPEED}:get_optimizer_grouped_parameters", "policy:group_by_shape", "policy"),
    Seam("deepspeed.ops.adam.fused_adam:FusedAdam", "adam:torch_adam", "policy"),
    Seam("openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer.ppo_train", "policy:count_synced",
         "policy"),
    Seam("openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer.broadcast_to_vllm", "policy:send_merged",
         "policy"),
    Seam("openrlhf.utils.deepspeed:DeepspeedStrategy.save_model", "saving:save_whole_folder",
         "policy"),
    # The KL reference inside of the policy.
    Seam("openrlhf.trainer.ray.launcher:RayActorGroup._initiate_actors", "reference:start_none",
         "driver", _with_shared_reference),
    Seam(f"{_MAKER}._dispatch_forward", "reference:ask_the_policy", "trainer",
         _with_shared_reference),
    Seam("openrlhf.utils.deepspeed:DeepspeedStrategy._ds_init_train_model",
         "reference:keep_the_start", "policy", _with_shared_reference),
    Seam("openrlhf.trainer.ray.launcher:BaseModelActor",
         "reference:answer_for_the_reference", "policy", _with_shared_reference),
    # An image of a group is opened, sent and encoded once.
    Seam("openrlhf.utils.vlm_utils:process_prompt_with_images", "images:prepare_once", "rollout"),
    Seam("openrlhf.utils.vlm_utils:merge_mm_train_inputs", "images:merge_names", "policy"),
    Seam("transformers.models.llava.modeling_llava:LlavaModel.get_image_features",
         "images:encode_once", "policy"),
    # Rollouts know their step, rewards become advantages, and steps are recorded.
    Seam("openrlhf.trainer.ppo_trainer:prepare_datasets", "sampling:order_by_seed", "trainer"),
    Seam("openrlhf.trainer.ppo_trainer:BasePPOTrainer.__init__", "sampling:count_steps", "trainer"),
    Seam(f"{_SAMPLES}._dispatch_prompts_to_vllm", "sampling:stamp_step", "trainer"),
    Seam(f"{_SAMPLES}._generate_vllm", "sampling:order_groups", "trainer", _repeatable),
    Seam(f"{_MAKER}.compute_advantages_and_returns", "advantage:rank_groups", "trainer"),
    # In vLLM's own processes.
    Seam("vllm.model_executor.models.llava:LlavaForConditionalGeneration.hf_to_vllm_mapper",
         "vllm_plugin:read_both_spellings", "vLLM"),
    Seam("openrlhf.trainer.ray.vllm_worker_wrap:WorkerWrap.update_weight", "cpu:reload_together",
         "vLLM", _on_cpu),
)  # fmt: skip

IN_RAY = ("all", "driver", "trainer", "policy", "rollout")
IN_VLLM = ("all", "vLLM")
_adapted: set[str] = set()


def adapt(processes: Collection[str] = IN_RAY) -> None:
    """Lets this process replace what its run needs, once; does nothing outside of our runs.

    A worker of Ray does not know yet what it will be, so it is prepared for anything. What is
    imported later is replaced then, and a missing target is a SeamError of that import.
    """
    settings = HostSettings.current()
    if settings is None:
        return
    import wrapt

    provide_flash_attn()
    for seam in SEAMS:
        if seam.process in processes and seam.target not in _adapted and seam.wanted(settings):
            _adapted.add(seam.target)
            replace = partial(_replace, seam, settings)
            wrapt.register_post_import_hook(replace, seam.module)


def provide_flash_attn() -> None:
    """Lets the host find the helpers that it imports from flash-attn. Their folder is the last on
    the path and no regular package, so that an installed flash-attn goes before."""
    folder = str(Path(__file__).with_name("without_flash_attn"))
    if folder not in sys.path:
        sys.path.append(folder)


def _replace(seam: Seam, settings: HostSettings, _: ModuleType) -> None:
    """What is called with the module when it has been imported."""
    seam.apply(settings)


def start_worker() -> None:
    """What a worker of Ray does first: it is adapted, and imports what every actor of the host
    needs, so that this is done while the driver still imports."""
    adapt()
    with _without_collecting():
        import_module("openrlhf.trainer.ray")


def find_all(settings: HostSettings) -> None:
    """Looks for everything that will be replaced in Ray's processes, so that a host that lacks a
    place ends a run at its start.

    Raises:
        SeamError: the installed host lacks a target.
    """
    with _without_collecting():
        for seam in SEAMS:
            if seam.process in IN_RAY and seam.wanted(settings):
                seam.find()


@contextmanager
def _without_collecting() -> Iterator[None]:
    """For imports, of whose time the collection of garbage takes a quarter, and finds none."""
    gc.disable()
    try:
        yield
        gc.freeze()  # what was imported stays
    finally:
        gc.enable()
