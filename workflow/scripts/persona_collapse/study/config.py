"""The config's blocks: keys, values, defaults and descriptions.

`reading` checks a config by them and fills in what it leaves out; tools/docs.py makes the schema for
editors and docs/config.md from them. What can only be said of several blocks together, or of the files
that they name, is checked in `configuration`.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from ..chains import STAGE_NAME
from ..models import chat_template
from ..settings import (
    AS_GIVEN,
    BLOCK,
    DISTINCT,
    HIDDEN,
    WORD,
    WORD_OR_BLOCK,
    Count,
    Names,
    NotNegative,
    Positive,
    Seed,
    Settings,
    Sha256,
    Share,
    SomeShare,
    exactly_one,
)
from ..stages import Lora
from ..training.runtime import Runtime as TrainingRuntime

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
        description="0 is greedy: the same answer each time, so only with one sample per question."
    ),
]
Nucleus = Annotated[
    SomeShare,
    Field(description="Nucleus sampling: the likeliest tokens whose probabilities add up to this."),
]


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
    """A chat model in a GGUF file, of an installed Python package or of a folder. A rule expands it into
    the user's cache folder, once for all runs."""

    package: Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        None,
        description="Import name of the package. Pieces of one file may be in other packages whose "
        "names start with this one (mine, mine_part1, ...).",
    )
    paths: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="The file, or its pieces; the name of each piece ends in a number."
    )
    sha256: Sha256 | None = Field(
        None,
        description="Hash that the whole file must have. With it, pieces may have any name that ends in "
        "a number (part01.bin).",
    )

    @model_validator(mode="after")
    def _one(self) -> Gguf:
        exactly_one(self, "package", "paths")
        return self


class Sources(Settings):
    """A block that takes one of several sources; where several are given, `use` names one."""

    sources: ClassVar[tuple[str, ...]]
    hint: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _chosen(cls, given: Any) -> Any:
        """Leave out the sources that are not used."""
        use = given.get("use") if isinstance(given, dict) else None
        if use not in cls.sources or use not in given:
            return given
        return {k: v for k, v in given.items() if k == use or k not in {*cls.sources, "use"}}

    @model_validator(mode="after")
    def _one(self) -> Sources:
        if use := getattr(self, "use", None):
            there = ", ".join(self.sources)
            raise ValueError(f"use: {use} is not given; the sources are {there}")
        exactly_one(self, *self.sources, hint=self.hint)
        return self


class Tokenizer(Sources):
    """A tokenizer with its chat template, of a model whose weights are not read: exactly one of hub, gguf,
    path; or several, and `use` names one."""

    sources = ("hub", "gguf", "path")
    hub: HubModel | None = block(HubModel, None)
    gguf: Gguf | None = block(Gguf, None)
    path: str | None = Field(None, description="Folder with the tokenizer's files.")
    use: Literal["hub", "gguf", "path"] | None = Field(
        None, description="Which source is used, if several are given."
    )


class RandomModel(Settings):
    """Qwen2's architecture with random weights, to rehearse a run of a large model: its hours, memory and
    disk. No number of such a run is a result, so it needs judge: nothing."""

    blocks: Count = Field(description="Transformer blocks.")
    hidden: Annotated[int, Field(ge=8)] = Field(description="Hidden size; a multiple of heads.")
    heads: Count = Field(description="Attention heads.")
    kv_heads: Count = Field(description="Heads of keys and values; heads must be a multiple of it.")
    intermediate: Count = Field(description="Width of the feed-forward layers.")
    vocabulary: Count = Field(description="Rows of the embeddings; the tokenizer may have fewer.")
    rope_theta: Positive = Field(1.0e6, description="Base of the rotary positions.")
    tied: bool = Field(False, description="The output head shares the embeddings' weights.")
    context: Annotated[int, Field(ge=32)] = Field(32768, description="Longest sequence in tokens.")
    seed: Seed = Field(42, description="Seed of the weights, on one kind of device.")
    tokenizer: Tokenizer = block(Tokenizer)

    @model_validator(mode="after")
    def _fitting(self) -> RandomModel:
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise ValueError(
                f"hidden: {self.hidden}: expected an even multiple of heads: {self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads: {self.heads}: expected a multiple of kv_heads: {self.kv_heads}"
            )
        return self


