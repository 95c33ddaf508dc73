"""The ceiling of a stream on the native engine: a `pygrpc_native.aio` server that writes a message of the same size
once a second to each stream.

    python native_streams.py SIZE RUNTIME ACCOUNTS

as `streams.py`, with the handler registered as in `native_no_op.py`.
"""

import asyncio
import gc
import importlib
import json
import re
import struct
import sys
import time

import grpc
from pygrpc_native.aio import server as native_server

KEPT = ("grpc.max_receive_message_length", "grpc.max_send_message_length", "grpc.keepalive_time_ms")


class Streams:
    def __init__(self, size, accounts):
        self._size = size
        self._next = [asyncio.get_running_loop().create_future() for _ in range(accounts)]
        self._tickers = [asyncio.create_task(self._tick(number, number / accounts)) for number in range(accounts)]

    async def _tick(self, number, phase):
        await asyncio.sleep(phase)
        while True:
            moved, self._next[number] = self._next[number], asyncio.get_running_loop().create_future()
            moved.set_result(b"\xff" + struct.pack(">d", time.time()) + bytes(self._size - 9))
            await asyncio.sleep(1)

    async def follow(self, request, context):
        number = int(re.search(rb"user-(\d+)", request)[1])
        await context.write(b"\xff" + bytes(self._size - 1))
        while True:
            await context.write(await asyncio.shield(self._next[number]))


async def main(size, runtime, accounts):
    server = native_server(options=[tuple(option) for option in runtime["options"] if option[0] in KEPT])
    handler = grpc.unary_stream_rpc_method_handler(Streams(size, accounts).follow)
    server.add_registered_method_handlers("exchange_service.v1.ExchangeService", {"StreamBalances": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.set_threshold(*runtime["thresholds"])
    if runtime["frozen"]:
        gc.collect()
        gc.freeze()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)


setting = json.loads(sys.argv[2])
runner = importlib.import_module(setting["loop"])
runner.run(main(int(sys.argv[1]), setting, int(sys.argv[3])))
