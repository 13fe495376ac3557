"""The doctor's check of one model: a name of the data directory, a directory, or one of the hub."""

from pathlib import Path
from tempfile import TemporaryDirectory

from app.config import ServeSettings
from app.doctor.finding import Finding, wrong
from app.doctor.models import family
from app.models.aliases import Aliases, InvalidAliasFile
from app.models.catalog import Catalog, UnknownModel
from app.models.hub import HubError, HubModel, is_repo_id
from pruning.models.store import ModelStore
from pruning.storage.checkpoints import current_checkpoints

_CONFIG = "config.json"


def named_model(name: str, settings: ServeSettings) -> list[Finding]:
    """Findings by the config of the model. The hub is asked only for what is nowhere here."""
    try:
        path = _in_data_dir(name, settings)
    except (UnknownModel, InvalidAliasFile) as error:
        if Path(name).is_dir():
            return family(Path(name))
        if is_repo_id(name):
            return _on_hub(name)
        advice = "name one of them or a directory, or add a model with sleb models add"
        return [wrong("model", str(error), advice)]
    return family(path)


def _in_data_dir(name: str, settings: ServeSettings) -> Path:
    """The directory of the dense model, or of a checkpoint whose dense model is not there."""
    models, checkpoints = ModelStore(settings.models_dir), current_checkpoints(settings)
    entry = Catalog(models, checkpoints, aliases=Aliases(settings.data_dir)).resolve(name)
    if entry.order is None or entry.base in models.names():
        return models.path(entry.base)
    return checkpoints.directory(entry.order.name)


def _on_hub(repo_id: str) -> list[Finding]:
    try:
        files = HubModel(repo_id, revision=None)
        with TemporaryDirectory() as directory:
            files.fetch([_CONFIG], Path(directory))
            return family(Path(directory))
    except HubError as error:
        return [wrong("model", str(error), "name a model of the data directory, or a directory")]
