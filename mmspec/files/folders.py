"""Files of a folder of unknown origin: they are checked before they are read, and size limits follow from what is
there."""

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

from ..errors import MMSpecError, first_line, listed, shown

CONFIG, WEIGHTS = "config.json", "model.safetensors"

LARGEST_JSON = 64 * 2**20
"""Largest JSON file, in bytes. The index of a model with a hundred thousand tensors has some 10 MB."""

DEEPEST_JSON = 40
"""Deepest nesting of objects and lists. Real configurations have five or six levels."""

DIGITS = 19
"""Digits of the largest integer of 64 bits, which is the largest that any tensor, size or seed can be."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Number formats that weights are read from, by their names in safetensors. Others are quantised or are not weights."""

INTEGERS = ("I64", "I32", "I16", "I8", "U8", "U16", "U32")

COUNTS = re.compile(r"(num_(\w+_)?layers|n_layers?|depths?|(en|de)coder_layers)")
"""Names of a model's settings that say how often something with weights is repeated."""

BLOB = re.compile(r"(models--[^/]+|models)/blobs/[^/]+$")
"""Path at which the hub's cache keeps the files to which those of its snapshots link."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        MMSpecError: if it is not a regular file, is too large or too deeply nested, holds anything but an object, or
            holds integers of more than 64 bits.
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
    """Return the `config.json` of a folder.

    Raises:
        MMSpecError: if it is missing or does not hold a JSON object; see `read_json`.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        raise MMSpecError(f"folder {str(folder)!r} has no {CONFIG}, so it holds no drafter or model")
    return read_json(path)


def check_regular(path: Path) -> None:
    """Refuse to open anything but a file: a pipe would block, and a device may have no end.

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
    """Return the path of a file that another file of the same folder names.

    Args:
        folder: folder that must contain the file.
        name: name in the other file.
        source: the other file, as an error names it.

    Raises:
        MMSpecError: for a name that leads out of the folder, by itself or through a link that does not belong to the
            hub's cache.
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
    """Open a safetensors file as a context.

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
    """Read a tensor of a safetensors file, or its rows `start` to `end`, into memory of its own.

    The file is closed again at once, because what was read of an open file counts as memory in use.
    """
    with opened(path) as file:
        return file.get_slice(name)[start:end].clone() if start is not None else file.get_tensor(name).clone()


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file, as the file's header describes it.

    Args:
        path: path of the file.
        key: name of the tensor in the file.
        shape: sizes of the tensor.
        kind: number format of the tensor, such as `BF16`.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    kind: str


class Header(Mapping[str, Entry]):
    """The tensors of one or several safetensors files, known before any of them is read.

    Args:
        source: the files, as an error names them.
        paths: paths of the files.
        prefix: beginning of the names that is removed.

    Raises:
        MMSpecError: if a file is missing or corrupt, or two tensors have the same name.
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
        """Read a tensor, or some of its rows, into memory of its own, as it was saved."""
        return read_tensor(self[name].path, self[name].key, start, end)

    def check_counts(self, settings: Any, name: str = "") -> None:
        """Refuse a configuration with more layers than there are tensors, before the model is built.

        Args:
            settings: settings of the model, nested as in its configuration.
            name: name under which the settings stand.

        Raises:
            MMSpecError: naming the setting.
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
        """Refuse a setting that counts something with weights if there are fewer tensors.

        Raises:
            MMSpecError: naming the setting.
        """
        if isinstance(value, int | float) and not value <= len(self):
            raise MMSpecError(
                f"{self.source}: config.json says {name}={shown(value)}, but there are {len(self)} tensors in all; "
                "correct the one that is wrong"
            )

    def check_kind(self, name: str, floating: bool) -> None:
        """Refuse a number format that does not fit.

        Args:
            name: name of the tensor.
            floating: True if weights are wanted, False for whole numbers or masks.

        Raises:
            MMSpecError: naming the formats that would fit.
        """
        kind, wanted = self[name].kind, FLOATS if floating else (*INTEGERS, "BOOL")
        if kind not in wanted:
            quantised = "; quantised weights are not read, convert them" if floating and kind.startswith("F") else ""
            raise MMSpecError(
                f"{self.source}: {shown(name)} holds numbers of kind {kind}, and {', '.join(wanted)} are read there"
                f"{quantised}"
            )

    def check_fits(self, expected: Mapping[str, Tensor], name: str, keys: Mapping[str, str] | None = None) -> None:
        """Refuse tensors that do not match those of a module, one for one.

        Args:
            expected: the module's tensors, which may be on the meta device.
            name: name of the module.
            keys: names in the files by the module's names, where they differ.

        Raises:
            MMSpecError: naming what is missing, unexpected, or of another shape or number format.
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
    """Return the state of a module, with tied tensors once, under the first of their names."""
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
