"""A real Ray cluster of processes on this machine, whose nodes can be added and removed."""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 80 * 2**20
# Of another node.
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}


@contextlib.contextmanager
def cluster() -> "Iterator[Cluster]":
    """A cluster with one CPU, on loopback, behind a token that is in the environment until the block ends."""
    folder = tempfile.mkdtemp(prefix="ray-")  # pytest's own folders are too deep for the name of a socket
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Not /tmp/ray, which need not exist and which two clusters would share.
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # as in fbsearch/workers/ray_cluster.py
        from ray.cluster_utils import Cluster

        head = {**NODE, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield made
        finally:
            made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
