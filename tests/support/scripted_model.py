"""A tiny llama whose blocks add nothing, so each token decides the next one.

Its vocabulary has whole parts of a script as tokens, which the engine samples and grammars read as
those of any other model.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny_directory import write_tiny_model

_WIDTH = 32  # of the hidden states


def write_scripted_model(path: Path, script: Mapping[str, Sequence[str]], template: str) -> None:
    """Write a model that continues a prompt with the end ``key``, a character, by these parts."""
    write_tiny_model(path, num_blocks=2)
    (path / "chat_template.jinja").write_text(template)
    ids = _add_tokens(
        path / "tokenizer.json", [part for parts in script.values() for part in parts]
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        embeddings.zero_()
        head.zero_()
        embeddings[:, 0] = 1  # of all tokens outside of the script
        steps = [
            step
            for end, parts in script.items()
            for step in pairwise(
                [
                    tokenizer.convert_tokens_to_ids(end),
                    *(ids[part] for part in parts),
                    tokenizer.eos_token_id,
                ]
            )
        ]
        assert len(steps) < _WIDTH
        for at, (token_id, next_id) in enumerate(steps, 1):
            embeddings[token_id] = torch.eye(_WIDTH)[at]
            head[next_id, at] = 1
    model.save_pretrained(path)


def _add_tokens(file: Path, texts: Sequence[str]) -> dict[str, int]:
    """Replace the last tokens of the vocabulary, which no text needs, by these."""
    stored = json.loads(file.read_text())
    vocabulary = stored["model"]["vocab"]
    lasts = sorted(vocabulary, key=vocabulary.__getitem__)[-len(texts) :]
    ids = {text: vocabulary.pop(last) for text, last in zip(texts, lasts, strict=True)}
    vocabulary |= {text.replace(" ", "Ġ").replace("\n", "Ċ"): ids[text] for text in texts}
    del stored["model"]["merges"][-len(texts) :]
    file.write_text(json.dumps(stored))
    return ids
