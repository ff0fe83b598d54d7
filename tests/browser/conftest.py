from synthetic import everything, made, page  # noqa: F401
