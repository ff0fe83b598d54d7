import numpy as np
import pandas as pd
import pytest
import torch
from persona_collapse import activation_files
from persona_collapse.errors import UserError
from persona_collapse.measures import _passes, activations
from persona_collapse.models import chat_template, fused, loading
from persona_collapse.models.runner import ModelRunner

LAYERS = [0, 1, 2]


@pytest.fixture(scope="module")
def model(tiny_base):
    return loading.load_model(tiny_base, "float32", "cpu")


def sequences(tiny_base, prompts):
    tokenizer = loading.load_tokenizer(tiny_base)
    end = tokenizer.eos_token_id
    answers = [[40, 41, 42, end], [50], [end], [60, 61, 62, 63, 64, 65]]
    return [
        (chat_template.prompt_ids(tokenizer, prompt, "Where can I find bread?"), answer)
        for prompt in prompts.values()
        for answer in answers
    ], end


def run(model, pairs, end, batch_size):
    return activations.extract(model, pairs, LAYERS, end_tokens=[end], pad=0, batch_size=batch_size)


def test_batched_and_padded_equals_one_by_one(model, tiny_base, prompts):
    pairs, end = sequences(tiny_base, prompts)
    together, alone = run(model, pairs, end, 12), run(model, pairs, end, 1)
    for method in ("A", "B"):
        np.testing.assert_allclose(together[method], alone[method], rtol=1e-4, atol=1e-4)


def test_layer_l_is_hidden_states_l_plus_1_before_the_final_norm(model, tiny_base, prompts):
    pairs, end = sequences(tiny_base, prompts)
    prompt, answer = pairs[0]
    got = run(model, pairs[:1], end, 1)
    states = model(
        input_ids=torch.tensor([prompt + answer]), output_hidden_states=True
    ).hidden_states
    for layer in (0, 1):
        wanted = states[layer + 1][0].detach()
        at_last = wanted[len(prompt) - 1].numpy()
        np.testing.assert_allclose(got["A"][layer, 0], at_last, rtol=1e-4, atol=1e-5)
        # The end token is not part of the mean.
        mean = wanted[len(prompt) : len(prompt) + 3].mean(0).numpy()
        np.testing.assert_allclose(got["B"][layer, 0], mean, rtol=1e-4, atol=1e-5)
    normed = model.model.norm(torch.from_numpy(got["A"][2])).detach().numpy()
    np.testing.assert_allclose(normed[0], states[3][0, len(prompt) - 1].detach(), atol=1e-4)


def test_method_a_does_not_see_the_answer(model, tiny_base, prompts):
    pairs, end = sequences(tiny_base, prompts)
    bare = run(model, [(prompt, []) for prompt, _ in pairs], end, 4)
    np.testing.assert_allclose(run(model, pairs, end, 4)["A"], bare["A"], rtol=1e-4, atol=1e-4)


def test_an_answer_of_its_end_token_alone_uses_it(model, tiny_base, prompts):
    pairs, end = sequences(tiny_base, prompts)
    got = run(model, [pairs[2]], end, 1)["B"]
    assert np.abs(got).max() > 0


def test_hooks_are_removed_even_after_an_error(model):
    before = [len(block._forward_hooks) for block in loading.blocks_of(model)]
    with pytest.raises(RuntimeError), activations.block_outputs(model, LAYERS):
        raise RuntimeError
    assert [len(block._forward_hooks) for block in loading.blocks_of(model)] == before


@pytest.mark.parametrize(
    ("layers", "asked", "blocks", "expected"),
    [
        ([1, 0.75], 0.75, 4, 3),
        ([0.75, 1], 1, 4, 1),
        ([7, 14, 0.75], 0.75, 28, 21),
        ([20, 0.97], 20, 28, 20),
        ([0.25, 0.5, 0.72, 0.75, 0.97], 0.72, 4, 2),  # two depths on one block
        ([3, 0.75], 3, 4, 3),
        ([0.72], 0.75, 4, None),
        ([0.75], 3, 4, 3),  # asked for by its number, measured by its depth
        ([0.5], 3, 4, None),
        ([27], 27, 28, 27),
    ],
)
def test_the_headline_is_the_block_that_was_asked_for(layers, asked, blocks, expected):
    chosen = {"method": "A", "layer": asked}
    if expected is None:
        with pytest.raises(UserError, match=f"headline: layer: {asked} is block 3 of 4"):
            activations.headline(chosen, layers, blocks)
        return
    row = activations.headline(chosen, layers, blocks)
    assert row == {"method": "A", "layer": expected, "asked": asked, "blocks": blocks}
    assert row["layer"] in activations.resolve_layers(layers, blocks)


def test_layers_by_index_or_depth():
    assert activations.resolve_layers([0.25, 0.5, 0.72, 0.75, 0.97], 28) == [7, 14, 20, 21, 27]
    assert activations.resolve_layers([0.25, 0.5, 0.75], 4) == [1, 2, 3]
    assert activations.resolve_layers([3, 3, 0], 4) == [0, 3]
    assert activations.resolve_layers([0.29, 0.58], 100) == [29, 58]  # decimal, not binary
    with pytest.raises(UserError, match="4 blocks"):
        activations.resolve_layers([4], 4)
    with pytest.raises(UserError, match="below 1"):
        activations.resolve_layers([1.0], 4)


