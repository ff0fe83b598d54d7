"""From measurements to tables and verdicts."""
