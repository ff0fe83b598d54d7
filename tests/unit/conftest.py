from synthetic import crossed, drawn, everything, made, page  # noqa: F401
