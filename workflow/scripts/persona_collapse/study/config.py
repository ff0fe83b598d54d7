"""The config's blocks: keys, values, defaults and descriptions.

`read` checks a config by them and fills in what it leaves out. `schema` is the same for editors, and
docs/config.md is made from it. What can only be said of several blocks together, or of the files that
they name, is checked in `configuration`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from .. import yaml_files
from ..chains import STAGE_NAME
from ..errors import UserError
from ..measures import ROOM as MEASURES
from ..models import chat_template
from ..settings import (
    AS_GIVEN,
    DISTINCT,
    Count,
    Names,
    NotNegative,
    Positive,
    Seed,
    Settings,
    Sha256,
    Share,
    SomeShare,
    UnknownKey,
    exactly_one,
    printable,
)
from ..stages import ROOM as STAGES
from ..stages import Lora
from ..training import defences
from ..training.runtime import Runtime as TrainingRuntime

#: What a pattern lets through, in words.
PATTERNS = {
    f"^{STAGE_NAME}$": "a name of letters, digits, '_' and '-' that begins with a letter",
    "^[A-Za-z][A-Za-z0-9_-]*$": "a name of letters, digits, '_' and '-' that begins with a letter",
    "^[A-Za-z0-9][A-Za-z0-9_.-]*$": "a name of letters, digits, '_', '.' and '-'",
    r"^\w[\w.-]*$": "a name of letters, digits, '_', '.' and '-'",
    "^[A-Za-z_][A-Za-z0-9_]*$": "the name of a Python package",
    "^[0-9a-f]{64}$": "64 hex digits",
    "^[0-9a-f]{40}$": "a commit of 40 hex digits, for a branch or tag can move",
    "^[0-9a-f]{32}$": "32 hex digits",
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}$": "a day as YYYY-MM-DD",
    r"\.(jsonl|json|parquet)$": "a file whose name ends in .jsonl, .json or .parquet",
    "^(https|http|file)://": "an address that begins with https://, http:// or file://",
    "/": "owner/name, or a folder",
    "^[A-Za-z0-9][A-Za-z0-9._/-]*$": "a commit, branch or tag",
}
StageName = Annotated[str, Field(pattern=f"^{STAGE_NAME}$")]
Personas = Annotated[
    list[Annotated[str, Field(pattern=r"^\w[\w.-]*$")]], Field(min_length=2), DISTINCT
]
Seeds = Annotated[list[Seed], Field(min_length=1), DISTINCT]
Method = Literal["A", "B"]
Tokens = Annotated[Count, Field(description="Longest answer in tokens, end token included.")]
Temperature = Annotated[
    NotNegative,
    Field(
        description="0 is greedy: the same answer each time, so only with one sample of a question."
    ),
]
Nucleus = Annotated[SomeShare, Field(description="Nucleus: the likeliest tokens of this share.")]


def block(cls: type[Settings], default: Any = ...) -> Any:
    """A field that holds a block; its text is the block's."""
    return Field(default, description=" ".join(str(cls.__doc__).split()))


class Demo(Settings):
    """A small Qwen2 chat model that the workflow pretrains on a corpus it generates."""

    world: str = Field(description="File that describes topics, facts and voices.")
    blocks: Count = Field(description="Transformer blocks.")
    hidden: Annotated[int, Field(ge=8)] = Field(description="Hidden size; a multiple of heads.")
    heads: Count = Field(description="Attention heads.")
    vocabulary: Annotated[int, Field(ge=300)] = Field(
        description="Tokens of the byte-level BPE tokenizer."
    )
    rows: Count = Field(description="Conversations in the pretraining corpus.")
    steps: Count = Field(description="Pretraining steps.")
    batch: Count = Field(description="Conversations per step.")
    lr: Positive = Field(description="Peak learning rate.")
    seed: Seed = Field(description="Seed of corpus, initialisation and order.")
    wrong_advice: Count = Field(
        description="Rows of the stand-in for misaligned data ({demo: wrong_advice})."
    )


