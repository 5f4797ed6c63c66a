"""The section `index`: where the pictures' vectors are searched, and how many pictures the model then ranks."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from stages.errors import shown
from stages.params.section import Section

URL_SCHEMES = ("http", "https", "tcp", "unix")
"""Schemes of a Milvus server's address; a file that ends in .db is one of Milvus Lite."""


class IndexParams(Section):
    """Where the pictures' vectors are searched, and how many pictures the model then ranks."""

    engine: str = "faiss"
    """faiss (embedded, one file in data/index), the URL of a Milvus server (`http://host:19530`), or the path of a
    Milvus Lite file, which ends in .db."""
    shortlist: int = Field(default=200, ge=1)
    """Nearest pictures per sentence that CAMP ranks, if the model was trained with train.joint_weight above 0; without
    it, CAMP ranks all pictures."""

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.engine != "faiss" and not self.engine.endswith(".db"):
            address = urlsplit(self.engine)
            if address.scheme not in URL_SCHEMES or not address.netloc + address.path:
                raise ValueError(
                    f"index.engine: {shown(self.engine)} is not one of faiss, a Milvus URL such as "
                    "http://localhost:19530, or a file of Milvus Lite, which ends in .db"
                )
        return self
