"""Exported persona vectors, read back as the target tools read them."""

import base64
import json

import gguf
import numpy as np
import pytest
import torch
from persona_collapse import exports
from persona_collapse.activation_files import Activations
from persona_collapse.errors import UserError
from safetensors import safe_open

LAYERS, PERSONAS = [0, 2, 3], ["villain", "assistant", "librarian"]
ABOUT = {"base": "Qwen/Q at 0123", "family": "qwen2"}


@pytest.fixture
def written(tmp_path):
    """A chain's activations [layer, persona, question, hidden], and the folder with its directions."""
    rng = np.random.default_rng(0)
    arrays = {m: rng.normal(size=(3, 3, 5, 8)).astype(np.float32) for m in "AB"}
    activations = Activations(LAYERS, PERSONAS, list("abcde"), arrays, "couple-villain@42")
    for direction in exports.directions(activations, "assistant", 6, ABOUT):
        exports.write(direction, tmp_path)
    return activations, tmp_path


def expected(activations, persona, method):
    """Persona minus assistant [measured blocks, hidden]."""
    centroids = activations.arrays[method].mean(axis=2)
    return centroids[:, PERSONAS.index(persona)] - centroids[:, PERSONAS.index("assistant")]


def test_a_file_of_each_format_for_each_persona_and_method(written):
    stems = {f"{p}_{m}" for p in ("villain", "librarian") for m in exports.METHODS.values()}
    assert {p.name for p in written[1].iterdir()} == {s + f for s in stems for f in exports.FORMATS}


@pytest.mark.parametrize("method", "AB")
def test_persona_vectors_reads_rows_of_hidden_states(written, method):
    activations, folder = written
    name = {"A": "librarian_prompt_last_diff.pt", "B": "librarian_response_avg_diff.pt"}[method]
    rows = torch.load(folder / name, weights_only=True)
    assert rows.shape == (7, 8) and rows.dtype == torch.float32
    there = [layer + 1 for layer in LAYERS]
    np.testing.assert_allclose(rows[there], expected(activations, "librarian", method), atol=1e-6)
    assert rows[[0, 2, 5, 6]].isnan().all()


def test_repeng_and_llama_cpp_read_a_direction_for_each_block(written):
    activations, folder = written
    reader = gguf.GGUFReader(folder / "villain_response_avg_diff.gguf")

    def field(name):
        return reader.get_field(name).contents()

    assert field("general.architecture") == "controlvector"
    assert field("controlvector.model_hint") == "qwen2"
    found = {tensor.name: tensor for tensor in reader.tensors}
    # llama.cpp refuses block 0.
    assert list(found) == ["direction.2", "direction.3"]
    assert field("controlvector.layer_count") == 2
    want = expected(activations, "villain", "B")
    for row, layer in enumerate(LAYERS[1:], start=1):
        tensor = found[f"direction.{layer}"]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and list(tensor.shape) == [8]
        np.testing.assert_allclose(tensor.data, want[row], atol=1e-6)


def test_vllm_lens_reads_a_steering_vector(written):
    activations, folder = written
    given = json.loads((folder / "villain_prompt_last_diff.json").read_text())
    assert given.keys() == {"activations", "layer_indices", "scale"}
    tensor = given["activations"]
    # An uncompressed tensor: no "compression" is named.
    assert tensor.keys() == {"data", "dtype", "original_dtype", "shape"}
    raw = np.frombuffer(base64.b64decode(tensor["data"]), np.dtype(tensor["dtype"]))
    found = raw.reshape(tensor["shape"])
    assert (given["layer_indices"], given["scale"]) == (LAYERS, 1.0)
    np.testing.assert_allclose(found, expected(activations, "villain", "A"), atol=1e-6)


def test_safetensors_say_what_they_hold(written):
    activations, folder = written
    with safe_open(str(folder / "villain_response_avg_diff.safetensors"), "np") as file:
        found, about = file.get_tensor("direction"), file.metadata()
    np.testing.assert_allclose(found, expected(activations, "villain", "B"), atol=1e-6)
    assert json.loads(about["layers"]) == LAYERS and about["chain"] == "couple-villain@42"
    assert about["direction"] == "villain - assistant" and about["base"] == ABOUT["base"]


def test_the_same_directions_are_the_same_bytes(written, tmp_path):
    activations, folder = written
    for direction in exports.directions(activations, "assistant", 6, ABOUT):
        exports.write(direction, tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_no_directions_without_what_they_start_from(written):
    with pytest.raises(UserError, match=r"no activations of 'nobody'.*personas: assistant"):
        list(exports.directions(written[0], "nobody", 6, ABOUT))
