"""The ceiling of a unary call: a grpc.aio server that answers every method with the same bytes, and nothing else.

    python no_op.py REPLY_FILE RUNTIME

REPLY_FILE holds the bytes of a reply; RUNTIME is JSON: the loop's kind, the collector's setting and the server's
options, as the service that it is compared with has them. Prints the port.
"""

import asyncio
import gc
import importlib
import json
import sys
from pathlib import Path

import grpc


class NoOp(grpc.GenericRpcHandler):
    def __init__(self, reply):
        async def answer(request, context):
            return reply

        # Without serialisers: bytes in, bytes out.
        self._handler = grpc.unary_unary_rpc_method_handler(answer)

    def service(self, details):
        return self._handler


async def main(reply, runtime):
    server = grpc.aio.server(options=[tuple(option) for option in runtime["options"]])
    server.add_generic_rpc_handlers((NoOp(reply),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.set_threshold(*runtime["thresholds"])
    if runtime["frozen"]:
        gc.collect()
        gc.freeze()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


setting = json.loads(sys.argv[2])
runner = importlib.import_module(setting["loop"])
runner.run(main(Path(sys.argv[1]).read_bytes(), setting))
