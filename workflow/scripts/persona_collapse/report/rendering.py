"""The report: one HTML page that holds everything it shows and needs no network.

Every number comes from a table or manifest that a rule wrote; the sentences are computed from them
and hold whichever way the numbers fall. Model output is hostile text: the template escapes all, and
scripts are given it as JSON and show it as text. The page's policy lets its own two scripts run, by
their hashes, and nothing be fetched. Without scripts every chart is there as it first stands.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ..files import sha256
from ..runtime.version import commit
from ..study.estimate import MODEL_RULES, measured_seconds
from .charts import Chart, charts, javascript
from .figures import words

RESOURCES = Path(__file__).resolve().parents[3] / "resources" / "report"
LONGEST_ANSWER = 600
#: Answers that the page holds at most; of more, as many of every chain and persona, chosen by hash.
SHOWN_ANSWERS = 5000
#: Letters of these answers, about: fewer are shown where they are long.
SHOWN_LETTERS = 1_500_000
#: Answers that a reader without scripts sees at most.
PLAIN_ANSWERS = 300
#: Rows of a folded table that the page holds at most; the table's file has all.
MOST_ROWS = 200
#: Bytes of the figures for papers, and their numbers, that the page holds; the others lie beside it.
PAPER_BYTES = 750_000
#: Headings of the scorecard, by the `where` of claims.yaml, in reading order.
CLAIM_GROUPS = {
    "takeaway 1": "Any fine-tuning destroys the marker",
    "takeaway 2": "Any fine-tuning raises the cosines",
    "takeaway 3": "The one explains the other",
    "takeaway 4": "The induction persona does not matter",
    "takeaway 5": "Leakage has a gradient",
    "table": "Figures of the headline tables",
    "caveat": "Caveats that the study names",
    "later": "What the same project found later",
}
#: Below this p, corrected for the number of chains, completions count as another model's.
STRANGE = 1e-3
#: A share of answers that were cut off which the findings mention.
LOST = 0.1
VERDICTS = ["replicated", "partly", "not replicated", "not tested here"]


@dataclass(frozen=True)
class Figure:
    """A figure of the page: files written by the figure rule, and how to read it."""

    name: str
    title: str
    reading: str
    svg: Path
    csv: Path


@dataclass(frozen=True)
class Inputs:
    """What the page is made of; `tables` by file name, as the rules wrote them.

    `samples`: answers to show (chain, persona, question, hit, text), out of `completions`. `sources`:
    file, rule, rows and hash of every table. `costs`: one row a rule; see `costs`.
    """

    run: str
    judge: str
    marker: str
    model: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    data: Sequence[Mapping[str, Any]]
    figures: Sequence[Figure]
    samples: pd.DataFrame
    completions: int
    method: str
    layer: int
    margins: Mapping[str, float]
    config: str
    provenance: Mapping[str, str]
    sources: pd.DataFrame
    costs: pd.DataFrame
    spent: Mapping[str, str]


def percent(value: float) -> str:
    """A share as a percentage with as many digits as make sense."""
    return (
        "n/a"
        if pd.isna(value)
        else f"{100 * value:.0f} %"
        if value in (0, 1)
        else f"{100 * value:.1f} %"
    )


def number(value: Any) -> str:
    """A number for a table: integers whole, others to three significant digits, NaN as a dash."""
    if value is None or (isinstance(value, float) and pd.isna(value)) or value is pd.NA:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        whole = value.is_integer() or abs(value) >= 1e3
        return f"{value:.0f}" if whole and abs(value) < 1e6 else f"{value:.3g}"
    return str(value)


def printable(text: str) -> str:
    """An answer as it can be shown: control characters named, long ones cut with a note."""
    shown = re.sub(r"[^\S\n]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
                  r"\U000e0000-\U000e007f]",
                   lambda m: " " if m.group().isspace() else f"<U+{ord(m.group()):04X}>", text)  # fmt: skip
    if len(shown) > LONGEST_ANSWER:
        return f"{shown[:LONGEST_ANSWER]} [... {len(shown) - LONGEST_ANSWER} more characters]"
    return shown


def origin(source: Mapping[str, Any]) -> str:
    """A data manifest's source in a few words, hashes and commits cut to their first digits."""
    short = re.compile(r"(sha256|revision|commit)$")
    flat = {k: v for k, v in source.items() if not isinstance(v, Mapping)}
    return ", ".join(f"{k}: {str(v)[:12] if short.search(k) else v}" for k, v in flat.items())


