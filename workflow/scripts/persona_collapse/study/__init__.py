"""Checks the config and expands it into a plan."""
