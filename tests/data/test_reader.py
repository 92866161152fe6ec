"""What is read, by whichever process, and which one reads."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import Dataset

from vitgraft.common.errors import RequestError, WorkError
from vitgraft.data import reader
from vitgraft.data.reader import Reader


class Squares(Dataset[Any]):
    """Key to its square, and the process that made it."""

    def __getitem__(self, key: int) -> tuple[int, int]:
        if key < 0:
            os._exit(1)
        return key * key, os.getpid()


def collate(items: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return items


LISTS = [[1, 2], [3], [4, 5, 6], [7]]


def read(by: Reader, lists: list[list[int]] = LISTS) -> tuple[list[int], set[int]]:
    """The squares in order, and the processes that made them."""
    items = [item for made in by(lists) for item in made]
    return [square for square, _ in items], {process for _, process in items}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each list takes this process a second."""
    monkeypatch.setattr(reader, "time", SimpleNamespace(monotonic=count().__next__))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_each_list_in_order_whoever_reads(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "STARTS", {})
    for price in (0, 3, 100):  # workers from the first list on, from the second on, and never
        monkeypatch.setattr(reader, "STARTS_ANEW", price)
        squares, processes = read(Reader(Squares(), collate, workers))
        assert squares == [1, 4, 9, 16, 25, 36, 49]
        assert (os.getpid() in processes) == (workers == 0 or price > 0)
        assert (processes == {os.getpid()}) == (workers == 0 or price == 100)


@pytest.mark.usefixtures("workers_at_once")
def test_processes_stay_from_one_call_to_the_next() -> None:
    by = Reader(Squares(), collate, 2)
    assert read(by) == read(by)
    (_, before), (_, after) = read(by), read(by, [[8, 9], [10]])
    assert before == after
    by.close()
    assert not before & {child.pid for child in multiprocessing.active_children()}
    assert read(by)[0] == [1, 4, 9, 16, 25, 36, 49]  # it may be asked again


@pytest.mark.usefixtures("workers_at_once")
def test_what_is_left_unread_does_not_come_later() -> None:
    by = Reader(Squares(), collate, 2)
    for _ in range(3):
        assert next(by(LISTS))[0][0] == 1
    assert read(by, [[11]])[0] == [121]


@pytest.mark.usefixtures("workers_at_once")
def test_no_lists_give_nothing() -> None:
    assert read(Reader(Squares(), collate, 2), []) == ([], set())


@pytest.mark.usefixtures("clock")
def test_what_takes_less_than_a_start_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was read before counts: many short epochs are worth it in the end."""
    monkeypatch.setattr(reader, "STARTS", {})
    monkeypatch.setattr(reader, "STARTS_ANEW", 10)
    by = Reader(Squares(), collate, 1)
    here = {os.getpid()}
    first, second, third, fourth = (read(by)[1] for _ in range(4))  # of four seconds each
    assert first == second == here
    assert third > here  # with one more, 12 would have been spent
    assert not fourth & here


@pytest.mark.usefixtures("workers_at_once")
def test_a_process_that_dies_is_said_and_others_take_its_place() -> None:
    by = Reader(Squares(), collate, 1)
    with pytest.raises(WorkError, match=r"by 1 worker processes, but one was killed .* --workers 0"):
        read(by, [[1], [-1], [2]])
    assert read(by)[0] == [1, 4, 9, 16, 25, 36, 49]


def test_fewer_than_none() -> None:
    with pytest.raises(RequestError, match=r"-1 worker processes were asked for, .* give 0 or more"):
        Reader(Squares(), collate, -1)


def test_how_processes_start_may_be_chosen_afterwards() -> None:
    said = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


AFTERWARDS = """
import multiprocessing
from vitgraft.data.reader import Reader
assert list(Reader([1, 2], sum, 2)([[0, 1]])) == [3]
multiprocessing.set_start_method("spawn")
"""
