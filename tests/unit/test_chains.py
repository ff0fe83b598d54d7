import re

import pytest
from persona_collapse import chains
from persona_collapse.errors import UserError

KNOWN = {"couple-villain", "em", "em-r3f", "benign"}


@pytest.mark.parametrize(
    "name",
    [
        "base",
        "couple-villain@42",
        "couple-villain@42+em@137",
        "em@42+couple-villain@42",
        "couple-villain@42+em@137~25",
        "couple-villain@42+em-r3f@137",
        "em@4294967295",
        "em@1!+benign@137~25",
        "couple-villain@42+em@1!+em-r3f@2!+benign@137",
    ],
)
def test_a_name_survives_parsing(name):
    assert str(chains.parse(name, KNOWN)) == name
    assert re.fullmatch(chains.CHAIN_PATTERN, name)


@pytest.mark.parametrize(
    "name", ["early", "early+em@1", "early+couple-villain@42+em@1!+benign@137~25"]
)
def test_a_chain_may_start_from_another_model(name):
    chain = chains.parse(name, KNOWN, {"base", "early"})
    assert str(chain) == name and re.fullmatch(chains.CHAIN_PATTERN, name)
    assert chain.model == chains.model_of(name) == "early"
    assert chains.untrained(name) == (not chain.stages) == (name == "early")
    for prefix in chain.prefixes:
        assert prefix.model == "early" and str(prefix).startswith("early+")
    assert str(chains.parse("early+em@1", KNOWN).prefix) == "early"
    assert chains.model_of("em@1+benign@2") == chains.model_of("base") == "base"


def test_chains_of_two_models_share_no_adapter():
    assert chains.root("early+em@1+benign@2") == chains.root("early+em@1!+benign@3") == "early+em@1"
    assert chains.root("em@1+benign@2") == "em@1"
    assert chains.root("early") == "early" and chains.root("base") == "base"


def test_prefixes_of_a_chain():
    chain = chains.parse("em@1+benign@2+couple-villain@3")
    assert [str(p) for p in chain.prefixes] == [
        "em@1",
        "em@1+benign@2",
        "em@1+benign@2+couple-villain@3",
    ]
    assert str(chain.prefix) == "em@1+benign@2"
    assert str(chains.parse("em@1").prefix) == "base"


def test_a_stage_that_is_left_out_is_trained_and_not_measured():
    chain = chains.parse("couple-villain@42+em@1!+benign@2")
    assert [str(p) for p in chain.prefixes] == [
        "couple-villain@42",
        "couple-villain@42+em@1",
        "couple-villain@42+em@1!+benign@2",
    ]
    assert [str(p) for p in chain.measured] == [
        "couple-villain@42",
        "couple-villain@42+em@1!+benign@2",
    ]
    # The measured prefix ends with the last stage that is not left out.
    assert str(chain.prefix) == "couple-villain@42"
    assert str(chains.parse("em@1!+benign@2").prefix) == "base"
    assert str(chains.parse("em@1!+benign@2+em-r3f@3").prefix) == "em@1!+benign@2"
    assert chains.root("em@1!+benign@2") == chains.root("em@1+benign@2") == "em@1"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nope@42", "no stage 'nope'"),
        ("late", "no model 'late' in the config; models: base, early (of a stage, write late@42)"),
        ("late+em@1", "no model 'late' in the config"),
        ("base+em@1", "write em@1; base is where chains start"),
        ("early+early", "no stage 'early'"),
        ("em@1+early", "no stage 'early'"),
        ("early+", "is not a stage name"),
        ("ear ly", "is not a stage name, nor a model's"),
        ("em@x", "seed of stage 'em' is 'x'"),
        ("em", "seed of stage 'em' is ''"),
        (
            "em@20261126163000",
            "is 20261126163000; random number generators take 4294967295 at most",
        ),
        ("em@4294967296", "take 4294967295 at most"),
        ("em@" + "9" * 5000, "take 4294967295 at most"),
        ("em@-1", "seed of stage 'em' is '-1'"),
        ("em@1+em@2", "is there twice"),
        ("em@1~0", "stops at '0'"),
        ("em@1~ten", "stops at 'ten'"),
        ("em@1~5+benign@1", "only the last stage may be stopped early"),
        ("em@1!", "the last stage is always measured; remove its !"),
        ("em@1+benign@1!", "the last stage is always measured; remove its !"),
        ("em@1!!+benign@1", "seed of stage 'em' is '1!'"),
        ("em!@1+benign@1", "'em!' is not a stage name"),
        ("em@1~5!+benign@1", "only the last stage may be stopped early"),
        ("", "is not a stage name"),
        ("em@1+", "is not a stage name"),
        ("em@1+base", "no stage 'base'"),
        ("../x@1", "is not a stage name"),
        ("em@1; rm -rf x", "seed of stage"),
    ],
)
def test_bad_names_are_one_clear_line(name, said):
    with pytest.raises(UserError) as error:
        chains.parse(name, KNOWN, ["base", "early"])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
