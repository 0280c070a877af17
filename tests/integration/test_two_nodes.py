"""A cluster of two nodes, and what searches by way of each get when one sidecar is gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration import corpus
from tests.integration.faults import PAIR_FAULTS, PairFault, World, check, search, stats, two_nodes

PAGE: dict[str, Any] = corpus.body_of(from_=3, size=4, _source=["group"])


@pytest.fixture(scope="module")
def worlds(needs_local_node: None) -> Iterator[list[World]]:
    with two_nodes() as worlds:
        yield worlds


@pytest.mark.parametrize("fault", PAIR_FAULTS, ids=[fault.name for fault in PAIR_FAULTS])
def test_each_node_answers_by_what_its_own_sidecars_do(
    worlds: list[World], fault: PairFault
) -> None:
    with fault.happening(worlds):
        for world, causes in zip(worlds, fault.causes, strict=True):
            for _ in range(4):  # whichever of two sidecars has its turn
                check(world.client, PAGE, search(world.client, PAGE, fault.timeout), causes)
            if causes == ("timeout",):  # a busy machine keeps it now and then; a wrong limit, never
                outcomes = (search(world.client, PAGE, fault.timeout) for _ in range(21))
                assert any(outcome.milliseconds <= 300 + 50 for outcome in outcomes)
    for world in worlds:
        assert stats(world.client)["in_flight"] == 0
