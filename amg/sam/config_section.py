"""What the configurations of `pretrained_config.py` have in common: checks at birth, dicts, JSON files."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from amg.errors import ConfigError, WeightsError
from amg.sam.folder import HUB_OPTIONS, resolve_folder

CONFIG_FILE = "config.json"


@dataclass(eq=False, repr=False)
class Section:
    """One configuration. Keys that its class does not know are kept as attributes and written back."""

    model_type: ClassVar[str]
    MODEL_TYPES: ClassVar[tuple[str, ...]]
    base_config_key: ClassVar[str] = ""
    DERIVED: ClassVar[frozenset[str]] = frozenset()  # written by the transformers library, computed from the rest
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    MAY_BE_ZERO: ClassVar[frozenset[str]] = frozenset()
    MAY_BE_PAIRS: ClassVar[frozenset[str]] = frozenset()  # sides that others write as height and width

    def __init_subclass__(cls) -> None:
        cls.MODEL_TYPES = vars(cls).get("MODEL_TYPES", (cls.model_type,))

    def __post_init__(self) -> None:
        for name in self.MAY_BE_PAIRS:
            setattr(self, name, _side(getattr(self, name)))
        self.check()
        for field in fields(self):
            if field.type == "float":  # 4 becomes 4.0: transformers refuses whole numbers there
                setattr(self, field.name, float(getattr(self, field.name)))

    def check(self) -> None:
        """ConfigError for the first field whose value is of the wrong kind; called again when a model is built."""
        for field in fields(self):
            self._check_field(field.name, str(field.type), getattr(self, field.name))

    def _check_field(self, name: str, kind: str, value: Any) -> None:
        if kind not in KINDS:
            return
        wanted, fits = KINDS[kind]
        if name in self.CHOICES:
            wanted, fits = " or ".join(map(repr, self.CHOICES[name])), self.CHOICES[name].__contains__
        elif kind == "int" and name in self.MAY_BE_ZERO:
            wanted, fits = "a whole number >= 0", _is_index
        if not fits(value):
            raise ConfigError(f"{type(self).__name__}: {name} is {value!r}; wanted {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """Every value under its name, the unknown ones too; sections become dicts. It is a copy."""
        plain = {name: value.to_dict() if isinstance(value, Section) else value for name, value in vars(self).items()}
        return copy.deepcopy({**plain, "model_type": self.model_type})

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=_plain) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """From a dict as `to_dict` gives it; a whole model's serves for one of its sections too."""
        if cls.base_config_key in values:
            values = values[cls.base_config_key]
        values = {**values, **changes}
        _check_type(values.pop("model_type", cls.model_type), cls)
        known = {field.name for field in fields(cls)}
        config = cls(**{name: value for name, value in values.items() if name in known})
        for name in values.keys() - known - cls.DERIVED:
            setattr(config, name, values[name])
        return config

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """From a folder, a hub name, one of our weight names or a weights file; hub options as `resolve_folder` has.

        Other arguments change the values that are read.
        """
        hub = {option: options.pop(option) for option in HUB_OPTIONS if option in options}
        folder = resolve_folder(name, **hub)
        if folder is None:
            from amg.sam.conversion import config_of_weights

            return cls.from_dict(config_of_weights(name).to_dict(), **options)
        return cls.from_dict(read_json(folder / CONFIG_FILE), **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`; the folder is made if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG_FILE).write_text(self.to_json_string())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and json.loads(self.to_json_string()) == json.loads(other.to_json_string())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; WeightsError where there is none."""
    if not path.is_file():
        there = ", ".join(sorted(entry.name for entry in path.parent.iterdir())[:8]) or "nothing"
        raise WeightsError(f"{path.parent} has no {path.name}, it has {there}; wanted a folder of save_pretrained")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON: {error}; load the folder again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds a JSON {type(values).__name__}; wanted an object of names and values")
    return values


def _side(value: Any) -> Any:
    """The side of a square that is written as height and width, if they are the same."""
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return value[0] if pair and value[0] == value[1] else value


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_count(value: Any) -> bool:
    return _is_index(value) and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _are_indices(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_index, value))


KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number >= 1", _is_count),
    "int | None": ("a whole number >= 1 or None", lambda value: value is None or _is_count(value)),
    "float": ("a finite number >= 0", _is_number),
    "bool": ("True or False", lambda value: isinstance(value, bool)),
    "str": ("a text", lambda value: isinstance(value, str)),
    "tuple[int, ...]": ("a list of whole numbers >= 0", _are_indices),
}
"""For each annotation of a field: what is wanted in words, and whether a value is it."""


def _check_type(came: Any, cls: type[Section]) -> None:
    if came not in cls.MODEL_TYPES:
        wanted = " or ".join(map(repr, cls.MODEL_TYPES))
        raise ConfigError(f"a configuration of model_type {came!r}, another network; {cls.__name__} wants {wanted}")


def _plain(value: Any) -> str:
    """For JSON: kept values of foreign kinds, such as a torch.dtype, as their name."""
    return str(value).removeprefix("torch.")
