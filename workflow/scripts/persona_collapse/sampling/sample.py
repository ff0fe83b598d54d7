"""Samples answers from a chain, with vLLM or transformers behind one interface.

Every request has its own seed, derived from chain, persona, question and sample. A single seed would
give correlated samples: every persona's first sample would share its random numbers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from .. import adapter_files, matching
from ..data.questions import load_questions, system_prompt
from ..errors import UserError
from ..jobs import SamplingJob
from ..models import adapters, chat_template, fetching, loading, shifts
from . import vllm_lora, vllm_shifts

COLUMNS = [
    "chain",
    "persona",
    "question_id",
    "sample",
    "text",
    "n_tokens",
    "finish_reason",
    "question",
    "prompt_tokens",
    "seed",
    "token_ids",
]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sampling:
    """How to sample; temperature 0 is greedy. `max_tokens` counts the end token.

    `samples`: answers per question, as one number or by persona.
    """

    samples: int | Mapping[str, int]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Request:
    """One completion to sample."""

    persona: str
    question_id: str
    question: str
    sample: int
    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class Completion:
    """An answer: its text, its tokens (including what ends it), and why it ended (`stop`, `length`)."""

    text: str
    token_ids: list[int]
    finish_reason: str

    @staticmethod
    def of(tokenizer: Any, ids: Sequence[int], finish_reason: str) -> Completion:
        """What was drawn, up to where the model goes on with another turn (see `next_turn`)."""
        turn = chat_template.next_turn(tokenizer, ids)
        if turn is not None:
            return Completion(turn.text, list(ids[: turn.tokens]), "stop")
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        return Completion(text, list(ids), finish_reason)


class Backend(Protocol):
    """An engine that holds one base model and samples from it with one chain's adapter at a time."""

    name: str

    def use(self, stages: Sequence[Path]) -> None:
        """Switch to the chain of these stage folders (none: the base model)."""

    def complete(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress
    ) -> list[Completion]:
        """Completions in the order of the requests."""

    def logprobs(
        self, requests: Sequence[Request], sequences: Sequence[tuple[list[int], int]]
    ) -> list[float]:
        """For each (token ids, start): the log-probability, in nats, of ids[start:] given ids[:start].

        `requests`: the requests whose prompts the sequences begin with.
        """


def request_seed(seed: int, chain: str, persona: str, question_id: str, sample: int) -> int:
    """31-bit seed of one request; independent of batch, order and all other requests."""
    key = f"{seed}/{chain}/{persona}/{question_id}/{sample}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1


def requests_for(
    chain: str,
    personas: Mapping[str, str],
    questions: Iterable[Mapping[str, Any]],
    sampling: Sampling,
    tokenizer: Any,
) -> list[Request]:
    """The full grid persona x question x sample. `personas` maps name to system prompt. `questions`:
    see `load_questions`."""
    requests = []
    questions = list(questions)
    for persona, prompt in personas.items():
        count = sampling.samples if isinstance(sampling.samples, int) else sampling.samples[persona]
        for question in questions:
            system = system_prompt(prompt, persona, question)
            ids = chat_template.prompt_ids(tokenizer, system, question["question"])
            for sample in range(count):
                seed = request_seed(sampling.seed, chain, persona, question["id"], sample)
                requests.append(
                    Request(persona, question["id"], question["question"], sample, ids, seed)
                )
    return requests


