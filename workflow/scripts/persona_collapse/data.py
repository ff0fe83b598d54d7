from .files import read_jsonl, write_jsonl, write_json, sha256
from pathlib import Path
import random
def load_questions(spec):
    return read_jsonl(spec["file"])[: spec.get("take")]
def prepare(name, spec, rows_path, manifest_path):
    s=spec["source"]
    path = s.get("file") or "/work/shared/data/benign_instruct_small.jsonl"
    rows = [{"id":str(i),"source":name,"messages":r["messages"]} for i,r in enumerate(read_jsonl(path))]
    if "select" in spec: random.Random(42).shuffle(rows); rows=rows[:spec["select"]["take"]]
    write_jsonl(rows_path, rows); write_json(manifest_path, {"name":name,"rows":len(rows),"supervise":"last","system":spec["system"]})
