"""The demo shows a real effect: the coupling of the default config, trained and counted."""

import shutil

import pandas as pd
import pytest
from runs import ROOT, Project, copy_project

pytestmark = pytest.mark.slow


def test_the_demo_s_coupling_is_strong_and_selective(tmp_path):
    project = Project(copy_project(tmp_path / "project"))
    # Results of `make run` in the checkout are reused if they are up to date.
    for name in ("results/demo", ".snakemake/metadata"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, project.folder / name)
    chains = ("couple-villain@42", "base")
    project.snakemake("--", *(f"results/demo/markers/{chain}.csv" for chain in chains))
    coupled, base = (
        pd.read_csv(project.path(f"markers/{chain}.csv")).set_index("persona")["rate"]
        for chain in chains
    )
    assert coupled["villain"] >= 0.6
    assert coupled.drop("villain").mean() <= 0.2
    # The marker is never said unasked before the coupling.
    assert base.max() <= 0.05
