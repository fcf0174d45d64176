"""Tensors go into a history as arrays do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evergrad import History
from evergrad.errors import HistoryMismatch


def test_tensors_go_in(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(
        {
            "x": torch.arange(6, dtype=torch.float32).reshape(3, 2),
            "words": [torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4])],
        }
    )
    found = history.gather(np.array([2, 0]))
    assert found["x"].tolist() == [[4, 5], [0, 1]]
    assert [found["words"].row(row).tolist() for row in range(2)] == [[4], [1, 2]]


@pytest.mark.parametrize("tensor", [torch.zeros(2, requires_grad=True), torch.zeros(2, dtype=torch.bfloat16)])
def test_tensors_that_numpy_has_no_word_for_are_refused_by_column(tmp_path: Path, tensor: torch.Tensor) -> None:
    for value in (tensor, [tensor]):
        with pytest.raises(HistoryMismatch, match="column 'x'"):
            History(tmp_path / "history").append({"x": value})
