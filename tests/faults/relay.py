"""A TCP relay in front of a server that must not lose its memory: python -m tests.faults.relay.

The S3 server of the tests keeps its buckets in memory, so what is killed is the way to it: every
connection is cut and new ones are refused, which is all that clients see of a server's death.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

HOST = "127.0.0.1"


async def relay(port: int, target: int) -> None:
    """Pass bytes on from one port to another, for ever."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, target)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    server = await asyncio.start_server(meet, HOST, port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(relay(int(sys.argv[1]), int(sys.argv[2])))
