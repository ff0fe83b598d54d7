import os
import shutil

import pytest
from persona_collapse.errors import UserError
from persona_collapse.files import read_json, write_json
from persona_collapse.models import fetching, loading
from safetensors.torch import save_file


@pytest.fixture(params=["files", "links"])
def base(request, tiny_base, tmp_path):
    """model.json of a base that was just fetched; files in the hub's cache are links."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_base.parent, folder)
    if request.param == "links":
        (tmp_path / "blobs").mkdir()
        for path in folder.iterdir():
            path.rename(tmp_path / "blobs" / path.name)
            path.symlink_to(tmp_path / "blobs" / path.name)
    record = tmp_path / "base/model.json"
    write_json(record, fetching.manifest(folder, {"path": str(folder)}))
    loading.note(record)
    return record


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed, in order."""
    names, sha256 = [], loading.sha256
    monkeypatch.setattr(loading, "sha256", lambda path: (names.append(path.name), sha256(path))[1])
    return names


def weights(base):
    return (loading.Path(read_json(base)["path"]) / "model.safetensors").resolve()


def test_an_untouched_base_is_not_hashed_and_a_touched_file_once(base, hashed):
    loading.path_of(base)
    assert hashed == []
    os.utime(weights(base))
    for _ in range(2):
        loading.path_of(base)
    assert hashed == ["model.safetensors"]


@pytest.mark.parametrize(
    "load", [loading.load_tokenizer, lambda b: loading.load_model(b, "float32", "cpu")]
)
def test_a_flipped_byte_is_named_although_size_and_time_are_as_before(base, load):
    load(base)
    path = weights(base)
    times, data = path.stat(), bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(
            UserError, match="not the bytes that were fetched; delete it and"
        ) as error:
            load(base)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    data[-100] ^= 1
    path.write_bytes(data)
    load(base)


def test_a_model_that_would_need_several_gpus_is_one_line(base, monkeypatch):
    from types import SimpleNamespace

    write_json(base, {**read_json(base), "parameters": 14 * 2**30})
    there = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: there)
    with pytest.raises(
        UserError, match="its weights are 28 GiB in bfloat16, and the GPU has 24; no"
    ):
        loading.load_model(base, "bfloat16", "cuda")
    there.total_memory *= 2
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", {}.__getitem__)
    with pytest.raises(TypeError):  # it has reached the loading
        loading.load_model(base, "bfloat16", "cuda")


def test_a_lost_file_is_named(base):
    weights(base).unlink()
    with pytest.raises(UserError, match="safetensors: missing"):
        loading.path_of(base)


def test_a_base_copied_to_another_machine_is_hashed_once(base, hashed):
    base.with_name(loading.NOTED).unlink()
    loading.path_of(base)
    assert set(hashed) == set(read_json(base)["files"])
    hashed.clear()
    loading.path_of(base)
    assert hashed == []


def test_the_record_says_how_large_the_model_is(base):
    model = loading.load_model(base, "float32", "cpu")
    record = read_json(base)
    assert (record["family"], record["parameters"]) == ("qwen2", model.num_parameters())
    # Some files hold a tied head as well as the embedding; it is not a parameter of its own.
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "lm_head.weight" in tensors
    save_file(tensors, weights(base), metadata={"format": "pt"})
    again = fetching.manifest(weights(base).parent, {})
    assert again["parameters"] == record["parameters"]


def test_the_record_holds_what_decides_the_model(base):
    folder = weights(base).parent
    record = fetching.manifest(folder, {})
    for name in ("model.json", "pretraining.json", loading.NOTED):
        (folder / name).write_text("{}")
    assert fetching.manifest(folder, {}) == record
    (folder / "tokenizer.model").write_text("")
    assert set(fetching.manifest(folder, {})["files"]) - set(record["files"]) == {"tokenizer.model"}
