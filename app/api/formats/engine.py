"""What generated for a model, as results say it."""

from importlib.metadata import version

from app.api.schemas.compare import EngineView
from app.generation.request import Served, ServedElsewhere


def engine_view(served: Served) -> EngineView:
    if isinstance(served, ServedElsewhere) and served.vllm is not None:
        vllm = served.vllm
        return EngineView(name="vllm", version=vllm.version, arguments=list(vllm.args))
    return EngineView(name="own", version=version("sleb-serve"), arguments=[])
