"""Reward sets over HTTP: `reward-sdk serve`."""
