"""Register the criterion of each claim before there are data."""

from persona_collapse.runtime.job import job

with job(snakemake, "register_claims"):
    from datetime import UTC, datetime
    from pathlib import Path

    from persona_collapse.analysis import claims
    from persona_collapse.tables_io import read_csv, write_csv

    params = snakemake.params
    today = datetime.now(UTC).date().isoformat()
    # Files that were asked for by name may have been made before.
    before = {path.stem for folder in params.data for path in Path(folder).glob("*.*")}
    first = claims.registered(claims.load(snakemake.input.claims), today, len(before))
    # The first registration is kept, even if the output is deleted or the claims change.
    kept = Path(params.kept)
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_csv(kept, first)
    write_csv(snakemake.output[0], read_csv(kept))
