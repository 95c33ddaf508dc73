"""The ceiling of a unary call on the native engine: a `pygrpc_native.aio` server that answers with the same bytes, and
does nothing else.

    python native_no_op.py REPLY_FILE RUNTIME

as `no_op.py`. Handlers are registered by their names: all others would go to a grpcio server behind it.
"""

import asyncio
import gc
import importlib
import json
import sys
from pathlib import Path

import grpc
from pygrpc_native.aio import server as native_server

SERVICE, METHODS = "exchange_service.v1.ExchangeService", ("ListExchanges", "GetBalance")
# The options that it takes too; it raises an error for those that it cannot keep.
KEPT = ("grpc.max_receive_message_length", "grpc.max_send_message_length", "grpc.keepalive_time_ms")


async def main(reply, runtime):
    async def answer(request, context):
        return reply

    server = native_server(options=[tuple(option) for option in runtime["options"] if option[0] in KEPT])
    # Without serialisers: bytes in, bytes out.
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_registered_method_handlers(SERVICE, dict.fromkeys(METHODS, handler))
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
