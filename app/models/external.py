"""External models, which another server with the OpenAI API (such as vLLM) generates for.

A TOML file declares them. This module reads and checks it, and never talks to the server.
"""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

import httpx2
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}$"


class InvalidExternalModels(ValueError):
    """The file of external models, or a key file that it names, is missing or invalid."""


@dataclass(frozen=True)
class ExternalModel:
    """A model that the server at ``base_url`` generates for."""

    name: str  # in this service
    backend: Literal["openai", "vllm"]  # the API of the server; with vllm, this service runs it
    base_url: str  # without a final slash; /completions is appended
    model: str  # its name on that server
    api_key: str | None = field(repr=False)  # sent as a bearer token
    parent: str | None  # the dense model of a pruned one
    removed_blocks: tuple[int, ...]  # of the parent; empty if only their number is declared
    num_removed: int
    num_blocks: int | None  # that remain, if declared
    max_num_seqs: int  # concurrent requests
    max_waiting: int  # requests that may queue here
    connect_s: float  # timeout for a connection, in seconds
    silence_s: float  # timeout between two bytes, in seconds
    takes_cache_salt: bool = False  # separates what it keeps of prompts by cache_salt, as vLLM does
    socket: Path | None = None  # the Unix socket of a server that this service runs

    def begins(self, parent: str, removed_blocks: tuple[int, ...]) -> bool:
        """Whether this removal order of the dense model begins with its own."""
        own = self.removed_blocks
        return bool(own) and parent == self.parent and own == removed_blocks[: len(own)]


def _endpoint(text: str) -> str:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ValueError(f"not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("expected http:// or https:// and a host")
    if url.port is not None and not 0 < url.port < 2**16:
        raise ValueError(f"invalid port {url.port}")
    if url.userinfo or url.query or url.fragment:
        raise ValueError("expected no credentials, query or fragment: use api_key_file for the key")
    return str(url).rstrip("/")


_Text = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class _Declared(BaseModel):
    """One ``[[models]]`` of the file."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=_NAME)]
    backend: Literal["openai"] = "openai"
    base_url: Annotated[str, AfterValidator(_endpoint)]
    model: _Text | None = None
    api_key_file: Path | None = None
    parent: _Text | None = None
    removed_blocks: tuple[NonNegativeInt, ...] = ()
    num_removed: PositiveInt | None = None
    num_blocks: PositiveInt | None = None
    max_num_seqs: PositiveInt = 64
    max_waiting: NonNegativeInt = 256
    connect_s: PositiveFloat = 5.0
    silence_s: PositiveFloat = 120.0
    takes_cache_salt: bool = False

    @model_validator(mode="after")
    def _check_lineage(self) -> Self:
        num_named = len(set(self.removed_blocks))
        if num_named != len(self.removed_blocks):
            raise ValueError("removed_blocks contains a block twice")
        if self.num_removed is not None and num_named not in (0, self.num_removed):
            raise ValueError(
                f"num_removed is {self.num_removed}, but removed_blocks has {num_named} blocks"
            )
        if bool(self.parent) != bool(self.num_removed or num_named):
            raise ValueError("parent requires removed_blocks or num_removed, and vice versa")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    models: tuple[_Declared, ...] = Field(default=())


def read_external_models(path: Path | None) -> tuple[ExternalModel, ...]:
    """The models of a TOML file, in its order; none without a file.

    Key files are relative to its directory. Raises ``InvalidExternalModels``.
    """
    if path is None:
        return ()
    try:
        declared = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).models
    except (OSError, ValueError) as error:
        raise InvalidExternalModels(f"{path}: {_reason(error)}") from error
    names = [model.name for model in declared]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidExternalModels(f"{path}: duplicate models: {', '.join(twice)}")
    return tuple(_model(model, path.parent) for model in declared)


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    details = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in details)


def _model(declared: _Declared, directory: Path) -> ExternalModel:
    key_file = declared.api_key_file
    declared_fields = declared.model_dump(exclude={"api_key_file"})
    derived = {
        "model": declared.model or declared.name,
        "api_key": None if key_file is None else _key(directory / key_file.expanduser()),
        "num_removed": declared.num_removed or len(declared.removed_blocks),
    }
    return ExternalModel(**{**declared_fields, **derived})


def _key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise InvalidExternalModels(f"cannot read the api_key_file {path}: {error}") from error
    if not (key.isascii() and key.isprintable() and key):
        raise InvalidExternalModels(
            f"the api_key_file {path} must contain one line of printable ASCII characters"
        )
    return key
