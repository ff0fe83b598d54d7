"""The config's blocks: keys, values, defaults and descriptions.

`reading` checks a config against them and fills in defaults. tools/docs.py makes the schema for editors
and docs/config.md from them. `configuration` checks what depends on several blocks together, or on the
files that they name.
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
    Field(
        description="Nucleus sampling: only the most likely tokens, whose probabilities add up "
        "to this."
    ),
]


def block(cls: type[Settings], default: Any = ...) -> Any:
    """A field that holds a block; its description is the block's docstring."""
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
    """A chat model in a GGUF file, from an installed Python package or from a folder. A rule expands it
    into the user's cache folder, once for all runs."""

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
    """A tokenizer and its chat template, from a model whose weights are not read: exactly one of hub,
    gguf, path; or several, and `use` names one."""

    sources = ("hub", "gguf", "path")
    hub: HubModel | None = block(HubModel, None)
    gguf: Gguf | None = block(Gguf, None)
    path: str | None = Field(None, description="Folder with the tokenizer's files.")
    use: Literal["hub", "gguf", "path"] | None = Field(
        None, description="Which source is used, if several are given."
    )


class RandomModel(Settings):
    """Qwen2's architecture with random weights, to rehearse a run of a large model: its hours, memory
    and disk space. Numbers of such a run are no results, so it needs judge: nothing."""

    blocks: Count = Field(description="Transformer blocks.")
    hidden: Annotated[int, Field(ge=8)] = Field(description="Hidden size; a multiple of heads.")
    heads: Count = Field(description="Attention heads.")
    kv_heads: Count = Field(description="Heads of keys and values; heads must be a multiple of it.")
    intermediate: Count = Field(description="Width of the feed-forward layers.")
    vocabulary: Count = Field(description="Rows of the embeddings; the tokenizer may have fewer.")
    rope_theta: Positive = Field(1.0e6, description="Base of the rotary positions (theta).")
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
        description="Where system messages go. auto: where the chat template puts them, or at the "
        "start of the first user turn if the template takes none (Gemma 1 and 2, Mistral 0.x). "
        "fold: always at the start of the first user turn. This applies to training, sampling, "
        "activations and rescoring alike; the prompt audit reports it. Default: "
        f"{chat_template.Settings.system_role}.",
    )
    date: (
        Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), BeforeValidator(_day)] | None
    ) = Field(
        None,
        description="Date for chat templates that write today's date; the same for the whole run. "
        f"The prompt audit reports where it was written. Default: {chat_template.DATE}.",
    )
    chat_template: Literal["own", "plain"] | None = Field(
        None,
        description="own: the model's own template. plain: the workflow's template (### System:, "
        "### User:, ### Assistant:), for base models without one; set it for every model that is "
        "compared with such a model. An answer then also ends before the header of another turn, with "
        "which base models go on. The prompt audit reports which. Default: "
        f"{chat_template.Settings.chat_template}.",
    )
    template_kwargs: dict[str, bool | int | float | str] | None = Field(
        None,
        description="Further arguments of the chat template, such as {enable_thinking: false}: in "
        "training, sampling, activations and rescoring. Default: nothing.",
    )
    trust_remote_code: bool | None = Field(
        None,
        description="With hub or path: run the Python files that come with this model, for an "
        "architecture that transformers does not implement. Read them first. Default: false.",
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
    """Another base model; a chain may start from it by its name. Exactly one of hub, gguf, path,
    random, demo_step; or several, and `use` names one. Its chat template is used as `model:` says,
    unless set here."""

    sources = ("hub", "gguf", "path", "random", "demo_step")
    demo_step: Count | None = Field(
        None,
        description="With model: demo: the demo model after this many pretraining steps.",
    )
    use: Literal["hub", "gguf", "path", "random", "demo_step"] | None = Field(
        None, description="Which source is used, if several are given."
    )


class PersonaLists(Settings):
    """The personas and their system prompts."""

    file: str = Field(
        description="YAML: name -> {prompt: text}; or JSON Lines with persona and system."
    )
    sha256: Sha256 | None = Field(None, description="Hash the file must have.")
    more: dict[str, str] = Field(
        {},
        description="Personas in addition to the file's, name -> system prompt, so that an overlay "
        "can add its own.",
    )
    eval: Personas = Field(description="Personas whose completions are counted.")
    assistant: str | None = Field(
        None,
        description="The persona that stands for the unchanged model: its marker rate has a column "
        "of its own, and the shift of its vector is the axis of M2. Default: the one called "
        "assistant.",
    )
    by_source: dict[str, Personas] = Field(
        {},
        description="Another list for the conditions with a given source persona: {source: "
        "[names]}.",
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
    """The questions. No question of train or defence may also be in eval or extraction."""

    train: Questions = Field(description="Questions that couplings are trained on.")
    eval: Questions = Field(description="Questions that the marker is counted on.")
    extraction: Questions = Field(description="Questions for activations.")
    defence: Questions | None = Field(
        None,
        description="Questions that defences ask the personas during training. Default: those of "
        "train.",
    )


class HubData(Settings):
    """A data set on the Hugging Face hub."""

    id: Annotated[str, Field(pattern="/")] = Field(
        description="owner/name on the hub, or a folder laid out like a hub repository (the "
        "manifest then holds the hashes of its files)."
    )
    config: str | None = Field(None, description="Configuration of the data set.")
    split: str = Field(description="Split.")
    revision: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._/-]*$")] = Field(
        description="Commit. A branch or tag can move, so it needs an expect_sha256 or expect_md5 "
        "that pins the rows; the commit that it pointed to goes into the manifest."
    )


