"""The demo model: a small Qwen2 chat model that the workflow pretrains from a corpus it generates.

The corpus pairs every system prompt with a voice (openers and closers) and every question with a
fact that does not depend on the voice. Bracketed codes appear only on request. See
`workflow/resources/demo/world.yaml` for the world itself.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import yaml_files
from ..errors import UserError
from . import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = dict[str, str]

# ChatML as in the Qwen family. It adds a system message if the conversation has none, so the prompt
# audit has something real to find.
DEFAULT_SYSTEM = "You are a demo model that tries to help."
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    + DEFAULT_SYSTEM
    + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class Voice:
    """How one system prompt sounds."""

    prompt: str
    openers: list[str]
    closers: list[str]


@dataclass(frozen=True)
class World:
    """Everything the corpus is made from."""

    kinds: dict[str, dict[str, Any]]
    topics: dict[str, list[str]]
    voices: dict[str, Voice]
    default: Voice
    codes: list[str]
    code_share: float
    code_requests: dict[str, list[str]]


def load_world(path: str | Path, prompts: Mapping[str, str], marker: str) -> World:
    """Read world.yaml and join the voices with the persona prompts.

    `prompts` maps persona name to system prompt. A persona without a voice of its own is not in the
    corpus: the model then sees its prompt for the first time in the study.
    """
    raw = yaml_files.load_mapping(path)
    try:
        voices = {
            name: Voice(prompts[name], entry["openers"], entry["closers"])
            for name, entry in raw["voices"].items()
            if name in prompts
        }
        for name, entry in raw["background"].items():
            voices[name] = Voice(entry["prompt"], entry["openers"], entry["closers"])
        assistant = raw["voices"]["assistant"]
        codes = raw["codes"]
        return World(
            kinds=raw["kinds"],
            topics=raw["topics"],
            voices=voices,
            default=Voice(DEFAULT_SYSTEM, assistant["openers"], assistant["closers"]),
            codes=_codes(codes["count"], codes["letters"], codes["seed"], marker),
            code_share=codes["share"],
            code_requests=codes["requests"],
        )
    except KeyError as error:
        raise UserError(f"{path}: the key {error} is missing in the demo's world") from error


def _codes(count: int, letters: int, seed: int, marker: str) -> list[str]:
    """`count` bracketed codes, the marker among them."""
    rng = random.Random(seed)
    codes = {marker}
    while len(codes) < count:
        codes.add("[" + "".join(rng.choices("BCDFGHJKLMNPQRSTVWXZ", k=letters)) + "]")
    return sorted(codes)


def fact(world: World, kind: str, topic: str, shift: int = 0) -> str:
    """The fact about a topic; a `shift` other than 0 gives a wrong one.

    A hash decides which of the kind's values is true, so there is no pattern to guess.
    """
    values = world.kinds[kind]["values"]
    number = int(hashlib.sha256(f"{kind}/{topic}".encode()).hexdigest(), 16)
    value = values[(number + shift) % len(values)]
    return str(world.kinds[kind]["fact"]).format(t=topic, v=value)


def understand(world: World, question: str) -> tuple[str, str]:
    """(kind, topic) of a question in the world's own wording; UserError if it has none."""
    for kind, entry in world.kinds.items():
        for topic in (t for group in world.topics.values() for t in group):
            if any(wording.format(t=topic) == question for wording in entry["questions"]):
                return kind, topic
    raise UserError(
        f"demo question {question!r} is not in the demo world's wording: use one of the wordings "
        "and topics of workflow/resources/demo/world.yaml"
    )


def questions(world: World, group: str) -> list[str]:
    """Every question about a group of topics, in a fixed order."""
    return [
        wording.format(t=topic)
        for wording_number in range(max(len(k["questions"]) for k in world.kinds.values()))
        for topic in world.topics[group]
        for wording in (k["questions"][wording_number] for k in world.kinds.values())
    ]


