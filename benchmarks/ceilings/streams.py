"""The ceiling of a stream: a grpc.aio server that writes a message of the same size once a second to each stream.

    python streams.py SIZE RUNTIME ACCOUNTS

A message is a byte 255, the time at which it was made and zeros, and is made once for an account's subscribers, whose
requests hold its number. RUNTIME as in `no_op.py`. Prints the port.
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


class Streams(grpc.GenericRpcHandler):
    def __init__(self, size, accounts):
        self._size = size
        self._next = [asyncio.get_running_loop().create_future() for _ in range(accounts)]
        self._handler = grpc.unary_stream_rpc_method_handler(self._follow)
        self._tickers = [asyncio.create_task(self._tick(number, number / accounts)) for number in range(accounts)]

    def service(self, details):
        return self._handler

    async def _tick(self, number, phase):
        await asyncio.sleep(phase)
        while True:
            moved, self._next[number] = self._next[number], asyncio.get_running_loop().create_future()
            moved.set_result(b"\xff" + struct.pack(">d", time.time()) + bytes(self._size - 9))
            await asyncio.sleep(1)

    async def _follow(self, request, context):
        number = int(re.search(rb"user-(\d+)", request)[1])
        await context.write(b"\xff" + bytes(self._size - 1))
        while True:
            await context.write(await asyncio.shield(self._next[number]))


async def main(size, runtime, accounts):
    server = grpc.aio.server(options=[tuple(option) for option in runtime["options"]])
    server.add_generic_rpc_handlers((Streams(size, accounts),))
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
