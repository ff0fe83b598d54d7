"""A conda channel in a folder, made offline: `python` is the running interpreter, `pip` its pip.

    python tests/conda/channel.py FOLDER

The packages have the same content as conda's and are installed in the same way. They only run on this
machine, because the interpreter's libraries stay where they are.
"""

import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

VERSION = "{}.{}.{}".format(*sys.version_info[:3])
NAME = "python{}.{}".format(*sys.version_info[:2])
HOME = Path(sys.base_prefix)
UNUSED = {"site-packages", "test", "tests", "__pycache__", "idlelib", "tkinter", "lib2to3"}


def files_below(folder, target, skip=frozenset({"__pycache__"})):
    """{path in the package: file} of a folder's files, without bytecode and static libraries."""
    found = {}
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in skip and not f.startswith("config-"))
        for name in sorted(names):
            path = Path(root) / name
            if path.suffix not in (".pyc", ".a"):
                found[f"{target}/{path.relative_to(folder)}"] = path.resolve()
    return found


def pack(channel, subdir, name, version, files, **extra):
    """Write one package; returns its file name and its entry for repodata.json."""
    index = {"name": name, "version": version, "build": "0", "build_number": 0, "subdir": subdir}
    index |= {"depends": [], "license": "none", "timestamp": 0} | extra
    entries = [
        {
            "_path": inside,
            "path_type": "hardlink",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size_in_bytes": path.stat().st_size,
        }
        for inside, path in files.items()
    ]
    about = {"index.json": index, "paths.json": {"paths": entries, "paths_version": 1}}
    if "noarch" in extra:
        about["link.json"] = {"noarch": {"type": "python"}, "package_metadata_version": 1}
    archive = channel / subdir / f"{name}-{version}-0.tar.bz2"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:bz2", compresslevel=1) as tar:
        for part, value in {**about, "files": "\n".join(files) + "\n"}.items():
            data = (value if isinstance(value, str) else json.dumps(value)).encode()
            member = tarfile.TarInfo(f"info/{part}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for inside, path in files.items():
            tar.add(path, inside)
    content = archive.read_bytes()
    hashes = {h: hashlib.new(h, content).hexdigest() for h in ("md5", "sha256")}
    return archive.name, index | hashes | {"size": len(content)}


def make(channel):
    """Write the channel: two packages and their index."""
    library = HOME / "lib" / NAME
    python = files_below(library, f"lib/{NAME}", UNUSED)
    python |= {
        f"bin/{name}": (HOME / "bin" / NAME).resolve() for name in (NAME, "python", "python3")
    }
    python |= {f"lib/{p.name}": p.resolve() for p in (HOME / "lib").glob("libpython*.so*")}
    about = next((library / "site-packages").glob("pip-*.dist-info"))
    pip = files_below(library / "site-packages/pip", "site-packages/pip")
    pip |= files_below(about, f"site-packages/{about.name}")
    version = about.name.removeprefix("pip-").removesuffix(".dist-info")
    packed = {
        "linux-64": pack(channel, "linux-64", "python", VERSION, python),
        "noarch": pack(channel, "noarch", "pip", version, pip, noarch="python", depends=["python"]),
    }
    for subdir, (name, entry) in packed.items():
        index = {"info": {"subdir": subdir}, "packages": {name: entry}, "packages.conda": {}}
        (channel / subdir / "repodata.json").write_text(json.dumps(index | {"repodata_version": 1}))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
