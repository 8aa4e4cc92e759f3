"""Experiments: one configuration or module each."""
