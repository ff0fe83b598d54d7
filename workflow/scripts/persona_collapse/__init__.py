"""Research code of the persona-collapse workflow: importable, typed, and free of Snakemake."""