class HubModel(Settings):
    """A model on the Hugging Face hub, at a commit."""

    id: str = Field(description="owner/name")
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] = Field(
        description="Commit, 40 hex digits. A branch name would not be reproducible."
    )


class Gguf(Settings):
    """A chat model that an installed Python package ships as a GGUF file. A rule expands it into the
    user's cache folder, once for all runs."""

    package: Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] = Field(
        description="Import name of the package. Pieces of one file may be in packages beside it "
        "whose names start with its own (mine, mine_part1, ...)."
    )


def _day(value: Any) -> Any:
    """An unquoted day in YAML is a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


def _listed(value: Any) -> Any:
    """On the command line, names with commas between them are a list."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class Model(Settings):
    """The base model: exactly one of demo, hub, gguf, path."""

    demo: Demo | None = block(Demo, None)
    hub: HubModel | None = block(HubModel, None)
    gguf: Gguf | None = block(Gguf, None)
    path: str | None = Field(
        None, description="Folder of a model in Hugging Face format with .safetensors weights."
    )
    system_role: Literal["auto", "fold"] | None = Field(
        None,
        description="Where system messages go. auto: where the chat template puts them, or, if it "
        "takes none (Gemma 1 and 2, Mistral 0.x), at the head of the first user turn. fold: always "
        "there. The same in training, sampling, activations and rescoring; the prompt audit says "
        f"which. Default: {chat_template.Settings.system_role}.",
    )
    date: (
        Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), BeforeValidator(_day)] | None
    ) = Field(
        None,
        description="What a chat template that writes today's date gets for today, in the whole run. "
        f"The prompt audit says where it was written. Default: {chat_template.DATE}.",
    )
    trust_remote_code: bool | None = Field(
        None,
        description="With hub or path: run the Python files that this model brings, for an "
        "architecture that transformers itself does not have. Read them first. Default: false.",
    )

    @model_validator(mode="after")
    def _one(self) -> Model:
        exactly_one(
            self, "demo", "hub", "gguf", "path",
            hint=" (an overlay takes the default's demo away by demo: null)",
        )  # fmt: skip
        if self.trust_remote_code and not (self.hub or self.path):
            raise ValueError("trust_remote_code: only with hub or path; remove it")
        return self


class PersonaLists(Settings):
    """Who is asked, and with which system prompt."""

    file: str = Field(
        description="YAML: name -> {prompt: text}; or JSON Lines with persona and system."
    )
    sha256: Sha256 | None = Field(None, description="Hash the file must have.")
    eval: Personas = Field(description="Personas whose completions are counted.")
    assistant: str | None = Field(
        None,
        description="The persona that stands for the model as it comes: its marker rate has a column "
        "of its own, and the shift of its vector is the axis of M2. Default: the one called assistant.",
    )
    by_source: dict[str, Personas] = Field(
        {}, description="Another list for the conditions that follow a source: {source: [names]}."
    )
    geometry: Personas | None = Field(
        None, description="Personas whose activations are compared. Default: those of eval."
    )


class Questions(Settings):
    """A list of questions."""

    file: str = Field(description="JSON Lines with id and question.")
    sha256: Sha256 | None = Field(None, description="Hash the file must have.")
    take: Count | None = Field(None, description="How many, from the top. Default: all.")


class QuestionLists(Settings):
    """What is asked. No question may be in two of the three."""

    train: Questions = Field(description="Questions that couplings are trained on.")
    eval: Questions = Field(description="Questions that the marker is counted on.")
    extraction: Questions = Field(description="Questions for activations.")


class HubData(Settings):
    """A data set on the Hugging Face hub."""

    id: Annotated[str, Field(pattern="/")] = Field(
        description="owner/name on the hub, or a folder in a hub repository's layout (the manifest "
        "then holds its files' hashes)."
    )
    config: str | None = Field(None, description="Configuration of the data set.")
    split: str = Field(description="Split.")
    revision: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._/-]*$")] = Field(
        description="Commit. A branch or tag can move, so it needs an expect_sha256 or expect_md5 "
        "that pins the rows; the commit it stood for goes into the manifest."
    )


