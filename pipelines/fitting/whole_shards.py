"""The split of a fit's images among its workers. Without torch, for actors that only split."""

from __future__ import annotations

from typing import Any

from ray.train import DataConfig


class WholeShards(DataConfig):
    """Splits a dataset among the workers without losing a row, and in order.

    Ray Train's default split drops rows to make shards equal.
    """

    def configure(
        self,
        datasets: dict[str, Any],
        world_size: int,
        worker_handles: Any,  # noqa: ARG002 - as in the base
        worker_node_ids: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """One iterator for each worker and dataset."""
        out: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            copy = dataset.copy(dataset)
            options = self._resolve_execution_options(name)
            options.preserve_order = True
            copy.context.execution_options = options
            for rank, shard in enumerate(copy.streaming_split(world_size, equal=False)):
                out[rank][name] = shard
        return out