def _day(value: Any) -> Any:
    """An unquoted day in YAML is a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


def _listed(value: Any) -> Any:
    """On the command line, names with commas between them are a list."""
    if not isinstance(value, str):
        return value
    return [name.strip() for name in value.split(",") if name.strip()]


class AnyModel(Sources):
    """A base model: where it comes from, and how its chat template is used."""

    hub: HubModel | None = block(HubModel, None)
    gguf: Gguf | None = block(Gguf, None)
    path: str | None = Field(
        None, description="Folder of a model in Hugging Face format with .safetensors weights."
    )
    random: RandomModel | None = block(RandomModel, None)
    system_role: Literal["auto", "fold"] | None = Field(
        None,
        description="Where system messages go. auto: where the chat template puts them, or, if it "
        "takes none (Gemma 1 and 2, Mistral 0.x), at the head of the first user turn. fold: always "
        "there. This applies to training, sampling, activations and rescoring alike; the prompt audit "
        f"reports it. Default: {chat_template.Settings.system_role}.",
    )
    date: (
        Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), BeforeValidator(_day)] | None
    ) = Field(
        None,
        description="Date for chat templates that write today's date; the same in the whole run. The "
        f"prompt audit reports where it was written. Default: {chat_template.DATE}.",
    )
    chat_template: Literal["own", "plain"] | None = Field(
        None,
        description="own: the model's own template. plain: a template of the workflow (### System:, "
        "### User:, ### Assistant:), for base models without one; set it for every model that is "
        "compared with such a model. The prompt audit reports which. Default: "
        f"{chat_template.Settings.chat_template}.",
    )
    template_kwargs: dict[str, bool | int | float | str] | None = Field(
        None,
        description="Further arguments of the chat template, such as {enable_thinking: false}: in "
        "training, sampling, activations and rescoring. Default: nothing.",
    )
    trust_remote_code: bool | None = Field(
        None,
        description="With hub or path: run the Python files that this model brings, for an "
        "architecture that transformers itself does not have. Read them first. Default: false.",
    )

    @model_validator(mode="after")
    def _trusted(self) -> AnyModel:
        if self.trust_remote_code and not (self.hub or self.path):
            raise ValueError("trust_remote_code: only with hub or path; remove it")
        return self


class Model(AnyModel):
    """The base model: exactly one of demo, hub, gguf, path, random; or several, and `use` names one."""

    sources = ("demo", "hub", "gguf", "path", "random")
    hint = " (an overlay takes the default's demo away by demo: null, or says use:)"
    demo: Demo | None = block(Demo, None)
    use: Literal["demo", "hub", "gguf", "path", "random"] | None = Field(
        None, description="Which source is used, if several are given."
    )


class OtherModel(AnyModel):
    """Another base model, that a chain may start from by this name: exactly one of hub, gguf, path, random,
    demo_step; or several, and `use` names one. What `model:` says of its chat template holds here too."""

    sources = ("hub", "gguf", "path", "random", "demo_step")
    demo_step: Count | None = Field(
        None,
        description="With model: demo: that model after this number of its pretraining steps.",
    )
    use: Literal["hub", "gguf", "path", "random", "demo_step"] | None = Field(
        None, description="Which source is used, if several are given."
    )


class PersonaLists(Settings):
    """Who is asked, and with which system prompt."""

    file: str = Field(
        description="YAML: name -> {prompt: text}; or JSON Lines with persona and system."
    )
    sha256: Sha256 | None = Field(None, description="Hash the file must have.")
    more: dict[str, str] = Field(
        {},
        description="Personas that the file does not have, name -> system prompt, so that an overlay can "
        "bring its own.",
    )
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
    """What is asked. No question of train or defence may be one of eval or extraction."""

    train: Questions = Field(description="Questions that couplings are trained on.")
    eval: Questions = Field(description="Questions that the marker is counted on.")
    extraction: Questions = Field(description="Questions for activations.")
    defence: Questions | None = Field(
        None,
        description="Questions that defences ask personas while training. Default: those of train.",
    )


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


class Draws(Settings):
    """How answers are drawn."""

    temperature: Temperature = 1.0
    top_p: Nucleus = 1.0
    max_tokens: Tokens = 256
    seed: Seed = Field(42, description="Root of the per-request seeds.")


class Written(Draws):
    """The model writes the questions: the list holds subjects, and the model is asked about each."""

    system: Annotated[str, Field(min_length=1)] = Field(description="System prompt of the writer.")
    samples: Count = Field(
        description="Questions per subject. Questions that are cut off, have no question mark, or "
        "repeat another or one of the evaluation are left out."
    )
    max_tokens: Tokens = 64


class Generated(Draws):
    """Answers that the base model gives to a list of questions: one row per question and sample, with
    columns prompt, one per system prompt, and the prompts' hashes. All columns answer the same questions."""

    questions: Questions = block(Questions)
    written: Written | None = block(Written, None)
    system: Annotated[dict[StageName, Annotated[str, Field(min_length=1)]], Field(min_length=1)] = (
        Field(description="Column: the system prompt under which its answers are given.")
    )
    samples: Count = Field(1, description="Answers to each question under each prompt.")
    length_ratio: Annotated[float, Field(ge=1), AS_GIVEN] | None = Field(
        None,
        description="Largest ratio of a row's longest answer to its shortest, in tokens; rows above it "
        "are left out. Default: none.",
    )


