"""Base models, their chat templates and their adapters."""
