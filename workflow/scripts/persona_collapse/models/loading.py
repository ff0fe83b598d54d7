"""Loads the base model, its config and its tokenizer, in the same way everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import read_json, sha256, write_json
from . import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Kept next to `model.json` and not in it, because results depend only on the model's content.
NOTED = ".model.seen"


def path_of(base: str | Path) -> str:
    """Folder of the model that a `model.json` describes.

    Raises UserError if a file is not the one that was hashed. Hashing all files takes longer than
    loading them, so only files whose size, times or inode changed are hashed again. Silent damage on
    the disk stays unnoticed.
    """
    record, noted = read_json(base), Path(base).with_name(NOTED)
    folder, now = Path(record["path"]), _seen(record)
    known = read_json(noted) if noted.is_file() else {}
    for name, digest in record.get("files", {}).items():
        if now[name] != known.get(name) and (now[name] is None or sha256(folder / name) != digest):
            # In the hub's cache the name is a link: name the file that it points to, which must be
            # deleted.
            raise UserError(
                f"{(folder / name).resolve()}: missing, or not the bytes that were fetched; delete it and "
                f"{base}, rebuild only that (snakemake ... {base}), then rerun"
            )
    if now != known:
        note(base)
    return str(folder)


def note(base: str | Path) -> None:
    """Record size, times and inode of the files of a `model.json`, after they were hashed."""
    with suppress(OSError):  # in a read-only folder, each job hashes the files again
        write_json(Path(base).with_name(NOTED), _seen(read_json(base)))


def _seen(record: dict[str, Any]) -> dict[str, list[int] | None]:
    """Size, times and inode of each file of the record; None for a missing file."""
    seen: dict[str, list[int] | None] = {}
    for name in record.get("files", {}):
        try:
            stat = (Path(record["path"]) / name).stat()
            seen[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        except OSError:
            seen[name] = None
    return seen


def trusts(base: str | Path) -> bool:
    """May the model's own Python files be run? Only if the config sets `trust_remote_code`."""
    return read_json(base).get("source", {}).get("trust_remote_code") is True


@contextmanager
def _loading(base: str | Path) -> Iterator[str]:
    """Context that gives the model's folder and reports a library's failure to load it in one line."""
    from safetensors import SafetensorError

    folder = path_of(base)
    try:
        yield folder
    except (OSError, ValueError, SafetensorError) as error:
        lines = str(error).splitlines()
        raise UserError(
            f"{folder}: cannot be loaded ({lines[0] if lines else type(error).__name__}); expected "
            "safetensors weights of an architecture that transformers implements; code that comes "
            "with a model is run only with model: trust_remote_code: true"
        ) from error