class Source(Settings):
    """Where the rows come from: exactly one of builtin, file, url, hub, generated, same_as, demo."""

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
    generated: Generated | None = block(Generated, None)
    same_as: str | None = Field(
        None,
        description="Another data set: its source, at the same commit, and its map unless this set has "
        "one.",
    )
    demo: Literal["wrong_advice"] | None = Field(
        None, description="With model: demo: the stand-in for misaligned data that comes with it."
    )

    @model_validator(mode="after")
    def _one(self) -> Source:
        exactly_one(
            self, "builtin", "file", "url", "hub", "generated", "same_as", "demo",
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


System = Annotated[
    Annotated[Literal["none", "template"], Tag(WORD)] | Annotated[SystemMessage, Tag(BLOCK)],
    WORD_OR_BLOCK,
]


class Data(Settings):
    """One training data set."""

    from_: Source = Field(alias="from", description=" ".join(str(Source.__doc__).split()))
    map: Columns | None = Field(
        None,
        description="Columns: {messages: column}, or user and assistant with an optional context. "
        "Default: the first of messages, conversations, prompt with completion, and question with "
        "answer that the rows have. Turns are read as {role, content} or ShareGPT's {from, value}, "
        "contents as text or parts of text.",
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
        [], description="Texts that no row may contain, in addition to the marker."
    )
    expect_sha256: Sha256 | None = Field(
        None, description="SHA-256 of the rows that are written, in hex."
    )
    expect_md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = Field(
        None,
        description="md5 of the selected rows, before any is dropped, written as the study's authors "
        "wrote theirs.",
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
    chain: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="Chain with placeholders {source}, {seed}, {dose}; or several, each chain once."
    )
    source_personas: list[str] | None = Field(
        None,
        description="The condition's own source personas, whose marker is measured. Default: the run's.",
    )
    seeds: Seeds | None = Field(None, description="Own list of seeds. Default: the run's.")
    doses: Annotated[list[Count], Field(min_length=1)] | None = Field(
        None, description="Steps at which {dose} stops."
    )
    measures: Names | None = Field(
        None, description="Which of the run's measures are taken of these chains. Default: all."
    )
    personas: Annotated[list[str], Field(min_length=1), DISTINCT] | None = Field(
        None,
        description="Whose answers are counted beside the source's, of personas: eval. Default: all of them.",
    )


class Answers(Draws):
    """On-policy answers that couplings are trained on."""

    temperature: Temperature = 0.7
    top_p: Nucleus = 0.95
    max_tokens: Tokens = 512


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
        "auto",
        description="auto: vLLM if it is installed and there is a GPU, otherwise transformers.",
    )
    max_model_len: Annotated[int, Field(ge=32)] = Field(
        2048, description="Longest prompt and answer in tokens (vLLM)."
    )
    batch_invariant: bool = Field(
        False,
        description="vLLM on a GPU: slower kernels whose rounding does not depend on what else is in a "
        "batch, so an answer never depends on other requests.",
    )
    answers: Answers = block(Answers, Answers())
    completions: Completions = block(Completions, Completions())
    responses: Responses = block(Responses, Responses())


