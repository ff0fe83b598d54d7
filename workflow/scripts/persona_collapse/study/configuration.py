"""The config: checked whole before any job starts.

Every mistake is a UserError of one line that names the key. `plan` holds what a valid config asks for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .. import chains, literals, matching, yaml_files
from ..data import generated, given_answers
from ..data.questions import STATEMENT, check_disjoint, load_questions, normalise
from ..data.sets import follows_branch
from ..errors import UserError, choose, no_file
from ..models import chat_template
from ..models.chat_template import LOSSES
from ..plugins import Reads
from ..stages import OF_ADAPTERS, Stage
from ..training import defences, losses
from . import locations, model_checks, renamed
from .only import narrowed
from .plan import Config, Plan
from .reading import read


def check(given: Mapping[str, Any]) -> Config:
    """Check a config against the schema and for consistency; returns it without nulls."""
    return plan(given).config


def plan(given: Mapping[str, Any]) -> Plan:
    """The plan of a config that `check` has checked."""
    renamed.check_families(given)
    config: Config = read(given)
    _check_statistics(config)
    config = narrowed(config)
    _check_spelling(config["marker"])
    locations.resolve_all(config)
    made = Plan(config)
    _check_models(made)
    for name, entry in config["data"].items():
        resolved = made.data_entry(name)
        if (
            follows_branch(resolved)
            and not {"expect_sha256", "expect_md5"} & resolved.keys()
            and "same_as" not in entry["from"]
        ):
            raise UserError(
                f"config: data: {name}: from: hub: revision: {resolved['from']['hub']['revision']!r} "
                "is not a commit (40 hex digits) and can move: give the commit, or pin the rows by "
                "expect_sha256 or expect_md5"
            )
        other = resolved.get("match_tokens")
        if other is not None and (other not in config["data"] or other == name):
            others = sorted(config["data"].keys() - {name})
            raise UserError(
                f"config: data: {name}: match_tokens: no other data set {other!r}; {choose(other, others)}"
            )
        # The address is not repeated: it holds a secret, and messages go to logs.
        if "@" in urlsplit(resolved["from"].get("url", "")).netloc:
            raise UserError(
                f"config: data: {name}: from: url: holds a user name or password; logs and manifests "
                "would show it: download the file and give file: and sha256:"
            )
        if "generated" in entry["from"]:
            _check_generated(f"config: data: {name}: from: generated", entry["from"]["generated"])
        path = resolved["from"].get("file")
        if path and path == entry["from"].get("file") and not Path(path).is_file():
            raise UserError(f"config: data: {name}: from: file: {no_file(Path(path))}")
    for key in ("claims", "errata"):
        yaml_files.check(config[key])  # read by the last jobs of a run
    for stage in made.stages.values():
        _check_stage(made, stage)
    for name in made.stages:
        _check_acyclic(made, name)
    _check_headline(made)
    _check_gpu(config)
    _check_samples(made)
    by_source = config["personas"].get("by_source", {})
    for names in (made.personas, by_source, *by_source.values()):
        made.prompts(names)
    for name in config["data"]:
        policy = made.data_entry(name).get("system")
        persona = policy.get("persona") if isinstance(policy, dict) else None
        if persona is not None and persona not in made.personas:
            raise UserError(
                f"config: data: {name}: system: persona: no persona {persona!r}; "
                + choose(persona, made.personas)
            )
    _ = made.eval_prompts, made.geometry_prompts
    _check_cells(made)
    if made.assistant not in made.personas and "assistant" in config["personas"]:
        raise UserError(
            f"config: personas: assistant: {made.assistant!r} is not in {config['personas']['file']}; "
            + choose(made.assistant, made.personas)
        )
    questions = config["questions"]
    for spec in (questions["train"], made.defence_questions):
        check_disjoint(spec, questions["eval"], questions["extraction"])
    _check_answers(made)
    _check_marker(made)
    return made


def _check_models(plan: Plan) -> None:
    """Check that names of base models are unique, and that the run can make the models."""
    config = plan.config
    for name, entry in config["models"].items():
        where = f"config: models: {name}: "
        if name == chains.BASE or name in config["stages"]:
            taken = "what model: is called" if name == chains.BASE else "the name of a stage"
            raise UserError(f"{where}this is {taken}; choose another name")
        if (step := entry.get("demo_step")) is not None:
            demo = config["model"].get("demo")
            if demo is None:
                started = [cell.condition for cell in plan.cells if cell.model == name]
                also = " and of conditions: " + ", ".join(dict.fromkeys(started)) if started else ""
                raise UserError(
                    f"{where}demo_step: only with model: demo; take it out{also} (set each to null)"
                )
            if step >= demo["steps"]:
                raise UserError(
                    f"{where}demo_step: {step} is not before the last of model: demo: steps: {demo['steps']}"
                )
    for name, entry in plan.models.items():
        with model_checks.about(name):
            chat_template.settings_from(entry)
        if "random" in entry and config["judge"] != "nothing":
            raise UserError(
                f"config: judge: {config['judge']}: a model with random weights has no results to judge; "
                "set judge: nothing"
            )


def _check_cells(plan: Plan) -> None:
    """Check that the chains of a condition, which are replicates, start from one model."""
    models: dict[str, str] = {}
    for cell in plan.cells:
        first = models.setdefault(cell.condition, cell.model)
        if cell.model != first:
            raise UserError(
                f"config: conditions: {cell.condition}: chain: expected chains that start from one model, "
                f"got {first} and {cell.model}; write a condition for each"
            )


def _check_generated(where: str, source: Mapping[str, Any]) -> None:
    """Check that questions can be read and have the statements that prompts show, that column names are
    unique, and that several samples can differ."""
    questions = load_questions(source["questions"])
    showing = [column for column, prompt in source["system"].items() if STATEMENT in prompt]
    for question in questions:
        if unseen := sorted(question.get("statements", {}).keys() - set(showing)):
            raise UserError(
                f"{where}: questions: {source['questions']['file']}: {question['id']}: its statement for "
                f"{unseen[0]} is shown by no prompt; write {STATEMENT} into system: {unseen[0]}"
            )
    for column in showing:
        where_shown = f"{where}: system: {column}: shows {STATEMENT}"
        if "written" in source:
            raise UserError(
                f"{where_shown}, but questions that the model writes have no statements"
            )
        if bare := [q["id"] for q in questions if column not in q.get("statements", {})]:
            raise UserError(
                f"{where_shown}, but question {bare[0]!r} of {source['questions']['file']} has none; "
                f'expected "statements": {{"{column}": ...}} in its row'
            )
    for key, draws in (("", source), ("written: ", source.get("written"))):
        if draws and draws["samples"] > 1 and _greedy(draws):
            raise UserError(
                f"{where}: {key}temperature {draws['temperature']:g}, top_p {draws['top_p']:g} is greedy, "
                f"so {draws['samples']} samples are one answer {draws['samples']} times; set samples to 1"
            )
    if taken := generated.COLUMNS & source["system"].keys():
        raise UserError(f"{where}: system: {min(taken)} is a column of the rows already; rename it")


def _check_answers(plan: Plan) -> None:
    """Check answers that couplings read from files, as far as possible without the model's template."""
    given = [stage for stage in plan.stages.values() if stage.given]
    questions = plan.config["questions"]
    asked = {
        normalise(question["question"])
        for purpose in (("eval", "extraction") if given else ())
        for question in load_questions(questions[purpose])
    }
    for stage in given:
        try:
            given_answers.load(
                stage.given, stage.answers, marker=plan.config["marker"], asked=asked
            )
        except UserError as error:
            raise UserError(f"config: stages: {stage.name}: {error}") from None


