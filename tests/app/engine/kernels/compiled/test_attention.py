"""Compiled attention over pages, against attention as it is defined, for heads of odd sizes."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.cache.pages import PAGE_TOKENS, pages_of
from app.engine.kernels.compiled.attention import room_of_thread
from app.engine.kernels.compiled.block import OUTPUT
from app.engine.kernels.compiled.model import BLOCKS
from app.engine.kernels.compiled.records import BLOCK, STEP
from tests.support.compiled import load_compiled, torch_threads


@dataclass(frozen=True)
class Heads:
    """The heads of a block."""

    num_keys: int
    num_sharing: int
    width: int
    window: int = 0

    @property
    def num_queries(self) -> int:
        return self.num_keys * self.num_sharing

    @property
    def num_all(self) -> int:
        return self.num_queries + 2 * self.num_keys


@dataclass
class Rows:
    """The tokens of a step, and a pool with all keys and values of their sequences."""

    owners: torch.Tensor
    positions: torch.Tensor
    tables: torch.Tensor  # [sequences, pages, 1]
    pool: torch.Tensor  # [2, keys, units, tokens, width]
    projected: torch.Tensor  # [rows, heads, width]


def rows_of(heads: Heads, places: list[range], dtype: torch.dtype) -> Rows:
    """Rows at these places of a sequence each."""
    torch.manual_seed(0)
    num_pages = pages_of(max(each.stop for each in places))
    units = torch.randperm(len(places) * num_pages) + 1
    owners = [owner for owner, each in enumerate(places) for _ in each]
    pool = torch.randn(2, heads.num_keys, 1 + len(units), PAGE_TOKENS, heads.width).to(dtype)
    return Rows(
        torch.tensor(owners),
        torch.tensor([at for each in places for at in each]),
        units.view(len(places), num_pages, 1),
        pool,
        torch.randn(len(owners), heads.num_all, heads.width).to(dtype),
    )


def compiled(heads: Heads, rows: Rows) -> torch.Tensor:
    """What the part of a block in front of the output gives."""
    number, threads = len(rows.owners), torch.get_num_threads()
    room_size = room_of_thread(heads.num_sharing, heads.width)
    room = torch.full((threads * room_size,), float("nan"))
    floats = torch.zeros(number, heads.num_all * heads.width)
    attended = torch.zeros(number, heads.num_queries * heads.width)
    out = attended.to(rows.pool.dtype)
    step, block, taken = np.zeros(1, STEP), np.zeros(1, BLOCK), np.zeros(1, np.int64)
    fields = {
        "rows": number, "tables": rows.tables.data_ptr(), "num_pages": rows.tables.shape[1],
        "table_width": 1, "owners": rows.owners.data_ptr(), "positions": rows.positions.data_ptr(),
        "projected": floats.data_ptr(), "attended": attended.data_ptr(),
        "room": room.data_ptr(), "room_of_thread": room_size, "taken": taken.ctypes.data,
    }  # fmt: skip
    for name, value in fields.items():
        step[name] = value
    block["step"], block["part"] = step.ctypes.data, OUTPUT
    block["source"], block["target"] = rows.projected.data_ptr(), out.data_ptr()
    block["keys"], block["values"] = rows.pool[0].data_ptr(), rows.pool[1].data_ptr()
    block["num_units"], block["head_dim"] = rows.pool.shape[2], heads.width
    block["heads"], block["key_heads"] = heads.num_queries, heads.num_keys
    block["project"]["outputs"] = heads.num_all * heads.width
    block["output"]["inputs"] = heads.num_queries * heads.width
    block["window"], block["scaling"] = heads.window, heads.width**-0.5
    BLOCKS[rows.pool.dtype](block.ctypes.data)
    return out.view(number, heads.num_queries, heads.width)


def defined(heads: Heads, rows: Rows) -> torch.Tensor:
    """The same in float64, after keys and values of the rows are in the pool."""
    out = []
    for row, (owner, position) in enumerate(
        zip(rows.owners.tolist(), rows.positions.tolist(), strict=True)
    ):
        first = max(0, position + 1 - heads.window) if heads.window else 0
        of_pages = rows.pool[:, :, rows.tables[owner, :, 0]].flatten(2, 3)
        seen = of_pages[:, :, first : position + 1].double()
        keys, values = seen.repeat_interleave(heads.num_sharing, dim=1)
        query = rows.projected[row, : heads.num_queries].double()
        scores = torch.einsum("hd,htd->ht", query, keys) * heads.width**-0.5
        out.append(torch.einsum("ht,htd->hd", scores.softmax(-1), values))
    return torch.stack(out)


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 3e-6), (torch.bfloat16, 8e-3)])
@settings(max_examples=40)
@given(
    heads=st.builds(
        Heads,
        num_keys=st.integers(1, 3),
        num_sharing=st.integers(1, 5),
        width=st.sampled_from([4, 16, 40, 64, 80]),
        window=st.sampled_from([0, 0, 9, 70]),
    ),
    places=st.lists(
        st.tuples(st.integers(0, 150), st.sampled_from([1, 1, 2, 7, 60])).map(
            lambda pair: range(pair[0], pair[0] + pair[1])
        ),
        min_size=1,
        max_size=5,
    ),
    num_threads=st.integers(1, 2),
)
def test_each_row_gets_what_attention_is_defined_as(
    dtype: torch.dtype, far: float, heads: Heads, places: list[range], num_threads: int
) -> None:
    load_compiled(dtype)
    rows = rows_of(heads, places, dtype)
    with torch_threads(num_threads):
        found = compiled(heads, rows)
    truth = defined(heads, rows)
    assert (found - truth).norm(dim=-1).max() < far * truth.norm(dim=-1).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gets_the_same_bits_whatever_is_read_with_it(dtype: torch.dtype) -> None:
    load_compiled(dtype)
    heads = Heads(2, 3, 64, window=90)
    together = rows_of(heads, [range(100, 161), range(5, 6)], dtype)
    found = compiled(heads, together)
    for row in range(len(together.owners)):
        alone = Rows(
            together.owners[row : row + 1],
            together.positions[row : row + 1],
            together.tables,
            together.pool,
            together.projected[row : row + 1].clone(),
        )
        assert torch.equal(compiled(heads, alone)[0], found[row])
