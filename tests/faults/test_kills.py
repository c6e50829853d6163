"""A short draw of the campaign: one kill of each kind."""

from __future__ import annotations

import random

import pytest

from tests.faults.kills import ATTEMPTS, HEAD, Case, Ending, attempt, campaign, cases

SEED = 11


def test_a_draw_has_as_many_of_each_kind_and_is_the_same_for_a_seed():
    drawn = cases(20, 1)
    assert drawn == cases(20, 1) != cases(20, 2)
    victims = [case.victim for case in drawn]
    assert [victims.count(name) for name in ("worker", "raylet", "driver")] == [5, 5, 5]
    assert victims.count("s3") + victims.count("tracker") == 5
    assert {case.maps for case in drawn} == {"none", "all"}
    assert all(0.2 <= case.when <= 1 for case in drawn)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["worker", "raylet", "driver", "tracker", "s3"])
def test_whatever_is_killed_the_table_is_that_of_a_quiet_night(world, victim):
    when = random.Random(f"{SEED}-{victim}").uniform(0.3, 0.9)
    (ending,) = campaign(world, [Case(victim, when, "none")], SEED)
    print(HEAD, ending.line(1), sep="\n")
    assert ending.wrong == []
    assert ending.rows == world.images
    assert 1 <= len(ending.did) <= ATTEMPTS
    if victim == "driver":
        assert ending.did == ["killed", "finished"]
    if victim in {"worker", "raylet"}:
        assert ending.did == ["finished"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_that_ends_before_its_kill_counts_for_nothing(world):
    late = Case("worker", 100.0, "none")
    assert attempt(world, late, "late", random.Random(0)) is None


def test_a_line_names_what_is_wrong():
    ending = Ending(Case("driver", 0.5), "driver", 0.25, ["killed", "finished"], 31.4, 99)
    assert ending.line(3) == (
        "| 3 | driver | disk, maps none | 25% | killed, finished | 31 | 99 | yes |"
    )
    ending.wrong.append("another table")
    assert ending.line(3).endswith("| 99 | another table |")
