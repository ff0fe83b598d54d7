"""Samples answers from chains."""
