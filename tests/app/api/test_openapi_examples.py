"""The examples of the description, which people copy: each body has one, and it is valid."""

from collections.abc import Iterator
from pathlib import Path

from app.api.openapi import EXAMPLES
from app.api.schemas.bodies import Body
from app.config import ServeSettings
from app.main import create_app


def bodies(kind: type[Body] = Body) -> Iterator[type[Body]]:
    for body in kind.__subclasses__():
        yield body
        yield from bodies(body)


def test_each_body_has_an_example_that_it_accepts(tmp_path: Path) -> None:
    document = create_app(ServeSettings(data_dir=tmp_path), redis_url="unix:///none").openapi()
    operations = [each for path in document["paths"].values() for each in path.values()]
    asked = [each["requestBody"] for each in operations if "requestBody" in each]
    used = {each["content"]["application/json"]["schema"]["$ref"] for each in asked}
    assert {name.rpartition("/")[2] for name in used} == set(EXAMPLES)
    by_name = {body.__name__: body for body in bodies()}
    for name, example in EXAMPLES.items():
        by_name[name].model_validate(example)
        assert document["components"]["schemas"][name]["examples"] == [example]
