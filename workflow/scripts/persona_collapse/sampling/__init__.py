"""Sampling answers from a chain."""