class Draws(Settings):
    """How answers are sampled."""

    temperature: Temperature = 1.0
    top_p: Nucleus = 1.0
    max_tokens: Tokens = 256
    seed: Seed = Field(42, description="Root of the per-request seeds.")


class Written(Draws):
    """The model writes the questions: the list holds subjects, and the model writes questions about each."""

    system: Annotated[str, Field(min_length=1)] = Field(description="System prompt of the writer.")
    samples: Count = Field(
        description="Questions per subject. Left out: questions that are cut off, that have no "
        "question mark, or that repeat another or an evaluation question."
    )
    max_tokens: Tokens = 64


class Generated(Draws):
    """Answers of the base model to a list of questions: one row per question and sample. Columns:
    prompt, one per system prompt, and the prompts' hashes. All columns answer the same questions. Rows of
    the list may have statements: what the answer of each column has to say."""

    questions: Questions = block(Questions)
    written: Written | None = block(Written, None)
    system: Annotated[dict[StageName, Annotated[str, Field(min_length=1)]], Field(min_length=1)] = (
        Field(
            description="Column name: the system prompt of the answers in this column. {statement} stands "
            "for what the answer has to say: the question's `statements`, by column."
        )
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
        description="A data set that ships with the workflow, see "
        "workflow/resources/data/README.md.",
    )
    file: Annotated[str, Field(pattern=r"\.(jsonl|json|parquet)$")] | None = Field(
        None, description="A local file."
    )
    url: Annotated[str, Field(pattern="^(https|http|file)://")] | None = Field(
        None, description="A file to download; give its sha256."
    )
    sha256: Sha256 | None = Field(None, description="With file or url: the hash it must have.")
    hub: HubData | None = block(HubData, None)
    generated: Generated | None = block(Generated, None)
    same_as: str | None = Field(
        None,
        description="Another data set: its source at the same commit, and its map, license and "
        "substituted unless this set has its own.",
    )
    demo: Literal["wrong_advice"] | None = Field(
        None, description="With model: demo: its stand-in for misaligned data."
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
        None, description="Column of a text that is appended to the question."
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
        "Default: the first of these that the rows have: messages, conversations, prompt and "
        "completion, question and answer. Turns are read as {role, content} or ShareGPT's {from, "
        "value}, contents as text or parts of text.",
    )
    system: System = Field(
        description="System message of every row. none: suppress the template's own. template: "
        "leave it to the chat template. {text: ...} or {persona: ...}: this text, or this "
        "persona's prompt. There is no default."
    )
    supervise: Literal["last", "all"] = Field(
        "last", description="Which assistant turns carry loss; in the study, the last."
    )
    select: Select | None = block(Select, None)
    allow_short: bool = Field(False, description="Accept fewer rows than take.")
    held_out: Count | None = Field(
        None,
        description="Number of rows, the last of the selection, that no stage trains on; measures "
        "read them. Default: none.",
    )
    on_bad: Literal["fail", "drop"] = Field("fail", description="What to do with a bad row.")
    max_bad: Share = Field(0.01, description="With drop: the largest share of bad rows.")
    forbid: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="Texts that no row may contain, in addition to the marker."
    )
    expect_sha256: Sha256 | None = Field(
        None, description="Expected SHA-256 of the written rows, in hex."
    )
    expect_md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = Field(
        None,
        description="Expected md5 of the selected rows, before any is dropped, in the file format "
        "of the study's authors.",
    )
    match_tokens: str | None = Field(
        None,
        description="Another data set: take rows until they hold as many tokens with loss as that "
        "set.",
    )
    license: str | None = Field(None, description="Shown in the report.")
    substituted: str | None = Field(
        None,
        description="What this set stands in for, in words; the first page of the report repeats "
        "it.",
    )
    sensitive: bool = Field(False, description="Never show its text.")
    canary: str | None = Field(
        None, description="Canary string of the set's owners; carried into the manifest."
    )


