"""The workflow as a module of another workflow, and the layout that Snakemake's catalog expects."""

import re

import pytest
import yaml
from environments import ROOT
from runs import Project, copy_project

pytestmark = pytest.mark.slow

OTHER = """
configfile: "mine.yaml"

module collapse:
    snakefile: "{checkout}/Snakefile"
    config: config

use rule * from collapse as collapse_*

rule mine:
    default_target: True
    input: rules.collapse_errata.output, rules.collapse_plan.output
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Project(copy_project(tmp_path_factory.mktemp("checkout")))


def test_another_workflow_uses_it_as_a_module(checkout, tmp_path):
    """Its config has only the keys that differ; its rules keep their scripts and code hashes."""
    other = Project(tmp_path / "other")
    other.folder.mkdir()
    (other.folder / "Snakefile").write_text(OTHER.replace("{checkout}", str(checkout.folder)))
    (other.folder / "mine.yaml").write_text("run: mine\nseeds: [7]\n")
    other.snakemake()
    design = other.folder / "results/mine/tables/design.csv"
    assert "couple-villain@7" in design.read_text()
    assert (other.folder / "results/mine/tables/errata.csv").stat().st_size > 1000
    jobs, _ = other.planned("collapse_all")
    assert jobs["collapse_train"] > 5 and jobs["collapse_report"] == 1
    assert other.snakemake("-n").stdout.count("Nothing to be done") == 1


def test_the_catalog_s_snakefile_is_the_same_workflow(checkout):
    jobs, _ = checkout.planned()
    del jobs["all"]
    assert checkout.planned("-s", "workflow/Snakefile")[0] == jobs | {"default": 1}
    assert (ROOT / "config/README.md").is_file()


def test_the_catalog_draws_the_rules_and_says_how_to_deploy(checkout):
    text = (ROOT / ".test/README.md").read_text()
    drawn, tiny = (block.split()[1:] for block in re.findall(r"```sh\n(.+)\n```", text))
    [_, *rules] = re.findall(r'label = "(\w+)"', checkout.snakemake(*drawn).stdout)
    assert {"train", "completions", "report"} <= set(rules)
    assert "results/tiny/report.html" in checkout.snakemake("--dry-run", *tiny).stdout
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["software-stack-deployment"] == {"conda": True} and usage["report"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
