"""Zero-shot tasks of lm-eval with questions of our own, which need no network."""

import json
from pathlib import Path

TASK = """\
task: toy
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {data}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_target: label
doc_to_choice: "{{{{options}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1.0
"""
OPTIONS = [["dog", "lazy dogs"], ["fox", "brown foxes"], ["the", "over there"], ["on", "on and on"]]
DOCUMENTS = [
    {"question": f"the {word}", "options": options, "label": number % 2}
    for number, word in enumerate(
        ["quick", "brown", "lazy", "jumps", "sleeps", "over", "dog", "fox", "naïve", "and"]
    )
    for options in OPTIONS
]


def write_tasks(folder: Path, *names: str) -> Path:
    """Tasks of these names, all with the same questions; ``folder`` gets their data as well."""
    folder.mkdir(parents=True)
    data = folder / "questions.jsonl"
    data.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    for name in names:
        text = TASK.format(data=data).replace("task: toy", f"task: {name}")
        (folder / f"{name}.yaml").write_text(text)
    return folder