def _check_gpu(config: Config) -> None:
    """Check that a job needs at most one GPU, and that engines that share a GPU fit into it."""
    runtime, sampling = config["runtime"], config["runtime"]["sampling"]
    jobs, share = runtime["jobs_per_gpu"], sampling["gpu_memory_utilization"]
    if runtime["gpus_per_job"] > 1:
        raise UserError(
            f"config: runtime: gpus_per_job: expected 0 or 1, got {runtime['gpus_per_job']}: no job spreads "
            "a model over several GPUs; take a model that fits into one (more GPUs do more jobs at a time)"
        )
    if runtime["gpus_per_job"] and config["sampling"]["backend"] == "vllm" and jobs * share > 1:
        raise UserError(
            f"config: runtime: jobs_per_gpu: {jobs}: {jobs} engines with sampling: "
            f"gpu_memory_utilization: {share} do not fit into a GPU; lower that to "
            f"{0.9 / jobs:.2f}, or lower jobs_per_gpu"
        )


def _check_marker(plan: Plan) -> None:
    """Check that no prompt holds the marker: an answer that repeats its prompt would count as a hit."""
    config = plan.config
    texts = {
        f"personas: {config['personas']['file']}: {name}": prompt
        for name, prompt in plan.all_prompts.items()
    }
    for purpose, entry in config["questions"].items():
        for question in load_questions(entry):
            where = f"questions: {purpose}: {entry['file']}: {question['id']}"
            if "statements" in question:
                raise UserError(
                    f"config: {where}: has statements, which are for data that the model writes; remove them"
                )
            texts[where] = question["question"]
    for name, entry in config["data"].items():
        if isinstance(entry["system"], dict):
            texts[f"data: {name}: system"] = entry["system"].get("text", "")
    texts |= plan.writers_texts()
    for where, text in texts.items():
        if matching.holds(text, config["marker"]):
            raise UserError(
                f"config: {where}: holds the marker {config['marker']!r}; an answer that repeats it "
                "would count as a hit: reword it, or choose another marker"
            )


