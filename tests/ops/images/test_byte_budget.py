"""How many bytes images hold until they are handed on, in their order."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ops.images.byte_budget import Abandoned, ByteBudget

SIZES = [30, 40, 500, 20, 100, 60, 300, 30, 101, 10] * 4


def test_images_hold_at_most_the_budget_and_one_image_and_none_waits_for_ever():
    budget, lock, held, most = ByteBudget(100), threading.Lock(), {}, []

    def read(number):
        budget.hold(number, 1)  # its file
        budget.hold(number, SIZES[number])
        with lock:
            held[number] = SIZES[number]
            most.append(dict(held))
        threading.Event().wait(0.001)

    with ThreadPoolExecutor(8) as pool:
        for number, future in enumerate([pool.submit(read, n) for n in range(len(SIZES))]):
            future.result(timeout=10)
            with lock:
                del held[number]
            budget.hand_on(number + 1)
    assert len(most) == len(SIZES)
    for now in most:
        first = min(now)
        assert sum(now.values()) - now[first] <= 100
    assert any(len(now) > 1 for now in most)


def test_an_image_that_shrinks_makes_room_for_the_next():
    budget = ByteBudget(100)
    budget.hold(0, 90)
    waiting = threading.Thread(target=budget.hold, args=(1, 50))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    budget.hold(0, 50)
    waiting.join(5)
    assert not waiting.is_alive()


def test_images_that_wait_are_let_go_when_nobody_takes_them():
    budget, raised = ByteBudget(100), threading.Event()
    budget.hold(0, 90)

    def wait():
        with pytest.raises(Abandoned):
            budget.hold(1, 50)
        raised.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    budget.end()
    assert raised.wait(5)
    with pytest.raises(Abandoned):
        budget.hold(0, 1)
