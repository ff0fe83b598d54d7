"""The config, checked, and the plan it is worked out into."""
