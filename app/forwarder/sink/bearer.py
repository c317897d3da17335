"""The sink's bearer token, from a file that others may change."""

from pathlib import Path

from forwarder import log


class BearerToken:
    """A bearer token in a file, read again when the file changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._version: tuple[int, int] | None = None
        self._header: dict[str, str] = {}
        self._repeated = log.RateLimited()

    def header(self) -> dict[str, str]:
        """Return the Authorization header; the last token stays while the file cannot be read."""
        if self._path:
            try:
                stat = self._path.stat()
                version = (stat.st_mtime_ns, stat.st_ino)
                if version != self._version:  # guard: token-reread
                    token = self._path.read_text(encoding="ascii").strip()
                    self._header = {"Authorization": f"Bearer {token}"} if token else {}
                    self._version = version
            except (OSError, ValueError) as error:
                self._repeated.error("token file cannot be read", reason=log.describe(error))
        return self._header
