from synthetic import drawn, everything, made, page  # noqa: F401