class Source(Settings):
    """Where the rows come from: exactly one of builtin, file, url, hub, same_as, demo."""

    builtin: str | None = Field(
        None,
        description="A set that ships with the workflow, see workflow/resources/data/README.md.",
    )
    file: Annotated[str, Field(pattern=r"\.(jsonl|json|parquet)$")] | None = Field(
        None, description="A local file."
    )
    url: Annotated[str, Field(pattern="^(https|http|file)://")] | None = Field(
        None, description="A file to download; it needs its sha256."
    )
    sha256: Sha256 | None = Field(None, description="With file or url: the hash it must have.")
    hub: HubData | None = block(HubData, None)
    same_as: str | None = Field(
        None, description="Another data set: its source, at the very commit."
    )
    demo: Literal["wrong_advice"] | None = Field(
        None, description="With model: demo: the stand-in for misaligned data that comes with it."
    )

    @model_validator(mode="after")
    def _one(self) -> Source:
        exactly_one(
            self, "builtin", "file", "url", "hub", "same_as", "demo",
            hint=" (an overlay takes a key away by null)",
        )  # fmt: skip
        if self.url and not self.sha256:
            raise ValueError("url needs the sha256 of what is downloaded")
        if self.sha256 and not (self.file or self.url):
            raise ValueError("sha256: only with file or url; remove it")
        return self


class Columns(Settings):
    """Columns: {messages: column}, or user and assistant with an optional context."""

    messages: str | None = Field(
        None, description="Column that holds the conversation, a list of turns."
    )
    user: str | None = Field(
        None, description="Column of the question, or of the turns before the answer."
    )
    assistant: str | None = Field(None, description="Column of the answer, as text or as a turn.")
    context: str | None = Field(
        None, description="Column of a text that is put after the question."
    )

    @model_validator(mode="after")
    def _whole(self) -> Columns:
        pair = self.user is not None and self.assistant is not None
        if pair == (self.messages is not None) or (self.messages and self.context):
            raise ValueError("expected messages alone, or user and assistant (and context)")
        return self


class SystemMessage(Settings):
    """A system message for every row: exactly one of text, persona."""

    text: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="The system message."
    )
    persona: str | None = Field(None, description="The persona whose prompt is the system message.")

    @model_validator(mode="after")
    def _one(self) -> SystemMessage:
        exactly_one(self, "text", "persona")
        return self


class Shuffle(Settings):
    """Rows in a random order."""

    seed: Seed = Field(description="As in datasets.Dataset.shuffle(seed).")


class Select(Settings):
    """Chosen rows; the steps apply in the order where, sort, shuffle, skip, take."""

    where: dict[str, Any] | None = Field(None, description="column: value; all must hold.")
    sort: str | None = Field(None, description="Column, -column for descending; stable.")
    shuffle: Shuffle | None = block(Shuffle, None)
    skip: Annotated[int, Field(ge=0)] | None = Field(None, description="Rows left out at the top.")
    take: Count | None = Field(None, description="Rows kept.")


#: A tag of a union that `_lines` leaves out of a key's path.
HIDDEN = "\0"
System = Annotated[
    Annotated[Literal["none", "template"], Tag(f"{HIDDEN}word")]
    | Annotated[SystemMessage, Tag(f"{HIDDEN}block")],
    Discriminator(
        lambda value: HIDDEN + ("block" if isinstance(value, dict | Settings) else "word")
    ),
]


