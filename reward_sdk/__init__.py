"""Verifiable, clinical, format and image-text rewards for chest X-ray report generation."""
