"""The cluster, started once for all tests and taken down with every process of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.ray_tools import Machines


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    wrong = tmp_path_factory.mktemp("ray") / "wrong.json"
    wrong.write_text("{}")
    quick = {
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 3,
    }  # to find that a node is lost
    head = {
        "num_cpus": 1,
        "object_store_memory": 80 << 20,
        "include_dashboard": False,
        "_system_config": quick,
    }
    found = Machines(Cluster(initialize_head=True, head_node_args=head), wrong)
    try:
        found.mend()
        yield found
    finally:
        found.cluster.shutdown()


@pytest.fixture(scope="session")
def connected(machines: Machines) -> Iterator[str]:
    """The cluster's address, for a program that uses Ray already: its connection and its workers stay."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", machines.driver["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        ray.init(machines.address, log_to_driver=False)
    yield machines.address
    assert ray.is_initialized()
    ray.shutdown()
