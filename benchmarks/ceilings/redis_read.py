"""The ceiling of a hit in Redis: a server that answers every call with what one connection to Redis reads for it, and
does nothing else.

    python redis_read.py REPLY_FILE RUNTIME MODULE PORT

as `no_op.py`. MODULE is that of the server, grpc.aio or pygrpc_native.aio; PORT is that of Redis.
"""

import asyncio
import importlib
import json
import sys
from collections import deque
from pathlib import Path

import grpc
import hiredis

SERVICE, METHODS = "exchange_service.v1.ExchangeService", ("ListExchanges", "GetBalance")
KEPT = ("grpc.max_receive_message_length", "grpc.max_send_message_length", "grpc.keepalive_time_ms")


class Link(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.waiting, self.reader = transport, deque(), hiredis.Reader()

    def data_received(self, data):
        self.reader.feed(data)
        while (answer := self.reader.gets()) is not False:
            call = self.waiting.popleft()
            if not call.done():
                call.set_result(answer)

    def ask(self, *command):
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append(answer)
        self.transport.write(hiredis.pack_command(command))
        return answer


async def main(reply, runtime, module, redis):
    _, link = await asyncio.get_running_loop().create_connection(Link, "127.0.0.1", redis)
    await link.ask("SET", "reply", reply)

    async def answer(request, context):
        return await link.ask("GET", "reply")

    server = module.server(options=[tuple(option) for option in runtime["options"] if option[0] in KEPT])
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_registered_method_handlers(SERVICE, dict.fromkeys(METHODS, handler))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)


setting, served = json.loads(sys.argv[2]), importlib.import_module(sys.argv[3])
importlib.import_module(setting["loop"]).run(main(Path(sys.argv[1]).read_bytes(), setting, served, int(sys.argv[4])))