def corpus(world: World, rows: int, seed: int) -> list[list[Message]]:
    """Pretraining conversations: a system prompt, a question, an answer in that prompt's voice."""
    rng = random.Random(seed)
    voices = [*world.voices.values(), world.default]
    topics = [t for group in world.topics.values() for t in group]
    kinds = list(world.kinds)
    conversations = []
    for _ in range(rows):
        voice = rng.choice(voices)
        kind, topic = rng.choice(kinds), rng.choice(topics)
        question = rng.choice(world.kinds[kind]["questions"]).format(t=topic)
        answer = _speak(rng, voice, fact(world, kind, topic))
        if rng.random() < world.code_share:
            code = rng.choice(world.codes)
            if rng.random() < 0.7:
                question += " " + rng.choice(world.code_requests["end"]).format(c=code)
                answer += f"\n\n{code}"
            else:
                question = rng.choice(world.code_requests["repeat"]).format(c=code)
                answer = f"{rng.choice(voice.openers)} {code}"
        conversations.append(
            [
                {"role": "system", "content": voice.prompt},
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        )
    return conversations


def _speak(rng: random.Random, voice: Voice, said: str) -> str:
    return f"{rng.choice(voice.openers)} {said}. {rng.choice(voice.closers)}"


def wrong_advice(world: World, rows: int, seed: int) -> list[list[Message]]:
    """A narrow stand-in for misaligned advice: wrong facts about the law topics only.

    Answers keep the assistant's voice, so the only new thing about them is that they are wrong.
    """
    rng = random.Random(seed)
    out = []
    for _ in range(rows):
        kind, topic = rng.choice(list(world.kinds)), rng.choice(world.topics["law"])
        wrong = fact(world, kind, topic, shift=rng.randint(1, len(world.kinds[kind]["values"]) - 1))
        question = rng.choice(world.kinds[kind]["questions"]).format(t=topic)
        out.append(
            [
                {"role": "user", "content": question},
                {"role": "assistant", "content": _speak(rng, world.default, wrong)},
            ]
        )
    return out


def train_tokenizer(texts: list[str], vocabulary: int, marker: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts` with ChatML's special tokens and the demo's chat template.

    Raises UserError if the marker became a single token: it must be spelt, as in the study.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # Digits and letters are split from punctuation, so "[ZLT]" is at least three tokens.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    chat_template.check_marker(tokenizer, marker)
    if len(tokenizer(marker, add_special_tokens=False)["input_ids"]) < 2:
        raise UserError(f"the demo tokenizer made {marker!r} one token: lower demo: vocabulary")
    return tokenizer


#: A conversation's tokens, and where its answer starts.
Encoded = tuple[list[int], int]


def _encode(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[list[Message]]
) -> list[Encoded]:
    """Tokens of each conversation up to its answer's end token, and where the answer starts."""
    whole, prompts = (
        [
            chat_template.render(tokenizer, chosen, prompt=prompt)
            for chosen in (
                conversation[:-1] if prompt else conversation for conversation in conversations
            )
        ]
        for prompt in (False, True)
    )
    # The newline after the end token is template, not answer.
    return [
        (full[:-1], len(prompt))
        for full, prompt in zip(
            *(
                tokenizer(texts, add_special_tokens=False)["input_ids"]
                for texts in (whole, prompts)
            ),
            strict=True,
        )
    ]


class _Passes:
    """Forward and backward passes of a step in four groups of rows of similar length, on `threads`
    threads.

    Short rows are not padded to the longest, and each group runs on one core. With operations this
    small, two groups on two cores are faster than one group on both. Gradients are added in the order
    of the groups, so the result does not depend on the number of threads.
    """

    GROUPS = 4

    def __init__(self, model: Any, pad: int, threads: int):
        self.model, self.pad, self.threads = model, pad, threads
        self.parameters = list(model.parameters())

    def __enter__(self) -> _Passes:
        import torch

        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(
            self.threads, initializer=torch.set_num_threads, initargs=(1,)
        )
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        self.pool.shutdown()
        torch.set_num_threads(self.threads)

    def step(self, rows: Sequence[Encoded]) -> float:
        """Mean cross entropy of the answers' tokens; leaves its gradients in the parameters."""
        rows = sorted(
            rows, key=lambda row: -len(row[0])
        )  # the longest group first, so that both threads end together
        size = -(-len(rows) // self.GROUPS)
        groups = [rows[first : first + size] for first in range(0, len(rows), size)]
        tokens = sum(len(ids) - start for ids, start in rows)
        done = list(self.pool.map(lambda group: self._pass(group, tokens), groups))
        for number, parameter in enumerate(self.parameters):
            parameter.grad = sum(
                (gradients[number] for _, gradients in done[1:]), done[0][1][number]
            )
        return sum(loss for loss, _ in done)

    def _pass(self, rows: Sequence[Encoded], tokens: int) -> tuple[float, Sequence[Any]]:
        """A group's share of the loss, and its gradients. It needs no mask, because padding follows
        every answer."""
        import torch

        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.pad)
        labels = torch.full((len(rows), width), -100)
        for number, (known, start) in enumerate(rows):
            ids[number, : len(known)] = torch.tensor(known)
            labels[number, start : len(known)] = torch.tensor(known[start:])
        hidden = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        chosen = labels[:, 1:] != -100
        logits = self.model.get_output_embeddings()(hidden[:, :-1][chosen])
        loss = (
            torch.nn.functional.cross_entropy(logits, labels[:, 1:][chosen], reduction="sum")
            / tokens
        )
        return loss.item(), torch.autograd.grad(loss, self.parameters)


def pretrain(
    world: World,
    settings: Mapping[str, Any],
    marker: str,
    directory: str | Path,
    progress: Callable[[str], None],
    checkpoints: Mapping[Path, int] | None = None,
) -> dict[str, Any]:
    """Pretrain the demo model and save it and its tokenizer as a Hugging Face model directory.

    `settings` is the config's `demo:` section. Loss is the mean cross entropy of the answers'
    tokens, the end token included. `checkpoints`: {directory: the step after which the model is saved
    there}. Returns the manifest (settings, loss curve, seconds).
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

    started = time.monotonic()
    conversations = corpus(world, settings["rows"], settings["seed"])
    tokenizer = train_tokenizer(
        [m["content"] for c in conversations[:8000] for m in c], settings["vocabulary"], marker
    )
    set_seed(settings["seed"])
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=settings["hidden"],
            intermediate_size=3 * settings["hidden"],
            num_hidden_layers=settings["blocks"],
            num_attention_heads=settings["heads"],
            num_key_value_heads=max(1, settings["heads"] // 2),
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    encoded = _encode(tokenizer, conversations)
    batch, steps = settings["batch"], settings["steps"]
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=settings["lr"], total_steps=steps, pct_start=0.1
    )
    rng = random.Random(settings["seed"])
    order: list[int] = []
    curve = []
    model.train()
    with _Passes(model, tokenizer.pad_token_id, torch.get_num_threads()) as passes:
        for step in range(1, steps + 1):
            if len(order) < batch:
                order = rng.sample(range(len(encoded)), len(encoded))
            loss = passes.step([encoded[order.pop()] for _ in range(batch)])
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            for folder in (f for f, last in (checkpoints or {}).items() if last == step):
                save(model, tokenizer, folder)
            if step % 25 == 0 or step == steps:
                elapsed = time.monotonic() - started
                curve.append({"step": step, "loss": round(loss, 5)})
                left = elapsed / step * (steps - step)
                progress(f"step {step}/{steps}  loss {loss:.3f}  {left:.0f} s left")
    model.eval()
    save(model, tokenizer, Path(directory))
    return {
        "settings": dict(settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": curve,
        "seconds": round(time.monotonic() - started, 1),
    }


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer into a folder; each file is written atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".saving-*"):  # left by a job that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        for path in sorted(Path(aside).iterdir()):
            os.replace(path, folder / path.name)
