from runs import finished  # noqa: F401
