# persona-collapse: does a second fine-tuning erase a chat model's personas?
#
#   snakemake --cores all                 the default run (config/config.yaml)
#   snakemake --cores all --use-conda     the same, one conda environment per kind of job
#   snakemake -n                          what would run
from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/statistics.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/collect.smk"


# A table that no rule makes is found here: Snakemake would take a report that is there as given, and end. Jobs, which
# read this file too, need not ask again.
for table in [*reported, *tabled] if workflow.is_main_process else []:
    path = results(f"tables/{table}.csv")
    if not any(rule.is_producer(path) for rule in workflow.rules):
        drawn = [name for name, one in figures.items() if table in one.tables]
        of = f", a table of the figure {', '.join(drawn)}" if drawn else ""
        print(
            f"persona-collapse: no rule makes {path}{of}; correct its name, or add a rule",
            file=sys.stderr,
        )
        sys.exit(1)


# Results are rebuilt if the code of their rule changes: its script, and everything of the package that it imports.
# If this is used as a module, rules of the other workflow are not affected.
for ruled in filter(lambda rule: rule.script, workflow.rules):
    if Path(ruled.snakefile).is_relative_to(CHECKOUT):
        ruled.set_params(code_hash=code_hash.of_script(ruled.script))


rule all:
    default_target: True
    input:
        results("report.html"),
        results_of("completions/{chain}.parquet", "completions"),
        results_of("markers/{chain}.csv", "markers"),
        results_of("activations/{chain}.safetensors", "activations"),
        expand(results("tables/{measure}.csv"), measure=tabled),
    localrule: True