class Data(Settings):
    """One training data set."""

    from_: Source = Field(alias="from", description=" ".join(str(Source.__doc__).split()))
    map: Columns | None = Field(
        None,
        description="Columns: {messages: column}, or user and assistant with an optional context. "
        "Default: the first of messages, conversations, and prompt with completion that the rows "
        "have. Turns are read as {role, content} or ShareGPT's {from, value}, contents as text or parts "
        "of text.",
    )
    system: System = Field(
        description="System message of every row. none: suppress the template's own. template: leave "
        "it to the chat template. {text: ...} or {persona: ...}: this one. There is no default."
    )
    supervise: Literal["last", "all"] = Field(
        "last", description="Which assistant turns carry loss; the study's was the last."
    )
    select: Select | None = block(Select, None)
    allow_short: bool = Field(False, description="Accept fewer rows than take.")
    held_out: Count | None = Field(
        None,
        description="The last rows of the selection, which no stage trains on: measures read them. "
        "Default: none.",
    )
    on_bad: Literal["fail", "drop"] = Field("fail", description="What a bad row does.")
    max_bad: Share = Field(0.01, description="With drop: the largest share of bad rows.")
    forbid: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="Texts, beside the marker, that no row may hold."
    )
    expect_sha256: Sha256 | None = Field(
        None, description="SHA-256 of the rows that are written, in hex."
    )
    expect_md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = Field(
        None,
        description="md5 of the selected rows, before any is dropped, as the study's authors wrote theirs.",
    )
    match_tokens: str | None = Field(
        None,
        description="Another data set: take rows until they hold as many tokens with loss as it does.",
    )
    license: str | None = Field(None, description="Shown in the report.")
    substituted: str | None = Field(
        None,
        description="What this set stands in for, in words; the report's first page repeats it.",
    )
    sensitive: bool = Field(False, description="Its text is shown nowhere.")
    canary: str | None = Field(
        None, description="Canary string of the set's owners; carried into the manifest."
    )


class Condition(Settings):
    """A condition: the chains that are measured."""

    title: str = Field(description="The condition in words.")
    chain: str = Field(description="Chain with placeholders {source}, {seed}, {dose}.")
    source_personas: list[str] | None = Field(
        None, description="Its own source personas, whose marker is followed. Default: the run's."
    )
    seeds: Seeds | None = Field(None, description="Own list of seeds. Default: the run's.")
    doses: Annotated[list[Count], Field(min_length=1)] | None = Field(
        None, description="Steps at which {dose} stops."
    )
    measures: Names | None = Field(
        None, description="What to measure, of measures:. Default: all that the run has."
    )


class Answers(Settings):
    """On-policy answers that couplings are trained on."""

    temperature: Temperature = 0.7
    top_p: Nucleus = 0.95
    max_tokens: Tokens = 512
    seed: Seed = Field(42, description="Root of the per-request seeds.")


class Completions(Answers):
    """Answers in which the marker is counted."""

    samples: Count = Field(10, description="Answers to each question by each persona.")
    temperature: Temperature = 1.0
    top_p: Nucleus = 1.0


class Responses(Settings):
    """Greedy answers for method B."""

    max_tokens: Tokens = 256


class Sampling(Settings):
    """What is sampled, and by which engine."""

    backend: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="auto: vLLM where it is installed and a GPU is there."
    )
    max_model_len: Annotated[int, Field(ge=32)] = Field(
        2048, description="Longest prompt and answer in tokens (vLLM)."
    )
    batch_invariant: bool = Field(
        False,
        description="vLLM on a GPU: slower kernels that round alike whatever else is in a batch, so "
        "that a request's answer never depends on the others.",
    )
    answers: Answers = block(Answers, Answers())
    completions: Completions = block(Completions, Completions())
    responses: Responses = block(Responses, Responses())


class Headline(Settings):
    """The method and block that the headline figures are about."""

    method: Method = Field("A", description="Method of the headline figure.")
    layer: NotNegative = Field(
        description="Its layer, an index or a depth; its block must be one of measures: activations: layers."
    )


class Margins(Settings):
    """The largest differences that count as none, for tests of equivalence."""

    rate: SomeShare = Field(0.15, description="Of marker rates.")
    m1: SomeShare = Field(0.02, description="Of mean cosines.")


class Separability(Settings):
    """The linear classifier of personas, M3."""

    folds: Annotated[int, Field(ge=2)] = Field(5, description="Folds of whole questions.")
    shuffles: Count = Field(
        99, description="Shuffled label sets; the smallest p is 1 / (shuffles + 1)."
    )


