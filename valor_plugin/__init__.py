"""Trains LLaVA-Med with verifiable and image-grounded rewards inside OpenRLHF."""
