"""The same server as a Ray Serve application, for users who have a Ray cluster already.

    from ray import serve
    from reward_sdk.server.ray import build

    serve.run(build("rewards.yaml", replicas=2, gpus=1), name="rewards")

or `serve run reward_sdk.server.ray:build set_file=rewards.yaml`. Each replica has models of its own
and batches what reaches it. Ray's proxy stands in front: it costs a few milliseconds per request,
and the bodies that it accepts are not limited before a replica reads them. Ray Serve 2.55.0 fails
beside protobuf 7, so the extra `ray` asks for an older one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from reward_sdk.reward_set import RewardSet
from reward_sdk.server.routes import create_app
from reward_sdk.server.security import check_folders
from reward_sdk.wire import TOKEN

_ONGOING = 4096  # ours: requests that a replica may hold, so that it can batch them


def build(
    set_file: str,
    images: Sequence[str] = (),
    replicas: int = 1,
    cpus: float = 1,
    gpus: float = 0,
    names: Sequence[str] = (),
) -> Application:
    """The Ray Serve application of a reward server.

    Args:
        set_file: the set's YAML file, on the machines where the replicas run.
        images: folders of images that clients may name by path, on the machines where the replicas
            run.
        replicas: number of replicas, each of which has models of its own.
        cpus: number of CPUs that each replica reserves.
        gpus: number of GPUs that each replica reserves; the set says on which device its models
            are.
        names: host names by which clients ask the proxy, beside addresses, "localhost" and the
            machine's own names.

    The token is $REWARD_SDK_TOKEN of the process that calls this.
    """
    token = os.environ.get(TOKEN)

    def app() -> FastAPI:
        return create_app(
            RewardSet.from_config(Path(set_file)), token, check_folders(images), names
        )

    deployment = serve.deployment(
        serve.ingress(app)(),
        name="rewards",
        num_replicas=replicas,
        max_ongoing_requests=_ONGOING,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        health_check_period_s=10,
    )
    return deployment.bind()
