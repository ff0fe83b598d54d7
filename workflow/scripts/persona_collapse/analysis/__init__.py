"""Turns measurements into tables and verdicts."""
