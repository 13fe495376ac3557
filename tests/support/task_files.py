"""Files with questions of zero-shot tasks as llm-foundry keeps them, made up here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CHOSEN: list[dict[str, Any]] = [
    {
        "query": f"Question: which animal does the {word} dog see?",
        "choices": ["a fox", "the lazy dog", "dogs and foxes", "none"],
        "gold": number % 4,
    }
    for number, word in enumerate(("quick", "brown", "lazy", "quick", "sleeping", "big"))
]
_IN_TWO = [
    {**line, "choices": line["choices"][:2], "gold": n % 2} for n, line in enumerate(_CHOSEN)
]
LINES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "arc_easy": _CHOSEN,
    "arc_challenge": _CHOSEN[::-1],
    "piqa": [{**line, "query": f"{line['query']}\n"} for line in _IN_TWO],
    "winogrande": [
        {
            "context_options": [f"The fox saw the dog, and the {who}" for who in ("fox", "dog")],
            "continuation": f"was {how}.",
            "gold": number % 2,
        }
        for number, how in enumerate(("lazy", "quick", "brown", "over there"))
    ],
    "lambada_openai": [
        {"context": f"The dog jumps over\nthe {word}", "continuation": last}
        for word, last in (("lazy", "dog"), ("brown", "fox"), ("quick", "fox"))
    ],
    "openbook_qa": [{**line, "query": "The quick dog sees"} for line in _CHOSEN[:4]],
}


def write_task_files(folder: Path, *names: str) -> Path:
    """Files of these names, or of all; each line is a question."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or LINES:
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, LINES[name])) + "\n")
    return folder
