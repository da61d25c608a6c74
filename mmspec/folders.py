"""Files of a folder that may come from anybody: looked at before they are read, and bounded by what is there."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import MMSpecError, first_line, listed, shown

CONFIG, WEIGHTS = "config.json", "model.safetensors"

LARGEST_JSON = 64 * 2**20
"""Bytes. The index of a model with a hundred thousand tensors has some 10 MB."""

DEEPEST_JSON = 40
"""Objects and lists in one another. Real configurations have five or six."""

DIGITS = 19
"""Of the largest integer of 64 bits, which is the largest that any tensor, size or seed can be."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Kinds of numbers that weights are read from, as safetensors calls them. Others are quantised, or are no weights."""

INTEGERS = ("I64", "I32", "I16", "I8", "U8", "U16", "U32")

COUNTS = re.compile(r"(num_(\w+_)?layers|n_layers?|depths?|(en|de)coder_layers)")
"""Settings of a model that say how often something with weights is repeated."""

BLOB = re.compile(r"(models--[^/]+|models)/blobs/[^/]+$")
"""Where the hub's cache keeps the files to which those of its snapshots are links."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        MMSpecError: if it is no regular file, holds anything else or too much of it, or holds integers of more than 64
            bits.
    """
    check_regular(path)
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise ValueError(f"it has {size} bytes, and at most {LARGEST_JSON} are read")
        value = json.loads(path.read_text(encoding="utf-8"), parse_int=_integer)
    except RecursionError:
        raise MMSpecError(f"{str(path)!r} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise MMSpecError(f"{str(path)!r} cannot be read: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise MMSpecError(f"{str(path)!r} holds a {type(value).__name__} where a JSON object is expected")
    level: list[Any] = [value]
    for _ in range(DEEPEST_JSON):
        level = [part for parent in level for part in (parent.values() if isinstance(parent, dict) else parent)]
        level = [part for part in level if isinstance(part, dict | list)]
    if level:
        raise MMSpecError(f"{str(path)!r} cannot be read: it is nested more than {DEEPEST_JSON} levels deep")
    return value


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a folder.

    Raises:
        MMSpecError: if it is missing or is no JSON object; see `read_json`.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        raise MMSpecError(f"folder {str(folder)!r} has no {CONFIG}, so it holds no drafter or model")
    return read_json(path)


def check_regular(path: Path) -> None:
    """Refuse to open what is no file: a pipe would be waited for, a device may have no end.

    Raises:
        MMSpecError: for anything but a regular file, or a link to one.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise MMSpecError(f"file {str(path)!r} does not exist") from None
    except (OSError, ValueError) as error:  # a ring of links, no permission, a null character in the name
        raise MMSpecError(f"{str(path)!r} cannot be read: {first_line(error)}") from None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise MMSpecError(f"{str(path)!r} is a {kind} where a file is expected; fetch it again")


def named_file(folder: Path, name: Any, source: str) -> Path:
    """Return a file of a folder that another file of it names.

    Args:
        folder: where it must be.
        name: what the other file says.
        source: that file, as an error calls it.

    Raises:
        MMSpecError: for a name that leads out of the folder, by itself or through a link that is not the hub cache's.
    """
    plain = isinstance(name, str) and 0 < len(name) < 256 and "\0" not in name and "\\" not in name
    if not plain or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise MMSpecError(f"{source} names the file {shown(name)}, which does not lie in its folder; fetch it again")
    path = folder / name
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise MMSpecError(f"{str(path)!r} cannot be read: {first_line(error)}") from None
    if not (real.is_relative_to(home) or BLOB.search(real.as_posix())):
        raise MMSpecError(
            f"{source} names the file {shown(name)}, which is a link out of its folder, to {str(real)!r}; put the file "
            "itself there"
        )
    return path


def opened(path: Path) -> safe_open:
    """A safetensors file, as a context.

    Raises:
        MMSpecError: if it is missing or corrupt.
    """
    if not path.exists():
        raise MMSpecError(f"weights file {str(path)!r} does not exist")
    check_regular(path)
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise MMSpecError(f"weights file {str(path)!r} does not exist") from None
    except (SafetensorError, OSError) as error:
        reason = first_line(error)
        raise MMSpecError(
            f"{str(path)!r} is not a valid safetensors file ({reason}); fetch or train it again"
        ) from None


def read_tensor(path: Path, name: str, start: int | None = None, end: int | None = None) -> Tensor:
    """A tensor of a safetensors file, or the rows `start` to `end` of one, in memory of its own.

    The file is closed again at once: what was read of an open one counts as memory in use.
    """
    with opened(path) as file:
        return file.get_slice(name)[start:end].clone() if start is not None else file.get_tensor(name).clone()


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file, as its header has it.

    Args:
        path: of the file.
        key: its name there.
        shape: its sizes.
        kind: of its numbers, such as `BF16`.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    kind: str


class Header(Mapping[str, Entry]):
    """The tensors of one or several safetensors files: what there is, before any of it is read.

    Args:
        source: the files, as an error calls them.
        paths: the files.
        prefix: a beginning of names that is taken off.

    Raises:
        MMSpecError: if a file is missing or corrupt, or two tensors have one name.
    """

    def __init__(self, source: str, *paths: Path, prefix: str = ""):
        self.source = source
        self._entries: dict[str, Entry] = {}
        for path in paths:
            with opened(path) as file:
                for key in file.keys():
                    name, part = key.removeprefix(prefix), file.get_slice(key)
                    if name in self._entries:
                        raise MMSpecError(
                            f"{source} has two tensors for {shown(name)}, with {prefix!r} before it and without, or in "
                            "two files"
                        )
                    self._entries[name] = Entry(path, key, tuple(part.get_shape()), part.get_dtype())

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> Tensor:
        """A tensor, or rows of one, in memory of its own and as it was saved."""
        return read_tensor(self[name].path, self[name].key, start, end)

    def check_counts(self, settings: Any, name: str = "") -> None:
        """Refuse a model that is said to have more layers than there are tensors, before it is built.

        Args:
            settings: of the model, nested as they are.
            name: under which the settings stand.

        Raises:
            MMSpecError: with the setting.
        """
        if isinstance(settings, Mapping):
            for key, value in settings.items():
                self.check_counts(value, str(key))
        elif isinstance(settings, list):
            for value in settings:
                self.check_counts(value, name)
        elif COUNTS.fullmatch(name):
            self.check_count(name, settings)

    def check_count(self, name: str, value: Any) -> None:
        """Refuse a setting that says how many of something with weights there are, if there are fewer tensors.

        Raises:
            MMSpecError: with the setting.
        """
        if isinstance(value, int | float) and not value <= len(self):
            raise MMSpecError(
                f"{self.source}: config.json says {name}={shown(value)}, but there are {len(self)} tensors in all; "
                "correct the one that is wrong"
            )

    def check_kind(self, name: str, floating: bool) -> None:
        """Refuse numbers of a kind that cannot be what is wanted.

        Args:
            name: of the tensor.
            floating: whether weights are wanted, and not whole numbers or marks.

        Raises:
            MMSpecError: with the kinds that would do.
        """
        kind, wanted = self[name].kind, FLOATS if floating else (*INTEGERS, "BOOL")
        if kind not in wanted:
            quantised = "; quantised weights are not read, convert them" if floating and kind.startswith("F") else ""
            raise MMSpecError(
                f"{self.source}: {shown(name)} holds numbers of kind {kind}, and {', '.join(wanted)} are read there"
                f"{quantised}"
            )

    def check_fits(self, expected: Mapping[str, Tensor], name: str, keys: Mapping[str, str] | None = None) -> None:
        """Refuse tensors that are not those of a module, one for one.

        Args:
            expected: the module's, which may be on the meta device.
            name: of the module.
            keys: names here by names there, where they differ.

        Raises:
            MMSpecError: with what is missing, unexpected, or of another shape or kind.
        """
        keys = keys or {there: there for there in expected}
        missing, unexpected = set(keys.values()) - set(self), set(self) - set(keys.values())
        if missing or unexpected:
            raise MMSpecError(
                f"{self.source} does not fit {name}: missing keys {listed(missing)}, unexpected keys "
                f"{listed(unexpected)}"
            )
        for there, here in keys.items():
            if self[here].shape != tuple(expected[there].shape):
                raise MMSpecError(
                    f"{self.source}: {here} has shape {list(self[here].shape)}, {name} needs "
                    f"{list(expected[there].shape)}"
                )
            self.check_kind(here, expected[there].is_floating_point())


def stored(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, tied tensors once, under the first of their names."""
    seen, weights = set(), {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        place = id(tensor) if tensor.is_meta else tensor.data_ptr()
        if place not in seen or tensor.numel() == 0:
            seen.add(place)
            weights[name] = tensor
    return weights


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise ValueError(f"the integer {text[:8]}... has {len(text)} digits, and no setting is so large")
    return int(text)