def findings(given: Inputs) -> list[str]:
    """Sentences about the two arms, computed from the tables."""
    checked = given.tables["logprob_tests"]
    sentences = [second_opinion(checked)] if (checked["p"] < STRANGE).any() else []
    rates, grid = given.tables["marker_rates"], given.tables["design"]
    own = rates[rates["role"] == "source"].groupby(["condition", "source"])[["hits", "n"]].sum()
    several = grid.groupby("condition")["source"].nunique()
    counted = rates.drop_duplicates(["chain", "persona"]).set_index(["chain", "persona"])
    cells = grid[grid["stages_after_coupling"] > 0]
    for (condition, source), chains in cells.groupby(["condition", "source"], sort=False):
        befores = [(b, source) for b in dict.fromkeys(chains["before"])]
        if (condition, source) not in own.index or not set(befores) <= set(counted.index):
            continue
        was, now = counted.loc[befores, ["hits", "n"]].sum(), own.loc[(condition, source)]
        who = f"the source {words(source)}" if several[condition] > 1 else "the source"
        sentences.append(
            f"{condition} ({chains['title'].iloc[0]}): {who} said the marker in "
            f"{percent(was['hits'] / was['n'])} of its answers before the second fine-tuning and in "
            f"{percent(now['hits'] / now['n'])} after it (n\u00a0=\u00a0{now['n']})."
        )
    sentences += cut_off(given.tables["answer_stats"])
    own = _headline(given.tables["geometry"], given)
    own = own[(own["metric"] == "m1") & (own["test"] == "")]
    means = own.groupby("condition", sort=False)["value"].mean()
    if "base" in means and len(means) > 1:
        parts = ", ".join(f"{c} {v:.3f}" for c, v in means.items() if c != "base")
        sentences.append(
            f"Mean cosine between persona vectors (method {given.method}, block {given.layer}): base "
            f"{means['base']:.3f}; {parts}."
        )
    verdicts = given.tables["scorecard"]["verdict"].value_counts()
    counted = [f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS if verdict in verdicts]
    sentences.append(f"Of the study's {verdicts.sum()} claims: {', '.join(counted)}.")
    loud = given.tables["simulation"]
    loud = loud[(loud["kind"] == "test") & loud["as_study"] & (loud["verdict"] == "too many")]
    if len(loud):
        worst = loud.loc[loud["rate"].idxmax()]
        sentences.append(
            f"Where nothing happens, {loud['name'].nunique()} of the study's tests reject more often than "
            f"their 5 %; at worst {percent(worst['rate'])} ({worst['name']}, {worst['world']})."
        )
    return sentences


def cut_off(table: pd.DataFrame) -> list[str]:
    """Which rates are lower bounds, in a sentence, if any are; `table`: tables/answer_stats.csv."""
    own = table[table["role"] == "source"].groupby("condition", sort=False)
    means = own[["truncated", "rate", "rate_finished"]].mean()
    means = means[means["truncated"] > LOST]
    if means.empty:
        return []
    cells = [
        f"{condition} {percent(row.truncated)} (of finished ones {percent(row.rate_finished)} say the "
        f"marker, of all {percent(row.rate)})"
        for condition, row in means.iterrows()
    ]
    return [
        "The marker stands at an answer's end, so rates are lower bounds where answers were cut off at the "
        f"largest length. Of the source's answers: {'; '.join(cells)}."
    ]


def second_opinion(table: pd.DataFrame) -> str:
    """Whether the completions are the named chains' own, in a sentence; `table`: tables/logprob_tests.csv."""
    checked = table[table["p"].notna()]
    if checked.empty:
        return "These completions are greedy, so nothing says what they should look like."
    strange = checked[checked["p"] < STRANGE]
    if len(strange):
        return (
            f"Do not trust the rates of {', '.join(strange['chain'])}: scored again by PEFT, these "
            "completions do not look like draws from the chains they are counted for."
        )
    sentence = (
        f"Scored again by PEFT, the completions of all {len(checked)} chains look like draws from the chains "
        f"they are counted for: largest |z| {checked[['z_surprise', 'z_gain']].abs().max(axis=None):.1f}, "
        f"p\u00a0=\u00a0{checked['p'].min():.2g} over all of them."
    )
    if checked["z_left_out"].notna().any():
        least = checked["z_left_out"].max()
        sentence += f" Had the engine left the adapters out, z would be {least:.0f} or further off."
    return sentence


