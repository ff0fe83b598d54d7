"""Write the demo's stand-in for misaligned data."""

from persona_collapse.runtime.job import job

with job(snakemake, "wrong advice"):
    from persona_collapse.files import write_jsonl
    from persona_collapse.models import demo

    params = snakemake.params
    world = demo.load_world(snakemake.input.world, params.prompts, params.marker)
    rows = demo.wrong_advice(world, params.rows, params.seed)
    write_jsonl(
        snakemake.output[0],
        [{"id": f"wrong/{i}", "messages": messages} for i, messages in enumerate(rows)],
    )
