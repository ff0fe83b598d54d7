"""Every table of a synthetic run, for the tests that read many of them."""

import pandas as pd
import pytest
from persona_collapse import axis, behaviour, lda, link, tables
from test_tables import FAMILIES, GRID, MARKERS, load, scored


@pytest.fixture(scope="session")
def made():
    rates = tables.marker_rates(GRID, MARKERS)
    cosines = tables.cosines(GRID, load)
    base = cosines[(cosines["model"] == "base") & (cosines["layer"] == 3)]
    base = base[base["method"] == "A"]
    confounds = behaviour.confounds(GRID, scored())
    geometry = tables.geometry_table(GRID, load, longest="b", draws=199, seed=1, families=FAMILIES)
    training = pd.DataFrame(columns=["chain", "kind", "steps", "final_loss"])
    chains = link.chain_table(GRID, confounds, geometry, cosines, training, method="A", layer=3)
    few = {"draws": 199, "seed": 1}
    return {
        "grid": GRID,
        "marker_rates": rates,
        "marker_tests": behaviour.marker_tests(
            GRID, scored(), draws=500, families=[{"name": "all", "test": "*"}]
        ),
        "leakage": tables.leakage(GRID, rates),
        "confounds": confounds,
        "hypotheses": behaviour.hypotheses(GRID, rates, base, [], **few),
        "geometry": geometry,
        "contrasts": tables.geometry_contrasts(GRID, load, [("E0", "C4")], margin=0.02, **few),
        "axis": axis.axis_table(GRID, load, anchor="em@1", assistant="a", **few),
        "separability": lda.lda_table(GRID, load, folds=2, shuffles=3, seed=1),
        "link": link.link_table(chains, rates, base, **few),
    }
