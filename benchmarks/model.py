"""The model that a benchmark measures: by name or directory, and the demo model by default."""

from app.settings import check_variables
from pruning.config import Settings
from pruning.models.demo_model import NAME, ensure_demo_model
from pruning.models.store import ModelStore


def model_store(name: str) -> ModelStore:
    """The store of the data directory, which has the demo model if ``name`` is that.

    Raises ``UnknownSetting`` for a variable that is not a setting.
    """
    check_variables()
    settings = Settings()
    if name == NAME:
        ensure_demo_model(settings.models_dir)
    return ModelStore(settings.models_dir, allow_paths=True)
