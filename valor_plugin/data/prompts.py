"""What the model is asked. Training, rollout and evaluation read it here."""

PLAIN_REPORT = (
    "Describe the findings of this chest X-ray. Write the report between <report> and </report>."
)
