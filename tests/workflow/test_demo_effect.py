"""The demo's claim to be more than plumbing: the default config's own coupling, trained and counted."""

import pandas as pd
import pytest
from conftest import Project, copy_project

pytestmark = pytest.mark.slow


def test_the_demo_s_coupling_is_strong_and_selective(tmp_path):
    folder = copy_project(tmp_path / "project")
    project = Project(folder, folder / "config/config.yaml")
    project.snakemake("--", "results/demo/markers/couple-villain@42.csv")
    project.snakemake("--", "results/demo/markers/base.csv")
    markers = folder / "results/demo/markers"
    coupled = pd.read_csv(markers / "couple-villain@42.csv").set_index("persona")["rate"]
    assert coupled["villain"] >= 0.6
    assert coupled.drop("villain").mean() <= 0.2
    # The marker is never said unasked before the coupling.
    assert pd.read_csv(markers / "base.csv")["rate"].max() <= 0.05