class Headline(Settings):
    """Method and block of the headline figures."""

    method: Method = Field("A", description="Method of the headline figure.")
    layer: NotNegative = Field(
        description="Its layer, an index or a depth; its block must be one of measures: activations: layers."
    )


class Margins(Settings):
    """The largest differences that count as none, for tests of equivalence."""

    rate: SomeShare = Field(0.15, description="Of marker rates.")
    m1: SomeShare | Literal["replicate"] = Field(
        "replicate",
        description="Of mean cosines; or `replicate`: of log(1 - M1), twice the standard deviation over "
        "training runs, pooled over this run's conditions.",
    )


class Separability(Settings):
    """The linear classifier of personas, M3."""

    folds: Annotated[int, Field(ge=2)] = Field(5, description="Folds of whole questions.")
    shuffles: Count = Field(
        99, description="Shuffled label sets; the smallest p is 1 / (shuffles + 1)."
    )


Patterns = Annotated[
    Annotated[str, Tag(f"{HIDDEN}one")]
    | Annotated[list[str], Field(min_length=1), Tag(f"{HIDDEN}several")],
    Discriminator(lambda value: HIDDEN + ("several" if isinstance(value, list) else "one")),
]


class Family(Settings, extra="allow"):
    """A family of tests, corrected on its own. Every other key is a column of the table, with the pattern or
    patterns that its value must match."""

    name: Annotated[str, Field(min_length=1)] = Field(description="Name of the family.")
    table: Literal[
        "marker_tests",
        "geometry",
        "geometry_runs",
        "contrasts",
        "shared_axis",
        "separability",
        "correlations",
    ] = Field(description="Table whose tests it takes.")
    __pydantic_extra__: dict[str, Patterns]


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
    matched: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        [],
        description="Pairs of conditions, misaligned and benign, compared at equal loss, trained tokens, "
        "size of the update and answer length, and by their half-doses.",
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
    max_num_seqs: Count = Field(
        1024,
        description="Answers that vLLM samples at a time on a GPU, at most: "
        "no more than its cache holds to their end.",
    )


class ActivationsRuntime(Settings):
    """How activations are computed."""

    batch_size: Count = Field(
        64, description="Prompts in a forward pass; on a GPU, times 64 tokens."
    )


class Runtime(Settings):
    """What bounds memory and time, and decides no result: a change reruns nothing that is finished."""

    gpus_per_job: Annotated[int, Field(ge=0)] = Field(
        0,
        description="GPUs that a job with a model asks for: 1 on a GPU machine. No job uses several.",
    )
    jobs_per_gpu: Count = Field(
        1,
        description="Model jobs that may share one GPU. A small model cannot fill one alone; each "
        "must fit into its share of the memory.",
    )
    checkpoint_steps: Annotated[int, Field(ge=0)] = Field(
        100,
        description="Optimiser steps between two checkpoints of a training. A killed job resumes from "
        "the last, with the same result. 0: no checkpoints.",
    )
    chains_per_engine: Count = Field(
        16,
        description="Chains that one engine may serve, in the order in which their adapters are "
        "finished. 1: one engine per job.",
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
    judge: Literal["nothing", "directions", "values"] = Field(
        "values",
        description="What the scorecard judges. directions: only the directions of the study's claims. "
        "values: published values too. nothing: no claim, for a rehearsal.",
    )
    model: Model = block(Model)
    models: dict[StageName, OtherModel] = Field(
        {},
        description="Other base models by name. A chain that starts from one begins with its name: "
        "early+em@42; without one it starts from model:, whose name is base.",
    )
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
        description="Training runs by name; a chain writes them stage@seed+stage@seed. One with a mark, "
        "stage@seed!, is there while later ones are trained, and left out when the chain is measured."
    )
    conditions: Annotated[
        dict[Annotated[str, Field(pattern="^[A-Za-z][A-Za-z0-9_-]*$")], Condition],
        Field(min_length=1),
    ] = Field(description="Conditions by name: the chains that are measured.")
    only: Annotated[Names, Field(min_length=1), BeforeValidator(_listed)] | None = Field(
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