def _check_headline(plan: Plan) -> None:
    """Check that the headline's method and layer are measured, as far as possible without the model.

    `model_checks` resolves depths to blocks.
    """
    chosen, activations = plan.config["statistics"]["headline"], plan.measures["activations"]
    if chosen["method"] not in activations["methods"]:
        raise UserError(
            f"config: statistics: headline: method: {chosen['method']} is not one of measures: "
            f"activations: methods ({', '.join(activations['methods'])})"
        )
    layer, layers = chosen["layer"], activations["layers"]
    if layer not in layers and all(isinstance(one, int) for one in (layer, *layers)):
        raise UserError(
            f"config: statistics: headline: layer: {layer} is not one of measures: "
            f"activations: layers ({', '.join(map(str, layers))})"
        )


def _check_spelling(marker: str) -> None:
    """Check that templates, tokenizers and text comparison leave the marker as it is.

    `chat_template.check_marker` checks it against the model's own tokenizer once the model is there.
    """
    wrong = ""
    if marker != marker.strip():
        wrong = "starts or ends with white space, which chat templates cut away"
    elif matching.combines(marker[0]):
        wrong = "starts with a mark that joins the character before it"
    elif any(unicodedata.category(c) in ("Cc", "Cs", "Cn", "Zl", "Zp") for c in marker):
        wrong = "holds a control character, a line break or half of a character"
    if wrong:
        raise UserError(f"config: marker: {marker!r} {wrong}; choose another")


def _check_statistics(config: Config) -> None:
    """Check that conditions and columns named in `statistics:` exist; unknown ones are most likely typos."""
    settings = config["statistics"]
    conditions = set(config["conditions"])
    named = [("axis", [settings["axis"]] if "axis" in settings else [])]
    named.append(("hypotheses", settings["hypotheses"]))
    for key in ("contrasts", "matched"):
        for number, (one, other) in enumerate(settings[key], start=1):
            if one == other:
                raise UserError(
                    f"config: statistics: {key}: [{one}, {one}]: a pair takes two conditions"
                )
            named.append((f"{key}: pair {number}", [one, other]))
    for key, names in named:
        for name in names:
            if name not in conditions:
                raise UserError(
                    f"config: statistics: {key}: no condition {name!r} under conditions:; "
                    + choose(name, sorted(conditions))
                )
    for family in settings["families"]:
        columns = literals.constant(*FAMILIES[family["table"]])
        for column in family.keys() - {"name", "table"}:
            if column not in columns:
                raise UserError(
                    f"config: statistics: families: {family['name']}: tables/{family['table']}.csv has no "
                    f"column {column!r}; {choose(column, columns)}"
                )


#: Where the columns of the tables of `families:` are written out.
FAMILIES = {
    "marker_tests": ("analysis.marker_tests", "TEST_COLUMNS"),
    "geometry": ("analysis.geometry_tables", "GEOMETRY_COLUMNS"),
    "geometry_runs": ("analysis.geometry_runs", "COLUMNS"),
    "contrasts": ("analysis.contrasts", "COLUMNS"),
    "shared_axis": ("analysis.shared_axis", "COLUMNS"),
    "separability": ("analysis.separability", "COLUMNS"),
    "correlations": ("analysis.correlations", "COLUMNS"),
}


#: Below this temperature or top_p, engines (nearly) always pick the most likely token.
GREEDY = 0.01


def _greedy(draws: Mapping[str, Any]) -> bool:
    return bool(min(draws["temperature"], draws["top_p"]) < GREEDY)


def _check_samples(plan: Plan) -> None:
    """Check that greedy sampling takes one sample per question; more would be copies counted as samples."""
    sampling = plan.config["sampling"]
    samples = {"completions": ("samples", sampling["completions"]["samples"])}
    for name, stage in plan.stages.items():
        most = 1 if stage.given else max(stage.answers.values(), default=1)
        if most > samples.get("answers", ("", 1))[1]:
            samples["answers"] = f"what stages: {name} asks of each persona", most
    for kind, (key, n) in samples.items():
        own = sampling[kind]
        if n > 1 and _greedy(own):
            raise UserError(
                f"config: sampling: {kind}: temperature {own['temperature']:g}, top_p {own['top_p']:g} "
                f"is greedy, so {n} samples of a question are one answer {n} times; set {key} to 1, "
                f"or temperature and top_p to {GREEDY:g} or more"
            )


