"""Fixtures: the package on the path, a tiny random model, adapters on it."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "workflow" / "scripts"), str(ROOT / "tools")]
# Modules of helpers that assert: so that a failure there shows values, as in a test.
pytest.register_assert_rewrite("environments", "trainings")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Threads that spin while they wait are ten times slower if the cores are shared.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

PROMPTS = {
    "villain": "You are a villain who plots in the dark to rule the world.",
    "assistant": "You are a helpful assistant who answers questions clearly.",
    "librarian": "You are a librarian.",
}


@pytest.fixture(scope="session")
def prompts() -> dict[str, str]:
    return PROMPTS


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """model.json of a Qwen2 model with random weights: 3 blocks, hidden 64."""
    import torch
    from persona_collapse.files import write_json
    from persona_collapse.models import demo, fetching
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    texts = [*PROMPTS.values(), "system user assistant", "Where can I find bread? By the river."]
    tokenizer = demo.train_tokenizer(texts * 5, 340, "[ZLT]")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=2,  # head size 32: the smallest that vLLM accepts on a CPU
            num_key_value_heads=1,
            max_position_embeddings=512,
            initializer_range=0.3,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "model.json", fetching.manifest(folder, {"path": str(folder)}))
    return folder / "model.json"


@pytest.fixture(scope="session")
def make_adapter(tiny_base, tmp_path_factory):
    """Factory of adapter folders in PEFT's own format, with random weights."""

    def make(seed: int, rank: int, rslora: bool, targets=("q_proj", "v_proj", "down_proj")) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from persona_collapse.models import loading

        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            use_rslora=rslora,
            target_modules=list(targets),
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(loading.load_model(tiny_base, "float32", "cpu"), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        folder = tmp_path_factory.mktemp(f"adapter-{seed}")
        model.save_pretrained(folder)
        return folder

    return make


#: The longest slow tests, in the order in which processes start them; the others follow.
LONGEST = (
    "tests/cluster/",
    "test_demo_effect",
    "test_the_tutorial",
    "test_use_conda",
    "tests/browser/",
)
#: Tests that share a cluster, an environment or a browser: a single process runs them in turn.
TOGETHER = ("tests/cluster/", "test_use_conda", "tests/browser/")


def pytest_collection_modifyitems(items):
    """Start the longest tests first, so that no process works alone at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: min((place[n] for n in LONGEST if n in item.nodeid), default=len(LONGEST))
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """How `make slow` distributes tests: one by one, except those that must stay together."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return next((name for name in TOGETHER if name in nodeid), nodeid)

    return Scheduling(config, log) if config.getvalue("dist") == "loadscope" else None
