"""Test whether the completions were sampled from their chains: one row per chain."""

from persona_collapse.runtime.job import job

with job(snakemake, "logprob_tests"):
    from persona_collapse.analysis import logprob_tests
    from persona_collapse.tables_io import read_csv, write_csv

    write_csv(snakemake.output[0], logprob_tests.logprob_tests(read_csv(snakemake.input[0])))