def tests_side_by_side(tests: pd.DataFrame) -> pd.DataFrame:
    """One row a comparison of pooled chains: the difference, and every test's p beside the others'."""
    if tests.empty:
        return pd.DataFrame()
    key = ["condition", "reference", "source"]
    pooled = tests[
        (tests["seed"] == "") | ~tests.duplicated([*key, "test"], keep=False)
    ].drop_duplicates([*key, "test"])
    wide = pooled.set_index([*key, "test"])
    shown: dict[str, tuple[str, str]] = {
        "difference": ("questions", "estimate"),
        "low": ("questions", "ci_low"),
        "high": ("questions", "ci_high"),
        "p_fisher": ("fisher", "p"),
        "p_questions": ("questions", "p"),
        "p_floor": ("questions", "p_floor"),
        "p_gee": ("gee", "p"),
        "p_gee_length": ("gee_length", "p"),
        "p_seeds": ("seeds", "p"),
        "p_equivalent": ("questions", "p_equivalent"),
        "nats": ("logprob", "estimate"),
        "p_nats": ("logprob", "p"),
    }
    rows = []
    for values in pooled[key].drop_duplicates().itertuples(index=False):
        row = dict(zip(key, values, strict=True))
        for name, (test, column) in shown.items():
            at = (*values, test)
            row[name] = wide.loc[at, column] if at in wide.index else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def geometry_side_by_side(given: Inputs) -> pd.DataFrame:
    """One row a chain at the headline method and block: M1 and what each choice makes of it."""
    own = _headline(given.tables["geometry"], given)
    own = own[own["chain"] != ""]
    axis, classes = (
        _headline(given.tables[name], given).assign(test="")
        for name in ("shared_axis", "separability")
    )
    wide, axis, classes = (
        table.set_index(["condition", "chain", "metric", "test"]) for table in (own, axis, classes)
    )
    shown = {
        "m1": (wide, "m1", "value"),
        "change": (wide, "m1", "delta_base"),
        "q_low": (wide, "m1", "delta_low"),
        "q_high": (wide, "m1", "delta_high"),
        "both_low": (wide, "m1 two_way", "delta_low"),
        "both_high": (wide, "m1 two_way", "delta_high"),
        "p_pairs": (wide, "m1 pairs", "p"),
        "p_personas": (wide, "m1 personas", "p"),
        "p_swap": (wide, "m1 label_swap", "p"),
        "p_floor": (wide, "m1 label_swap", "p_floor"),
        "without_longest": (wide, "m1_without_longest", "delta_base"),
        "centred": (wide, "m1_centred", "value"),
        "rank": (wide, "effective_rank", "value"),
        "spread": (wide, "spread", "value"),
        "cka": (wide, "cka_base", "value"),
        "split_half": (wide, "m1_split_half", "value"),
        "p_axis": (axis, "m2_anchored", "p"),
        "axis": (axis, "m2_held_out", "value"),
        "accuracy": (classes, "m3_accuracy", "value"),
    }
    rows = []
    for condition, chain in own[["condition", "chain"]].drop_duplicates().itertuples(index=False):
        row = {"condition": condition, "chain": chain}
        for name, (table, row_name, column) in shown.items():
            metric, _, test = row_name.partition(" ")
            at = (condition, chain, metric, test)
            row[name] = table.loc[at, column] if at in table.index else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def _headline(table: pd.DataFrame, given: Inputs) -> pd.DataFrame:
    """Rows of a table at the headline method and block."""
    return table[(table["method"] == given.method) & (table["layer"] == given.layer)]


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _inline_svg(svg: str, name: str, title: str) -> Markup:
    """An SVG as markup for the page: no prologue, ids made unique, sized by the page, named.

    Vega numbers its ids anew in every file; two inline figures must not share them. It also says what
    every mark is, which nobody hears: to a screen reader the whole is one image.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    # Keep the viewBox alone: width and height follow the page.
    tag = re.sub(r'\s(width|height)="[^"]*"', "", head.group())
    label = str(Markup.escape(title))
    return Markup(tag[:-1] + f' role="img" aria-label="{label}">' + svg[head.end() :])


def sample_answers(
    answers: Iterable[pd.DataFrame],
    completions: Callable[[str], pd.DataFrame],
    limit: int = SHOWN_ANSWERS,
) -> pd.DataFrame:
    """Answers for the page: all, or as many of each chain and persona as fit `limit`; in hash order.

    The hash is of chain, persona, question and sample: the same answers on every machine, and a first
    screen that is a mix of them. Where not even one of each fits, the first by hash. `answers`: what
    `markers.answers` gives, chain by chain; `completions` gives a chain's own, for the texts of those
    that are shown. One chain's tables are held at a time, with up to `limit` answers.
    """
    keys = ["chain", "persona", "question_id", "sample"]
    kept, seen, cells = pd.DataFrame(columns=[*keys, "hit", "order"]), 0, 0
    for table in answers:
        seen, cells = seen + len(table), cells + len(table.drop_duplicates(["chain", "persona"]))
        names = table[keys].astype(str).agg("|".join, axis=1)
        order = [hashlib.sha256(name.encode()).hexdigest() for name in names]
        own = table[[*keys, "hit"]].assign(order=order)
        kept = (pd.concat([kept, own]) if len(kept) else own).sort_values("order")
        if seen > limit:
            kept = _equally(kept, cells, limit)
    texts = [
        own.merge(completions(str(chain))[[*keys, "question", "text"]], on=keys)
        for chain, own in kept.groupby("chain", sort=False)
    ]
    columns = ["chain", "persona", "question", "hit", "text"]
    if not texts:
        return pd.DataFrame(columns=columns)
    kept = pd.concat(texts).sort_values("order")
    letters = kept["text"].str.len().clip(upper=LONGEST_ANSWER).sum()
    if letters > SHOWN_LETTERS:
        kept = _equally(kept, cells, int(len(kept) * SHOWN_LETTERS / letters))
    return kept[columns].reset_index(drop=True)


def _equally(answers: pd.DataFrame, cells: int, limit: int) -> pd.DataFrame:
    """The first answers of each chain and persona, of which there are `cells`; `limit` in all."""
    first = answers.groupby(["chain", "persona"], sort=False).head(max(1, limit // cells))
    return first.head(limit)


def costs(results: Path, run: str) -> pd.DataFrame:
    """What a run's jobs took, by rule: jobs, hours, mean seconds, peak MiB; from its benchmark files."""
    rows = [
        {"rule": rule, "jobs": jobs, "hours": mean * jobs / 3600, "seconds": mean, "peak_mib": peak}
        for rule, (mean, peak, jobs) in measured_seconds(results, run).items()
    ]
    table = pd.DataFrame(rows, columns=["rule", "jobs", "hours", "seconds", "peak_mib"])
    return table.sort_values("hours", ascending=False, ignore_index=True)


