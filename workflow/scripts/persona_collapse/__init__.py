"""Research code of the persona-collapse workflow: importable, typed, and free of Snakemake."""

__version__ = "0.1.0"
