"""Where Milvus is, as the setting says it.

`milvus://HOST[:PORT][/DATABASE]` is a server, `milvus+tls://` one behind TLS, and
`milvus:///PATH.db` a folder of milvus-lite, which runs in this process, compares everything, and
lets one process at a time have the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

_PORT = 19530


@dataclass(frozen=True, slots=True)
class MilvusAddress:
    """Where Milvus is; `folder` is milvus-lite's, and None of a server."""

    uri: str
    folder: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the setting; `ValueError` says what is wrong with it, and repeats none of it."""
        url = urlsplit(text)
        if "@" in url.netloc:
            raise ValueError("a token belongs in GAITID_MILVUS_TOKEN, not in the address")
        if url.query or url.fragment:
            raise ValueError("the address of Milvus takes no ? or #")
        if url.scheme == "milvus" and not url.netloc:
            if not url.path.endswith(".db") or url.path.endswith("/.db"):
                raise ValueError("the folder of milvus-lite is named like milvus:///PATH.db")
            return cls(url.path, url.path)
        if url.scheme not in ("milvus", "milvus+tls") or not url.hostname:
            raise ValueError(
                "write milvus://HOST:PORT/DATABASE, milvus+tls:// or milvus:///PATH.db"
            )
        if "/" in url.path[1:]:
            raise ValueError("after the host comes one name, of Milvus's database")
        scheme = "https" if url.scheme == "milvus+tls" else "http"
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        return cls(f"{scheme}://{host}:{url.port or _PORT}{url.path}", None)