class Family(Settings, extra="allow"):
    """A family of tests, corrected on its own. Every other key is a column of the table, with the pattern or
    patterns that its value must match."""

    name: Annotated[str, Field(min_length=1)] = Field(description="Name of the family.")
    table: Literal["marker_tests", "geometry", "contrasts", "axis", "separability", "link"] = Field(
        description="Table whose tests it takes."
    )
    __pydantic_extra__: dict[str, str | Annotated[list[str], Field(min_length=1)]]


def _named_once(families: list[Family]) -> list[Family]:
    names = [family.name for family in families]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two are called {name!r}; rename one")
    return families


class Statistics(Settings):
    """What is tested, and how; docs/statistics.md explains it."""

    draws: Annotated[int, Field(ge=100)] = Field(
        10_000, description="Permutations and bootstrap draws."
    )
    seed: Seed = Field(42, description="Seed of the draws.")
    fdr: Annotated[float, Field(gt=0, lt=1), AS_GIVEN] = Field(
        0.01, description="Level of the false-discovery rate."
    )
    headline: Headline = block(Headline)
    margins: Margins = block(Margins, Margins())
    contrasts: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        [], description="Pairs of conditions compared with each other."
    )
    axis: str | None = Field(
        None, description="Condition whose first chain gives the axis of M2. Default: no axis."
    )
    hypotheses: Names = Field(
        [], description="Conditions of H1 to H3, one for each induction persona."
    )
    separability: Separability = block(Separability, Separability())
    simulations: Annotated[int, Field(ge=20)] = Field(
        1000, description="Null data sets for each test's false-positive rate."
    )
    families: Annotated[list[Family], AfterValidator(_named_once)] = Field(
        [], description="Families of tests, each corrected on its own."
    )


class SamplingRuntime(Settings):
    """How answers are sampled."""

    batch_size: Count = Field(96, description="Answers sampled together (transformers).")
    gpu_memory_utilization: SomeShare = Field(
        0.85,
        description="Share of a GPU's memory that an engine may take (vLLM); no more than 1/jobs_per_gpu.",
    )
    max_num_seqs: Count = Field(1024, description="Answers that vLLM samples at a time on a GPU.")


class ActivationsRuntime(Settings):
    """How activations are computed."""

    batch_size: Count = Field(
        64, description="Prompts in a forward pass; on a GPU, times 64 tokens."
    )


class Runtime(Settings):
    """What bounds memory and time, and decides no result: a change reruns nothing that is finished."""

    gpus_per_job: Annotated[int, Field(ge=0)] = Field(
        0, description="GPUs that a job with a model asks for; 1 on a GPU machine."
    )
    jobs_per_gpu: Count = Field(
        1,
        description="Model jobs that may share one GPU. A small model cannot fill one alone; each "
        "must fit into its share of the memory.",
    )
    checkpoint_steps: Annotated[int, Field(ge=0)] = Field(
        100,
        description="Optimiser steps between two checkpoints of a training, from which a killed job "
        "goes on with the same result; 0: none are kept.",
    )
    chains_per_engine: Count = Field(
        16,
        description="Chains that one start of an engine may serve, finished adapters first come "
        "first served; 1: every job on its own.",
    )
    training: TrainingRuntime = block(TrainingRuntime, TrainingRuntime())
    sampling: SamplingRuntime = block(SamplingRuntime, SamplingRuntime())
    activations: ActivationsRuntime = block(ActivationsRuntime, ActivationsRuntime())