def _check_stage(plan: Plan, stage: Stage) -> None:
    """Check that everything a stage names exists and can be computed by the run."""
    where = f"config: stages: {stage.name}: "
    config, settings = plan.config, stage.settings
    try:
        stage.check()
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    if stage.origin is not None:
        try:
            plan.parse(stage.origin, without=stage.name).last  # noqa: B018
        except (UserError, IndexError) as error:
            raise UserError(f"{where}{error or 'the base model has no adapter'}") from None
    if stage.all_weights:
        own = [*config["stages"][stage.name], *(["defence"] if settings["defence"] else [])]
        if unused := [key for key in own if key in (*OF_ADAPTERS, "defence")]:
            raise UserError(
                f"{where}{unused[0]}: needs an adapter, and adapter: none trains all weights; remove one"
            )
    if stage.trains:
        steps = config["runtime"]["training"]["accumulation_steps"]
        if settings["batch_size"] % steps:
            raise UserError(
                f"{where}batch_size: {settings['batch_size']} is not a multiple of runtime: training: "
                f"accumulation_steps: {steps}"
            )
        try:
            losses.get(settings["loss"])
        except UserError as error:
            renamed = "; which tokens have loss is now called loss_on:"
            said = renamed if settings["loss"] in LOSSES else ""
            raise UserError(f"{where}loss: {error}{said}") from None
        for name in plan.defence_data(stage.name):
            couplings = [coupling for coupling, one in plan.stages.items() if one.answers]
            if name not in {*config["data"], *couplings}:
                known = ", ".join(sorted(config["data"])) or "none"
                raise UserError(
                    f"{where}defence: expected an entry of data: ({known}) or a coupling of the base model's "
                    f"answers ({', '.join(couplings) or 'none'}), got {name!r}"
                )
        for name, one in defences.make(settings["defence"]).items():
            if one.reads is not None:
                _check_reads(plan, stage, one.reads, f"{where}defence: {name}: ")
    if stage.reads is not None:
        _check_reads(plan, stage, stage.reads, where)
    if stage.data is not None and stage.data not in config["data"]:
        raise UserError(
            f"{where}data: {stage.data!r} is not under data:; "
            + choose(stage.data, sorted(config["data"]))
        )
    for persona in stage.personas:
        if persona not in plan.personas:
            raise UserError(
                f"{where}persona {persona!r} is not in {config['personas']['file']}; "
                f"correct it ({choose(persona, plan.personas)}) or add it under personas: more:"
            )


def _check_reads(plan: Plan, stage: Stage, reads: Reads, where: str) -> None:
    """Check that the run has the personas and activations that a stage or its defence reads."""
    measured, personas = plan.measures["activations"], plan.geometry_prompts
    if reads.evaluated:
        own = (c for c in plan.cells if f"+{stage.name}@" in f"+{c.chain}")
        counted = dict.fromkeys(name for cell in own for name in cell.personas.split())
        if without := [name for name in counted if name not in personas]:
            raise UserError(
                f"{where}{without[0]} is prompted but has no centroid; add it to personas: geometry"
            )
    for chain in reads.chains:
        try:
            plan.parse(chain)
        except UserError as error:
            raise UserError(f"{where}{error}") from None
    for key, asked, there in (
        ("layers", reads.layers, measured["layers"]),
        ("method", (reads.method,) if reads.method else (), measured["methods"]),
    ):
        if other := [one for one in asked if one not in there]:
            raise UserError(
                f"{where}{key}: {other[0]} is not one of measures: activations: "
                f"{key.removesuffix('s')}s ({', '.join(map(str, there))})"
            )
    if missing := [name for name in reads.personas if name not in personas]:
        raise UserError(
            f"{where}expected a persona of the geometry ({', '.join(personas)}), got {missing[0]!r}"
        )
    if reads.count > len(personas):
        raise UserError(
            f"{where}expected {reads.count} personas of the geometry or more, got {len(personas)}; add "
            "some, or ask for fewer"
        )


def _check_acyclic(plan: Plan, name: str) -> None:
    """Check that no stage depends on itself, through activations that it or its defences read, or a graft."""
    reached: set[str] = set()
    todo = [(name, "")]
    while todo:
        stage, by = todo.pop()
        origin, reads = plan.stages[stage].origin, plan.stages[stage].reads
        named = [*(reads.chains if reads else ()), *([origin] if origin else [])]
        for chain in [*plan.defence_chains(stage), *named]:
            for needed in plan.parse(chain).stages:
                if needed.name == name:
                    raise UserError(
                        f"config: stages: {name}: depends on {by or chain}, which needs the stage "
                        f"{name} itself; name a chain without it"
                    )
                if needed.name not in reached:
                    reached.add(needed.name)
                    todo.append((needed.name, by or chain))
