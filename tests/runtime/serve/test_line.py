"""The queue: whose turn it is, and what those are told who wait."""

from dataclasses import dataclass

import pytest
from medvlm.runtime.serve.errors import ApiError
from medvlm.runtime.serve.line import Line, Place
from medvlm.runtime.serve.seats import Seats
from medvlm.runtime.serve.settings import Limits


@dataclass(eq=False)
class Item:
    client: str
    name: str = ""
    nbytes: int = 0


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def order(line: Line[Item]) -> str:
    """The names of all that wait, as they are taken."""
    names = ""
    while line.length:
        item = line.take()
        assert item is not None
        names += item.name
        line.finished(counts=True)
    return names


def filled(items: str, line: Line[Item] | None = None) -> Line[Item]:
    """A line with items such as "a1 b2": the client a's, called 1."""
    line = line or Line(Limits(), Clock())
    for word in items.split():
        line.enter(Item(word[0], word[1]))
    return line


def test_one_client_is_answered_in_the_order_of_its_questions() -> None:
    assert order(filled("a1 a2 a3")) == "123"


def test_clients_take_turns_whoever_has_more_questions() -> None:
    assert order(filled("a1 a2 a3 a4 b5 b6 c7")) == "1572634"


def test_who_is_being_answered_waits_behind_who_comes() -> None:
    line = filled("a1 a2 a3")
    line.take()
    filled("b4 b5", line)
    line.finished(counts=True)
    assert order(line) == "42" + "53"


def test_who_comes_later_has_no_turns_in_arrears() -> None:
    line = filled("a1 a2 a3")
    for _ in range(3):
        line.take()
        line.finished(counts=True)
    filled("a4 a5 b6 b7", line)
    assert order(line) == "4657"


def test_a_place_counts_the_answers_that_come_first() -> None:
    clock = Clock()
    line = Line[Item](Limits(), clock)
    items = [Item(client, client) for client in "abc"]
    for item in items:
        line.enter(item)
    assert [line.place(item).position for item in items if line.place(item)] == [0, 1, 2]  # type: ignore[union-attr]
    assert line.take() is items[0]
    assert line.place(items[0]) is None
    assert line.place(items[1]).position == 1  # type: ignore[union-attr]


def test_the_expected_wait_follows_what_answers_took() -> None:
    clock = Clock()
    line = Line[Item](Limits(), clock)
    for _ in range(40):
        line.enter(Item("a"))
        line.take()
        clock.now += 3.0
        line.finished(counts=True)
    items = [Item("a"), Item("b"), Item("c")]
    for item in items:
        line.enter(item)
    line.take()
    clock.now += 1.0
    place = line.place(items[2])
    assert place is not None
    assert place == Place(2, pytest.approx(2.0 + 3.0, abs=0.01))  # type: ignore[arg-type]
    clock.now += 60.0
    assert line.place(items[1]) == Place(1, 0.0)


def test_a_question_that_was_given_up_says_nothing_about_the_next() -> None:
    clock = Clock()
    line = Line[Item](Limits(), clock)
    before = line.expected_s
    line.enter(Item("a"))
    line.take()
    clock.now += 1000.0
    line.finished(counts=False)
    assert line.expected_s == before


def test_who_leaves_is_not_taken() -> None:
    line = filled("a1")
    second = Item("a", "2")
    line.enter(second)
    filled("a3", line)
    assert line.leave(second)
    assert not line.leave(second)
    assert order(line) == "13"


def test_images_that_wait_have_their_limit_and_one_question_always_has_room() -> None:
    line = Line[Item](Limits(waiting_bytes=100), Clock())
    line.enter(Item("a", nbytes=1000))
    with pytest.raises(ApiError) as error:
        line.enter(Item("a", nbytes=1))
    assert error.value.status == 429
    assert int(error.value.headers["Retry-After"]) >= 1


def test_a_closed_line_gives_back_who_waited_and_takes_nobody() -> None:
    line = filled("a1 a2 b3")
    line.take()
    assert [item.name for item in line.close()] == ["3", "2"]
    assert not line.idle
    line.finished(counts=True)
    assert line.idle
    assert line.take() is None
    with pytest.raises(ApiError) as error:
        line.enter(Item("a"))
    assert error.value.status == 503


def test_seats_are_given_back() -> None:
    seats = Seats(2, lambda: 7.4)
    with seats.seat(), seats.seat():
        with pytest.raises(ApiError) as error, seats.seat():
            pass
        assert (error.value.status, error.value.headers) == (429, {"Retry-After": "7"})
    with seats.seat():
        pass
    seats.closed = True
    with pytest.raises(ApiError) as error, seats.seat():
        pass
    assert error.value.status == 503
