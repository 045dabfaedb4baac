"""`remora serve`: runs an executor on this machine."""

from __future__ import annotations

import logging
import re
import ssl
import sys
from pathlib import Path
from typing import Annotated

import typer

from remora.executor.front.front import FrontOptions
from remora.executor.front.peers import PeerRule, parse_peers
from remora.executor.front.server import ServeOptions, run
from remora.executor.front.tokens import Tokens, is_loopback, parse_tokens
from remora.executor.front.worker_link import WorkerOptions

_NBYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any free one.")] = 8470,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    memory: Annotated[str, typer.Option(help="Memory to use, such as 20GiB; 0: what there is.")] = "0",
    tenant_memory: Annotated[
        str, typer.Option(help="Of that memory, what one tenant may hold, such as 10GiB; 0: all of it.")
    ] = "0",
    max_workers: Annotated[
        int, typer.Option(min=1, help="Worker processes at once: one a tenant that has sessions.")
    ] = 8,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of the worker; 0: it decides.")] = 0,
    token_file: Annotated[
        Path | None, typer.Option(help="Lines 'TOKEN [tenant/user]'; without it, loopback only.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    ops: Annotated[
        list[str] | None,
        typer.Option(help="Module that defines custom operators, which clients may then use; repeatable."),
    ] = None,
    peers: Annotated[
        str,
        typer.Option(
            help="Executors that values may be sent to: any, none, or HOST[:PORT],… (a HOST may be 10.0.0.0/8)."
        ),
    ] = "any",
    same_host: Annotated[
        bool, typer.Option(help="Values for executors of this host and user go through its memory, not HTTP.")
    ] = True,
    lease: Annotated[float, typer.Option(help="Seconds that a silent session is kept.")] = 900.0,
    until_stdin_closes: Annotated[bool, typer.Option(help="Stop at the end of stdin.")] = False,
) -> None:
    """Serves this machine's accelerator to remora clients until it is stopped."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        options = ServeOptions(
            front=FrontOptions(
                worker=WorkerOptions(
                    _device(device),
                    parse_nbytes(memory),
                    threads,
                    max_workers,
                    parse_nbytes(tenant_memory, "--tenant-memory"),
                    tuple(ops or ()),
                ),
                tokens=_tokens(host, token_file),
                lease_s=_lease(lease),
                peers=_peers(peers, host),
                same_host=same_host,
            ),
            host=host,
            port=port,
            tls=_tls(tls_cert, tls_key),
            until_stdin_closes=until_stdin_closes,
        )
    except ValueError as error:
        print(f"remora serve: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(run(options))


def parse_nbytes(text: str, option: str = "--memory") -> int:
    """'20GiB' (powers of 1024), '512MB' (powers of 1000), or plain bytes."""
    match = _NBYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{option} {text!r} is not an amount of memory; write 20GiB, 512MB, or bytes")
    unit = (match[2] or "").lower()
    return int(float(match[1]) * (1024 if unit.endswith("i") else 1000) ** _POWERS[unit[:1]])


def _device(device: str) -> str:
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"--device {device!r} is not one of auto, cpu, cuda:N")
    return device


def _lease(lease: float) -> float:
    if not 0 < lease < float("inf"):
        raise ValueError(f"--lease {lease} is not a number of seconds above 0")
    return lease


def _peers(text: str, host: str) -> PeerRule:
    try:
        return parse_peers(text, is_loopback(host))
    except ValueError as error:
        raise ValueError(f"--peers: {error}") from None


def _tokens(host: str, token_file: Path | None) -> Tokens:
    if token_file is None:
        if not is_loopback(host):
            raise ValueError(
                f"--host {host} can be reached from other machines, so --token-file is needed; "
                "it holds lines 'TOKEN tenant/user'"
            )
        return Tokens()
    try:
        return parse_tokens(token_file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--token-file {token_file}: {error}") from None


def _tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ValueError("--tls-cert and --tls-key go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"cannot read --tls-cert {cert} with --tls-key {key}: {error}") from None
    return context
