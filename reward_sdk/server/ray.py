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
    """The application.

    Args:
        set_file: the set's YAML, where the replicas run.
        images: image folders, where the replicas run.
        replicas: how many.
        cpus: of each replica.
        gpus: of each replica; the set says on which device its models are.
        names: by which the proxy is asked, see `SiteMiddleware`.

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