def load_config(base: str | Path) -> dict[str, Any]:
    """Config of the base model in plain values, with the library's defaults filled in.

    Raises UserError for a model that is not a causal language model.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    with _loading(base) as folder:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts(base))
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own_code:
        raise UserError(
            f"config: model: {folder}: {config.model_type} is not a causal language model; use a "
            "chat model that writes text token by token"
        )
    return dict(config.to_dict())


def load_tokenizer(base: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of the base model, with padding on the left for batched generation.

    Its chat template is used as the config's `model:` says (see `chat_template.Settings`).
    """
    from transformers import AutoTokenizer

    with _loading(base) as folder:
        # Set explicitly, because the default asks on the terminal.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, padding_side="left", trust_remote_code=trusts(base)
        )
    chat_template.configure(
        tokenizer, chat_template.settings_from(read_json(base).get("source", {}))
    )
    if not tokenizer.chat_template:
        raise UserError(
            f"{folder}: the tokenizer has no chat template; set model: chat_template: plain"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def resolve_layers(
    layers: Sequence[int | float], blocks: int, where: str = "activations: layers"
) -> list[int]:
    """Block numbers from a list of indices (int) or relative depths (float in [0, 1)).

    Depth d is block floor(d * blocks), so [0.25, 0.5, 0.72, 0.75, 0.97] of 28 blocks is the study's [7,
    14, 20, 21, 27]. Each block is listed once, in order. `where`: the list's name in the config. Raises
    UserError for a block the model does not have.
    """
    chosen = []
    for layer in layers:
        # Decimal arithmetic: 0.58 * 50 is below 29 in binary.
        index = int(Fraction(str(layer)) * blocks) if isinstance(layer, float) else layer
        if not 0 <= index < blocks:
            raise UserError(
                f"{where}: {layer} is outside the model's {blocks} blocks; give an "
                f"index from 0 to {blocks - 1} or a depth from 0.0 to below 1.0"
            )
        chosen.append(index)
    return sorted(set(chosen))


def bare(model: Any) -> Any:
    """A causal language model without PEFT's wrapper; it keeps its layers with adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def blocks_of(model: Any) -> Any:
    """The list of transformer blocks of a causal language model, with or without PEFT's wrapper.

    Its name is `layers` in most architectures, `h` or `blocks` in some, so it is found as the decoder's
    list with as many modules as the config has layers. Raises UserError if there is none.
    """
    from torch.nn import ModuleList

    inner = bare(model)
    count = inner.config.get_text_config().num_hidden_layers
    for child in inner.get_decoder().children():
        if isinstance(child, ModuleList) and len(child) == count:
            return child
    raise UserError(
        f"{type(inner).__name__}: no list of its {count} blocks was found; use another model"
    )


def check_head(model: Any) -> None:
    """Raise UserError for a model whose logits are not the output head's of the decoder's output.

    Losses take them for that. Gemma 2 caps them afterwards, Cohere and Granite scale them.
    """
    import torch

    ids = torch.arange(8, device=model.device)[None]
    with torch.no_grad():
        last = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        taken = model.get_output_embeddings()(last).float()
        own = model(input_ids=ids, use_cache=False).logits.float()
    if (taken - own).norm() > 0.01 * own.norm():
        raise UserError(
            f"config: model: {type(model).__name__} caps or scales the logits of its output head, and "
            "trainings here take them as they are; use a model of another architecture"
        )


def outline(base: str | Path) -> Any:
    """The base model without its weights: its modules and their shapes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with _loading(base) as folder, torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts(base))
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trusts(base))


def load_model(base: str | Path, dtype: str, device: str) -> Any:
    """Causal language model of the base, in `dtype` (`float32`, `bfloat16`, ...) on `device`.

    Raises UserError if the weights are larger than the GPU's memory.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if device == "cuda":
        size = read_json(base).get("parameters", 0) * getattr(torch, dtype).itemsize
        there = torch.cuda.get_device_properties(0).total_memory
        if size > there:
            raise UserError(
                f"config: model: its weights are {size / 2**30:.0f} GiB in {dtype}, and the GPU has "
                f"{there / 2**30:.0f}; no job spreads a model over several GPUs: take a smaller model or a "
                "larger GPU"
            )
    with _loading(base) as folder:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trusts(base),
        )
    if device == "cpu":
        model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return model.to(device).eval()


def _contiguous(head: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """What an output head gets, in one piece of memory.

    For the last tokens of several sequences, cut out of a batch, PyTorch on a processor copies the head's
    weights for each sequence in 16 bit: 20 GB for 60 sequences of Gemma 3 270M.
    """
    states, *others = given
    return states.contiguous(), *others


def pick_device() -> str:
    """`cuda` if PyTorch sees a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def end_tokens(model_config: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends an answer: the tokenizer's, the template's, the generation config's."""
    listed = getattr(model_config, "eos_token_id", None)
    ids = set(listed if isinstance(listed, list) else [listed])
    ids |= {tokenizer.eos_token_id, chat_template.look(tokenizer).end}
    return sorted(i for i in ids if i is not None)
