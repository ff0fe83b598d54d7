"""Draw one figure."""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, f"figure {snakemake.wildcards.figure}"):
    from persona_collapse import figures
    from persona_collapse.files import read_csv
    from persona_collapse.tables import headline_cell

    tables = {name: read_csv(path) for name, path in snakemake.input.items()}
    name = snakemake.wildcards.figure
    if name in ("cosine_matrices", "behaviour_and_geometry"):
        given = tables["cosines" if "cosines" in tables else "geometry"]
        tables |= headline_cell(given, **snakemake.params.headline)
    if name in ("training_curves", "false_positives"):
        tables.pop("grid")
    figure, data = getattr(figures, name)(**tables)
    figures.save(figure, data, Path(snakemake.output.svg).with_suffix(""))