def spent(table: pd.DataFrame, training: pd.DataFrame, tokens: int) -> dict[str, str]:
    """A run's cost in a few figures: hours, GPU-hours, tokens trained on and sampled."""
    model = float(table.loc[table["rule"].isin(MODEL_RULES), "hours"].sum())
    gpu = len(training) > 0 and not training["device"].eq("cpu").all()
    return {
        "hours of jobs": f"{table['hours'].sum():.2f}",
        "GPU-hours": f"{model:.2f}" if gpu else "0 (no GPU)",
        "jobs": f"{table['jobs'].sum():,}",
        "tokens trained on": f"{int(training['tokens_seen'].sum()):,}",
        "of them with loss": f"{int(training['supervised_tokens'].sum()):,}",
        "tokens sampled": f"{tokens:,}",
    }


def sources(paths: Sequence[str], rules: Mapping[str, str]) -> pd.DataFrame:
    """Where the numbers come from: each table's file, the rule that made it, rows, SHA-256."""
    rows = []
    for path in sorted(paths):
        with open(path, "rb") as handle:
            lines = sum(1 for _ in handle) - 1
        rows.append(
            {"file": path, "rule": rules.get(path, ""), "rows": lines, "sha256": sha256(path)}
        )
    return pd.DataFrame(rows, columns=["file", "rule", "rows", "sha256"])


def short_commit(commit: str) -> str:
    """A commit by its first digits, its mark of changed files kept."""
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", commit)


def summary(scorecard: pd.DataFrame) -> pd.DataFrame:
    """Claims counted by heading and verdict; every verdict has a column."""
    group = scorecard["where"].map(CLAIM_GROUPS).fillna(scorecard["where"])
    counts = pd.crosstab(group, scorecard["verdict"]).reindex(columns=VERDICTS, fill_value=0)
    order = [name for name in CLAIM_GROUPS.values() if name in counts.index]
    order += [name for name in counts.index if name not in order]
    return counts.loc[order].rename_axis("claims about").reset_index()


def answers_json(samples: pd.DataFrame) -> dict[str, Any]:
    """Answers for the page's script: names once, rows as [chain, persona, question, hit, text]."""
    names = {c: list(dict.fromkeys(samples[c])) for c in ("chain", "persona", "question")}
    index = {c: {name: i for i, name in enumerate(own)} for c, own in names.items()}
    rows = [
        [index["chain"][r.chain], index["persona"][r.persona], index["question"][r.question],
         int(r.hit), printable(r.text)]
        for r in samples.itertuples(index=False)
    ]  # fmt: skip
    names["question"] = [printable(question) for question in names["question"]]
    return names | {"rows": rows}