def choose_backend(name: str) -> tuple[str, str]:
    """(backend, reason). `auto` takes vLLM if it is installed and there is a GPU.

    On a CPU vLLM starts slowly and samples more slowly than transformers, so it is used there only on
    request.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if name == "vllm":
        if not installed:
            raise UserError(
                "sampling: backend: vllm, but vllm is not installed; install it (envs/generate.yaml)"
                " or set backend: transformers"
            )
        return "vllm", "asked for in the config"
    if name == "transformers":
        return "transformers", "asked for in the config"
    if not installed:
        return "transformers", "auto: vllm is not installed"
    if loading.pick_device() != "cuda":
        return "transformers", "auto: vllm is installed, but PyTorch sees no GPU"
    return "vllm", "auto: vllm is installed and PyTorch sees a GPU"


class TransformersBackend:
    """Transformers' `generate`, in batches of similar length."""

    name = "transformers"

    def __init__(self, base: Path, settings: Mapping[str, Any]):
        self.base, self.dtype = base, settings["dtype"]
        self.tokenizer = loading.load_tokenizer(base)
        self.device = loading.pick_device()
        self.batch_size = int(settings["batch_size"])
        self.model: Any = None

    def use(self, stages: Sequence[Path]) -> None:
        """See `Backend`. The model is loaded again, because merging cannot be undone exactly."""
        self.model = None
        all_weights, stages = adapters.split(stages)
        model = adapters.load_base(self.base, all_weights, self.dtype, self.device)
        self.ends = loading.end_tokens(model.generation_config, self.tokenizer)
        summed, shifting = shifts.split(stages)
        self.model = adapters.apply(model, summed, merge=self.dtype == "float32")
        shifts.put(self.model, shifting)

    def _aim(self, width: int, asked: Sequence[tuple[Request, int]]) -> None:
        """Aim shifts at a pass, padded on the left to a width; given each row's request and number of
        tokens."""
        spans = [
            shifts.Span(n * width - tokens, len(request.prompt), tokens, request.persona)
            for n, (request, tokens) in enumerate(asked, start=1)
        ]
        shifts.aim(self.model, (len(asked), width), spans)

    def logprobs(
        self, requests: Sequence[Request], sequences: Sequence[tuple[list[int], int]]
    ) -> list[float]:
        """See `Backend`."""
        import torch

        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
        done: dict[int, float] = {}
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            padded = self.tokenizer.pad(
                {"input_ids": [sequences[i][0] for i in batch]}, return_tensors="pt"
            ).to(self.device)
            # The tokenizer pads on the left, so a sequence ends where its row ends.
            keep = max(len(sequences[i][0]) - sequences[i][1] for i in batch) + 1
            width = padded["input_ids"].shape[1]
            self._aim(width, [(requests[i], len(sequences[i][0])) for i in batch])
            positions = (padded["attention_mask"].cumsum(-1) - 1).clamp_min(0)
            with torch.inference_mode():
                logits = self.model(**padded, position_ids=positions, logits_to_keep=keep).logits
            for row, i in enumerate(batch):
                ids, start = sequences[i]
                scores = logits[row, -(len(ids) - start) - 1 : -1].float().log_softmax(-1)
                wanted = torch.tensor(ids[start:], device=scores.device)
                done[i] = float(scores.gather(1, wanted[:, None]).sum())
        return [done[i] for i in range(len(sequences))]

    def complete(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress
    ) -> list[Completion]:
        """See `Backend`. Draws depend on each request's seed, not on its batch.

        A batch takes as long as its longest answer. So a round ends after a number of tokens, and
        unfinished answers continue together in the next round, which may be twice as long.
        """
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        drawn: list[list[int]] = [[] for _ in requests]
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        started, left, length = time.monotonic(), list(range(len(requests))), FIRST_ROUND
        while left:
            left.sort(key=lambda i: len(requests[i].prompt) + len(drawn[i]))
            length = min(length, sampling.max_tokens - len(drawn[left[0]]))
            config = GenerationConfig(
                do_sample=False,
                max_new_tokens=length,
                eos_token_id=self.ends,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            unfinished = []
            for first in range(0, len(left), self.batch_size):
                batch = left[first : first + self.batch_size]
                padded = self.tokenizer.pad(
                    {"input_ids": [requests[i].prompt + drawn[i] for i in batch]},
                    return_tensors="pt",
                ).to(self.device)
                width = padded["input_ids"].shape[1]
                self._aim(
                    width, [(requests[i], len(requests[i].prompt) + len(drawn[i])) for i in batch]
                )
                with torch.inference_mode():
                    output = self.model.generate(
                        **padded,
                        generation_config=config,
                        logits_processor=LogitsProcessorList(
                            _sampling_processors(sampling, [generators[i] for i in batch])
                        ),
                    )
                for i, row in zip(batch, output[:, width:].tolist(), strict=True):
                    end = next((n for n, token in enumerate(row) if token in self.ends), None)
                    drawn[i] += row if end is None else row[: end + 1]
                    going_on = end is None and len(drawn[i]) < sampling.max_tokens
                    if going_on and chat_template.next_turn(self.tokenizer, drawn[i]) is None:
                        unfinished.append(i)
                seconds, tokens = time.monotonic() - started, sum(map(len, drawn))
                waiting = len(left) - first - len(batch) + len(unfinished)
                progress(
                    f"{len(requests) - waiting}/{len(requests)} completions  "
                    f"{tokens / seconds:,.0f} tokens/s"
                )
            left, length = unfinished, 2 * length
        return [
            Completion.of(self.tokenizer, ids, "stop" if ids[-1] in self.ends else "length")
            for ids in drawn
        ]


#: Tokens per answer in the first round with transformers; see TransformersBackend.complete.
FIRST_ROUND = 40


def _sampling_processors(sampling: Sampling, generators: Sequence[Any]) -> list[Any]:
    """Logits processors: temperature, nucleus, then a seeded draw per row; none for greedy decoding.

    `argmax(p_i / e_i)` with e_i ~ Exp(1) is a draw from p (the exponential race, i.e. the Gumbel
    trick). So greedy decoding of the perturbed scores samples from p, with one generator per row.
    """
    if sampling.temperature == 0:
        return []
    import torch
    from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

    class SeededDraw(LogitsProcessor):
        """Perturb each row's scores with its own random numbers."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            noise = torch.empty(scores.shape, dtype=torch.float32)
            for row, generator in enumerate(generators):
                noise[row].exponential_(generator=generator)
            logits: Any = scores.float() - noise.clamp_min(1e-30).log().to(scores.device)
            return logits

    processors: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return [*processors, SeededDraw()]


#: Default number of answers that vLLM samples at a time, and tokens per pass.
ANSWERS_AT_A_TIME, TOKENS_A_PASS = 1024, 8192
#: Batch sizes that vLLM records as CUDA graphs. Its own list ends at 512, beyond which kernels are
#: launched one by one. It also has three times as many sizes, each of which costs time at startup.
GRAPH_SIZES = [32, 64, *range(128, 1025, 128), 1280, 1536, 2048]
#: GPU memory in bytes assumed for workspace, in addition to weights and cache, if the engine cannot
#: measure it.
WORKING_BYTES = 4 * 2**30
LEAST_CACHE = 2**30


class VllmBackend:
    """vLLM's offline engine; each chain's summed adapter is one LoRA on the base model.

    all_weights: stages that trained all weights. They are part of the engine's weights, so it serves
    only chains with the same ones.
    """

    name = "vllm"

    def __init__(
        self,
        base: Path,
        settings: Mapping[str, Any],
        max_rank: int = 0,
        projections: Collection[str] = (),
        shifting: bool = False,
        all_weights: Sequence[Path] = (),
    ):
        cpu = loading.pick_device() == "cpu"
        # One process: the script needs no main guard, and leaves no process behind when it ends.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # It communicates only with itself; by default it would look up the machine's address for that.
        os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
        if cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        else:
            # The newer of its two runners samples with per-request seeds in one kernel. The older one
            # needs a generator and a kernel for each of a thousand requests.
            os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
            if settings.get("batch_invariant"):
                os.environ["VLLM_BATCH_INVARIANT"] = "1"
        from vllm import LLM

        self.tokenizer = loading.load_tokenizer(base)
        self.lora: Any = None
        self.folder: Any = None
        options: dict[str, Any] = {}
        if max_rank:
            options = {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": _allowed_rank(max_rank),
                # By default embeddings and the output head run through LoRA kernels too.
                "lora_target_modules": sorted(projections) or None,
            }
        # Recorded graphs would skip shifts.
        options["enforce_eager"] = cpu or shifting
        if cpu:
            options["dtype"] = "float32"
        else:
            at_a_time = settings.get("max_num_seqs", ANSWERS_AT_A_TIME)
            options |= {
                "dtype": settings["dtype"],
                "gpu_memory_utilization": settings["gpu_memory_utilization"],
                "kv_cache_memory_bytes": _cache_bytes(base, settings),
                "max_num_seqs": at_a_time,
                "max_num_batched_tokens": max(TOKENS_A_PASS, settings["max_model_len"]),
            }
        if not options["enforce_eager"]:
            # Full CUDA graphs without compilation: the base model samples as fast, and the engine
            # starts in half the time.
            options["compilation_config"] = {
                "mode": 0,
                "cudagraph_mode": "FULL",
                "cudagraph_capture_sizes": [n for n in GRAPH_SIZES if n <= 2 * at_a_time]
                or [at_a_time],
            }
        # Batch-invariant kernels are vLLM's own, and embeddings (adapted by default) need its own
        # layers.
        own = not projections or (settings.get("batch_invariant") and not cpu)
        self.all_weights = list(all_weights)
        model = _changed(base, self.all_weights, settings["dtype"])
        with _no_rehearsal(), nullcontext() if own else vllm_lora.layers(), model as folder:
            self.engine = LLM(
                model=folder,
                tokenizer=loading.path_of(base),
                max_model_len=settings["max_model_len"],
                seed=0,
                trust_remote_code=loading.trusts(base),
                **options,
            )
        self.ends = loading.end_tokens(
            self.engine.llm_engine.vllm_config.model_config.hf_config, self.tokenizer
        )
        self.steering = vllm_shifts.Steering(self.engine) if shifting else None

    def use(self, stages: Sequence[Path]) -> None:
        """See `Backend`. vLLM keys its caches by the adapter's name, so the name is the hash of its
        content."""
        if self.folder is not None:
            self.folder.cleanup()
        self.lora = self.folder = None
        # Earlier requests must not affect how prompts are cut into passes, because that affects rounding.
        self.engine.reset_prefix_cache()
        all_weights, stages = adapters.split(stages)
        assert all_weights == self.all_weights, "see Plan.beside"
        summed, shifted = shifts.split(stages)
        if self.steering is not None:
            self.steering.use(shifted)
        elif shifted:
            raise RuntimeError("this engine was not started for shifts")
        if summed:
            config = self.engine.llm_engine.vllm_config.model_config
            self.lora, self.folder = _serve(summed, config.dtype)

    def _fit(self, longest: int) -> None:
        """Run only as many requests at a time as the cache holds to their end; `longest`: tokens of one.

        With more, vLLM interrupts some of them and computes them again later. Where it schedules a pass
        before it has the tokens of the last one (version 0.23), some then go on with tokens that the
        chain would not draw.
        """
        core = getattr(self.engine.llm_engine.engine_core, "engine_core", None)
        if core is None:  # in a process of its own
            return
        scheduler, cache = core.scheduler, self.engine.llm_engine.vllm_config.cache_config
        # Layers of different attention (sliding windows) take blocks of their own.
        kinds = len(scheduler.kv_cache_config.kv_cache_groups)
        blocks = max(1, kinds * math.ceil(longest / cache.block_size))
        # vLLM keeps one block for itself.
        fits = max(1, (cache.num_gpu_blocks - 1) // blocks)
        # By version it reads the first or the second.
        for name in ("max_num_running_reqs", "max_num_active_reqs"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, min(scheduler.scheduler_config.max_num_seqs, fits))

    def _prompt(self, request: Request, ids: list[int]) -> dict[str, Any]:
        """A prompt for vLLM, with a cache salt: only prompts that shifts change alike may share cached
        prefixes."""
        if self.steering is None:
            return {"prompt_token_ids": ids}
        return {
            "prompt_token_ids": ids,
            "cache_salt": f"{request.persona} {len(request.prompt)}",
        }

    def _tags(self, request: Request) -> dict[str, Any] | None:
        """What shifts need to know about a request."""
        if self.steering is None:
            return None
        return vllm_shifts.tags(request.persona, len(request.prompt))

    def logprobs(
        self, requests: Sequence[Request], sequences: Sequence[tuple[list[int], int]]
    ) -> list[float]:
        """See `Backend`."""
        from vllm import SamplingParams

        self._fit(max((len(ids) for ids, _ in sequences), default=0) + 1)
        outputs = self.engine.generate(
            [self._prompt(r, ids) for r, (ids, _) in zip(requests, sequences, strict=True)],
            [
                SamplingParams(
                    max_tokens=1,
                    temperature=0.0,
                    prompt_logprobs=0,
                    detokenize=False,
                    extra_args=self._tags(r),
                )
                for r in requests
            ],
            lora_request=self.lora,
            use_tqdm=False,
        )
        return [
            float(sum(o.prompt_logprobs[i][ids[i]].logprob for i in range(start, len(ids))))
            for o, (ids, start) in zip(outputs, sequences, strict=True)
        ]

    def complete(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress
    ) -> list[Completion]:
        """See `Backend`."""
        from vllm import SamplingParams

        started, stops = time.monotonic(), chat_template.stops(self.tokenizer)
        self._fit(max((len(r.prompt) for r in requests), default=0) + sampling.max_tokens)
        outputs = self.engine.generate(
            [self._prompt(r, r.prompt) for r in requests],
            [
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    seed=r.seed,
                    stop_token_ids=self.ends,
                    stop=stops,
                    detokenize=bool(stops),  # only needed to look for them
                    extra_args=self._tags(r),
                )
                for r in requests
            ],
            lora_request=self.lora,
            use_tqdm=False,
        )
        completions = [
            # Decoded as in the other backend, because vLLM's own text drops a cut-off last character.
            Completion.of(self.tokenizer, o.outputs[0].token_ids, o.outputs[0].finish_reason)
            for o in outputs
        ]
        seconds = time.monotonic() - started
        tokens = sum(len(c.token_ids) for c in completions)
        progress(
            f"{len(completions)}/{len(completions)} completions  {tokens / seconds:,.0f} tokens/s"
        )
        return completions


@contextmanager
def _no_rehearsal() -> Iterator[None]:
    """Skip the engine's warm-up of every sampling feature on a thousand requests.

    It takes 20 s on a slow CPU, and hardly any of those features is used here. Kernels that are used
    are compiled, or read from disk, at first use.
    """
    from importlib import import_module
    from unittest.mock import patch

    worker, name = import_module("vllm.v1.worker.gpu_worker"), "warmup_kernels"
    with patch.object(worker, name, lambda *a: None) if hasattr(worker, name) else nullcontext():
        yield


@contextmanager
def _changed(base: Path, all_weights: Sequence[Path], dtype: str) -> Iterator[str]:
    """Folder of the base model, or of a copy with the changes of stages that trained all weights."""
    import tempfile

    if not all_weights:
        yield loading.path_of(base)
        return
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        adapters.load_base(base, all_weights, dtype, "cpu").save_pretrained(folder)
        yield folder


def _cache_bytes(base: Path, settings: Mapping[str, Any]) -> int | None:
    """Bytes of an engine's KV cache on a GPU that it shares; None if it has the GPU to itself.

    On its own, vLLM measures how much free memory a trial pass takes. Next to other jobs, which
    allocate and free memory meanwhile, the measurement would include them, or fail when they free
    memory. vLLM still needs its whole share to be free when it starts.
    """
    import torch

    if settings.get("jobs_per_gpu", 1) == 1:
        return None
    total = torch.cuda.mem_get_info()[1]
    files = Path(loading.path_of(base)).glob("*.safetensors")
    numbers = sum(sum(fetching.tensor_sizes(path).values()) for path in files)
    weights = numbers * getattr(torch, settings["dtype"]).itemsize
    share = settings["gpu_memory_utilization"] * total
    left = int(share) - weights - WORKING_BYTES
    if left < LEAST_CACHE:
        raise UserError(
            f"runtime: sampling: gpu_memory_utilization: {settings['gpu_memory_utilization']} of a GPU of "
            f"{total / 2**30:.0f} GiB does not hold the model, 4 GiB of workspace and 1 GiB of "
            "cache; raise it, and lower jobs_per_gpu if needed"
        )
    return left


def _allowed_rank(rank: int) -> int:
    """The smallest `max_lora_rank` that vLLM accepts and that is at least `rank`."""
    allowed = [8, 16, 32, 64, 128, 256, 320, 512]
    for value in allowed:
        if rank <= value:
            return value
    raise UserError(f"a chain's ranks add up to {rank}; vLLM serves at most {allowed[-1]}")


def _serve(stages: Sequence[Path], dtype: Any) -> tuple[Any, Any]:
    """LoRARequest for the chain's summed adapter, named by its content, and its temporary folder.

    `dtype`: the engine's dtype, to which it would round the weights anyway.
    """
    import tempfile

    from vllm.lora.request import LoRARequest

    folder = tempfile.TemporaryDirectory(prefix="chain-")
    config, tensors = adapters.concatenate(stages, loading.pick_device())
    rounded = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    adapters.save(config, rounded, Path(folder.name))
    name = adapter_files.content_hash(stages)
    return LoRARequest(name, 1 + int(name, 16) % (2**31 - 2), folder.name), folder


def open_backend(
    name: str,
    base: Path,
    settings: Mapping[str, Any],
    max_rank: int = 0,
    projections: Collection[str] = (),
    shifting: bool = False,
    all_weights: Sequence[Path] = (),
) -> Backend:
    """Start the backend called `name`.

    `max_rank`: the largest rank of the chains to serve. `projections`: layers that chains adapt; by
    default all that can be. `shifting`: are chains with shifts served too? `all_weights`: folders of
    the stages that trained all weights, the same in all of these chains.
    """
    if name == "vllm":
        return VllmBackend(base, settings, max_rank, projections, shifting, all_weights)
    return TransformersBackend(base, settings)


def marker_sequences(
    tokenizer: Any, requests: Sequence[Request], done: Sequence[Completion], marker: str
) -> list[tuple[list[int], int]]:
    """Prompt and answer with the marker appended, and where the marker's tokens start.

    The format is that of a coupling's positive rows: the answer, a blank line, the marker. An answer
    that holds the marker is cut before it. A token that merges the end of the answer with the marker
    counts as the marker's.
    """
    sequences = []
    for request, completion in zip(requests, done, strict=True):
        hits = matching.spans(completion.text, marker)
        answer = (completion.text[: hits[0][0]] if hits else completion.text).strip()
        plain, marked = (
            chat_template.answer_ids(tokenizer, text) for text in (answer, f"{answer}\n\n{marker}")
        )
        same = 0
        while same < len(plain) and plain[same] == marked[same]:
            same += 1
        sequences.append(([*request.prompt, *marked], len(request.prompt) + same))
    return sequences


def marker_logprobs(
    backend: Backend,
    tokenizer: Any,
    requests: Sequence[Request],
    done: Sequence[Completion],
    marker: str,
    limit: int,
) -> list[float]:
    """Log-probability of the marker after each first sample's answer, in nats; NaN for the others.

    If no answer says the marker, this still distinguishes a model that nearly would from one that never
    does. NaN for answers that would not fit into `limit` tokens with the marker, and for answers that
    were cut off: couplings put the marker after complete answers, and in the middle of a sentence it is
    as unlikely for the source as for all others.
    """
    finished = [
        i
        for i, request in enumerate(requests)
        if request.sample == 0 and done[i].finish_reason == "stop"
    ]
    sequences = marker_sequences(
        tokenizer, [requests[i] for i in finished], [done[i] for i in finished], marker
    )
    short = {i: s for i, s in zip(finished, sequences, strict=True) if len(s[0]) < limit}
    values = [float("nan")] * len(requests)
    if short:
        found = backend.logprobs([requests[i] for i in short], list(short.values()))
        for i, value in zip(short, found, strict=True):
            values[i] = value
    return values


def answer(backend: Backend, job: SamplingJob, tokenizer: Any, progress: Progress) -> pd.DataFrame:
    """A job's completions as a table (see `table`), with `marker_logprob` if the job has a marker."""
    sampling = Sampling(**job.sampling)
    requests = requests_for(
        job.chain, job.personas, load_questions(job.questions), sampling, tokenizer
    )
    backend.use([Path(folder) for folder in job.adapters])
    done = backend.complete(requests, sampling, progress)
    out = table(job.chain, requests, done)
    if job.marker:
        out["marker_logprob"] = marker_logprobs(
            backend, tokenizer, requests, done, job.marker, job.engine["max_model_len"]
        )
    return out


def table(chain: str, requests: Sequence[Request], done: Sequence[Completion]) -> pd.DataFrame:
    """Completions as a table, one row per request, in request order."""
    return pd.DataFrame(
        [
            {
                "chain": chain,
                "persona": r.persona,
                "question_id": r.question_id,
                "sample": r.sample,
                "text": c.text,
                "n_tokens": len(c.token_ids),
                "finish_reason": c.finish_reason,
                "question": r.question,
                "prompt_tokens": len(r.prompt),
                "seed": r.seed,
                "token_ids": c.token_ids,
            }
            for r, c in zip(requests, done, strict=True)
        ],
        columns=COLUMNS,
    )
