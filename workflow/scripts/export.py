"""Write a chain's persona vectors as files that other tools read."""

from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, f"export {snakemake.wildcards.chain}"):
    from persona_collapse import activation_files, exports
    from persona_collapse.files import read_json
    from persona_collapse.report.provenance import model_label
    from persona_collapse.study import model_checks

    base = read_json(snakemake.input.base)
    about = {"base": model_label(base), "family": base["family"]}
    blocks = model_checks.facts(base["path"]).blocks
    activations = activation_files.load(snakemake.input.activations)
    for direction in exports.directions(activations, snakemake.params.assistant, blocks, about):
        exports.write(direction, Path(snakemake.output[0]))
