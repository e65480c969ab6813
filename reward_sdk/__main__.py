"""`python -m reward_sdk`: the command `reward-sdk`."""

from reward_sdk.cli import main

if __name__ == "__main__":
    main(prog_name="reward-sdk")