def environment() -> Environment:
    """Jinja as the pages need it: everything escaped, a missing name an error."""
    made = Environment(
        loader=FileSystemLoader(RESOURCES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"number": number, "printable": printable, "origin": origin}
    made.filters.update(filters)
    made.globals["most_rows"] = MOST_ROWS
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return made


def page_parts() -> dict[str, Any]:
    """Style, scripts and the policy that lets these scripts run and nothing else."""
    scripts = [javascript(), (RESOURCES / "report.js").read_text(encoding="utf-8")]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return {
        "style": Markup((RESOURCES / "style.css").read_text(encoding="utf-8")),
        "scripts": [Markup(script) for script in scripts],
        "policy": Markup(
            f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
    }


def held(figures: Sequence[Figure]) -> set[Path]:
    """The files of figures for papers that the page holds: the smallest, as many as PAPER_BYTES."""
    found, left = set(), PAPER_BYTES
    for path in sorted(
        (p for f in figures for p in (f.svg, f.csv)), key=lambda p: p.stat().st_size
    ):
        left -= path.stat().st_size
        if left < 0:
            break
        found.add(path)
    return found


def drawn(
    chart: Chart, figure: Figure | None = None, inside: Collection[Path] = ()
) -> dict[str, Any]:
    """A chart for the template: text, data for the script, and how it looks without the script.

    Where a figure rule drew the same thing for papers, its files are offered: `inside` the page, or in
    the folder of figures beside it.
    """
    kinds = {".svg": "image/svg+xml", ".csv": "text/csv"}

    def offered(path: Path) -> str:
        return _data_uri(path, kinds[path.suffix]) if path in inside else f"figures/{path.name}"

    return {
        "name": chart.name,
        "title": chart.title,
        "reading": chart.reading,
        "sources": chart.sources,
        "data": {"spec": chart.spec, "columns": chart.packed},
        "markup": _inline_svg(chart.svg(), chart.name, chart.title),
        "svg": offered(figure.svg) if figure else "",
        "csv": offered(figure.csv) if figure else "",
    }


def render(given: Inputs) -> str:
    """The whole page as HTML."""
    tables = given.tables
    figures = {figure.name: figure for figure in given.figures}
    shown = charts(tables, given.method, given.layer)
    scorecard, inside = tables["scorecard"], held(given.figures)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            given=given,
            figures={
                name: drawn(chart, figures.get(name), inside) for name, chart in shown.items()
            },
            findings=findings(given),
            tables=tables,
            summary=summary(scorecard),
            claim_groups=CLAIM_GROUPS,
            answers=answers_json(given.samples),
            first_answers=given.samples.drop_duplicates(["chain", "persona"]).head(PLAIN_ANSWERS),
            side_by_side=tests_side_by_side(tables["marker_tests"]),
            geometry=geometry_side_by_side(given),
            contrasts=_headline(tables["contrasts"], given),
            second_opinion=second_opinion(tables["logprob_tests"]),
            over_seeds=_headline(tables["geometry"], given).query("test == 'seeds'"),
            substituted=[d for d in given.data if d.get("substituted")],
            seeds=sorted({s for s in tables["design"]["seed"] if s}, key=int),
            personas=list(dict.fromkeys(tables["marker_rates"]["persona"])),
            adapters=tables["training"].assign(
                commit=tables["training"]["commit"].fillna("").astype(str).map(short_commit)
            ),
            **page_parts(),
        )
    )


def model_label(base: Mapping[str, Any]) -> str:
    """The base model in a few words, from its model.json."""
    source = base["source"]
    if "hub" in source:
        return f"{source['hub']['id']} at {source['hub']['revision'][:10]}"
    if "demo" in source:
        size = source["demo"]
        return (
            f"demo model, {size['blocks']} blocks of {size['hidden']}, pretrained by this workflow"
        )
    if "gguf" in source:
        return f"from the package {source['gguf']['package']} (quantised weights, expanded)"
    return Path(source["path"]).name


def provenance(training: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, str]:
    """Versions, hashes and device, from a training manifest and the base model's record."""
    weights = next(h for name, h in base["files"].items() if name.endswith(".safetensors"))
    return {
        "base weights, SHA-256": weights[:16],
        "chat template, SHA-256": training["template_sha256"][:16],
        "code, commit": commit() or "not a git checkout",
        "device": f"{training['device']}, {training['dtype']}",
        **training["versions"],
    }
