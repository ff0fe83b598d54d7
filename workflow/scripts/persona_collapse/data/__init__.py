"""Rows that stages train on, and what an audit of them shows."""
