"""What other RL stacks send and expect, one file per stack."""