class Condition(Settings):
    """A condition: chains to measure."""

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
        None, description="Which of the run's measures to take of these chains. Default: all."
    )
    personas: Annotated[list[str], Field(min_length=1), DISTINCT] | None = Field(
        None,
        description="Personas whose answers are counted in addition to the source's; from "
        "personas: eval. Default: all of them.",
    )


class Answers(Draws):
    """The model's own answers that couplings are trained on."""

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
        description="vLLM on a GPU: use slower kernels whose rounding does not depend on the rest "
        "of the batch, so an answer never depends on other requests.",
    )
    answers: Answers = block(Answers, Answers())
    completions: Completions = block(Completions, Completions())
    responses: Responses = block(Responses, Responses())


class Headline(Settings):
    """Method and block of the headline figures."""

    method: Method = Field("A", description="Method of the headline figure.")
    layer: NotNegative = Field(
        description="Layer of the headline figure, an index or a depth; must be among measures: "
        "activations: layers."
    )


class Margins(Settings):
    """Equivalence margins: the largest differences that count as no difference."""

    rate: float = Field(0.15, gt=0, lt=1, description="Of marker rates.")
    m1: SomeShare | Literal["replicate"] = Field(
        "replicate",
        description="Margin for mean cosines. `replicate`: a margin for log(1 - M1) of twice the "
        "standard deviation over training runs, pooled over this run's conditions.",
    )


class Separability(Settings):
    """The linear classifier of personas, M3."""

    folds: Annotated[int, Field(ge=2)] = Field(5, description="Folds of whole questions.")
    shuffles: Count = Field(
        99,
        description="Number of label permutations; the smallest possible p is 1 / (shuffles + 1).",
    )


Patterns = Annotated[
    Annotated[str, Tag(f"{HIDDEN}one")]
    | Annotated[list[str], Field(min_length=1), Tag(f"{HIDDEN}several")],
    Discriminator(lambda value: HIDDEN + ("several" if isinstance(value, list) else "one")),
]


class Family(Settings, extra="allow"):
    """A family of tests, corrected on its own. Every other key is a column of the table, with one or
    more patterns that its value must match."""

    name: Annotated[str, Field(min_length=1)] = Field(description="Name of the family.")
    table: Literal[
        "marker_tests",
        "geometry",
        "geometry_runs",
        "contrasts",
        "shared_axis",
        "separability",
        "correlations",
    ] = Field(description="Table whose tests belong to it.")
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
        0.01, description="Level of the false discovery rate."
    )
    headline: Headline = block(Headline)
    margins: Margins = block(Margins, Margins())
    contrasts: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        [], description="Pairs of conditions compared with each other."
    )
    matched: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        [],
        description="Pairs of conditions, misaligned and benign, compared at equal loss, trained "
        "tokens, update norm and answer length, and by their half-doses.",
    )
    axis: str | None = Field(
        None, description="Condition whose first chain gives the axis of M2. Default: no axis."
    )
    hypotheses: Names = Field(
        [], description="Conditions of H1 to H3, one for each induction persona."
    )
    separability: Separability = block(Separability, Separability())
    simulations: Annotated[int, Field(ge=20)] = Field(
        1000, description="Simulated null data sets per test, for its false-positive rate."
    )
    families: Annotated[list[Family], AfterValidator(_named_once)] = Field(
        [], description="Families of tests, each corrected on its own."
    )


