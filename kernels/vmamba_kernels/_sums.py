"""Sums over what programs or rows give, several in one launch: a library's sum costs the host two launches each."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import _launch
from ._launch import cdiv

ROWS, COLUMNS = 64, 64  # of a block of a matrix of any type that is summed in parts first
_PROGRAMS = 132 * 16  # enough to fill a large GPU several times over
_AT_ONCE = 4  # sums that one launch takes


@triton.jit
def sum_rows(parts_ptr, out_ptr, program, rows, columns, COLUMNS: tl.constexpr):
    """One block of COLUMNS columns of one matrix, where there is one."""
    if parts_ptr is not None:
        ROWS: tl.constexpr = 2048 // COLUMNS
        blocks = tl.cdiv(columns, COLUMNS)
        c = program % blocks * COLUMNS + tl.arange(0, COLUMNS)
        plane = (program // blocks).to(tl.int64)
        parts_ptr += plane * rows * columns
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, rows, ROWS):
            row = start + tl.arange(0, ROWS)
            ok = (row < rows)[:, None] & (c < columns)[None, :]
            total += tl.load(parts_ptr + row.to(tl.int64)[:, None] * columns + c[None, :], mask=ok, other=0.0)
        tl.store(out_ptr + plane * columns + c, tl.sum(total, 0), mask=c < columns)


@triton.jit(do_not_specialize=["end0", "end1", "end2", "rows0", "rows1", "rows2", "rows3"])
def sums_kernel(
    parts0_ptr,  # [planes, rows, columns] fp32, contiguous, as are the others
    parts1_ptr,
    parts2_ptr,
    parts3_ptr,
    out0_ptr,  # [planes, columns] fp32
    out1_ptr,
    out2_ptr,
    out3_ptr,
    end0,  # where the programs of the first sum end and those of the next begin
    end1,
    end2,
    rows0,
    rows1,
    rows2,
    rows3,
    columns0,
    columns1,
    columns2,
    columns3,
    COLUMNS0: tl.constexpr,
    COLUMNS1: tl.constexpr,
    COLUMNS2: tl.constexpr,
    COLUMNS3: tl.constexpr,
):
    """Sums over rows; program = a block of columns of a matrix of one of them."""
    pid = tl.program_id(0)
    if pid < end0:
        sum_rows(parts0_ptr, out0_ptr, pid, rows0, columns0, COLUMNS0)
    elif pid < end1:
        sum_rows(parts1_ptr, out1_ptr, pid - end0, rows1, columns1, COLUMNS1)
    elif pid < end2:
        sum_rows(parts2_ptr, out2_ptr, pid - end1, rows2, columns2, COLUMNS2)
    else:
        sum_rows(parts3_ptr, out3_ptr, pid - end2, rows3, columns3, COLUMNS3)


@triton.jit(do_not_specialize=["rows", "per_program"])
def column_parts_kernel(
    x_ptr,  # [rows, columns], contiguous
    parts_ptr,  # [programs, columns] fp32
    rows,
    columns,
    per_program,  # blocks of ROWS rows that one program does
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums over a part of the rows; program = several blocks of rows in a block of columns."""
    blocks = tl.cdiv(columns, COLUMNS)
    pid = tl.program_id(0)
    c = pid % blocks * COLUMNS + tl.arange(0, COLUMNS)
    part = pid // blocks
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in range(per_program):
        row = (part * per_program + i) * ROWS + tl.arange(0, ROWS)
        ok = (row < rows)[:, None] & (c < columns)[None, :]
        x = tl.load(x_ptr + row.to(tl.int64)[:, None] * columns + c[None, :], mask=ok, other=0.0)
        total += x.to(tl.float32)
    tl.store(parts_ptr + part.to(tl.int64) * columns + c, tl.sum(total, 0), mask=c < columns)


class Split(NamedTuple):
    """How the rows of a matrix are shared out to programs."""

    parts: int
    per_program: int  # blocks of ROWS rows
    blocks: int  # of COLUMNS columns

    @classmethod
    def of(cls, rows: int, columns: int) -> "Split":
        blocks = cdiv(columns, COLUMNS)
        per_program = max(1, cdiv(rows, ROWS) * blocks // _PROGRAMS)
        return cls(cdiv(cdiv(rows, ROWS), per_program), per_program, blocks)


class Sums:
    """Sums that are wanted by the end of a backward only; :meth:`run` finds them all, in a fixed order."""

    def __init__(self) -> None:
        self._wanted: list[tuple[torch.Tensor, torch.Tensor]] = []

    def over_rows(self, parts: torch.Tensor) -> torch.Tensor:
        """Where the sum of ``parts`` [..., rows, columns], float32 and contiguous, will be: [..., columns]."""
        out = _launch.empty((*parts.shape[:-2], parts.shape[-1]), dtype=torch.float32, device=parts.device)
        self._wanted.append((parts, out))
        return out

    def over_all_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Where the sum of x [rows, columns] will be, [columns] float32, however many the rows are; any float type."""
        rows, columns = x.shape
        x = x.contiguous()
        split = Split.of(rows, columns)
        parts = _launch.empty((split.parts, columns), dtype=torch.float32, device=x.device)
        if parts.numel():
            _launch.launch(
                column_parts_kernel, (split.parts * split.blocks,), x, parts, rows, columns, split.per_program,
                ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
            )  # fmt: skip
        return self.over_rows(parts)

    def run(self) -> None:
        """Find the sums."""
        wanted, self._wanted = [(parts, out) for parts, out in self._wanted if out.numel()], []
        for start in range(0, len(wanted), _AT_ONCE):
            _run(wanted[start : start + _AT_ONCE])


def over_rows(parts: torch.Tensor, sums: Sums | None) -> torch.Tensor:
    """The sum of ``parts`` [..., rows, columns], found at once; with ``sums``, where it will be when they run."""
    if sums is not None:
        return sums.over_rows(parts)
    alone = Sums()
    out = alone.over_rows(parts)
    alone.run()
    return out


def _run(wanted: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    ends, rows, columns, blocks, end = [], [], [], [], 0
    for parts, out in wanted:
        height, width = parts.shape[-2:]
        block = 64 if height <= 64 else 8  # tiles as high as the matrix, or nearly
        end += out.numel() // width * cdiv(width, block)
        ends.append(end)
        rows.append(height)
        columns.append(width)
        blocks.append(block)
    absent = _AT_ONCE - len(wanted)
    nothing, zeros = [None] * absent, [0] * absent
    columns0, columns1, columns2, columns3 = [*blocks, *[8] * absent]
    _launch.launch(
        sums_kernel, (end,),
        *[parts for parts, _ in wanted], *nothing, *[out for _, out in wanted], *nothing,
        *[*ends, *[end] * absent][:3], *rows, *zeros, *columns, *zeros,
        COLUMNS0=columns0, COLUMNS1=columns1, COLUMNS2=columns2, COLUMNS3=columns3, num_warps=8,
    )  # fmt: skip
