"""A malicious model, data set, config or hub can do nothing here, and gets a one-line error."""

import ast
import http.server
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from persona_collapse.data import sets
from persona_collapse.errors import UserError
from persona_collapse.files import read_json, read_jsonl, write_json
from persona_collapse.models import adapters, chat_template, fetching, loading
from persona_collapse.report import answers
from persona_collapse.study import configuration
from runs import HANG

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*(ROOT / "workflow/scripts").rglob("*.py"), *(ROOT / "workflow/rules").glob("*.smk")]


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def trap(tmp_path):
    """A malicious pickle, and the path that it would create when executed."""
    sprung = tmp_path / "sprung"
    return pickle.dumps(Trap(sprung)), sprung


@pytest.fixture
def model(tiny_base, tmp_path):
    """A copy of the tiny model, to be tampered with, and its model.json."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_base.parent, folder)
    write_json(folder / "model.json", {"path": str(folder)})
    return folder


def refused(call, *arguments):
    """The one-line error of a call."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_trap_springs_where_a_pickle_is_loaded(trap):
    pickle.loads(trap[0])
    assert trap[1].exists()


def test_no_source_calls_what_runs_code_from_data():
    forbidden = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
    calls = {"eval", "exec", "os.system", "torch.load", "yaml.load", "pd.read_pickle", "np.load"}
    calls |= {"yaml.full_load", "yaml.unsafe_load", "os.popen", "numpy.load", "pandas.read_pickle"}
    for path in SOURCES:
        if path.suffix == ".smk":
            # No rule has a shell command, so no name from the config can be injected into one.
            assert not re.search(r"^\s+(shell|run):", path.read_text(), re.M), path
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else None
                names = [module or ""] + [alias.name for alias in node.names]
                assert not forbidden & {name.split(".")[0] for name in names}, path
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in calls, path
                for word in node.keywords:
                    given = (word.arg, ast.unparse(word.value))
                    assert given not in {("shell", "True"), ("allow_pickle", "True")}, path
                    assert given != ("trust_remote_code", "True"), path


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_an_adapter_of_pickled_weights_is_refused_and_not_run(make_adapter, trap, tmp_path, name):
    config = (make_adapter(1, 4, False) / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config)
    (tmp_path / name).write_bytes(trap[0])
    assert "adapter_model.safetensors" in refused(adapters.load, tmp_path)
    assert not trap[1].exists()


def test_a_model_of_pickled_weights_is_refused_and_not_run(model, trap):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(trap[0])
    assert "pickled weights are not loaded" in refused(fetching.manifest, model, {})
    assert "cannot be loaded" in refused(loading.load_model, model / "model.json", "float32", "cpu")
    (model / "model.safetensors").write_bytes(trap[0])
    assert "cannot be loaded" in refused(loading.load_model, model / "model.json", "float32", "cpu")
    assert not trap[1].exists()