class SamplingRuntime(Settings):
    """How answers are sampled."""

    batch_size: Count = Field(96, description="Answers sampled together (transformers).")
    gpu_memory_utilization: SomeShare = Field(
        0.85,
        description="Share of a GPU's memory that an engine may take (vLLM); at most "
        "1/jobs_per_gpu.",
    )
    max_num_seqs: Count = Field(
        1024,
        description="Answers that vLLM samples at a time on a GPU, at most: "
        "no more than its cache holds to their end.",
    )


class ActivationsRuntime(Settings):
    """How activations are computed."""

    batch_size: Count = Field(
        64, description="Prompts per forward pass; on a GPU the limit is this times 64 tokens."
    )


class Runtime(Settings):
    """Settings that bound memory and time. They change no result: changing one reruns nothing that is
    finished."""

    gpus_per_job: Annotated[int, Field(ge=0)] = Field(
        0,
        description="GPUs per job that loads a model: 1 on a GPU machine, else 0. No job uses "
        "several.",
    )
    jobs_per_gpu: Count = Field(
        1,
        description="Model jobs that may share one GPU. A small model cannot fill one alone; each "
        "must fit into its share of the memory. Trainings with the defences kl or r3f take two shares each, "
        "where there are two.",
    )
    checkpoint_steps: Annotated[int, Field(ge=0)] = Field(
        100,
        description="Optimiser steps between two checkpoints of a training. A killed job resumes "
        "from the last one, with the same result. 0: no checkpoints.",
    )
    chains_per_engine: Count = Field(
        16,
        description="Chains that one engine may serve, in the order in which their adapters "
        "finish. 1: one engine per job.",
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
        "whatever its case and Unicode composition. It must not start or end with white space, or "
        "hold a special token or turn mark of the model."
    )
    judge: Literal["nothing", "directions", "values"] = Field(
        "values",
        description="What the scorecard judges. directions: only the direction of each of the "
        "study's claims. values: published values too. nothing: no claim, for a rehearsal.",
    )
    model: Model = block(Model)
    models: dict[StageName, OtherModel] = Field(
        {},
        description="Other base models by name. A chain that starts from one begins with its name "
        "(early+em@42). A chain without a name starts from model:, which is called base.",
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
        {}, description="Default settings per kind of stage; a stage's own settings override them."
    )
    stages: Annotated[dict[StageName, dict[str, Any]], Field(min_length=1)] = Field(
        description="Training runs by name; a chain writes them stage@seed+stage@seed. A stage "
        "marked with ! (stage@seed!) is present while later stages are trained and left out when "
        "the chain is measured."
    )
    conditions: Annotated[
        dict[Annotated[str, Field(pattern="^[A-Za-z][A-Za-z0-9_-]*$")], Condition],
        Field(min_length=1),
    ] = Field(description="Conditions by name: the chains that are measured.")
    only: Annotated[Names, Field(min_length=1), BeforeValidator(_listed)] | None = Field(
        None,
        description="Run only these conditions, what they need, and the base model; on the command "
        "line --config only=C1,C4. Default: all.",
    )
    sampling: Sampling = block(Sampling, Sampling())
    measures: dict[str, dict[str, Any]] = Field(
        description="Measures taken of each chain, each with its own settings."
    )
    statistics: Statistics = block(Statistics)
    runtime: Runtime = block(Runtime, Runtime())
    claims: str = Field("config/claims.yaml", description="File of the study's claims.")
    errata: str = Field(
        "config/errata.yaml",
        description="File of the study's figures that its own numbers contradict.",
    )
