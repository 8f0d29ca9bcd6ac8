"""Hosts as network namespaces of this machine, with real processes that listen and connect; see tests/namespaces.py.

    unshare --user --map-root-user --net --mount python namespace_stage.py < plan.json

The plan has `hosts` (name, address, tcp, udp: ports that it listens on, rules: lines of `ip rule`) and `probes`
(source, target's address, port, protocol). One line of JSON says what each probe met. All of it goes with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE_S = 5.0
REPLY = b"here"


def ip(lines: list[str], *options: str) -> None:
    subprocess.run(["ip", *options, "-batch", "-"], input="\n".join(lines), text=True, check=True)


def forward() -> None:
    """What forwards also says that it refuses, here each time and not once a second."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")


def build(hosts: list[dict[str, Any]]) -> None:
    """One namespace for each host, all connected through this one, which forwards and filters nothing."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    forward()
    ip(["link set lo up"])
    for number, host in enumerate(hosts):
        name, address, at = host["name"], host["address"], f"at{number}"
        ip(
            [
                f"netns add {name}",
                f"link add {at} type veth peer name eth0 netns {name}",
                f"addr add 192.0.2.1 dev {at}",
                f"link set {at} up",
                f"route add {address} dev {at}",
            ]
        )
        ip(
            [
                "link set lo up",
                f"addr add {address} dev eth0",
                "link set eth0 up",
                "route add 192.0.2.1 dev eth0",
                f"route add default via 192.0.2.1 dev eth0 src {address}",
                *host["rules"],
            ],
            "-netns",
            name,
        )


async def serve(host: dict[str, Any]) -> None:
    """Inside a namespace: listens, says so, and makes the probes once a line asks for them."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REPLY)
        await writer.drain()
        writer.close()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, _data: bytes, address: Any) -> None:
            self.transport.sendto(REPLY, address)

    forward()
    loop = asyncio.get_running_loop()
    servers = [await asyncio.start_server(greet, host["address"], port) for port in host["tcp"]]
    echoes = [await loop.create_datagram_endpoint(Echo, local_addr=(host["address"], port)) for port in host["udp"]]
    print("ready", flush=True)
    probes = json.loads(await asyncio.to_thread(sys.stdin.readline))
    print(json.dumps(await asyncio.gather(*(probe(*found) for found in probes))), flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # others may still ask this one
    del servers, echoes


async def probe(address: str, port: int, protocol: str) -> str:
    """What came back: the other's reply, nothing within a time, or the kernel's word for why not."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            if protocol == "UDP":
                return await ask(address, port)
            reader, writer = await asyncio.open_connection(address, port)
            said = await reader.read(len(REPLY))
            writer.close()
            return "reached" if said == REPLY else "closed"
    except TimeoutError:
        return "silence"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


async def ask(address: str, port: int) -> str:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    class Question(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            transport.sendto(b"who")

        def datagram_received(self, data: bytes, _address: Any) -> None:
            answer.set_result("reached" if data == REPLY else "closed")

        def error_received(self, error: Exception) -> None:
            if not answer.done():
                answer.set_exception(error)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Question, remote_addr=(address, port))
    try:
        return await answer
    finally:
        transport.close()


@contextlib.contextmanager
def processes(hosts: list[dict[str, Any]]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One in each namespace, and all of them listen."""
    started = {}
    try:
        for host in hosts:
            command = ["ip", "netns", "exec", host["name"], sys.executable, "-S", __file__, json.dumps(host)]
            started[host["name"]] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for process in started.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def main() -> None:
    plan = json.load(sys.stdin)
    build(plan["hosts"])
    with processes(plan["hosts"]) as started:
        asked: dict[str, list[Any]] = {name: [] for name in started}
        for source, *target in plan["probes"]:
            asked[source].append(target)
        for name, process in started.items():
            assert process.stdin is not None
            process.stdin.write(json.dumps(asked[name]) + "\n")
            process.stdin.flush()
        answers = {name: iter(json.loads(process.stdout.readline())) for name, process in started.items()}  # type: ignore[union-attr]
        print(json.dumps([next(answers[source]) for source, *_ in plan["probes"]]))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(serve(json.loads(sys.argv[1])))
    else:
        main()