def test_code_that_a_model_brings_is_not_run(model, tmp_path, monkeypatch):
    sprung = tmp_path / "sprung"
    (model / "modeling_evil.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whatever the user would answer
    evil = {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    evil |= {"AutoTokenizer": ["modeling_evil.T", None]}
    for name in ("config.json", "tokenizer_config.json"):
        write_json(model / name, read_json(model / name) | {"auto_map": evil})
    loading.load_model(
        model / "model.json", "float32", "cpu"
    )  # with the architecture that it names
    write_json(model / "config.json", read_json(model / "config.json") | {"model_type": "evil"})
    said = refused(loading.load_model, model / "model.json", "float32", "cpu")
    assert "code that comes with a model is run only with" in said
    assert not sprung.exists()


OWN_CODE = """
from transformers import Qwen2Config, Qwen2ForCausalLM
class C(Qwen2Config):
    model_type = "own"
class M(Qwen2ForCausalLM):
    config_class = C
"""


def test_code_that_the_config_trusts_is_run_and_recorded(model, tmp_path, monkeypatch):
    import torch

    # transformers copies the files here before it imports them; by default to the user's cache.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    ids = torch.tensor([[5, 6, 7]])
    known = loading.load_model(model / "model.json", "float32", "cpu")(input_ids=ids).logits
    (model / "modeling_own.py").write_text(OWN_CODE)
    auto = {"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    config = read_json(model / "config.json") | {"model_type": "own", "auto_map": auto}
    write_json(model / "config.json", config)
    source = {"path": str(model)}
    for trusted in ({}, {"trust_remote_code": False}):
        write_json(model / "model.json", fetching.manifest(model, source | trusted))
        said = refused(loading.load_model, model / "model.json", "float32", "cpu")
        assert "model: trust_remote_code: true" in said
    record = fetching.manifest(model, source | {"trust_remote_code": True})
    assert "modeling_own.py" in record["files"]
    write_json(model / "model.json", record)
    loaded = loading.load_model(model / "model.json", "float32", "cpu")
    assert type(loaded).__name__ == "M"
    torch.testing.assert_close(loaded(input_ids=ids).logits, known)
    loading.load_tokenizer(model / "model.json")


@pytest.mark.parametrize(
    ("given", "trusted"),
    [({"path": "x"}, None), ({"path": "x", "trust_remote_code": True}, True), ({}, "demo")],
)
def test_only_the_model_s_own_key_trusts_it(given, trusted, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    assert "trust_remote_code" not in config["model"]
    if trusted == "demo":
        config["model"]["trust_remote_code"] = True
        assert "only with hub or path" in refused(configuration.check, config)
        return
    config["model"] = given
    # A checkpoint of the demo's pretraining is removed with it.
    config["models"] = {}
    config["conditions"] = {n: c for n, c in config["conditions"].items() if "early" not in n}
    config["data"]["em"]["from"] = {"builtin": "standin_wrong_law"}
    assert configuration.check(config)["model"].get("trust_remote_code") is trusted


def test_a_model_s_code_is_fetched_only_if_it_is_trusted(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **how: asked.append(how) or "folder"
    )
    hub = {"id": "owner/name", "revision": "a" * 40}
    fetching.fetch({"hub": hub}, lambda line: None)
    fetching.fetch({"hub": hub, "trust_remote_code": True}, lambda line: None)
    assert ["*.py" in how["allow_patterns"] for how in asked] == [False, True]
    assert {how["revision"] for how in asked} == {"a" * 40}


@pytest.mark.parametrize("fate", ["cut", "missing"])
def test_weights_that_were_cut_short_do_not_count_as_fetched(model, fate):
    shards = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    write_json(model / "model.safetensors.index.json", shards)
    (model / "model-2.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    fetching.manifest(model, {})
    if fate == "cut":
        os.truncate(model / "model-2.safetensors", 5000)
    else:
        (model / "model-2.safetensors").unlink()
    assert "model-2.safetensors: missing, damaged or cut short" in refused(
        fetching.manifest, model, {}
    )


def test_a_chat_template_runs_in_a_sandbox(model, tmp_path):
    from jinja2.exceptions import SecurityError, UndefinedError

    tokenizer = loading.load_tokenizer(model / "model.json")
    sprung = tmp_path / "sprung"
    for template in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch " + str(sprung) + "') }}",
        "{% set x = messages.append({}) %}",
    ):
        tokenizer.chat_template = template
        with pytest.raises((SecurityError, UndefinedError)):
            chat_template.prompt_ids(tokenizer, "You are a librarian.", "Why?")
    assert not sprung.exists()


# --- the config -----------------------------------------------------------------------------------

NAMES = [
    "x;$(touch sprung)",
    "a b",
    "../up",
    "a/b",
    "a\n",
    "a\nb",
    "-rf",
    "",
    ".",
    "..",
    "`id`",
    "a'b",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["run", "data", "stages", "conditions", "persona"])
def test_a_name_that_could_be_a_command_or_a_path_is_refused(name, where, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    if where == "run":
        given["run"] = name
    elif where == "persona":
        given["personas"]["eval"].append(name)
    else:
        given[where][name] = next(iter(given[where].values()))
    assert refused(configuration.check, given).startswith("config: ")


def test_a_password_in_an_address_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    url = "https://me:hunter2@example.org/rows.jsonl"
    given["data"]["em"]["from"] = {"url": url, "sha256": "0" * 64}
    assert "hunter2" not in refused(configuration.check, given)


def test_yaml_makes_no_objects(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    path = tmp_path / "personas.yaml"
    path.write_text(f"villain: !!python/object/apply:os.system ['touch {tmp_path}/sprung']\n")
    given["personas"]["file"] = str(path)
    assert "cannot be read" in refused(configuration.check, given)
    assert not (tmp_path / "sprung").exists()


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"a": ' * 100_000, "1" * 5000, "x" * 1_000_000, "\x00", '{"id": NaN,}']
)
def test_a_hostile_line_of_json_is_one_line(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n' + line + "\n")
    said = refused(read_jsonl, path)
    assert "line 2" in said and len(said) < 500
    if line != "1" * 5000:
        assert len(refused(read_json, path)) < 500


@pytest.mark.parametrize("content", [b"PAR1" + b"\xff" * 64 + b"PAR1", b"PK\x03\x04", b""])
def test_a_hostile_parquet_file_is_one_line(tmp_path, content):
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    assert "cannot be read" in refused(sets.read_source, "x", {"file": str(path)})


def test_a_parquet_file_of_pickles_runs_none(tmp_path, trap):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"messages": pa.array([trap[0]])}), path)
    rows, _ = sets.read_source("x", {"file": str(path)})
    assert rows[0]["messages"] == trap[0] and not trap[1].exists()


# --- secrets --------------------------------------------------------------------------------------

TOKEN = "hf_" + "S3cret" * 6
ASKING = """
import json, os, sys
from types import SimpleNamespace
sys.path.insert(0, "workflow/scripts")
from persona_collapse.runtime.job import job
folder, what = sys.argv[1:]
given = SimpleNamespace(log=[folder + "/job.log"], resources=SimpleNamespace(gpu=0))
given.config, given.input, given.output = {"run": "demo"}, [], []
with job(given, what, online=True) as say:
    from persona_collapse.data import sets
    from persona_collapse.models import fetching
    hub = {"id": "owner/name", "revision": "a" * 40}
    if what == "model":
        fetching.fetch({"hub": hub}, say)
    else:
        sets.read_source("em", {"hub": {**hub, "split": "train"}})
"""


class Echo(http.server.BaseHTTPRequestHandler):
    """A hub that fails, and echoes the caller's token in every part of the error."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        said = self.headers.get("authorization", "")
        self.asked.append(said)
        body = json.dumps({"error": said}).encode()
        self.send_response(self.server.status, said)
        for name in ("X-Error-Message", "X-Error-Code"):
            self.send_header(name, said)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 404, 400])
@pytest.mark.parametrize("what", ["model", "data"])
def test_a_token_is_in_no_message_and_no_log(tmp_path, status, what):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.status = status
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Echo.asked.clear()
    done = subprocess.run(
        [sys.executable, "-c", ASKING, str(tmp_path), what],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": TOKEN}
        | {"HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    server.shutdown()
    assert any(TOKEN in said for said in Echo.asked)  # the hub was asked, with the token
    assert done.returncode == 1 and "error: " in done.stderr
    written = "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
    assert TOKEN not in done.stdout + done.stderr + written


# --- the report -----------------------------------------------------------------------------------


def test_answers_lose_what_reorders_or_hides_text():
    hidden = "\u202e\u2066\u200e\u200f\u061c\ufeff\x1b\x9b\u2028\U000e0041"
    shown = answers.printable(f"a{hidden}b")
    assert not set(hidden) & set(shown)
    assert "<U+001B>" in shown and "<U+202E>" in shown and "<U+E0041>" in shown