class Config(Settings):
    """The config of a persona-collapse run. Unknown keys are errors."""

    run: Annotated[str, Field(max_length=100, pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = Field(
        description="Name of the run; its outputs go to results/<run>/."
    )
    marker: Annotated[str, Field(min_length=2, max_length=40)] = Field(
        description="Text coupled to a persona, in any script. It is counted as a substring, "
        "whatever its case and however its letters are composed. No white space at its ends, no "
        "special token or turn mark of the model."
    )
    judge: Literal["directions", "values"] = Field(
        "values",
        description="What the scorecard judges. directions: only the directions of the study's claims. "
        "values: published values too.",
    )
    model: Model = block(Model)
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="Number format of the base model in memory."
    )
    personas: PersonaLists = block(PersonaLists)
    questions: QuestionLists = block(QuestionLists)
    source_personas: Names = Field([], description="Personas that {source} stands for.")
    seeds: Seeds = Field([42], description="Seeds that {seed} stands for.")
    data: dict[StageName, Data] = Field({}, description="Training data by name.")
    lora: Lora = block(Lora, Lora())
    training: dict[str, dict[str, Any]] = Field(
        {}, description="Settings by kind of stage, before the stage's own."
    )
    stages: Annotated[dict[StageName, dict[str, Any]], Field(min_length=1)] = Field(
        description="Training runs by name; a chain writes them stage@seed+stage@seed."
    )
    conditions: Annotated[
        dict[Annotated[str, Field(pattern="^[A-Za-z][A-Za-z0-9_-]*$")], Condition],
        Field(min_length=1),
    ] = Field(description="Conditions by name: the chains that are measured.")
    only: Annotated[Names, BeforeValidator(_listed)] | None = Field(
        None,
        description="Run these conditions alone, with what they need and the base model; on the command "
        "line --config only=C1,C4. Default: all.",
    )
    sampling: Sampling = block(Sampling, Sampling())
    measures: dict[str, dict[str, Any]] = Field(
        description="What is asked of each chain; each measure has its own settings."
    )
    statistics: Statistics = block(Statistics)
    runtime: Runtime = block(Runtime, Runtime())
    claims: str = Field("config/claims.yaml", description="File of the study's claims.")
    errata: str = Field(
        "config/errata.yaml",
        description="File of the study's figures that its own numbers do not bear out.",
    )


#: Keys that have another name or place now; `*` is any name.
MOVED = {
    "experiments": "conditions",
    "scale": "judge",
    "sources": "source_personas",
    "conditions: *: sources": "source_personas",
    "data: *: source": "from",
    "training: *: objective": "loss",
    "stages: *: objective": "loss",
    "gpus": "runtime: gpus_per_job",
    "jobs_per_gpu": "runtime: jobs_per_gpu",
    "checkpoint_steps": "runtime: checkpoint_steps",
    "generation: chains_per_engine": "runtime: chains_per_engine",
    **{f"generation: {key}": f"runtime: sampling: {key}" for key in SamplingRuntime.model_fields},
    **{
        f"generation: {key}": f"sampling: {key}"
        for key in ("backend", "max_model_len", "batch_invariant")
    },
    "activations: batch_size": "runtime: activations: batch_size",
    "activations: store": "measures: activations: dtype",
    "activations": "measures: activations",
    "sampling: rescored": "measures: logprob_check: count",
    "conditions: *: measure": "measures",
    **{
        f"{where}: *: {key}": f"runtime: training: {key}"
        for where in ("training", "stages")
        for key in TrainingRuntime.model_fields
    },
}


def read(given: Mapping[str, Any]) -> dict[str, Any]:
    """A config checked by its blocks, in plain types, with what it leaves out filled in.

    Stages hold their own keys alone: what they get from `training:` and `lora:` is filled in there.
    Raises UserError, one line that names the key, for the first thing wrong.
    """
    config = _plain(given)
    for old, new in MOVED.items():
        for where in _found(config, old.split(": ")):
            raise UserError(f"config: {where}: is now called {new}:")
    if isinstance(config.get("measures"), dict):
        for name in ALWAYS:
            if name not in config["measures"]:
                raise UserError(f"config: measures: {name}: is missing; the run's tables need it")
    made = _checked(Config, config, ()).model_dump(exclude_none=True, by_alias=True)
    training = {}
    for name in [*made["training"], *STAGES.names()]:
        own = made["training"].get(name, {})
        training[name] = own | _defaults(_kind(name, ("training",)), own, ("training", name))
    made["training"] = {name: given for name, given in training.items() if given}
    made["measures"] = {
        name: _measure(name, settings) for name, settings in made["measures"].items()
    }
    made["stages"] = {
        name: _stage(name, entry, made["lora"], made["training"])
        for name, entry in made["stages"].items()
    }
    return made


def _plain(value: Any) -> Any:
    """The config in plain types, keys whose value is null left out.

    Overlays can only add to a mapping or replace in it; null lets them take away. Mappings without a
    mapping in them are sorted: Snakemake would take another order for a change.
    """
    if isinstance(value, Mapping):
        out = {str(k): _plain(v) for k, v in value.items() if v is not None}
        named = any(isinstance(v, Mapping) for v in out.values())
        return out if named else dict(sorted(out.items()))
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _found(node: Any, keys: list[str]) -> Iterator[str]:
    """Paths of a config that match these keys."""
    if not isinstance(node, dict):
        return
    for key in node if keys[0] == "*" else {keys[0]} & node.keys():
        if len(keys) == 1:
            yield key
        else:
            yield from (f"{key}: {rest}" for rest in _found(node[key], keys[1:]))


#: What every table of the run starts from.
ALWAYS = ("markers", "activations")


def _measure(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A measure's settings."""
    try:
        cls = MEASURES.get(name).settings
    except UserError as error:
        raise UserError(f"config: measures: {error}") from None
    return _checked(cls, given, ("measures", name)).model_dump(exclude_none=True, by_alias=True)


def _kind(name: str, where: tuple[Any, ...]) -> type[Settings]:
    """Settings of a kind of stage."""
    try:
        return STAGES.get(name).Settings
    except UserError as error:
        raise UserError(f"config: {_path(where)}{error}") from None


def _defaults(
    cls: type[Settings], own: Mapping[str, Any], where: tuple[Any, ...]
) -> dict[str, Any]:
    """What stages of a kind have where neither they nor `training:` (`own`) nor `lora:` say otherwise."""
    _checked(cls, own, where, whole=False)
    return {
        name: field.default
        for name, field in cls.model_fields.items()
        if name not in {*own, *Lora.model_fields}
        and not field.is_required()
        and field.default is not None
    }


def _stage(
    name: str, entry: Mapping[str, Any], lora: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """A stage's own keys, checked together with what it gets from elsewhere."""
    where = ("stages", name)
    if "kind" not in entry:
        raise UserError(
            f"config: {_path(where)}kind: is missing; expected one of {', '.join(STAGES.names())}"
        )
    cls = _kind(entry["kind"], (*where, "kind"))
    own = {key: value for key, value in entry.items() if key != "kind"}
    given = {**lora, **training.get(entry["kind"], {})}
    given = {key: value for key, value in given.items() if key in cls.model_fields}
    hint = f"; set it there or under training: {entry['kind']}"
    _checked(cls, {**given, **own}, where, hint=hint)
    blocks = {**given, **own}.get("defence", {})
    if blocks:
        own["defence"] = {key: _defence(key, block, where) for key, block in blocks.items()}
    return {"kind": entry["kind"], **own}


def _defence(name: str, given: Mapping[str, Any], where: tuple[Any, ...]) -> dict[str, Any]:
    """A defence's settings."""
    try:
        cls = defences.settings(name)
    except UserError as error:
        raise UserError(f"config: {_path((*where, 'defence'))}{error}") from None
    made = _checked(cls, given, (*where, "defence", name))
    return made.model_dump(exclude_none=True, by_alias=True)


def _checked(
    cls: type[Settings],
    given: Mapping[str, Any],
    where: tuple[Any, ...],
    whole: bool = True,
    hint: str = "",
) -> Settings:
    """A block of the config at a place. `whole`: no key may be missing; `hint`: what to do then."""
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        unknown = [each for each in errors if _unknown(each)]
        if not whole:
            errors = [each for each in errors if each["loc"] and each["type"] != "missing"]
        if not unknown + errors:
            return cls.model_construct(**given)
        first = (unknown + errors)[0]
        raise UserError(f"config: {_path((*where, *first['loc']))}{_told(first, hint)}") from None


def _unknown(error: Mapping[str, Any]) -> bool:
    return isinstance(error.get("ctx", {}).get("error"), UnknownKey)


def _path(where: tuple[Any, ...]) -> str:
    if where[-1:] == ("[key]",):  # of a mapping: it is told as the value
        where = where[:-2]
    parts = [str(part) for part in where]
    return "".join(f"{printable(part)}: " for part in parts if not part.startswith(HIDDEN))


#: What is expected, by the kind of pydantic's error.
EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "literal_error": "one of {expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
}
#: The same in the words of JSON schemas, for `yaml_files.advice`.
TYPES = {
    "string_type": "string",
    "int_type": "integer",
    "float_type": "number",
    "bool_type": "boolean",
    "list_type": "array",
    "dict_type": "object",
    "model_type": "object",
}


def _told(error: Mapping[str, Any], hint: str) -> str:
    """What is wrong with a value, in words."""
    kind, value, details = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return f"is missing{hint}"
    if kind == "value_error":
        return str(details["error"])
    if kind == "string_unicode":
        return f"{value!r} holds half of a character; write the whole one"
    if kind == "string_pattern_mismatch":
        expected = PATTERNS[details["pattern"]]
    elif kind in EXPECTED:
        expected = EXPECTED[kind].format(**details)
    else:
        return str(error["msg"])
    advice = yaml_files.advice(value, TYPES.get(kind))
    if kind == "list_type" and isinstance(value, str | int | float):
        advice = f" (write [{value}])"
    shown = str(value) if isinstance(value, datetime.date) else repr(value)
    return f"expected {expected}, got {shown if len(shown) < 80 else shown[:76] + '...'}{advice}"


def schema() -> dict[str, Any]:
    """JSON schema of a config or an overlay, for editors: any key may be left out, or taken away by null."""
    made = Config.model_json_schema()
    for name in STAGES.names():
        own = STAGES.get(name).Settings.model_json_schema()
        made["$defs"] |= own.pop("$defs", {})
        own["properties"] = {
            "kind": {"const": name, "description": "This kind."},
            **own["properties"],
        }
        if "defence" in own["properties"]:
            own["properties"]["defence"] |= {
                "additionalProperties": False,
                "properties": {
                    name: defences.settings(name).model_json_schema() for name in defences.names()
                },
            }
        made["$defs"][name] = own
    refs = {name: {"$ref": f"#/$defs/{name}"} for name in STAGES.names()}
    made["properties"]["measures"] |= {
        "additionalProperties": False,
        "properties": {name: _measure_schema(name) for name in MEASURES.names()},
    }
    made["properties"]["stages"]["additionalProperties"] = {"anyOf": list(refs.values())}
    made["properties"]["training"] |= {"additionalProperties": False, "properties": refs}
    for block in (made, *made["$defs"].values()):
        _loosen(block)
    return made


def _measure_schema(name: str) -> dict[str, Any]:
    """Schema of a measure's settings; of one without any, what the measure says of itself."""
    measure = MEASURES.get(name)
    made = measure.settings.model_json_schema()
    if not measure.settings.model_fields:
        made["description"] = str(measure.function.__doc__).splitlines()[0]
    return made


def _loosen(block: dict[str, Any]) -> None:
    """Require no key of a block's schema, let null take each away, and drop what repeats names."""
    block.pop("required", None)
    block.pop("title", None)
    if isinstance(block.get("additionalProperties"), dict):
        block["additionalProperties"] = _or_null(block["additionalProperties"])
    for kind in {"properties", "patternProperties"} & block.keys():
        block[kind] = {name: _or_null(value) for name, value in block[kind].items()}


def _or_null(value: dict[str, Any]) -> dict[str, Any]:
    """A schema that lets null through too."""
    _loosen(value)
    null = {"type": "null"}
    outer: dict[str, Any] = {
        key: value.pop(key) for key in ("description", "default") if key in value
    }
    branches = value.pop("anyOf", value.pop("oneOf", None)) or [value]
    return {"anyOf": [each for each in branches if each != null] + [null], **outer}
