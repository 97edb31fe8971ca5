"""A job on several nodes, of which one is lost; and one whose cluster is not there."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from amg.config import load_config
from amg.errors import AmgError
from amg.run.progress import Silent
from amg.run.ray_session import connected
from amg.values import Failure, MaskSet
from tests.chaos.killer import rows
from tests.chaos.on_ray import cluster_of_raylets
from tests.chaos.standin import make_photos, run_local, run_on_ray
from tests.test_workers import Heard

SETTINGS = {"run.threads": 1, "shards.images_per_shard": 4}


class Loses(Heard):
    """Ends one of the nodes when a dozen images are done."""

    def __init__(self, nodes: Cluster) -> None:
        super().__init__()
        self._nodes = nodes

    def image(self, result: MaskSet | Failure, shard: int) -> None:
        super().image(result, shard)
        if len(self.keys) == 12:
            self._nodes.remove_node(self._nodes.list_all_nodes()[-1], allow_graceful=False)


def test_a_node_that_is_lost_in_the_middle_costs_no_row_and_is_no_shards_fault(tmp_path: Path) -> None:
    photos, out = make_photos(tmp_path / "photos", 48), tmp_path / "out"
    with cluster_of_raylets(tmp_path) as nodes:
        ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            losing = Loses(nodes)
            run_on_ray([str(photos)], str(out), load_config(overrides=SETTINGS), observer=losing)
        finally:
            ray.shutdown()
    run_local([str(photos)], str(tmp_path / "calm"), load_config(overrides=SETTINGS), observer=Silent())
    assert rows(out) == rows(tmp_path / "calm")
    assert not (out / "_state").exists(), "no shard had a part in it"


def test_a_head_that_does_not_answer_is_an_error_that_says_so() -> None:
    before = signal.getsignal(signal.SIGTERM)
    nobody = load_config(overrides={"run.address": "127.0.0.1:1"}).run
    with pytest.raises(AmgError, match=r"nobody answers at run\.address 127\.0\.0\.1:1;"), connected(nobody):
        raise AssertionError
    assert signal.getsignal(signal.SIGTERM) is before
