"""What the model is asked. Training, rollout and evaluation read it here."""

FINDINGS = (
    "Describe the findings of this chest X-ray. Write the report between <report> and </report>."
)
