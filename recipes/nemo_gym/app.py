"""A NeMo Gym resources server that rewards radiology reports.

Copy this folder to `resources_servers/report_rewards` of NeMo Gym. It scores with `rewards.yaml`
beside it, or with reward servers: `rewards: http://node1:8000` in the configuration.
"""

from reward_sdk.adapters.nemo_gym import resources_server

ReportServer = resources_server()

if __name__ == "__main__":
    ReportServer.run_webserver()
