"""Sample answers from a chain: training answers, completions or greedy responses."""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, f"{snakemake.rule} {snakemake.params.chain}") as say:
    import torch
    from persona_collapse import generation, models
    from persona_collapse.data import load_questions
    from persona_collapse.files import atomic

    torch.set_num_threads(snakemake.threads)
    params = snakemake.params
    base, stages = Path(snakemake.input.base), [Path(folder) for folder in params.stages]
    sampling = generation.Sampling(**params.sampling)
    name, reason = generation.choose_backend(params.engine["backend"])
    say(f"backend {name} ({reason})")
    requests = generation.requests_for(
        params.chain,
        params.personas,
        load_questions(params.questions),
        sampling,
        models.load_tokenizer(base),
    )
    backend = generation.open_backend(name, base, stages, params.engine)
    done = backend.complete(requests, sampling, say)
    table = generation.table(params.chain, requests, done)
    if marker := params.get("marker"):
        limit = params.engine["max_model_len"]
        table["marker_logprob"] = generation.marker_logprobs(
            backend, models.load_tokenizer(base), requests, done, marker, limit
        )
    with atomic(snakemake.output.table) as temporary:
        table.to_parquet(temporary, index=False)