ASKS = {
    "settings": activations.Settings(layers=[0.0, 0.5]),
    "batch_size": 4,
    "log": lambda message: None,
}


def test_dump_save_load(tiny_base, prompts, make_adapter, tmp_path):
    questions = [{"id": "a", "question": "Where?"}, {"id": "b", "question": "When?"}]
    responses = pd.DataFrame(
        [
            {"persona": p, "question_id": q["id"], "token_ids": [7, 8]}
            for p in prompts
            for q in questions
        ]
    )
    asks = {"runner": ModelRunner(tiny_base, "float32"), "adapters": [make_adapter(10, 4, False)]}
    asks |= ASKS | {"chain": "em@1", "geometry_personas": prompts, "extraction": questions}
    dumped = activations.activations(responses=responses, **asks)
    assert dumped.arrays["A"].shape == (2, 3, 2, 64)
    activation_files.save(dumped, tmp_path / "x.safetensors")
    loaded = activation_files.load(tmp_path / "x.safetensors")
    assert (loaded.layers, loaded.personas, loaded.questions) == ([0, 1], [*prompts], ["a", "b"])
    np.testing.assert_allclose(loaded.arrays["B"], dumped.arrays["B"], rtol=2e-3, atol=2e-3)
    with pytest.raises(UserError, match="no response for persona"):
        activations.activations(responses=responses[:-1], **asks)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chains_dumped_after_each_other_are_as_if_alone(tiny_base, prompts, make_adapter, dtype):
    questions = [{"id": "a", "question": "Where?"}]
    asks = ASKS | {"chain": "x@1", "geometry_personas": prompts, "extraction": questions}
    stages = [make_adapter(10, 4, False), make_adapter(11, 4, True)]
    together = ModelRunner(tiny_base, dtype)
    for chain in ([], stages, stages[:1], stages[1:], []):
        one, alone = (
            activations.activations(runner, chain, responses=None, **asks).arrays["A"]
            for runner in (together, ModelRunner(tiny_base, dtype))
        )
        np.testing.assert_array_equal(one, alone)


def test_a_pass_ends_after_the_deepest_block_that_is_wanted(tiny_base):
    from contextlib import suppress

    import torch
    from persona_collapse.models import loading

    model = loading.load_model(tiny_base, "float32", "cpu")
    blocks = loading.blocks_of(model)
    ran = []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda m, i, o, number=number: ran.append(number))
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        with activations.block_outputs(model, [0]) as seen, suppress(activations._DeepEnough):
            model.get_decoder()(input_ids=ids)
        assert ran == [0] and len(blocks) > 1
        wanted = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(seen[0], wanted)


def test_overflow_is_refused(tmp_path):
    big = activation_files.Activations([0], ["p"], ["q"], {"A": np.full((1, 1, 1, 2), 1e6)})
    with pytest.raises(UserError, match="bfloat16"):
        activation_files.save(big, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
    activation_files.save(big, tmp_path / "x.safetensors", "bfloat16")


def test_rows_behind_each_other_give_what_padded_ones_give(model, tiny_base, prompts, monkeypatch):
    # On a CPU, the mask that transformers makes from the positions keeps the rows apart.
    pairs, end = sequences(tiny_base, prompts)
    padded = run(model, pairs, end, 2)
    monkeypatch.setattr(fused, "ATTENTION", model.config._attn_implementation)
    for tokens in (1, 64):
        monkeypatch.setattr(_passes, "TOKENS_A_PROMPT", tokens)
        flat = run(model, pairs, end, 2)
        for method in ("A", "B"):
            np.testing.assert_allclose(flat[method], padded[method], rtol=1e-4, atol=1e-4)


def test_a_dump_is_the_same_bytes_each_time_and_others_can_read_it(tmp_path):
    from safetensors import safe_open

    arrays = {m: np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2) for m in "AB"}
    one = activation_files.Activations([3], ["é", "p"], ["q", "r", "s"], arrays, "em@1")
    seen = set()
    for number in range(8):  # the library's order varies from call to call
        activation_files.save(one, tmp_path / f"{number}.safetensors")
        seen.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(seen) == 1
    with safe_open(str(tmp_path / "0.safetensors"), framework="np") as file:
        assert file.metadata()["personas"] == '["\\u00e9", "p"]'
        np.testing.assert_array_equal(file.get_tensor("B"), arrays["B"].astype(np.float16))


def test_arrays_are_read_in_one_order(tmp_path):
    """The library's order varies from call to call, and tables would follow it."""
    arrays = {method: np.zeros((1, 1, 1, 2), np.float32) for method in "ABCD"}
    path = tmp_path / "x.safetensors"
    activation_files.save(activation_files.Activations([0], ["p"], ["q"], arrays, "em@1"), path)
    assert {tuple(activation_files.load(path).arrays) for _ in range(20)} == {tuple("ABCD")}


@pytest.mark.parametrize("fate", ["flip", "cut", "missing"])
def test_a_damaged_dump_is_one_line(tmp_path, fate):
    path = tmp_path / "x.safetensors"
    whole = activation_files.Activations(
        [0], ["p"], ["q"], {"A": np.ones((1, 1, 1, 64), np.float32)}
    )
    activation_files.save(whole, path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data[:-10] if fate == "cut" else data)
    if fate == "missing":
        path.unlink()
    with pytest.raises(UserError, match="delete it and rerun") as error:
        activation_files.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
