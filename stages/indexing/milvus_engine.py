"""The engine for collections too large for one machine: a Milvus server, or Milvus Lite in a file, by one client."""

import os
from typing import Any

import numpy as np

from stages.errors import InputError, shown, without_password
from stages.indexing.engines import Ids, Vectors, search_whole_ties, sort_results

MOST = 16_384
"""Largest number of results that a server returns for a query."""
TIMEOUT = 60.0
"""Seconds to wait for the server's answer."""


class MilvusEngine:
    """A collection on a server. Its index is AUTOINDEX, which is exact in Milvus Lite.

    Args:
        address: `http://host:19530`, or a file that ends in .db. A server's token, or `user:password`, is in the
            environment variable MILVUS_TOKEN: params.yaml is recorded.
        collection: its name; it is created if missing.
        dim: d, the width of a vector.

    Raises:
        InputError: pymilvus is not installed, the server does not answer, or the collection has another width.
    """

    def __init__(self, address: str, collection: str, dim: int) -> None:
        try:
            from pymilvus import DataType, MilvusClient
        except ImportError:
            raise InputError(
                f"index.engine: {shown(address)} needs pymilvus, which is not installed (pip install -e '.[milvus]')"
            ) from None
        self.address, self.collection = address, collection
        token = "" if address.endswith(".db") else os.environ.get("MILVUS_TOKEN", "")
        self._client: Any = self._call(lambda: MilvusClient(address, token=token, timeout=TIMEOUT))
        if not self._call(self._client.has_collection, collection):
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
            index = self._client.prepare_index_params()
            index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
            self._call(
                self._client.create_collection, collection, schema=schema, index_params=index,
                consistency_level="Strong",
            )  # fmt: skip
        fields = self._call(self._client.describe_collection, collection)["fields"]
        width = next((field["params"].get("dim") for field in fields if field["name"] == "vector"), None)
        if width != dim:
            raise InputError(f"index.engine: collection {collection}: its vectors are {width} wide; expected {dim}")

    def _call(self, ask: Any, *arguments: Any, **named: Any) -> Any:
        from pymilvus.exceptions import MilvusException

        try:
            return ask(*arguments, **named)
        except (MilvusException, OSError) as error:
            reason = without_password(" ".join(str(error).split()))[:200]
            raise InputError(
                f"index.engine: {shown(without_password(self.address))}: the request failed ({reason})"
            ) from None

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """As `Engine.add`."""
        if len(ids):
            rows = [{"id": int(number), "vector": vector} for number, vector in zip(ids, vectors, strict=True)]
            self._call(self._client.upsert, self.collection, rows)

    def remove(self, ids: Ids) -> None:
        """As `Engine.remove`."""
        if len(ids):
            self._call(self._client.delete, self.collection, ids=[int(number) for number in ids])

    def search(self, queries: Vectors, count: int) -> tuple[Ids, Vectors]:
        """As `Engine.search`, with at most MOST results per query."""

        def found(depth: int) -> tuple[Ids, Vectors]:
            answers = self._call(
                self._client.search, self.collection, data=list(np.asarray(queries, np.float32)), anns_field="vector",
                limit=depth, output_fields=["id"], search_params={"metric_type": "IP"},
            )  # fmt: skip
            rows = [
                sort_results([hit["id"] for hit in hits], [hit["distance"] for hit in hits], depth) for hits in answers
            ]
            return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])

        return search_whole_ties(found, count, MOST)

    def count(self) -> int:
        """As `Engine.count`."""
        rows = self._call(self._client.query, self.collection, filter="", output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
