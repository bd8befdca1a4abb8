"""A running daemon's REST interface as commands use it: every failure ends the command with the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from kvwattd.commands import exits
from kvwattd.commands.refusal import refuse

if TYPE_CHECKING:
    import httpx

    from kvwattd.api.schemas import StatusView

DEFAULT_URL = "http://127.0.0.1:8484"
DEADLINE_S = 5.0
MAX_TOKEN_BYTES = 4096

Url = Annotated[
    str, typer.Option(help="Base URL of the daemon, or unix:PATH of its socket.", envvar="KVWATT_URL")
]
Ca = Annotated[Path | None, typer.Option(help="Certificate to trust, in PEM, where the daemon serves HTTPS.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the token alone; without it the token in KVWATT_TOKEN.", envvar="KVWATT_TOKEN_FILE"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Client:
    """`command`: what stands before every error."""

    command: str
    url: str = DEFAULT_URL
    ca: Path | None = None
    token_file: Path | None = None

    def get(self, path: str) -> Any:  # noqa: ANN401 (JSON)
        return self._call("GET", path).json()

    def text(self, path: str) -> str:
        return self._call("GET", path).text

    def put(self, path: str, body: object) -> Any:  # noqa: ANN401 (JSON)
        return self._call("PUT", path, body).json()

    def delete(self, path: str) -> None:
        self._call("DELETE", path)

    def status(self) -> StatusView:
        """Everything at once."""
        return self.parse(self.text("/api/v1/status"))

    def parse(self, text: str) -> StatusView:
        """Of what the daemon answered; another program's answer ends the command."""
        from pydantic import ValidationError

        from kvwattd.api.schemas import StatusView

        try:
            return StatusView.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            told = f"{self.url} is no kvwatt daemon of this version: {where}: {first['msg']}"
            self.refuse(told, "give the daemon's address (--url), and use the kvwatt of its version")

    def refuse(self, error: object, next_step: str, code: int = exits.FAILED) -> NoReturn:
        refuse(self.command, error, next_step, code)

    @contextmanager
    def session(self) -> Iterator[httpx.Client]:
        """For several calls; what fails is the caller's."""
        with self._opened() as client:
            yield client

    def _call(self, method: str, path: str, body: object = None) -> httpx.Response:
        import httpx

        sent = {} if body is None else {"json": body}
        try:
            with self._opened() as client:
                answer = client.request(method, path, **sent)  # type: ignore[arg-type]  # json or nothing
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            step = "http://HOST:PORT, https://HOST:PORT or unix:PATH (--url, or KVWATT_URL)"
            self.refuse(f"--url {self.url}: {error}", step, exits.USAGE)
        except (httpx.HTTPError, OSError, ValueError) as error:
            self.refuse(
                f"{self.url}: {error}",
                "see that `kvwatt run` is running (systemctl status kvwatt), and at this address (--url)",
                exits.UNREACHABLE,
            )
        if not answer.is_success:
            self._refused(method, answer)
        return answer

    def _refused(self, method: str, answer: httpx.Response) -> NoReturn:
        told = f"{self.url}: {_problem(answer)}"
        if answer.status_code in (401, 403):
            scope = "read" if method == "GET" else "control"
            made = f"kvwatt token NAME --scope {scope}"
            step = f"set KVWATT_TOKEN to a token of scope {scope} ({made}), or give --token-file"
            self.refuse(told, step, exits.NOT_PERMITTED)
        if (
            answer.status_code == 404
            and "/instances/" not in str(answer.url)
            and "/slos/" not in str(answer.url)
        ):
            self.refuse(told, "give the address of a kvwatt daemon of this version (--url)")
        usage = answer.status_code in (400, 404, 413, 422)
        self.refuse(told, _step(answer, self.command), exits.USAGE if usage else exits.FAILED)

    def _opened(self) -> httpx.Client:
        """A certificate or a token that cannot be read ends the command."""
        import ssl

        import httpx

        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if self.url.startswith("unix:"):
            transport = httpx.HTTPTransport(uds=self.url.removeprefix("unix:"))
            base, more = "http://localhost", {"transport": transport}
            return httpx.Client(base_url=base, headers=headers, timeout=DEADLINE_S, **more)  # type: ignore[arg-type]
        try:
            trusted = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        except OSError as error:
            told = f"--ca {self.ca}: {error.strerror or error}"
            self.refuse(told, "the daemon's certificate, or its issuer's, in PEM", exits.USAGE)
        return httpx.Client(
            base_url=self.url.rstrip("/"),
            headers=headers,
            timeout=DEADLINE_S,
            trust_env=False,
            verify=trusted,
        )

    def _token(self) -> str | None:
        """Never an argument: arguments are seen by every user of the machine."""
        import os

        if self.token_file is None:
            return os.environ.get("KVWATT_TOKEN")
        try:
            with self.token_file.open("rb") as file:
                text = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "is no token"
            told = f"--token-file {self.token_file}: {why}"
            self.refuse(told, "a file with the token that `kvwatt token` printed, alone", exits.USAGE)
        if not text or any(letter.isspace() for letter in text):
            told = f"--token-file {self.token_file}: is no token"
            self.refuse(told, "a file with the token that `kvwatt token` printed, alone", exits.USAGE)
        return text


def _problem(answer: httpx.Response) -> str:
    """What the daemon says is wrong, else the status line."""
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict) or "detail" not in found:
        return f"HTTP {answer.status_code} {answer.reason_phrase}"
    return str(found["detail"])


def _step(answer: httpx.Response, command: str) -> str:
    """What is accepted, where the daemon says it."""
    try:
        accepted = answer.json().get("accepted")
    except (ValueError, AttributeError):
        accepted = None
    return f"{accepted} (kvwatt {command} --help)" if accepted else f"kvwatt {command} --help; kvwatt status"
